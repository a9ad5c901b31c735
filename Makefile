# On a machine with nothing but Python 3.11 or newer, each of these sets up what it needs first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= auto
# each test worker has a processor of its own; more threads than processors wait for each other
ONE_THREAD := OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1
# scvi-tools, which `make bench` compares with, has an environment of its own; or name its interpreter
PEER_VENV := .peer-venv
LOWEST_VENV := .venv-lowest
NEWEST_VENV := .venv-newest
ifeq ($(PEER_PYTHON),)
PEER_PYTHON := $(PEER_VENV)/bin/python
PEER := $(PEER_VENV)/.installed
endif
# scmidas, which `make bench-field` compares with too, needs an older torch, in an environment of its own
MIDAS_VENV := .midas-venv
ifeq ($(MIDAS_PYTHON),)
MIDAS_PYTHON := $(MIDAS_VENV)/bin/python
MIDAS := $(MIDAS_VENV)/.installed
endif

.PHONY: help venv venv-dev browser demo docs dist test test-all test-install test-lowest test-newest coverage lint format bench bench-field bench-quality bench-scale bench-sizes clean

help:
	@echo "make demo       simulate CITE-seq data, fit it, and write figures and results to totalvi-demo/"
	@echo "make test       run the tests (make test-all: the slow ones too)"
	@echo "make test-lowest  run the tests with the lowest versions that pyproject.toml allows"
	@echo "make test-newest  run them with the newest"
	@echo "make browser    install Chromium, which the tests of pages need (Debian, as root)"
	@echo "make docs       build the documentation site in site/, which opens without a network"
	@echo "make dist       build the wheel and the source distribution in dist/"
	@echo "make test-install  install each of them into an empty environment, and use it there"
	@echo "make coverage   run the tests and say which lines they do not reach"
	@echo "make lint       check style, types and security"
	@echo "make bench      time totalvi and scvi-tools side by side (see benchmarks/README.md)"
	@echo "make bench-field  predict hidden proteins and join a mosaic with totalvi and other methods (needs real data)"
	@echo "make bench-quality  measure the quality of the fit (needs real data)"
	@echo "make bench-scale  measure training and queries of a million cells on disk"
	@echo "make bench-sizes  run every command at 1,000 to 200,000 cells: does it end, how long, how much memory"
	@echo "make venv       only set up the environment in $(VENV)"

venv: $(VENV)/.installed
venv-dev: $(VENV)/.installed-dev

$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "Installing totalvi and what it needs into $(VENV)/, this time only. It takes minutes: first packages are downloaded,"
	@echo "PyTorch among them, and then unpacked, during which nothing is printed for a while."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable ".[all]"
	@$(BIN)/python -m totalvi.run.first_use || echo "They are compiled when they are first used instead."
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,docs]"
	@touch $@

demo: venv
	@echo "Starting totalvi demo; the first start takes a few seconds more."
	@$(BIN)/totalvi demo --output totalvi-demo --overwrite

# The tutorials run while the site is built; those that did not change are kept in .tutorials/.
docs: venv-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "site/index.html"

dist: venv-dev
	rm -rf dist
	$(BIN)/python -m build --outdir dist .

# As a user installs it: from the wheel and from the source, each in an environment of its own.
test-install: dist
	$(PYTHON) tools/try_install.py dist

coverage: venv-dev
	$(ONE_THREAD) $(BIN)/python -m pytest -q -n $(WORKERS) -m "not slow" --cov --cov-report=term --cov-report=html

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

# An environment of its own for each end of the bounds in pyproject.toml.
test-lowest: $(LOWEST_VENV)/.installed
	$(ONE_THREAD) $(LOWEST_VENV)/bin/python -m pytest -q -n $(WORKERS) -m "not slow"

$(LOWEST_VENV)/.installed: pyproject.toml tools/lowest.py
	$(PYTHON) -m venv --clear $(LOWEST_VENV)
	$(PYTHON) tools/lowest.py > $(LOWEST_VENV)/lowest.txt
	$(LOWEST_VENV)/bin/python -m pip install --quiet --constraint $(LOWEST_VENV)/lowest.txt --editable ".[dev]"
	@touch $@

# What is newest changes from day to day, so it is looked up every time.
test-newest:
	$(PYTHON) -m venv $(NEWEST_VENV)
	$(NEWEST_VENV)/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager --editable ".[dev]"
	$(ONE_THREAD) $(NEWEST_VENV)/bin/python -m pytest -q -n $(WORKERS) -m "not slow"

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

$(MIDAS_VENV)/.installed:
	$(PYTHON) -m venv $(MIDAS_VENV)
	$(MIDAS_VENV)/bin/python -m pip install --quiet scmidas==0.3.0
	@touch $@

# A program that cannot be installed is a row of the table, so that the others are still compared.
bench-field: venv-dev
	-@$(if $(PEER)$(MIDAS),$(MAKE) --no-print-directory --keep-going $(PEER) $(MIDAS))
	$(ONE_THREAD) $(BIN)/python benchmarks/field.py --scvi-python $(PEER_PYTHON) --midas-python $(MIDAS_PYTHON) $(BENCH_OPTIONS)

bench-quality: venv-dev
	$(BIN)/python benchmarks/quality.py

bench-scale: venv
	$(BIN)/python benchmarks/scale.py $(BENCH_OPTIONS)

# for its pages: `make browser`
bench-sizes: venv-dev
	$(BIN)/python benchmarks/sizes.py $(BENCH_OPTIONS)

clean:
	rm -rf $(VENV) $(PEER_VENV) $(MIDAS_VENV) $(LOWEST_VENV) $(NEWEST_VENV) totalvi-demo site dist htmlcov .tutorials .mypy_cache .ruff_cache
