# The two commands: `make demo` and `make test`; both install what they need into .venv first.
# `make help` lists the rest. PYTHON=/path/to/python3 chooses the interpreter, ARGS=... goes to pytest or the demo.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
# Tests start hundreds of processes: each would compile the package again.
unexport PYTHONDONTWRITEBYTECODE
.PHONY: help install ffcv demo test full faults curves gpu network check docs release clean

SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
CHOSEN := $(filter command environment,$(origin PYTHON))
ifndef PYTHON
PYTHON := $(shell for p in python3 python3.13 python3.12 python3.11; do \
	if $$p -c '$(SUPPORTED)' 2>/dev/null; then echo $$p; break; fi; done)
endif
BIN := .venv/bin
# Constraints hold for every call; build isolation is off, so that builds use the pinned setuptools too.
PIP := $(BIN)/python -m pip install --disable-pip-version-check --no-build-isolation -c constraints.txt
# The tests' processes: each takes up to 4 GB and shares the cores with the others. JOBS=0: one process, for a debugger.
# Files keep their order, in which the long ones come first.
CORES := $(shell nproc)
JOBS := $(shell echo $$(( $(CORES) < 4 ? $(CORES) : 4 )))
# What an installation depends on. The folder is part of it: an environment cannot be moved.
STATE = $$(pwd -P; sha256sum pyproject.toml constraints.txt)
FFCV_PACKAGES := g++ pkg-config libopencv-dev libturbojpeg0-dev

help: ## this list
	@sed -nE 's/^([a-z]+):.*## (.*)/make \1\t\2/p' Makefile | expand -t 16
	echo "FFCV is built from source: it needs $(FFCV_PACKAGES), by apt where you may."

demo: install ## pretrain and evaluate on the built-in images, minutes on a CPU; writes runs/demo
	@$(BIN)/fastmoco demo $(ARGS)

test: install check ## all checks and the quick tests, JOBS files at the same time
	@OMP_NUM_THREADS=$$(( $(CORES) > $(JOBS) && $(JOBS) > 0 ? $(CORES) / $(JOBS) : 1 )) \
		$(BIN)/python -m pytest --numprocesses=$(JOBS) --dist=loadfile --no-loadscope-reorder $(ARGS)

full: install ## the slow tests, one by one; it goes on where it was stopped and updates tests/full_suite.json
	@$(BIN)/python -m pytest --full $(ARGS)

faults: install ## all faults, hours; it goes on where it was stopped and updates docs/faults.md
	@status=0
	$(BIN)/python -m pytest tests/faults --full-faults --timeout=14400 -s $(ARGS) || status=$$?
	$(BIN)/python -m tests.faults.document
	exit $$status

curves: install ## 200 steps of the fast path beside three seeds of the plain one, 3 minutes on 2 cores of an AMD EPYC
	@$(BIN)/python -m pytest tests/golden --full-curves -s $(ARGS)

# Nothing is installed: PYTHON, else the environment if there is one, runs it as it is.
GPU_PYTHON = $(if $(CHOSEN),$(PYTHON),$(or $(wildcard $(BIN)/python),$(PYTHON)))
gpu: ## prove and measure on a GPU in 9 minutes, installing nothing (DATA= OUT= BUDGET= ARGS=full)
	@$(GPU_PYTHON) -m benchmarks.gpu $(if $(DATA),--data='$(DATA)') $(if $(OUT),--out='$(OUT)') \
		$(if $(BUDGET),--budget=$(BUDGET)) $(ARGS)

network: install ## what devices send each other, over links of a known rate: minutes, as root; else it says why not
	@$(BIN)/python -m benchmarks.network $(ARGS)

check: install ## lint, formatting, imports, types
	@$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy

docs: install ## the pages as a site in build/docs; warnings are errors
	@$(BIN)/python -m sphinx -W --keep-going -q -d build/doctrees docs build/docs
	echo "Written: build/docs/index.html"

release: install ## wheel and source archive in dist/, by the pinned setuptools, offline
	@rm -rf dist
	$(BIN)/python -m build --no-isolation -o dist

clean: ## remove the environment and all caches, not runs/
	@rm -rf .venv build dist *.egg-info .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

