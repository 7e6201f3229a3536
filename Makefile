# `make` alone lists the targets. Everything they need is set up in .venv the first time.

PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
READY  := $(VENV)/ready

.DEFAULT_GOAL := help
.PHONY: help run test lint types lab book serve guides mutants notebooks figures bench bench-gpu bench-peers growth soak model clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# The chapters import the package from any folder, so it is installed in place. The last line is for matplotlib,
# which otherwise prints into the first cell that it is searching for fonts.
$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "Could not make a virtual environment; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@$(PY) -c 'import matplotlib.font_manager'
	@touch $@

run: $(READY)  ## the tour: write Shakespeare, draw attention, train a fresh model for a minute
	$(PY) -m gpt tour

# Tests and chapters share two processes of one thread each; TQDM_DISABLE keeps progress bars out of the outputs.
test: lint  ## all checks: the tests, and every chapter run again
	TQDM_DISABLE=1 OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(PY) -m pytest tests notebooks --numprocesses 2 --dist loadfile \
	    --nbval --nbval-current-env --nbval-cell-timeout=120 --durations=10

lint: $(READY) types  ## style, format and types
	$(PY) -m ruff check
	$(PY) -m ruff format --check --quiet

types: $(READY)  ## the type checker alone
	$(PY) -m basedpyright

include docs/latex/diagrams.mk

# The peers lie outside .venv, so that the package never depends on them. A row goes on without one that is missing.
PEERS := build/peers
BENCH := PYTHONPATH=$(PEERS)/lib $(PY) -m benchmarks.run $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(THREADS),--threads $(THREADS))

bench: $(READY)  ## speed and memory beside other programs, all rows or ONLY="row group ...": docs/BENCHMARKS.md
	$(BENCH) $(if $(ONLY),--only $(ONLY))
	$(PY) -m benchmarks.report

bench-gpu: $(READY)  ## the same on a GPU
	$(BENCH) --only gpu
	$(PY) -m benchmarks.report

bench-peers: $(READY)  ## fetch those programs into build/peers (llama.cpp is compiled: minutes)
	$(PY) -m pip install --quiet --no-deps --target $(PEERS)/lib ctranslate2==4.8.5 gguf==0.19.0 diskcache==5.6.3
	$(PY) -m pip install --quiet --no-deps --target $(PEERS)/lib llama-cpp-python==0.3.36
	test -d $(PEERS)/nanoGPT || git clone --quiet --depth 1 https://github.com/karpathy/nanoGPT $(PEERS)/nanoGPT
	test -d $(PEERS)/llm.c || git clone --quiet --depth 1 https://github.com/karpathy/llm.c $(PEERS)/llm.c

growth: $(READY)  ## how the cost of a step grows with T, B, N and d_model, beside the formulas of gpt.scale
	$(PY) -m benchmarks.growth

soak: $(READY)  ## faults for MINUTES=10, with a SEED of your choice: kills, full disks, damaged files, odd arguments
	OMP_NUM_THREADS=1 $(PY) -m tests.soak $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED))

lab: $(READY)  ## open the chapters in JupyterLab
	$(PY) -m jupyterlab notebooks

book: $(READY)  ## the guides, the chapters and the package as one site, to be read offline
	@command -v npm >/dev/null || { echo "The book needs node and npm; on Debian and Ubuntu: apt install nodejs npm"; exit 1; }
	$(PY) -m docs.book.build

serve: book  ## open the book in a browser
	@(sleep 1; $(PY) -m webbrowser -t http://127.0.0.1:8000/) &
	$(PY) -m http.server --bind 127.0.0.1 --directory docs/_build/html 8000

guides: $(READY)  ## write what the guides' code prints into the guides
	$(PY) -m docs.tools.guides --update

mutants: $(READY)  ## put errors into the guides' formulas: which checks do not object?
	OMP_NUM_THREADS=1 $(PY) -m docs.tools.mutants

notebooks: $(READY)  ## run the chapters and store what they print
	$(PY) -m docs.tools.chapters

figures: $(READY)  ## draw the figures of README and guides again
	$(PY) -m gpt attend --text "To be, or not to be" --out figures/attention
	$(PY) -m docs.tools.guides --draw

# What made the bundled model (about 40 minutes on one core, given Tiny Shakespeare; see record.json beside it).
model: $(READY)  ## train the bundled model again
	$(PY) -m gpt train tinyshakespeare --steps 6000 --batch-size 32 --lr 2e-3 --warmup 150 --weight-decay 1.5 \
	    --average 0.99 --precision bfloat16 --seed 1 --out runs/tinyshakespeare
	cp runs/tinyshakespeare/best/* gpt/storage/tinyshakespeare/

clean:  ## remove what can be made again, but keep downloads and runs
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache figures/tour docs/_build
