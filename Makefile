# Everything runs in a virtual environment of its own; PYTHON picks the interpreter.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test check lint style docs notebooks clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The demo needs the library with its `train` and `report` extras, nothing else.
$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e ".[train,report]"
	touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e ".[test,onnx]"
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e ".[dev]"
	touch $@

demo: $(VENV)/.demo ## Train, save, reload and look at an adapter on the embedded pictures
	$(BIN)/mma-adapter demo -o demo-out

# One process per core with one thread each: the tests are many and small.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto

test: $(VENV)/.test ## Run the tests
	$(PYTEST)

check: lint ## Everything a change must pass: format, lint, types, tests, notebooks, docs
	$(PYTEST) --cov=mma_adapter --cov-report=term
	$(MAKE) notebooks docs

lint: $(VENV)/.dev ## Format, lint and types, without changing anything
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

notebooks: $(VENV)/.dev ## Run the notebooks from top to bottom
	mkdir -p $(VENV)/notebooks
	for source in examples/*.py; do \
		$(BIN)/jupytext --quiet --to ipynb --output $(VENV)/notebooks/$$(basename $$source .py).ipynb $$source || exit 1; \
	done
	$(BIN)/python -m pytest -p no:cacheprovider --rootdir=$(VENV)/notebooks -c /dev/null --nbmake --nbmake-timeout=600 $(VENV)/notebooks

docs: $(VENV)/.dev ## Build the documentation; warnings are errors
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html

style: $(VENV)/.dev ## Rewrite the code in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) docs/_build demo-out dist
