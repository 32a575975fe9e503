# Everything runs in a virtual environment of its own, made when first needed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: sine test lint types pytest survival evidence figures tables notebooks newcomer clean

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

# The evidence is compiled as users compile; the default suite quickly (tests/xla_flags.py).
AS_USERS_DO := XLA_FLAGS=--xla_backend_optimization_level=3

# Kills, signals, full disks and hostile files: the slow tests of what docs/faults.md promises.
survival: $(VENV)/installed-test
	$(AS_USERS_DO) $(BIN)/python -m pytest -m "slow and survival" tests

# What takes minutes: the slow tests.
evidence: $(VENV)/installed-test $(VENV)/installed-notebooks
	$(AS_USERS_DO) $(BIN)/python -m pytest -m slow

# The README by its word: a fresh clone, fresh environments, every command and every block of code.
newcomer: $(VENV)/installed-test
	RNN_JAX_NEWCOMER=1 $(BIN)/python -m pytest -m slow tests/newcomer_test.py

# The figures of the README, from the code as it is.
figures: $(VENV)/installed-test
	$(BIN)/python -m experiments.sine --flagfile=experiments/flags/sine.flags --overwrite
	$(BIN)/python -m experiments.sine --flagfile=experiments/flags/sine_6000.flags --overwrite
	$(BIN)/python -m experiments.gradient_flow --flagfile=experiments/flags/gradient_flow.flags --overwrite
	$(BIN)/python -m experiments.gradient_sweep --flagfile=experiments/flags/phase_diagram.flags --overwrite
	cp runs/phase_diagram/phase_diagram.png docs/figures/phase_diagram.png
	for name in temporal_order flossing foretold; do \
		$(BIN)/python -m experiments.memory --flagfile=experiments/flags/$$name.flags --overwrite; done
	cp runs/temporal_order/success.png docs/figures/temporal_order_success.png
	cp runs/temporal_order/gradient_profiles.png docs/figures/temporal_order_profiles.png
	cp runs/flossing/success.png docs/figures/flossing.png
	cp runs/foretold/foretold.png docs/figures/foretold.png
	$(BIN)/python -m experiments.series --flagfile=experiments/flags/series.flags --overwrite
	cp runs/series/forecast.png docs/figures/series_forecast.png
	$(BIN)/python -m experiments.digits --flagfile=experiments/flags/digits.flags --overwrite
	cp runs/digits/gradient_profiles.png docs/figures/digits_profiles.png
	cp runs/sine_6000/free_run.png docs/figures/tutorial_free_run.png
	for name in free_run gradient_heatmap gradient_profile closed_loop loss; do \
		cp runs/sine/$$name.png docs/figures/sine_$$name.png; done
	cp runs/gradient_flow/comparison.png docs/figures/three_cases.png

# The notebooks, run, with their pictures: runs/notebooks/*.ipynb.
notebooks: $(VENV)/installed-notebooks
	$(BIN)/python -m experiments.execute

# The table of 20 seeds in the README.
tables: $(VENV)/installed
	for name in sine_200 sine_6000 sine; do \
		$(BIN)/python -m experiments.sine --flagfile=experiments/flags/$$name.flags \
			--seeds=20 --workdir=runs/seeds_$$name --overwrite; done

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/installed-test: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable ".[test]"
	touch $@ $(VENV)/installed

$(VENV)/installed-notebooks: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable ".[notebooks]"
	touch $@ $(VENV)/installed

clean:
	rm -rf $(VENV) build *.egg-info
