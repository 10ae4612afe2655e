# make demo    the whole path on synthetic data, from nothing to a report
# make test    linters and all tests but the slow ones; what CI runs
# make help    the rest

PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= demo
DEMO_ROWS ?= 20000
DEMO_SEED ?= 1
STAMP := $(VENV)/.installed

.PHONY: help env demo test lint format test-slow clean

help:
	@grep -E '^# make' Makefile | sed 's/^# //'

# The environment is made anew when what it holds is declared anew.
$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not installed; give another: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[train,synth,test,dev]"
	@touch $(STAMP)

# make env     the environment in .venv
env: $(STAMP)

demo: $(STAMP)
	@PATH="$(abspath $(BIN)):$$PATH" DEMO="$(DEMO)" ROWS="$(DEMO_ROWS)" SEED="$(DEMO_SEED)" bash docs/demo.sh

test: lint
	$(BIN)/python -m pytest -q -m "not slow and not gpu"

# make lint    ruff and mypy --strict
lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# make format  put the code into its form
format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# make test-slow  the tests that take minutes: kills, long runs, memory
test-slow: $(STAMP)
	$(BIN)/python -m pytest -q -m "slow and not gpu" --timeout 1800

# make clean   everything that was made here
clean:
	rm -rf $(VENV) $(DEMO) .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
