# One word a job; each makes the virtual environment first, if need be.

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DOCUMENTING := $(VENV)/.documenting

.PHONY: demo test lint release docs bench speed figures

demo: $(INSTALLED)
	$(BIN)/bvdm-data preview --output demo --clips 4 --workers 2

test: $(INSTALLED)
	$(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

release: $(INSTALLED)
	$(BIN)/python -m pytest tests/test_release.py -m release

docs: $(DOCUMENTING)
	$(BIN)/sphinx-build --fail-on-warning --keep-going -d build/doctrees docs site

bench: $(INSTALLED)
	$(BIN)/python -m pytest benchmarks -m slow -s

speed: $(INSTALLED)
	$(BIN)/python -m benchmarks.speed

figures: $(INSTALLED)
	$(BIN)/python -m benchmarks.figures

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

$(DOCUMENTING): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	touch $@
