# Everything runs in a virtual environment of its own, made when first needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: sine test lint types pytest evidence figures clean

sine: $(VENV)/installed
	$(BIN)/python -m experiments.sine --flagfile=experiments/flags/sine.flags

test: lint types pytest

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed-test
	$(BIN)/mypy

pytest: $(VENV)/installed-test
	$(BIN)/python -m pytest -n 2

# What takes minutes: the slow tests.
evidence: $(VENV)/installed-test
	$(BIN)/python -m pytest -m slow

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/installed-test: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable ".[test]"
	touch $@ $(VENV)/installed

clean:
	rm -rf $(VENV) build *.egg-info
