"""Sphinx configuration; `make docs` builds with warnings as errors."""

import shutil
from pathlib import Path

import mma_adapter

# Notebooks are kept as scripts in examples/; the site shows copies (`make notebooks` runs them).
HERE = Path(__file__).parent
shutil.rmtree(HERE / "notebooks", ignore_errors=True)
(HERE / "notebooks").mkdir()
for notebook in sorted((HERE.parent / "examples").glob("[0-9]*.py")):
    shutil.copy(notebook, HERE / "notebooks")

project = "mma_adapter"
author = "The mma_adapter authors"
release = version = mma_adapter.__version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
html_theme = "furo"
html_title = "mma_adapter"
html_show_copyright = False
html_static_path = ["_static"]
exclude_patterns = ["_build", "*.py", "results/**/*.md"]
nb_execution_mode = "off"
nb_custom_formats = {".py": ["jupytext.reads", {"fmt": "py:percent"}]}
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "description"
napoleon_google_docstring = True
suppress_warnings = ["mystnb.unknown_mime_type"]
nitpicky = False
# Docstrings write code in single backticks.
default_role = "code"
