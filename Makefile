PYTHON ?= python3
VENV ?= .venv
MODALITY ?= image
START ?=
# Processes that run tests side by side; one test starts up to four more.
WORKERS ?= 2
BIN = $(VENV)/bin
PYTEST = $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

$(BIN)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

install: $(BIN)/.installed

quickstart: install $(if $(START),$(BIN)/.installed-$(START))
	$(BIN)/python examples/quickstart.py $(if $(START),--start $(START),$(MODALITY))

$(BIN)/.installed-%: $(BIN)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	touch $@

test: install
	$(PYTEST)

test-quick: install
	$(PYTEST) -m "not slow"

test-slow: install
	$(PYTEST) -m slow

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: install quickstart test test-quick test-slow lint
