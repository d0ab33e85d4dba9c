# make demo    a PostgreSQL of its own, workers and jobs; Ctrl-C removes it all
# make test    every test, on PostgreSQL 18 (from the package registry) and on 15 where it is installed
# make check   what a reviewer would say anyway: lint, format, types, imports
# make bench   the benchmarks behind the numbers in README
# make peers   the same work done by other job queues, which it installs into a cache of their own
# Needs Python 3.11 or newer and a package registry; PYTHON=... chooses the interpreter, JOBS=... the parallel tests.

VENV ?= .venv
JOBS ?= 3
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test check bench peers clean
.DEFAULT_GOAL := test

demo: $(READY)
	$(BIN)/python -m pgqueue demo $(ARGS)

test: $(READY)
	$(BIN)/python -m pytest -n $(JOBS) $(ARGS)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)
	$(BIN)/python -m benchmarks $(ARGS)

peers: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	$(BIN)/python -m benchmarks.peers $(ARGS)

$(READY): pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer not found: install it, or say make PYTHON=/path/to/python"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo "$(PYTHON) can't make a virtual environment: on Debian, apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[embedded,test]'
	@touch $@

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis htmlcov .coverage*
