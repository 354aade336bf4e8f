# The two commands of the README. Each sets up what it needs in .venv, once.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# Tests run side by side, a process per core: with threads of their own, torch and BLAS would spin for each other.
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
# Each of the processes that tests start would compile satstore anew.
unexport PYTHONDONTWRITEBYTECODE
SETUP := pyproject.toml constraints.txt Makefile

# What hypothesis and the soak draw; give it to repeat them.
ifndef SEED
SEED := $(shell od -An -N3 -tu4 /dev/urandom | tr -d ' ')
endif
# More for pytest, such as ARGS="-p randomly" (tests in random order), or ARGS=tests/test_run.py.
ARGS ?=

.PHONY: demo test lint types contracts tests test-long coverage soak audit clean

demo: $(VENV)/.installed
	@$(BIN)/satstore demo

# What is quick, in minutes: side by side, for lint and types take a core's minute.
test: $(VENV)/.installed-test
	@$(MAKE) --no-print-directory --jobs --keep-going lint types contracts tests

lint: $(VENV)/.installed-test
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .

types: $(VENV)/.installed-test
	@$(BIN)/mypy --no-error-summary

contracts: $(VENV)/.installed-test
	@$(BIN)/lint-imports --no-logo --no-cache > $(VENV)/contracts || (cat $(VENV)/contracts; false)

tests: $(VENV)/.installed-test
	@$(ONE_THREAD) $(BIN)/python -m pytest -m "not long" $(ARGS)

# What is slow: real kills, demos, notebooks, every documented command, every model; and what is drawn anew.
test-long: $(VENV)/.installed-test
	@echo "what is drawn is drawn again by: make test-long SEED=$(SEED)"
	@$(ONE_THREAD) $(BIN)/python -m pytest -m "long or hypothesis" \
		--hypothesis-profile=anew --hypothesis-seed=$(SEED) -rs $(ARGS)

# Which lines and branches all tests together reach, in processes that they start too.
coverage: $(VENV)/.installed-test
	@$(ONE_THREAD) $(BIN)/python -m pytest --cov --cov-report= $(ARGS); status=$$?; \
		$(BIN)/coverage report --sort=cover; exit $$status

# The long forms of the tests of reliability (docs/reliability.md), for 30 minutes at most.
soak: $(VENV)/.installed-test
	@$(ONE_THREAD) $(BIN)/python tests/soak.py 30 $(SEED)

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
