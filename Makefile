# `make` or `make help` lists the targets.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
PYTEST_ARGS ?=

PY := $(VENV)/bin/python
READY := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help train test lint bench report clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

train: $(READY) ## Train a small model on the embedded corpus (more overrides: ARGS="seed=2")
	$(PY) -m phasegpt.train +experiment=quickstart $(ARGS)

test: $(READY) ## Run the whole test suite (more options: PYTEST_ARGS="-k data")
	$(PY) -m pytest $(PYTEST_ARGS)

lint: $(READY) ## Check style, formatting and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

bench: $(READY) ## Measure training speed (more options: ARGS="...")
	$(PY) scripts/bench_train.py $(ARGS)

report: $(READY) ## Print the table of the committed results
	$(PY) scripts/analyze_results.py results $(ARGS)

clean: ## Remove caches and builds; keep the environment, runs and checkpoints
	rm -rf build dist .pytest_cache .hypothesis .ruff_cache .mypy_cache
	find conf phasegpt scripts tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Installed again when either file is newer than the last complete install.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -c constraints.txt -e ".[dev]"
	touch $@
