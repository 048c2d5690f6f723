# One place for every command; `make help` explains them.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
RUNS := runs

.DEFAULT_GOAL := help
.PHONY: help install demo runs page test test-all lint format benchmark clean

help: ## explain the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

install: $(INSTALLED) ## create .venv and install everything (demo and test do it by themselves)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): a few minutes, once"
	@$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[scripts,dev]'
	@touch $@

demo: $(INSTALLED) ## handwritten digits: baseline, sparse training, cut, fine-tune, one table
	@$(PY) train.py method.strength=0 runs_dir=$(RUNS)
	@$(PY) pipeline.py runs_dir=$(RUNS)
	@$(PY) report.py $(RUNS) only=digits latency=true

runs: ## list what lies in runs/ (RUNS=folder): state, size, what stands on it
	@test -x $(PY) || { echo "there is no environment in $(VENV) yet: make install"; exit 1; }
	@$(PY) report.py $(RUNS) list=true

page: $(INSTALLED) ## results/report: every committed result on one page
	@$(PY) report.py results figures=svg
	@$(PY) report.py results only=digits figures=svg

test: $(INSTALLED) lint ## lint and tests, 10 to 25 minutes on two cores
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n 2

test-all: $(INSTALLED) lint ## the same, with the long ones
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 -m ''

lint: $(INSTALLED) ## ruff
	@$(PY) -m ruff check . && $(PY) -m ruff format --check .

format: $(INSTALLED) ## let ruff rewrite the files
	@$(PY) -m ruff check --fix . ; $(PY) -m ruff format .

benchmark: $(INSTALLED) ## speed of the data path and of training, on this machine
	@$(PY) benchmarks/data.py
	@$(PY) benchmarks/throughput.py
	@$(PY) benchmarks/cache.py

clean: ## remove the environment and caches (runs/ stays)
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache
