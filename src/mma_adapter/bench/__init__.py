"""The paper's protocols: methods, recipes, runs, and the records tables and plots come from."""
