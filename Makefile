# Every target sets up what it needs: a virtual environment in .venv, the pinned packages, the data in data/.
PYTHON ?= python3
SCHEDULE ?= fast# smoke | fast | onecycle | paper
SEEDS ?= 0# such as 0,1,2
LAUNCHER ?= basic# basic | joblib
ARGS ?=# further overrides for run.py, such as threads=1 or logger=none

PY := .venv/bin/python
SETUP := .venv/.ready

.PHONY: help setup data test lint bench figures reproduce-table1 reproduce-table5 records

help: ## these targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 20
	@echo 'Variables: PYTHON=$(PYTHON) SCHEDULE=$(SCHEDULE) SEEDS=$(SEEDS) LAUNCHER=$(LAUNCHER) ARGS=$(ARGS)'

$(SETUP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 10) <= v < (3, 14) or sys.exit("error: Python %d.%d does not do; make PYTHON=python3.12 takes another (3.10 to 3.13)" % v)'
	@echo 'Set-up: the pinned packages go into .venv (PyTorch with CUDA, about 6 GB: a few minutes).'
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,joblib]'
	@touch $@

setup: $(SETUP) ## the virtual environment .venv

data: $(SETUP) ## fetch and check MNIST (55 MB) into data/mnist
	@$(PY) scripts/prepare.py

reproduce-table1: ## Table 1: train what is not finished yet, then the table (SCHEDULE, SEEDS, LAUNCHER, ARGS)

reproduce-table5: ## Table 5, co-localisation: the same with a schedule of its own (20 cells, minutes)
reproduce-table5: SCHEDULE = colocalisation

reproduce-table1 reproduce-table5: reproduce-%: data
	@status=0; $(PY) run.py table=$* schedule=$(SCHEDULE) seed=$(SEEDS) hydra/launcher=$(LAUNCHER) $(ARGS) || status=$$?; \
	$(PY) scripts/table.py $* --schedule $(SCHEDULE) && exit $$status

records: $(SETUP) ## keep the records of finished runs (runs/) in git (results/records/)
	@$(PY) scripts/keep_records.py

figures: data ## docs/figures: samples of every distortion, what recorded transformers do
	@$(PY) scripts/figures.py

bench: data ## speed, each against its usual way, side by side (about five minutes)
	@$(PY) scripts/bench.py

test: data ## the tests (under five minutes)
	@$(PY) -m pytest

lint: $(SETUP) ## format, lint, types
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/mypy
