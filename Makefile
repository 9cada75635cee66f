# Set-up, tests, documentation and the quick start.  Everything goes into .venv; the system's Python is left alone.
#
#   make test PYTHON=python3.12     use another interpreter
#   make test CONSTRAINTS=          use the newest torch that pyproject.toml allows, for instance with its GPU libraries
#
# Both take effect when .venv is created: run `make clean` first if there is one.
# No compiler is needed: every dependency is a wheel or pure Python, and pretrain/loop/engine.py opts out of the one
# extension that DeepSpeed would build.

PYTHON := python3
CONSTRAINTS := constraints-cpu.txt
VENV := .venv
BIN := $(VENV)/bin

# setuptools warns of every editable install of mapped folders, whatever they are called.
PIP := PYTHONWARNINGS="ignore:Editable installation" $(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS:%=-c %)
# tests/conftest.py puts slow files first; xdist would put those with few tests last, which slow files have
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist loadfile --no-loadscope-reorder

# The suite must cover this share of the lines, in per cent.  docs/coverage.md says what it leaves out and why.
COVERAGE_FLOOR := 95

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-oldest check style types fix docs links bench zoo clean

help:        ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

quickstart: $(VENV)/.ready-test  ## data, pretraining, evaluation, fine-tuning and report in runs/quickstart
	$(BIN)/evenfield quickstart runs/quickstart

test: $(VENV)/.ready-test  ## run the whole suite; with COVERAGE=1 count the lines that it runs
	$(PYTEST) $(if $(COVERAGE),--cov --cov-report=term --cov-fail-under=$(COVERAGE_FLOOR))

test-oldest: .venv-oldest/.ready  ## run the fast tests with the oldest dependencies; their own warnings are no errors
	OMP_NUM_THREADS=1 .venv-oldest/bin/pytest -q -n 2 --dist loadfile -m 'not slow' -o filterwarnings=default

check: style types $(VENV)/.ready-dev  ## style, types and the fast tests: run it before every commit
	$(PYTEST) -m 'not slow'

style: $(VENV)/.ready-dev  ## lint and format, without changing a file
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/.ready-dev .links/evenfield  ## check the types
	$(BIN)/mypy

fix: $(VENV)/.ready-dev  ## repair style as far as a program can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: links $(VENV)/.ready-docs  ## build the documentation site in build/docs; a warning is an error
	OMP_NUM_THREADS=1 $(BIN)/sphinx-build --quiet --fail-on-warning --keep-going -c docs -d build/doctrees . build/docs

links: $(VENV)/.ready-test  ## check that the links and commands in the Markdown files exist
	$(BIN)/python docs/check_links.py

bench: $(VENV)/.ready-test  ## compare a training step with a peer's; needs PEER_PYTHON=PEER/bin/python
ifdef PEER_PYTHON
	$(BIN)/python benchmarks/train_step.py --peer-python $(PEER_PYTHON)
else
	@echo "make bench PEER_PYTHON=PEER/bin/python; benchmarks/README.md says how to make the peer's environment"
endif

zoo: $(VENV)/.ready-test  ## train the small model that the package ships; takes some minutes
	rm -rf runs/zoo
	OMP_NUM_THREADS=1 $(BIN)/evenfield zoo build evenfield-s --into model_zoo/zoo/shipped --work runs/zoo --overwrite --allow-failed

clean:       ## remove .venv and what the tools left; runs/ stays
	rm -rf $(VENV) .venv-oldest .links build dist *.egg-info docs/api .coverage
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# What is wrong with $(PYTHON), in one line; empty when it will do.
problem = $(shell \
	if ! command -v '$(PYTHON)' >/dev/null; then \
	  echo "no '$(PYTHON)' here: install Python 3.11 or newer, or name one with PYTHON=/path/to/python3"; \
	elif ! '$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	  echo "'$(PYTHON)' is not Python 3.11 or newer but $$('$(PYTHON)' --version 2>&1 | head -n 1):" \
	    "name another with PYTHON=/path/to/python3"; \
	elif ! '$(PYTHON)' -c 'import ensurepip, venv' 2>/dev/null; then \
	  echo "'$(PYTHON)' lacks its venv module: install it (Debian, Ubuntu: apt install python3-venv)"; \
	fi)

$(BIN)/python:
	$(if $(problem),$(error $(problem)))
	@echo "making $(VENV): 1.7 GB and one to two minutes, once"
	@$(PYTHON) -m venv --upgrade-deps $(VENV) >/dev/null || { rm -rf $(VENV); exit 1; }

# The pip of 2023 that comes with Python 3.11 finds no set of versions where newer ones find one: it is upgraded first.
# torch comes first because it is the one package that may not exist for a machine, and the pinned version must be
# there before another package pulls in another one.
$(VENV)/.ready-%: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(if $(CONSTRAINTS),@$(PIP) torch)
	@$(PIP) -e '.[$*]'
	@touch $@

# An environment of its own with the lower bounds of pyproject.toml (constraints-oldest.txt says how they were found).
.venv-oldest/.ready: pyproject.toml constraints-oldest.txt
	$(if $(problem),$(error $(problem)))
	@$(PYTHON) -m venv --upgrade-deps .venv-oldest >/dev/null || { rm -rf .venv-oldest; exit 1; }
	@.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-oldest.txt -e '.[test]'
	@touch $@

# Type checkers cannot see an editable install of mapped folders; for them, links under the import name.
.links/evenfield: pyproject.toml
	@mkdir -p $@
	@for folder in $$(sed -n 's/^"evenfield\..*" = "\(.*\)"$$/\1/p' pyproject.toml); do ln -sfn ../../$$folder $@; done
	@touch $@
