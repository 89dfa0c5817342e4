# Every target sets itself up: one virtual environment in .venv, made anew when the pins change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed.stamp
BENCH_STAMP := $(VENV)/bench.stamp
RUN_DIR ?= runs/demo

.PHONY: help demo test test-slow lint types bench clean
.DEFAULT_GOAL := help

help:
	@echo "make demo       simulate a small cohort and take it through everything (RUN_DIR=$(RUN_DIR))"
	@echo "make test       the fast tests"
	@echo "make test-slow  the slow ones"
	@echo "make lint       style, types and import rules"
	@echo "make bench      the short benchmarks"

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "genebold needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)."; \
	  echo "Name another one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Setting up $(VENV) (once; a few minutes and about 6 GB, most of it PyTorch) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]" -c constraints.txt
	@touch $@

demo: $(STAMP)
	@$(BIN)/genebold demo run_dir=$(RUN_DIR)

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not slow" $(PYTEST_ARGS)

test-slow: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m slow $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

types: lint

$(BENCH_STAMP): $(STAMP)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[bench]" -c constraints.txt
	@touch $@

bench: $(BENCH_STAMP)
	@for table in scan block windows encode_stage; do \
	  $(BIN)/python benchmarks/$$table.py --short || exit 1; echo; \
	done

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