# The stamp is written last: an interrupted installation is taken up again. pip writes a package's INSTALLER after
# its files, so a package without one is incomplete and is forgotten here, which makes pip install it again.
install: ## create .venv and install everything; quick when nothing changed
	@exec 9< .  # a lock that pip inherits: it outlives a make that is killed
	flock -n 9 || { echo "Waiting for another installation in this folder ..."; flock 9; }
	version() { "$$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true; }
	if [ "$(CHOSEN)" ] && [ -x $(BIN)/python ] && [ "$$(version "$(PYTHON)")" != "$$(version $(BIN)/python)" ]; then
		echo "PYTHON=$(PYTHON) is not the Python $$(version $(BIN)/python) of .venv. Run: make clean" >&2; exit 1
	fi
	if [ -x $(BIN)/python ] && [ "$(STATE)" = "$$(cat .venv/.installed 2>/dev/null)" ]; then
		exec $(MAKE) --no-print-directory ffcv
	fi
	# A working environment of this folder is kept, whoever made it; one that is broken or was moved is made anew.
	if ! grep -qsF "$$(pwd -P)/.venv/" .venv/bin/pip || ! $(BIN)/python -m pip --version &>/dev/null; then
		if [ -z "$(PYTHON)" ]; then
			echo "No Python 3.11 to 3.13 found. Run: sudo apt-get install python3 python3-venv" \
				"(or name one: make PYTHON=/path/to/python3)" >&2; exit 1
		elif [ -z "$$(version "$(PYTHON)")" ]; then
			echo "PYTHON=$(PYTHON) does not run; name a Python 3.11 to 3.13." >&2; exit 1
		elif ! "$(PYTHON)" -c '$(SUPPORTED)'; then
			echo "PYTHON=$(PYTHON) is Python $$(version "$(PYTHON)"); fastmoco needs 3.11 to 3.13." >&2; exit 1
		elif ! "$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null; then
			echo "$(PYTHON) has no venv module. Run: sudo apt-get install python$$(version "$(PYTHON)")-venv" >&2; exit 1
		fi
		"$(PYTHON)" -m venv --clear .venv
	fi
	for info in .venv/lib/python3.*/site-packages/*.dist-info; do
		[ -e "$$info/INSTALLER" ] || rm -rf "$$info"
	done
	rm -rf .venv/lib/python3.*/site-packages/~*
	echo "Installing into .venv: about 5.4 GB the first time, a few minutes ..."
	[ -t 1 ] || quiet=-q
	{
		$(PIP) $${quiet-} pip setuptools wheel &&
		PYTHONWARNINGS="ignore:Editable installation" $(PIP) $${quiet-} -e '.[dali-cuda13,docs,eval]' --group dev
	} || { echo "pip failed, see above. Once the cause is mended, the next make goes on from here." >&2; exit 1; }
	echo "$(STATE)" > .venv/.installed
	$(MAKE) --no-print-directory ffcv
	echo "Installed in .venv. The command is there after: source .venv/bin/activate"

# FFCV has no wheels and needs system packages: apt is tried once; afterwards FFCV is built as soon as they are there.
ffcv:
	@[ "$(STATE)" != "$$(cat .venv/.ffcv 2>/dev/null)" ] || exit 0
	packages="$(FFCV_PACKAGES)"
	include=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("include"))')
	[ -e "$$include/Python.h" ] || packages="$$packages $$(basename "$$include")-dev"
	can_build() {
		command -v c++ >/dev/null && pkg-config --exists opencv4 libturbojpeg 2>/dev/null && [ -e "$$include/Python.h" ]
	}
	left_out() {
		echo "FFCV is left out ($$1); its tests skip. To add it: sudo apt-get install $$packages && make install" >&2
		[ -z "$${FASTMOCO_REQUIRE_ALL-}" ] || { echo "FASTMOCO_REQUIRE_ALL is set, so this is an error." >&2; exit 1; }
		exit 0
	}
	if ! $(BIN)/python -c 'import ffcv' 2>/dev/null && ! can_build; then
		sudo="sudo -n"
		[ "$$(id -u)" -ne 0 ] || sudo=
		command -v apt-get >/dev/null || left_out "no apt here for its system packages"
		$$sudo true 2>/dev/null || left_out "its system packages are missing, and apt needs a password"
		[ ! -e .venv/.apt-failed ] || [ -n "$${FASTMOCO_REQUIRE_ALL-}" ] || left_out "apt could not install its system packages"
		echo "Installing FFCV's system packages: $$packages ..."
		{ $$sudo apt-get update -q && $$sudo env DEBIAN_FRONTEND=noninteractive \
			apt-get install -q -y --no-install-recommends $$packages; } &> .venv/apt.log && can_build || {
				touch .venv/.apt-failed
				left_out "apt could not install its system packages, see .venv/apt.log"
			}
	fi
	echo "Installing FFCV ..."
	$(PIP) ffcv setuptools &> .venv/ffcv.log || left_out "building it failed, see .venv/ffcv.log"
	$(BIN)/python -c 'import ffcv' &>> .venv/ffcv.log || left_out "its library does not load, see .venv/ffcv.log"
	echo "$(STATE)" > .venv/.ffcv
