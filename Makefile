# One word a job; each makes the virtual environment first, if need be.

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: demo test test-all lint release docs bench speed figures gpu

demo: $(VENV)/.installed
	$(BIN)/bvdm-data preview --output demo --clips 1 --frames 6 --size 160x160

test: $(VENV)/.test
	$(PYTEST) -n 2 --dist loadgroup

test-all: $(VENV)/.test
	$(PYTEST) -n 2 --dist loadgroup -m 'not slow and not gpu and not release'

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

release: $(VENV)/.dev
	$(PYTEST) tests/test_release.py -m release

docs: $(VENV)/.docs
	$(BIN)/python -m benchmarks.gallery
	$(BIN)/bvdm-data preview --clips 1 --variation 0 --page --page-seeds 2 --output build
	$(BIN)/sphinx-build --fail-on-warning --keep-going -d build/doctrees docs site

bench: $(VENV)/.dev
	$(BIN)/python -m pytest benchmarks -m slow -s

speed: $(VENV)/.test
	$(BIN)/python -m benchmarks.speed

figures: $(VENV)/.test
	$(BIN)/python -m benchmarks.figures

# With the torch that python3 has; nothing of this package is installed.
gpu:
	$(PYTHON) -m benchmarks.bench_gpu

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

# An environment for each extra's tools: test, lint, dev, docs.
$(VENV)/.%: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	touch $@
