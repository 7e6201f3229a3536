# `make` alone lists the targets. Everything they need is set up in .venv the first time.

PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
READY  := $(VENV)/ready

.DEFAULT_GOAL := help
.PHONY: help run test lint guides figures bench model clean

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

guides: $(READY)  ## write what the guides' code prints into the guides
	$(PY) -m pytest tests/test_guides.py --update-guides -k prints_stands

figures: $(READY)  ## draw the figures of README and guides again
	$(PY) -m gpt attend --text "To be, or not to be" --out figures/attention
	$(PY) -m gpt.support.example

# What made the bundled model (about 40 minutes on one core, given Tiny Shakespeare; see record.json beside it).
model: $(READY)  ## train the bundled model again
	$(PY) -m gpt train tinyshakespeare --steps 6000 --batch-size 32 --lr 2e-3 --warmup 150 --weight-decay 1.5 \
	    --average 0.99 --precision bfloat16 --seed 1 --out runs/tinyshakespeare
	cp runs/tinyshakespeare/best/* gpt/support/tinyshakespeare/

clean:  ## remove what can be made again, but keep downloads and runs
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache figures/tour
