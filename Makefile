# Set-up, tests and the quick start.  Everything goes into .venv; the system's Python is left alone.
#
#   make test PYTHON=python3.12     another interpreter
#   make test CONSTRAINTS=          the newest torch that pyproject.toml allows, for instance with its GPU libraries
#
# Both act when .venv is made: say `make clean` first if there is one.
# A compiler is not needed, so none is asked for: every dependency is a wheel or pure Python, and training runs
# with no compiler on PATH, because pretrain/loop/engine.py opts out of the one extension that DeepSpeed would build.

PYTHON := python3
CONSTRAINTS := constraints-cpu.txt
VENV := .venv
BIN := $(VENV)/bin

PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS:%=-c %)
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help quickstart test check fix bench zoo docs clean

help:        ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

quickstart: $(VENV)/.ready-test  ## data, pretraining, evaluation, fine-tuning and report in runs/quickstart
	$(BIN)/evenfield quickstart runs/quickstart

test: $(VENV)/.ready-test  ## the whole suite
	$(PYTEST)

check: $(VENV)/.ready-dev .links/evenfield  ## style, types and the fast tests
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(PYTEST) -m 'not slow'

fix: $(VENV)/.ready-dev  ## mend style as far as a program can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(VENV)/.ready-test  ## a training step beside a peer's; wants PEER_PYTHON=PEER/bin/python
ifdef PEER_PYTHON
	$(BIN)/python benchmarks/train_step.py --peer-python $(PEER_PYTHON)
else
	@echo "make bench PEER_PYTHON=PEER/bin/python; benchmarks/README.md says how to make the peer's environment"
endif

zoo: $(VENV)/.ready-test  ## train anew the small model that the package ships; some minutes
	rm -rf runs/zoo
	OMP_NUM_THREADS=1 $(BIN)/evenfield zoo build evenfield-s --into model_zoo/zoo/shipped --work runs/zoo

docs: $(VENV)/.ready-test  ## links and commands in the Markdown files: are they true?
	$(BIN)/python docs/check_links.py

clean:       ## remove .venv and what the tools left; runs/ stays
	rm -rf $(VENV) .links build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# What is wrong with $(PYTHON), in one line; empty when nothing is.
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
# torch first: it is the one package that may not exist for a machine, and the pinned one must be there before
# anything else pulls in another.
$(VENV)/.ready-%: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(if $(CONSTRAINTS),@$(PIP) torch)
	@$(PIP) -e '.[$*]'
	@touch $@

# Type checkers cannot see an editable install of mapped folders; for them, links under the import name.
.links/evenfield: pyproject.toml
	@mkdir -p $@
	@for folder in $$(sed -n 's/^"evenfield\..*" = "\(.*\)"$$/\1/p' pyproject.toml); do ln -sfn ../../$$folder $@; done
	@touch $@
