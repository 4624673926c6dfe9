# `make` or `make help` lists the targets.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
PYTEST_ARGS ?=
SCALE ?= small

PY := $(VENV)/bin/python
READY := $(VENV)/.installed
# What training needs, without the tests' and studies' packages; `make test` has it too.
CAN_TRAIN := $(VENV)/.can_train
# What the site is built with, beside either.
CAN_DOCS := $(VENV)/.can_docs

# The sweeps of a study in their order; each scale has records of its own.
STUDY_phase_a := phase_a phase_a_controls phase_a_phase_sync phase_a_as_coded phase_a_more
STUDY_phase_a_long := phase_a_long
STUDY_phase_a_late := phase_a_late phase_a_late_k2 phase_a_late_phase_sync phase_a_late_as_coded phase_a_late_learned
STUDY_phase_b := phase_b phase_b_controls phase_b_secondary
STUDY_leaderboard := leaderboard
# Jobs with a committed record are done, on a fresh clone too.
WORDS = records=$(RECORDS) $(if $(filter phase_a_late,$(NAME)),,scale=$(SCALE)) \
	$(if $(filter leaderboard,$(NAME)),stage=rates$(,)screen)
, := ,
RECORDS = results/$(NAME)$(if $(filter full,$(SCALE)),_full)
PHASES = $(patsubst %/runs,%,$(wildcard results/phase_[ab]/runs results/phase_[ab]_full/runs))

.DEFAULT_GOAL := help
.PHONY: help train test test-all mutations fuzz kills endurance lint bench study report docs clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

train: $(CAN_TRAIN) ## Train a small model on the embedded corpus (ARGS="seed=2"; stopped: ARGS="resume=true")
	$(PY) -m phasegpt.train +experiment=quickstart $(ARGS)

# Two workers with one thread each; a file stays with one worker, which makes its runs once.
# In the order of tests/conftest.py, whose long files come first, so that both workers end together.
PYTEST = OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: $(READY) ## Run the test suite in two workers (more options: PYTEST_ARGS="-k data")
	$(PYTEST) -m "not slow" $(PYTEST_ARGS)

test-all: $(READY) ## Run the slow tests too
	$(PYTEST) $(PYTEST_ARGS)

mutations: $(READY) ## Put deliberate mistakes into a copy of the code; the tests must notice each
	$(PY) tests/mutations.py $(ARGS)

fuzz: $(READY) ## Try thousands of hostile inputs (ARGS="--cases 10000 --seed 1")
	OMP_NUM_THREADS=1 $(PY) tests/hostile/__main__.py $(ARGS)

kills: $(READY) ## Kill trainings with -9 at 300 moments and compare what is resumed (ARGS="--kills 50")
	$(PY) tests/kills.py $(ARGS)

endurance: $(READY) ## Six jobs on one empty cache, ten times; memory over many steps and texts (ARGS="--rounds 2")
	$(PY) tests/endurance.py $(ARGS)

lint: $(READY) ## Check style, formatting and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

bench: $(READY) ## Measure training speed (more options: ARGS="...")
	$(PY) scripts/bench_train.py $(ARGS)

study: $(READY) ## Run all sweeps of a study, collect them (NAME=phase_a|phase_a_late|phase_a_long|phase_b|leaderboard SCALE=small|full ARGS="...")
	@test -n "$(STUDY_$(NAME))" || { echo "NAME=$(NAME); choose from: phase_a, phase_a_late, phase_a_long, phase_b, leaderboard"; exit 2; }
	@case "$(SCALE)" in small|full) ;; *) echo "SCALE=$(SCALE); choose from: small, full"; exit 2;; esac
	@test "$(NAME)-$(SCALE)" != phase_a_late-full || { echo "phase_a_late has SCALE=small only; its full size is NAME=phase_a_long"; exit 2; }
	@failed=0; for sweep in $(STUDY_$(NAME)); do \
		$(PY) -m phasegpt.train -m +sweep=$$sweep $(WORDS) $(ARGS) || failed=1; \
		$(PY) scripts/analyze_results.py runs/$$sweep-$(SCALE) --into $(RECORDS) $(if $(filter leaderboard,$(NAME)),,--test) || failed=1; \
	done; exit $$failed

report: $(READY) ## Write every table, figure, page and verdict of results/ anew from the records
	$(PY) scripts/analyze_results.py results $(ARGS)
	$(if $(wildcard results/discovery_fsn),$(PY) scripts/page_discovery_fsn.py)
	$(if $(wildcard results/discovery_lohe),$(PY) scripts/page_discovery_lohe.py)
	$(if $(wildcard results/reproductions/agreement),$(PY) scripts/page_agreement.py results/reproductions/agreement)
	$(if $(wildcard results/speed),$(PY) scripts/bench_peers.py --page results/speed)
	$(if $(wildcard results/samplers),$(PY) scripts/bench_samplers.py --regenerate results/samplers)
	$(if $(wildcard results/*temperature),$(PY) scripts/study_temperature.py --regenerate $(wildcard results/*temperature))
	$(if $(findstring phase_b,$(PHASES)),$(PY) scripts/check_preregistration.py $(PHASES) --out results/phase_b/verdicts.md)

docs: $(CAN_DOCS) ## Build the pages as a site, build/site/index.html; a warning is an error
	$(PY) -m sphinx -q -W --keep-going -c docs . build/site

clean: ## Remove caches and builds; keep the environment, runs and checkpoints
	rm -rf build dist .pytest_cache .hypothesis .ruff_cache .mypy_cache
	find conf phasegpt scripts tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Installed again when either file is newer than the last complete install.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -c constraints.txt -e ".[dev]"
	touch $@ $(CAN_TRAIN)

$(CAN_TRAIN): pyproject.toml constraints.txt
	@echo "setting up $(VENV): PyTorch and what training needs, some minutes and gigabytes once"
	@$(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install -q --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(CAN_DOCS): pyproject.toml constraints.txt
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[docs]"
	@touch $@
