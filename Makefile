# The two commands of the README. Each sets up what it needs in .venv, once.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# Tests run side by side, a process per core: with threads of their own, torch and BLAS would spin for each other.
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
SETUP := pyproject.toml constraints.txt Makefile

.PHONY: demo test soak audit clean

demo: $(VENV)/.installed
	@$(BIN)/satstore demo

test: $(VENV)/.installed-test
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@$(ONE_THREAD) $(BIN)/python -m pytest

# The long forms of the tests of reliability (docs/reliability.md), for 30 minutes at most.
soak: $(VENV)/.installed-test
	@$(ONE_THREAD) $(BIN)/python tests/soak.py 30

# Known weaknesses of the versions that constraints.txt names; asks PyPI, and fails where that knows nothing of one.
audit:
	@$(PYTHON) -m venv $(VENV)-audit
	@$(VENV)-audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	@$(VENV)-audit/bin/pip-audit --strict --disable-pip --no-deps --requirement constraints.txt

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "satstore needs Python 3.11 or newer; name one: make PYTHON=python3.11 demo")'
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python $(SETUP)
	@echo "installing satstore into $(VENV): torch is large, this takes some minutes"
	@$(PIP) --editable .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	@echo "installing the test tools into $(VENV)"
	@$(PIP) --editable '.[test]'
	@touch $@

clean:
	rm -rf $(VENV) $(VENV)-audit build dist .mypy_cache .ruff_cache .hypothesis .import_linter_cache
