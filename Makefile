# One command for each task. `make` with no target lists them.
PYTHON  ?= python3.11
VENV    := .venv
BIN     := $(VENV)/bin
STAMP   := $(VENV)/.installed
DATA    ?= kaggle
WEIGHTS ?= imagenet
ARGS    ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo study test bench check lint contracts types docs lock figures clean

help:           ## Lists the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP) ## Makes .venv with everything that study, tests and checks need

# --no-deps: the lock names every package, so pip has nothing to resolve. The build of the
# project itself takes its tools from the lock too (--no-build-isolation). Bytecode is written here, on all cores:
# where PYTHONDONTWRITEBYTECODE is set, every start of a process would compile torch again, which takes 15 seconds.
$(STAMP): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "No $(PYTHON) here. Install Python 3.11 to 3.13, or name one: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --require-hashes --no-deps -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	$(BIN)/python -m compileall -q -j 0 -x '/(tests?|testing)/' $(VENV)/lib
	@touch $@

demo: $(STAMP)  ## Runs the whole study on generated slices and names the report
	$(BIN)/tumorlens study --data phantom --random-weights-if-unavailable --max-epochs 3 --out runs/demo $(ARGS)

study: $(STAMP) ## The study on real data: make study DATA=archive.zip WEIGHTS=resnet18-f37072fd.pth
	$(BIN)/tumorlens study --data "$(DATA)" --weights "$(WEIGHTS)" $(ARGS)

# Each of up to four processes runs whole test files, in the order of tests/conftest.py: the slowest first.
test: $(STAMP)  ## Runs the tests; in one process: make test ARGS="-n 0"
	$(BIN)/python -m compileall -q src
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

# On real data: make bench DATA=archive.zip WEIGHTS=resnet18-f37072fd.pth (some hours on 2 cores).
# QUICK=1 takes three minutes on generated data.
bench: $(STAMP) ## Measures speed and memory beside the usual notebook loop
ifdef QUICK
	$(BIN)/python benchmarks/speed.py --data phantom --weights none --quick
else
	$(BIN)/python benchmarks/speed.py --data "$(DATA)" --weights "$(WEIGHTS)" --study
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python docs/build.py
endif

check: lint contracts types docs ## Lint, import contracts, types and documents

lint: $(STAMP)  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

contracts: $(STAMP) ## Which package may import which (import-linter)
	$(BIN)/lint-imports

types: $(STAMP) ## mypy --strict
	$(BIN)/mypy

docs: $(STAMP)  ## Checks that generated documents are what their commands write
	$(BIN)/python docs/build.py --check

figures: $(STAMP) ## Writes docs/figures.json, the generated pages and their plots
	$(BIN)/python docs/build.py

# Needs uv on the PATH; --universal covers Linux and macOS, x86-64 and Arm, Python 3.11 to 3.13.
# The second one is what the service's image installs.
lock:           ## Updates requirements.lock and requirements-serve.lock
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
		--extra study --extra tensorboard --extra serve --extra dev pyproject.toml -o requirements.lock
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
		--extra serve --constraint requirements.lock pyproject.toml -o requirements-serve.lock

clean:          ## Removes .venv and what tests and builds left
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis dist
