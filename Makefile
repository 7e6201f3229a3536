# `make` alone lists the targets. Everything they need is set up in .venv the first time.

PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
READY  := $(VENV)/ready

.DEFAULT_GOAL := help
.PHONY: help run test lint bench model clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(READY): requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "Could not make a virtual environment; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

run: $(READY)  ## the tour: write Shakespeare, draw attention, train a fresh model for a minute
	$(PY) -m gpt tour

test: lint  ## all checks
	$(PY) -m pytest

lint: $(READY)
	$(PY) -m ruff check

bench: $(READY)  ## speed and memory side by side with transformers
	$(PY) benchmarks/compare.py

clean:  ## remove what can be made again, but keep downloads and runs
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache figures/tour
