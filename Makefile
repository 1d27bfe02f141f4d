# `make demo` and `make test` do everything from a bare checkout; Python 3.11+ and make are all they need.
PYTHON ?= python3
VENV ?= .venv
LOCK ?= requirements.lock
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-slow test-extras test-floor lint types check bench clean
.DEFAULT_GOAL := test

$(READY): pyproject.toml $(LOCK)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12"; exit 1; }
	@echo "Setting up $(VENV) (once) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --upgrade 'pip>=25.1'
	@$(BIN)/python -m pip install -q -c $(LOCK) -e '.[all,demo]' --group dev
	@touch $@

demo: $(READY) ## the main job on real data, in ./demo-data
	@$(BIN)/python examples/flights.py

test: $(READY) ## all tests but the longer sweeps
	$(BIN)/python -m pytest -q -n auto -m 'not slow'

test-slow: $(READY) ## the longer sweeps
	$(BIN)/python -m pytest -q -m slow

test-extras: $(READY) ## every extra, alone in an environment of its own
	$(BIN)/python tests/extras/run.py

test-floor: ## all tests on the oldest releases that are supported
	$(MAKE) test VENV=.venv-floor LOCK=requirements-floor.txt

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/pyright --pythonpath $(BIN)/python

check: test lint types

bench: $(READY) ## figures for docs/performance.md
	$(BIN)/python benchmarks/write.py
	$(BIN)/python benchmarks/larger_than_memory.py
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/python benchmarks/s3.py
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/conservation.py
	$(BIN)/python benchmarks/sqlite_build.py
	$(BIN)/python benchmarks/slatedb_put.py
	$(BIN)/python benchmarks/cel.py

clean:
	rm -rf $(VENV) .venv-floor demo-data
