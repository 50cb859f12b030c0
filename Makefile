# The Python that makes the virtual environment, and the CUDA version that `make test-cuda` installs for.
PYTHON ?= python3
CUDA ?= 13

BIN := .venv/bin
# Two processes, each with one thread: pools of threads that compete for the cores slow every small product down.
PYTEST := OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

.DEFAULT_GOAL := help
.PHONY: help train test test-all test-cuda lint size clean
# Two pip processes must not write into one environment.
.NOTPARALLEL:

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

train: .venv/train.installed  ## train a small GPT-2 on the CPU; options go into ARGS="--steps 500 ..."
	$(BIN)/python -m models.gpt2 train $(ARGS)

test: .venv/test.installed  ## the fast tests, without torch and transformers
	$(PYTEST)

# The fast tests and lint come first, so `make test test-all` repeats nothing but properties, with all their examples.
test-all: test lint .venv/parity.installed  ## everything but CUDA; a skipped parity test is a failure
	TINYARR_REQUIRE_PARITY=1 TINYARR_ALL_EXAMPLES=1 $(PYTEST) -m "(parity or slow or property) and not cuda"

test-cuda: .venv/test.installed .venv/cuda$(CUDA).installed .venv/nccl$(CUDA).installed  ## the tests that need an NVIDIA GPU; CUDA=12 for CUDA 12
	TINYARR_ALL_EXAMPLES=1 $(BIN)/python -m pytest -m cuda

lint: .venv/dev.installed  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy

size: $(BIN)/pip  ## count the lines of code, room by room
	$(BIN)/python benchmarks/size.py

clean:  ## remove the environment and all caches, but no run
	rm -rf .venv build dist .pytest_cache .hypothesis .ruff_cache .mypy_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

# pip comes last when an environment is made, so an interrupted one is made again.
$(BIN)/pip:
	$(PYTHON) -m venv .venv

.venv/%.installed: pyproject.toml | $(BIN)/pip
	@echo "installing tinyarr[$*] into .venv"
	@$(BIN)/python -m pip install --quiet --editable ".[$*]"
	@touch $@
