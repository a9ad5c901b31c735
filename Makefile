# On a machine with nothing but Python 3.11 or newer, each of these sets up what it needs first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= auto
# each test worker has a processor of its own; more threads than processors wait for each other
ONE_THREAD := OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1
# scvi-tools, which `make bench` compares with, has an environment of its own; or name its interpreter
PEER_VENV := .peer-venv
ifeq ($(PEER_PYTHON),)
PEER_PYTHON := $(PEER_VENV)/bin/python
PEER := $(PEER_VENV)/.installed
endif

.PHONY: help venv venv-dev browser demo test test-all lint format bench bench-quality bench-scale bench-sizes clean

help:
	@echo "make demo       simulate CITE-seq data, fit it, and write figures and results to totalvi-demo/"
	@echo "make test       run the tests (make test-all: the slow ones too)"
	@echo "make browser    install Chromium, which the tests of pages need (Debian, as root)"
	@echo "make lint       check style, types and security"
	@echo "make bench      time totalvi and scvi-tools side by side (see benchmarks/README.md)"
	@echo "make bench-quality  measure the quality of the fit (needs real data)"
	@echo "make bench-scale  measure training and queries of a million cells on disk"
	@echo "make bench-sizes  run every command at 1,000 to 200,000 cells: does it end, how long, how much memory"
	@echo "make venv       only set up the environment in $(VENV)"

venv: $(VENV)/.installed
venv-dev: $(VENV)/.installed-dev

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@

demo: venv
	$(BIN)/totalvi demo --output totalvi-demo --overwrite

# For the tests of pages; where this cannot be, they are skipped and say so.
browser:
	@command -v chromium chromium-browser >/dev/null || \
	  { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	    apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium >/dev/null; } || \
	  echo "no Chromium: tests of pages are skipped"

test: venv-dev
	$(ONE_THREAD) $(BIN)/python -m pytest -q -n $(WORKERS) -m "not slow"

test-all: venv-dev
	$(ONE_THREAD) $(BIN)/python -m pytest -q -n $(WORKERS)

lint: venv-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/bandit --quiet --recursive --configfile pyproject.toml src

format: venv-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(PEER_VENV)/.installed:
	$(PYTHON) -m venv $(PEER_VENV)
	$(PEER_VENV)/bin/python -m pip install --quiet torch==2.13.0 scvi-tools==1.4.2
	@touch $@

bench: venv-dev $(PEER)
	$(BIN)/python benchmarks/speed/run.py --peer-python $(PEER_PYTHON) $(BENCH_OPTIONS)

bench-quality: venv-dev
	$(BIN)/python benchmarks/quality.py

bench-scale: venv
	$(BIN)/python benchmarks/scale.py $(BENCH_OPTIONS)

# for its pages: `make browser`
bench-sizes: venv-dev
	$(BIN)/python benchmarks/sizes.py $(BENCH_OPTIONS)

clean:
	rm -rf $(VENV) $(PEER_VENV) totalvi-demo .mypy_cache .ruff_cache
