# Variables: PROFILE = smoke, desk (default), study, paper or paper_small (a 12 GB card).
# MODEL, DATA, ROWS (a number or all), DEVICE and METHODS (names, or tables: all that the paper's tables print)
# override the profile's own values.
# BAD_ROWS=drop leaves out rows of DATA that cannot be used; by default the run stops and lists them.
# BENCHMARKS=data also asks the official benchmarks in that folder (PROFILE=paper, after `make data`).
# REPORT_TO=tensorboard,wandb also logs trainings there. RUNS = a folder other than runs/.
# `make bases` takes BASES = "0 1"; `make data` takes GROUPS = "amber pope", default all.
# `make bench DEVICE=cuda` measures at the size of LLaVA-1.5-7B on a GPU.
# TORCH_INDEX=cpu installs PyTorch's CPU build from PyTorch's own index: without a CUDA GPU that saves gigabytes.
# PYTHON = the interpreter that makes .venv/, default python3.11, else python3.

# TORCH_INDEX and TEST_WORKERS may come from the environment; the others only from the command line.
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
CODE := napo tests notebooks benchmarks tools experiments
TORCH_URL := $(if $(filter cpu,$(TORCH_INDEX)),https://download.pytorch.org/whl/cpu,$(TORCH_INDEX))
PIP := $(BIN)/python -m pip install --disable-pip-version-check
# The variables override the machine's own pip settings, so that torch comes from TORCH_URL and from nowhere else.
TORCH_PIP := PIP_EXTRA_INDEX_URL="$(TORCH_URL)" PIP_FIND_LINKS=/dev/null $(PIP) -qq --index-url "$(TORCH_URL)" \
	--no-deps --retries 1 --timeout 15
PARAMETERS := $(if $(MODEL),-p "model=$(MODEL)") $(if $(DATA),-p "data=$(DATA)") $(if $(ROWS),-p "rows=$(ROWS)") \
	$(if $(DEVICE),-p "device=$(DEVICE)") $(if $(BAD_ROWS),-p "bad_rows=$(BAD_ROWS)") \
	$(if $(BENCHMARKS),-p "benchmarks=$(BENCHMARKS)") $(if $(REPORT_TO),-p "report_to=$(REPORT_TO)") \
	$(if $(METHODS),-p "methods=$(METHODS)")
# JupyterLab refuses to run as root without this option, and containers run as root. It listens on this machine only.
AS_ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)

SHELL := bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help reproduce test lint lab explore bench data bases publish clean profile

help:  ## list what can be made, and the variables
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile
	@awk '/^# Variables/ {p = 1} /^$$/ {exit} p {sub(/^# /, ""); print "  " $$0}' Makefile

reproduce: profile .venv/.installed  ## run the notebooks 00-05 that are not up to date; results in runs/ and figures/
	@$(BIN)/python -m napo run --profile "$(PROFILE)" --runs-dir "$(RUNS)" $(PARAMETERS)

test: .venv/.installed  ## run the tests (TEST_WORKERS processes, default 2); browser screenshots in runs/screenshots/
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -n "$(TEST_WORKERS)" --dist worksteal

lint: .venv/.installed  ## ruff on code and notebooks; notebooks in git carry no output
	@$(BIN)/ruff check $(CODE)
	@$(BIN)/ruff format --check $(CODE)
	@$(BIN)/nbstripout --verify --keep-id notebooks/*.ipynb

lab: .venv/.installed  ## open notebook 00 in JupyterLab, with this kit's kernel
	@JUPYTER_PREFER_ENV_PATH=1 $(BIN)/python -m jupyterlab $(AS_ROOT) notebooks/00_box_cox.ipynb

explore: profile .venv/.installed  ## serve the explorer of the loss to a browser, on PROFILE's margins once it has been run
	@$(BIN)/python -m napo serve --profile "$(PROFILE)" --runs-dir "$(RUNS)"

bench: .venv/.installed .venv/trl/.installed  ## time training steps, generation and the explorer; results in benchmarks/results/
	@PYTHONPATH=.venv/trl $(BIN)/python benchmarks/engine.py $(if $(DEVICE),--device "$(DEVICE)")
	@$(BIN)/python benchmarks/figure.py
	@$(BIN)/python benchmarks/explorer.py

data: .venv/.installed  ## fetch the official benchmark files into data/, from a table of sources with their licences
	@$(BIN)/python -m napo fetch $(foreach group,$(GROUPS),"$(group)")

bases: .venv/.installed  ## train the desk world's base models BASES (default 0) from scratch, two at a time
	@printf '%s\n' $(foreach base,$(BASES),"$(base)") | xargs -n 1 -P 2 $(BIN)/python -m tools.desk_bases.bases --seed

publish: profile .venv/.installed  ## copy the figures and tables of PROFILE's last run to the files that git keeps
	@$(BIN)/python -m tools.publish --profile "$(PROFILE)"

clean:  ## remove runs/ and unpublished figures; figures/study/ and .venv/ stay
	@rm -rf runs $(filter-out figures/study,$(wildcard figures/*)) .pytest_cache .ruff_cache
	@echo "removed runs/ and unpublished figures; kept figures/study/ and .venv/ (remove .venv/ by hand to install anew)"

# Refuse a wrong profile before anything is installed.
profile:
	@case " $(PROFILES) " in \
	*" $(PROFILE) "*) ;; \
	*) echo "error: unknown profile '$(PROFILE)': use one of $(PROFILES)" >&2; exit 2 ;; \
	esac

.venv/.installed: pyproject.toml requirements.lock
	@for python in $(if $(PYTHON),"$(PYTHON)",python3.11 python3) none; do \
	"$$python" -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; done; \
	if [ "$$python" = none ]; then \
	echo "error: no Python 3.11 or newer with venv found (Debian: packages python3 and python3-venv);" \
	"install it or name it: make PYTHON=/path/to/python3.11" >&2; exit 2; fi; \
	echo "Installing into .venv/ with $$python (once; some minutes, longer with CUDA wheels)"; \
	$(BIN)/python -m pip --version >/dev/null 2>&1 || "$$python" -m venv --clear .venv
ifneq ($(TORCH_URL),)
	@torch=$$(grep '^torch==' requirements.lock); $(TORCH_PIP) "$$torch" || { \
	echo "error: no $$torch from $(TORCH_URL): check the network, or leave out TORCH_INDEX for the default build" >&2; \
	exit 2; }
endif
	@set -o pipefail; $(PIP) --constraint requirements.lock --editable '.[notebooks,test]' | grep -vE '^(Requirement already|Looking in)'
	@touch $@

# TRL is what the engine is measured against. It is no dependency, so it lies apart; what it needs is installed already.
.venv/trl/.installed: .venv/.installed
	@$(PIP) --quiet --no-deps --upgrade --target .venv/trl trl==1.16.0
	@touch $@
