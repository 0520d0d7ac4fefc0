# Every target sets up what it needs: a virtual environment in .venv, the pinned packages, the data in data/.
PYTHON ?= python3
SCHEDULE ?= fast# smoke | fast | onecycle | paper
SEEDS ?= 0# such as 0,1,2
LAUNCHER ?= basic# basic | joblib | ray_local | ray_cluster | submitit_local | slurm
EXTRAS ?=# what a launcher or a tool needs: joblib | ray | submitit | dashboard | search
TABLE ?= table1
ARGS ?=# further overrides for run.py, such as threads=1 or logger=none

PY := .venv/bin/python
SETUP := .venv/.ready

TABLES := $(addprefix reproduce-,table1 table4 uses)

.PHONY: help setup data test lint bench figures records $(TABLES)

help: ## these targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 20
	@echo 'Variables: PYTHON=$(PYTHON) SCHEDULE=$(SCHEDULE) SEEDS=$(SEEDS) LAUNCHER=$(LAUNCHER) ARGS=$(ARGS)'

$(SETUP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 10) <= v < (3, 14) or sys.exit("error: Python %d.%d does not do; make PYTHON=python3.12 takes another (3.10 to 3.13)" % v)'
	@echo 'Set-up: the pinned packages go into .venv (PyTorch with CUDA, about 6 GB: a few minutes).'
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,joblib]'
	@touch $@

setup: $(SETUP) ## the virtual environment .venv; EXTRAS=ray (or joblib, submitit, dashboard, search) adds what it names
ifneq ($(EXTRAS),)
	@$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
endif

data: $(SETUP) ## fetch and check MNIST (55 MB) into data/mnist
	@$(PY) scripts/prepare.py

reproduce-table1: ## Table 1: train what is not finished yet, then the table (SCHEDULE, SEEDS, LAUNCHER, ARGS)

reproduce-table4: ## Table 4: MNIST addition, likewise

reproduce-uses: ## theta fed forward, in series, another size, recurrent, on RTS (docs/uses.md)

$(TABLES): reproduce-%: data
	@status=0; $(PY) run.py table=$* schedule=$(SCHEDULE) seed=$(SEEDS) hydra/launcher=$(LAUNCHER) $(ARGS) || status=$$?; \
	$(PY) scripts/table.py $* --schedule $(SCHEDULE) && exit $$status

status: $(SETUP) ## cells of TABLE done, running, failed and missing, time left (SCHEDULE, SEEDS)
	@$(PY) scripts/status.py $(TABLE) --schedule $(SCHEDULE) --seeds $(SEEDS)

dashboard: $(SETUP) ## W&B workspace and report of TABLE, where an account is set up (make setup EXTRAS=dashboard)
	@$(PY) scripts/dashboard.py $(TABLE)

records: $(SETUP) ## keep the records of finished runs (runs/) in git (results/records/)
	@$(PY) scripts/keep_records.py

figures: data ## docs/figures: samples of every distortion, what recorded transformers do, aliasing
	@$(PY) scripts/figures.py
	@$(PY) scripts/figures_uses.py

bench: data ## speed, each against its usual way, side by side (about five minutes)
	@$(PY) scripts/bench.py

test: data ## the tests (under five minutes)
	@$(PY) -m pytest

test-slow: data ## sweeps through every launcher for real: Ray with a killed node, submitit, a fake SLURM (minutes)
	@$(PY) -m pytest -m slow

lint: $(SETUP) ## format, lint, types
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/mypy
