# Variables: PROFILE = smoke, desk (default), study, paper or paper_small (a 12 GB card); MODEL, DATA, ROWS (a number or
# all), DEVICE, METHODS (names, or tables for all that the paper's tables print) override the profile's own values;
# REPORT_TO=tensorboard,wandb logs trainings there too;
# `make bench DEVICE=cuda` measures at LLaVA-1.5-7B's size on a GPU;
# BENCHMARKS=data asks the official benchmarks in that folder too (PROFILE=paper, after `make data`);
# BAD_ROWS=drop leaves out rows of DATA that cannot be used (default: stop and list them);
# RUNS = another folder than runs/; BASES = "0 1"; GROUPS = "amber pope" of data, default all;
# TORCH_INDEX=cpu installs PyTorch's CPU build (elsewhere than on a CUDA machine it saves
# gigabytes of CUDA wheels), default is plain pip; PYTHON = the interpreter for .venv/ (python3.11, else python3).

# Only these two may also come from the environment; the others from the command line.
TORCH_INDEX ?=
TEST_WORKERS ?= 2
PROFILE = desk
RUNS = runs
MODEL =
DATA =
ROWS =
DEVICE =
BENCHMARKS =
REPORT_TO =
METHODS =
BAD_ROWS =
BASES = 0
GROUPS =
PYTHON =

PROFILES := smoke desk study paper paper_small
BIN := .venv/bin
INDEX := $(if $(filter cpu,$(TORCH_INDEX)),https://download.pytorch.org/whl/cpu,$(TORCH_INDEX))
# TORCH_INDEX reaches pip as one more index, for this install only.
PIP := $(BIN)/python -m pip install --disable-pip-version-check $(if $(INDEX),--extra-index-url "$(INDEX)")
PARAMETERS := $(if $(MODEL),-p "model=$(MODEL)") $(if $(DATA),-p "data=$(DATA)") $(if $(ROWS),-p "rows=$(ROWS)") \
	$(if $(DEVICE),-p "device=$(DEVICE)") $(if $(BAD_ROWS),-p "bad_rows=$(BAD_ROWS)") \
	$(if $(BENCHMARKS),-p "benchmarks=$(BENCHMARKS)") $(if $(REPORT_TO),-p "report_to=$(REPORT_TO)") \
	$(if $(METHODS),-p "methods=$(METHODS)")
# JupyterLab refuses root, which is what containers run as; it listens on this machine only and asks for its token.
AS_ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)

SHELL := bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help reproduce test lint lab explore bench data bases publish clean profile

help:  ## what can be made, and the variables
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile
	@awk '/^# Variables/ {p = 1} /^$$/ {exit} p {sub(/^# /, ""); print "  " $$0}' Makefile

reproduce: profile .venv/.installed  ## run what is not up to date of notebooks 00-05; results in runs/ and figures/
	@$(BIN)/python -m napo.run --profile "$(PROFILE)" --runs-dir "$(RUNS)" $(PARAMETERS)

test: .venv/.installed  ## run the tests (TEST_WORKERS processes, default 2); screenshots of the browser in runs/screenshots/
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -n $(TEST_WORKERS) --dist worksteal

lint: .venv/.installed  ## ruff on code and notebooks; notebooks in git carry no output
	@$(BIN)/ruff check napo tests notebooks benchmarks
	@$(BIN)/ruff format --check napo tests notebooks benchmarks
	@$(BIN)/nbstripout --verify --keep-id notebooks/*.ipynb

lab: .venv/.installed  ## open notebook 00 in JupyterLab, with this kit's kernel
	@JUPYTER_PREFER_ENV_PATH=1 $(BIN)/python -m jupyterlab $(AS_ROOT) notebooks/00_box_cox.ipynb

explore: profile .venv/.installed  ## turn the knobs of the loss in a browser, without a notebook (on PROFILE's margins if it has been run)
	@$(BIN)/python -m napo.serve --profile "$(PROFILE)" --runs-dir "$(RUNS)"

bench: .venv/.installed .venv/trl/.installed  ## a step and generation beside others', the explorer's reaction; results in benchmarks/results/
	@PYTHONPATH=.venv/trl $(BIN)/python benchmarks/engine.py $(if $(DEVICE),--device "$(DEVICE)")
	@$(BIN)/python benchmarks/figure.py
	@$(BIN)/python benchmarks/explorer.py

data: .venv/.installed  ## fetch the benchmarks' official files into data/, from a table of sources with their licences
	@$(BIN)/python -m napo.fetch $(GROUPS)

bases: .venv/.installed  ## train the desk world's base models BASES (default 0) again, from nothing, two at a time
	@printf '%s\n' $(BASES) | xargs -n 1 -P 2 $(BIN)/python -m napo.world.bases --seed

publish: profile .venv/.installed  ## copy the figures and tables of PROFILE's last run to what git keeps
	@$(BIN)/python -m napo.publish --profile "$(PROFILE)"

clean:  ## remove runs/ and unpublished figures; figures/study/ and .venv/ stay
	@rm -rf runs $(filter-out figures/study,$(wildcard figures/*)) .pytest_cache .ruff_cache
	@echo "removed runs/ and unpublished figures; kept figures/study/ and .venv/ (remove .venv/ by hand to install anew)"

# A wrong profile is refused before anything is installed.
profile:
	@case " $(PROFILES) " in \
	*" $(PROFILE) "*) ;; \
	*) echo "error: unknown profile '$(PROFILE)': use one of $(PROFILES)" >&2; exit 2 ;; \
	esac

.venv/.installed: pyproject.toml requirements.lock
	@for python in $(or $(PYTHON),python3.11 python3) none; do \
	"$$python" -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; done; \
	if [ "$$python" = none ]; then \
	echo "error: no Python 3.11 or newer with venv found (Debian: packages python3 and python3-venv);" \
	"install it or name it: make PYTHON=/path/to/python3.11" >&2; exit 2; fi; \
	echo "Installing into .venv/ with $$python (once; a minute or two, longer with CUDA wheels)"; \
	$(BIN)/python -m pip --version >/dev/null 2>&1 || "$$python" -m venv --clear .venv
	@set -o pipefail; $(PIP) --constraint requirements.lock --editable '.[notebooks,test]' | grep -vE '^(Requirement already|Looking in)'
	@touch $@

# What the engine is measured against; not a dependency, so it lies apart. Its own dependencies are installed already.
.venv/trl/.installed: .venv/.installed
	@$(PIP) --quiet --no-deps --upgrade --target .venv/trl trl==1.16.0
	@touch $@
