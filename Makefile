# Two commands do everything, each from nothing: `make repro` and `make test`.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Programs are called as modules: a script's first line holds the environment's path, which not every path survives.
STAMP := $(VENV)/.installed
# An environment cannot be moved: its programs and its link to src/ stay those of the old folder. It is made anew.
MOVED := $(shell [ -L $(VENV) ] || [ ! -s $(STAMP) ] || [ "$$(cat $(STAMP))" = "$$(pwd -P)" ] || echo moved)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
UV := $(if $(shell command -v uv),uv,$(BIN)/python -m uv) pip install --quiet --python $(BIN)/python
# TORCH=cpu: PyTorch without CUDA, a sixth of the size, from PyTorch's own index, which uv alone asks for torch only.
$(if $(filter-out cpu,$(TORCH)),$(error TORCH is cpu or left out, not "$(TORCH)"))
NO_TORCH = TORCH=cpu: uv cannot be had or https://download.pytorch.org/whl/cpu cannot be reached; leave TORCH out
# Tests run in two processes of one thread each: two threads of one would wait for each other beside any other work.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(or $(WORKERS),2) --dist loadfile --no-loadscope-reorder --durations 15
STUDY = $(if $(PRESETS),--presets $(PRESETS)) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(ONLY),--only $(ONLY)) \
    $(if $(SET),--set $(SET)) $(if $(JOBS),--jobs $(JOBS)) $(if $(DRY),--dry-run)
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS := true
export MLFLOW_DISABLE_TELEMETRY := true
# uv compiles nothing, and an environment that forbids bytecode would have each stage compile torch and MLflow anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup doctor repro track test test-slow lint preset sweep ablation objectives compare bench audit kill-test check-cache ui docs readme params-reference clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(STAMP) ## make .venv and install the pinned dependencies: TORCH=cpu for PyTorch without CUDA

ifdef MOVED
.PHONY: $(STAMP)
endif
$(STAMP): pyproject.toml constraints.txt
	$(if $(MOVED),@echo "$(VENV) was made in another folder: it is made anew"; rm -rf $(VENV))
	@$(PYTHON) -c 'import sys; sys.exit(f"Python 3.11 or newer is needed, {sys.executable} is {sys.version.split()[0]}; set PYTHON=...") if sys.version_info < (3, 11) else None'
	@$(PYTHON) -c 'import os, sys; bad = sorted(set("$$:") & set(os.getcwd())); sys.exit(f"the path of this folder has {bad[0]} in it, with which Python environments do not work; rename the folder" if bad else 0)'
	$(PYTHON) -m venv $(VENV)
	@# uv installs in a sixth of pip's time; where it cannot be had, or fails (a mirror that pip alone knows), pip does.
	@command -v uv >/dev/null || $(PIP) uv -c constraints.txt 2>/dev/null || echo "uv cannot be had: pip installs, which takes minutes more"
	$(if $(TORCH),@$(UV) --torch-backend $(TORCH) -e '.[test]' -c constraints.txt 2>/dev/null || { echo "$(NO_TORCH)"; exit 1; })
	$(if $(TORCH),,$(UV) -e '.[test]' -c constraints.txt || $(PIP) -e '.[test]' -c constraints.txt)
	@pwd -P > $@

doctor: setup ## what of this machine and this folder stands in the way of a run
	$(BIN)/python -m ifm doctor

repro: setup ## run the pipeline, its branches side by side, and say where the report is: JOBS=2 at a time
	@git rev-parse --git-dir >/dev/null 2>&1 || { echo "this folder is not a Git checkout; clone the repository"; exit 1; }
	@$(BIN)/python -m pipeline.runner.repro $(if $(JOBS),--jobs $(JOBS))
	@# On a clone with pulled results nothing runs: the empty MLflow store gets its rows all the same.
	@[ -n "$$MLFLOW_TRACKING_URI" ] || [ -f mlflow.db ] || [ "$$IFM_TRACKING" = off ] || $(BIN)/python -m dvc repro --quiet --force --single-item track

track: setup ## make this state's rows in MLflow again (after a pull, or for another store)
	$(BIN)/python -m dvc repro --force --single-item track

test: setup ## ruff and pytest: WORKERS=2 processes
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(PYTEST) -m "not slow"

test-slow: setup ## the tests marked slow
	$(PYTEST) -m slow

lint: setup ## ruff alone, mending what it can
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

preset: setup ## edit params.yaml: NAME=digits, digits-long, digits-classes, points, cifar10, imagenet64, ddpm-cifar10, dit-imagenet256; with DATA=folder cifar10-jpeg, imagefolder, spoken-digits, tiny-shakespeare, ddpm-celebahq; OBJECTIVE=..., CONDITION=class
	$(BIN)/python -m pipeline.tools.preset "$(NAME)" --objective "$(OBJECTIVE)" --condition "$(CONDITION)" --data "$(DATA)"

sweep: setup ## a grid or a search over params.yaml, ranked: ARGS="-S flow.lr=1e-4,3e-4 --seeds 0,1,2", docs/sweeps.md
	$(BIN)/python -m pipeline.studies.sweep $(ARGS)

ablation: setup ## variants of the method side by side: PRESETS="points digits" SEEDS="0 1 2", JOBS=2 at a time, DRY=1 to list them
	$(BIN)/python -m pipeline.studies.ablation $(STUDY)

objectives: setup ## what a flow can be trained by, at equal budgets: PRESETS, SEEDS, ONLY, SET, JOBS, DRY as for ablation
	$(BIN)/python -m pipeline.studies.objectives $(STUDY)

compare: setup ## two states side by side, reports/compare.html: A=HEAD B=workspace; any revision or DVC experiment
	$(BIN)/python -m pipeline.tools.compare "$(or $(A),HEAD)" "$(or $(B),workspace)"

bench: setup ## how fast it is, as ratios, into docs/benchmarks.md: ARGS="--only frechet --threads 1", see there
	$(BIN)/python -m benchmarks $(ARGS)

audit: setup ## known vulnerabilities of the pinned packages (pip-audit, needs the network): docs/security.md
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[audit]' -c constraints.txt
	$(BIN)/python -m pipeline.tools.audit

kill-test: setup ## kill running pipelines N times at random and compare what they end with, docs/reliability.md
	$(BIN)/python -m tests.robustness.kill_test --kills $(or $(N),30)

check-cache: setup ## read all of DVC's cache for damaged files; MEND=1 removes them, docs/reliability.md
	$(BIN)/python -m pipeline.tools.check_cache $(if $(MEND),--mend)

ui: setup ## MLflow on this machine's loopback, with the project's store: PORT=5000
	$(BIN)/python -m ifm ui --port $(or $(PORT),5000)

params-reference: setup ## docs/params.md, from the schema and params.yaml's comments
	$(BIN)/python -m pipeline.tools.params_reference

docs: setup ## the docs as a site, strictly (a dead link is an error): site/index.html; python -m mkdocs serve shows it
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

readme: setup ## the README's picture and table, from the results at hand
	$(BIN)/python -m pipeline.tools.readme

clean: ## remove the environment and caches of tools (not data, models or runs)
	rm -rf $(VENV) .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
