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

# Take what the user gives literally: neither make nor a shell expands it. Recipes read DATA as "$$NAPO_DATA".
GIVEN := PROFILE RUNS MODEL DATA ROWS DEVICE BENCHMARKS REPORT_TO METHODS BAD_ROWS BASES GROUPS PYTHON \
	TORCH_INDEX TEST_WORKERS
$(foreach name,$(GIVEN),$(eval override $(name) := $$(value $(name)))$(eval export NAPO_$(name) := $$($(name))))
PROFILES := smoke desk study paper paper_small
BIN := .venv/bin
CODE := napo tests notebooks benchmarks tools experiments
export TORCH_URL := $(if $(filter cpu,$(TORCH_INDEX)),https://download.pytorch.org/whl/cpu,$(TORCH_INDEX))
PIP := $(BIN)/python -m pip install --disable-pip-version-check
# The variables override the machine's own pip settings, so that torch comes from TORCH_URL and from nowhere else.
TORCH_PIP := PIP_EXTRA_INDEX_URL="$$TORCH_URL" PIP_FIND_LINKS=/dev/null $(PIP) -qq --index-url="$$TORCH_URL" \
	--no-deps --retries 1 --timeout 15
# The runner takes an option that is empty for one that is not given.
OPTIONS := --profile="$$NAPO_PROFILE" --runs-dir="$$NAPO_RUNS"
OVERRIDES := --model="$$NAPO_MODEL" --data="$$NAPO_DATA" --rows="$$NAPO_ROWS" --device="$$NAPO_DEVICE" \
	--benchmarks="$$NAPO_BENCHMARKS" --report-to="$$NAPO_REPORT_TO" --methods="$$NAPO_METHODS" \
	$${NAPO_BAD_ROWS:+-p "bad_rows=$$NAPO_BAD_ROWS"}
# JupyterLab refuses to run as root without this option, and containers run as root. It listens on this machine only.
AS_ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)

SHELL := bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help reproduce test faults lint lab explore bench data bases publish clean profile

help:  ## list what can be made, and the variables
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile
	@awk '/^# Variables/ {p = 1} /^$$/ {exit} p {sub(/^# /, ""); print "  " $$0}' Makefile

reproduce: profile .venv/.installed  ## run the notebooks 00-05 that are not up to date; results in runs/ and figures/
	@$(BIN)/python -m napo run $(OPTIONS) $(OVERRIDES)

test: .venv/.installed  ## run the tests (TEST_WORKERS processes, default 2); browser screenshots in runs/screenshots/
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -n "$$NAPO_TEST_WORKERS" --dist worksteal

faults: .venv/.installed  ## attack the kit: kills, damaged files, junk, full disks; prints counts (half an hour)
	@NAPO_FAULTS=all OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/faults -n "$$NAPO_TEST_WORKERS" --dist worksteal

lint: .venv/.installed  ## ruff on code and notebooks; notebooks in git carry no output
	@$(BIN)/ruff check $(CODE)
	@$(BIN)/ruff format --check $(CODE)
	@$(BIN)/nbstripout --verify --keep-id notebooks/*.ipynb

lab: .venv/.installed  ## open notebook 00 in JupyterLab, with this kit's kernel
	@JUPYTER_PREFER_ENV_PATH=1 $(BIN)/python -m jupyterlab $(AS_ROOT) notebooks/00_box_cox.ipynb

explore: profile .venv/.installed  ## serve the explorer of the loss to a browser, on PROFILE's margins once it has been run
	@$(BIN)/python -m napo serve $(OPTIONS)

bench: .venv/.installed .venv/trl/.installed  ## time training steps, generation and the explorer; results in benchmarks/results/
	@PYTHONPATH=.venv/trl $(BIN)/python benchmarks/engine.py $${NAPO_DEVICE:+--device="$$NAPO_DEVICE"}
	@$(BIN)/python benchmarks/figure.py
	@$(BIN)/python benchmarks/explorer.py

data: .venv/.installed  ## fetch the official benchmark files into data/, from a table of sources with their licences
	@set -f; $(BIN)/python -m napo fetch -- $$NAPO_GROUPS

bases: .venv/.installed  ## train the desk world's base models BASES (default 0) from scratch, two at a time
	@set -f; printf '%s\0' $$NAPO_BASES | xargs -0 -n 1 -P 2 $(BIN)/python -m tools.desk_bases.bases --seed

publish: profile .venv/.installed  ## copy the figures and tables of PROFILE's last run to the files that git keeps
	@$(BIN)/python -m tools.publish --profile="$$NAPO_PROFILE"

clean:  ## remove runs/ and unpublished figures; figures/study/ and .venv/ stay
	@rm -rf runs .pytest_cache .ruff_cache
	@[ ! -d figures ] || find figures -mindepth 1 -maxdepth 1 ! -name study -exec rm -rf {} +
	@echo "removed runs/ and unpublished figures; kept figures/study/ and .venv/ (remove .venv/ by hand to install anew)"

# Refuse a wrong profile before anything is installed.
profile:
	@for known in $(PROFILES); do [ "$$NAPO_PROFILE" != $$known ] || exit 0; done; \
	printf "error: unknown profile '%q': use one of $(PROFILES)\n" "$$NAPO_PROFILE" >&2; exit 2

.venv/.installed: pyproject.toml requirements.lock
	@pythons=(python3.11 python3); [ -z "$$NAPO_PYTHON" ] || pythons=("$$NAPO_PYTHON"); \
	for python in "$${pythons[@]}" none; do \
	"$$python" -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; done; \
	if [ "$$python" = none ]; then \
	echo "error: no Python 3.11 or newer with venv found (Debian: packages python3 and python3-venv);" \
	"install it or name it: make PYTHON=/path/to/python3.11" >&2; exit 2; fi; \
	echo "Installing into .venv/ with $$python (once; some minutes, longer with CUDA wheels)"; \
	$(BIN)/python -m pip --version >/dev/null 2>&1 || "$$python" -m venv --clear .venv
ifneq ($(TORCH_URL),)
	@torch=$$(grep '^torch==' requirements.lock); $(TORCH_PIP) "$$torch" || { \
	echo "error: no $$torch from $$TORCH_URL: check the network, or leave out TORCH_INDEX for the default build" >&2; \
	exit 2; }
endif
	@set -o pipefail; $(PIP) --constraint requirements.lock --editable '.[notebooks,test]' | grep -vE '^(Requirement already|Looking in)'
	@touch $@

# TRL is what the engine is measured against. It is no dependency, so it lies apart; what it needs is installed already.
.venv/trl/.installed: .venv/.installed
	@$(PIP) --quiet --no-deps --upgrade --target .venv/trl trl==1.16.0
	@touch $@
