# Every target sets up what it needs: a virtual environment in .venv, the pinned packages, the data in data/.
# Recipes use variables from the environment, "$$SCHEDULE", so that quotes in a value cannot break them.
PYTHON ?= python3# 3.10 to 3.13
SCHEDULE ?=# smoke | quick | fast | onecycle | paper, or any other of conf/schedule; none: the table's own (Table 1: fast)
SEEDS ?= 0# such as 0,1,2
ROWS ?=# only these rows of a table: experiments, such as mnist_fcn,mnist_st_fcn_tps
COLUMNS ?=# only these columns, such as r,rts (Table 2: 64,128; Table 5: digits; 3D: 28.0,16.0)
LAUNCHER ?= basic# basic | joblib | ray_local | ray_cluster | submitit_local | slurm
TABLE ?= table1# for status and dashboard
EXTRAS ?=# extras that setup adds for a launcher or Table 3: ray | submitit | birds
ARGS ?=# further arguments of run.py, bench or figures, separated by blanks: ARGS="threads=1 logger=none"
# A terminal's width is also called COLUMNS: it must not choose columns of a table, nor must a choice become a width.
PART := $(if $(findstring command,$(origin COLUMNS)),$(COLUMNS))
unexport COLUMNS
export SCHEDULE SEEDS ROWS PART COLUMN LAUNCHER TABLE EXTRAS ARGS

PY := .venv/bin/python
SETUP := .venv/.ready

COLUMN = data/distortion
TABLES := $(addprefix reproduce-,table1 table2 table3 table4 table5 3d uses pooled)

.PHONY: help setup data data-svhn data-svhn-rendered data-cub $(TABLES) status dashboard records figures report docs bench bundle campaign test test-gpu test-unit test-slow lint

help: ## these targets and the variables
	@grep -hE '^[a-z0-9-]+:.*##' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 22
	@echo 'Variables, with their defaults:'
	@grep -hE '^[A-Z]+ [?]=' Makefile | sed -E 's/ [?]= ?/=/; s/ ?# ?/\t/' | expand -t 22

$(SETUP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 10) <= v < (3, 14) or sys.exit("error: Python %d.%d is not supported: make PYTHON=python3.12 takes another (3.10 to 3.13)" % v)'
	@echo 'Set-up: the pinned packages go into .venv (PyTorch with CUDA, about 6 GB: a few minutes).'
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[experiments,dev,docs,joblib,onnx,svhn,dashboard,search,tensorboard]'
	@touch $@

setup: $(SETUP) ## the virtual environment .venv; EXTRAS=ray (or submitit, birds) adds that extra
	@test -z "$$EXTRAS" || $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$$EXTRAS]"
	@echo 'The packages are in .venv.'

data: $(SETUP) ## fetch and check MNIST (55 MB) into data/mnist
	@$(PY) scripts/prepare.py

data-svhn: $(SETUP) ## fetch SVHN (2.6 GB) and crop its numbers (64 px: 3 GB, 128 px: 12 GB) into data/svhn
	@$(PY) scripts/prepare.py svhn

data-svhn-rendered: $(SETUP) ## draw and crop 30,000 house numbers (2.5 GB, synthetic data) into data/svhn_rendered
	@$(PY) scripts/prepare.py svhn_rendered

data-cub: $(SETUP) ## fetch, check and unpack CUB-200-2011 (1.2 GB) into data/cub
	@$(PY) scripts/prepare.py cub

reproduce-table1: data ## Table 1: train unfinished runs, then make the table (SCHEDULE, ROWS, COLUMNS, SEEDS, LAUNCHER, ARGS)

reproduce-table2: COLUMN = data.size_px
reproduce-table2: ## Table 2, likewise: SVHN, or rendered house numbers (SCHEDULE=svhn_small ARGS=data=svhn_rendered)

reproduce-table3: COLUMN = data
reproduce-table3: ## Table 3, likewise: birds, or synthetic ones (SCHEDULE=cub_small ARGS=data=synthetic_birds)

reproduce-table4: data ## Table 4: MNIST addition, likewise

reproduce-table5: COLUMN = data.digit
reproduce-table5: data ## Table 5, likewise: co-localisation with its own schedules, 60 cells of half a minute to two minutes

reproduce-3d: COLUMN = data.thickness_px
reproduce-3d: data ## 3D MNIST (A.3, Figure 5), likewise

reproduce-uses: data ## other uses on RTS: theta fed forward, series, output size, recurrence (docs/uses.md)

reproduce-pooled: data ## A.4's average pool with and without the transformer before it, on RTS and TC

$(TABLES): reproduce-%: $(SETUP)
	@set -f; status=0; \
	$(PY) run.py table=$* $${SCHEDULE:+"schedule=$$SCHEDULE"} "seed=$$SEEDS" "hydra/launcher=$$LAUNCHER" \
		$${ROWS:+"experiment=$$ROWS"} $${PART:+"$$COLUMN=$$PART"} $$ARGS || status=$$?; \
	$(PY) scripts/table.py $* $${SCHEDULE:+--schedule "$$SCHEDULE"} && exit $$status

status: $(SETUP) ## the cells of TABLE that are done, running, failed or missing, and the time left (SCHEDULE, SEEDS)
	@$(PY) scripts/status.py "$$TABLE" $${SCHEDULE:+--schedule "$$SCHEDULE"} --seeds "$$SEEDS"

dashboard: $(SETUP) ## W&B workspace and report of TABLE; needs a W&B account
	@$(PY) scripts/dashboard.py "$$TABLE"

records: $(SETUP) ## keep the records of finished runs (runs/) in git (results/records.jsonl)
	@$(PY) scripts/keep_records.py

figures: data ## draw docs/figures: samples of the data, recorded transformers; ARGS="figure3" draws only that one
	@set -f; $(PY) scripts/figures.py $$ARGS

report: $(SETUP) ## results/report.html: every table, curve and figure on one page, from the records
	@$(PY) scripts/report.py

docs: $(SETUP) ## the documentation site in site/; warnings are errors
	@echo 'Building the documentation in site/'
	@NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --quiet --strict
	@echo 'written: site/index.html; its search and the demonstration need a server: python3 -m http.server -d site'

bench: data ## speed against the usual ways, side by side (about five minutes); ARGS="a b" runs only these parts
	@set -f; $(PY) scripts/bench.py $$ARGS

bundle: data ## build/bundle: everything for a machine without a network (at most 60 MB); docs/gpu.md
	@set -f; $(PY) scripts/bundle.py make $$ARGS

campaign: data ## on a GPU: its tests, bench, then all tables, in slices that resume; ARGS="--minutes 9"
	@set -f; $(PY) scripts/campaign.py $$ARGS

test-gpu: data ## the tests that need a GPU; without one, each is skipped with its reason
	@$(PY) -m pytest -m gpu -rs tests/gpu tests/unit

test-unit: $(SETUP) ## the tests of the library alone, in seconds and without data
	@$(PY) -m pytest tests/unit

test: data ## all tests except the slow ones (four to five minutes on two cores)
	@$(PY) -m pytest -n 2 --dist loadfile

test-slow: data ## every launcher for real, every make target, every documented command (half an hour)
	@$(PY) -m pytest -m slow

lint: $(SETUP) ## format, lint, types
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/mypy
