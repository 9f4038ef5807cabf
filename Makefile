# Sets everything up with nothing but Python >= 3.11 and its pip. `make help` lists the targets.
#   make train TORCH="torch==2.14.1"    another torch than the tested one
#   make test PYTHON=python3.13         another Python (remove .venv first)

PYTHON ?= python3
VENV ?= .venv
TORCH ?= $(shell sed -n 's/^\(torch==[^ ]*\).*/\1/p' constraints.txt)
ENV ?= sudoku4x4
TRAIN_ARGS ?=
DOCS_ARGS ?=
BENCH_ARGS ?=
# A file's tests go to one worker, since they share what it has trained; tests/conftest.py orders the files.
PYTEST_ARGS ?= -n 2 --dist loadfile --no-loadscope-reorder
SWEEPS ?= table2-upi table2 table2-nqueens8 table2-9x9

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
export TORCH

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help train compare bench test test-fast bounds faults fuzz lint types imports format check docs wheel clean FORCE

help: ## say what the targets do
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 18

train: $(VENV)/.installed ## set up, train on 4x4 Sudoku, print the evaluation table and where to look next
	$(BIN)/upi-trm train --env $(ENV) $(TRAIN_ARGS)

compare: $(VENV)/.installed-baselines ## train what is missing of SWEEPS (UPI-TRM and the baselines, hours), print the table
	set -e; for sweep in $(SWEEPS); do $(BIN)/upi-trm sweep $$sweep; done
	$(BIN)/upi-trm compare $(addprefix runs/,$(SWEEPS)) --plot runs/compare.png

bench: $(VENV)/.installed-baselines ## speed of everything as ratios (half an hour, Ctrl-C keeps what there is); flags what fell by 20%
	$(BIN)/python benchmarks/bench.py $(BENCH_ARGS)

test: $(VENV)/.installed-test ## set up with the test extra and run the test suite
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-fast: $(VENV)/.installed-test ## the tests not marked slow, without shape checks at run time: under three minutes on two cores
	$(BIN)/python -m pytest $(PYTEST_ARGS) -m 'not slow' -o addopts='--import-mode=importlib --strict-markers -ra'

# Machine code that checks its indices has a cache of its own: numba would take one for the other.
bounds: $(VENV)/.installed-test ## test the environments with every index of compiled code checked
	NUMBA_BOUNDSCHECK=1 NUMBA_CACHE_DIR=$(abspath $(VENV))/bounds-cache $(BIN)/python -m pytest $(PYTEST_ARGS) \
	  tests/plan_envs/test_boundary.py tests/plan_envs/test_registered.py -k 'test_boundary or fast_engine'

faults: $(VENV)/.installed-test ## break every writer off and damage every file, a thousand faults and more; writes the table of docs/faults.md
	$(BIN)/python tests/support/fault_suite.py --whole

fuzz: $(VENV)/.installed-test ## feed every reader 100,000 inputs (hours)
	FUZZ_EXAMPLES=100000 $(BIN)/python -m pytest $(PYTEST_ARGS) tests/project/test_fuzz.py

lint: $(VENV)/.installed-dev ## ruff check, ruff format --check, codespell
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

types: $(VENV)/.installed-dev ## mypy in strict mode
	$(BIN)/mypy

imports: $(VENV)/.installed-dev ## the one-way imports between the packages
	$(BIN)/lint-imports

check: lint types imports ## lint, types and imports

format: $(VENV)/.installed-dev ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-docs ## build the site into site/, warnings as errors; docs/make_pages.py makes its generated pages
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs --quiet build --strict $(DOCS_ARGS)

wheel: $(VENV)/.installed-test ## build the wheel into dist/
	$(BIN)/python -m hatchling build -t wheel -d dist

clean: ## remove the virtual environment and what tools left (runs/ stays)
	rm -rf $(VENV) build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache

# Stamps. torch goes first and alone, so that the project's own install finds it there and leaves it.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit("UPI-TRM needs Python 3.11 or newer, this is %d.%d (say make PYTHON=...)" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.torch-choice: $(VENV)/.created FORCE
	@echo "$$TORCH" | cmp -s - $@ || echo "$$TORCH" > $@

# $$TORCH is left to the shell's word splitting: it may hold options, and a ">=" in it must not redirect.
$(VENV)/.torch: $(VENV)/.torch-choice constraints.txt
	grep -v '^torch==' constraints.txt > $(VENV)/constraints.txt
	$(PIP) install -c $(VENV)/constraints.txt $$TORCH
	@touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	$(PIP) install -c $(VENV)/constraints.txt -e .
	@touch $@

$(VENV)/.installed-baselines: $(VENV)/.torch pyproject.toml
	$(PIP) install -c $(VENV)/constraints.txt -e '.[baselines,plot]'
	@touch $(VENV)/.installed $@

$(VENV)/.installed-test: $(VENV)/.torch pyproject.toml
	$(PIP) install -c $(VENV)/constraints.txt -e '.[test]'
	@touch $(VENV)/.installed $@

$(VENV)/.installed-dev: $(VENV)/.torch pyproject.toml
	$(PIP) install -c $(VENV)/constraints.txt -e '.[test,dev,render]'
	@touch $(VENV)/.installed $(VENV)/.installed-test $@

$(VENV)/.installed-docs: $(VENV)/.torch pyproject.toml
	$(PIP) install -c $(VENV)/constraints.txt -e '.[docs]'
	@touch $(VENV)/.installed $@
