# On a fresh machine with Python 3.10 or newer, its headers and venv, make and g++, each of these is
# enough by itself:
#   make demo     trains on the digits that come with scikit-learn; make demo EPOCHS=2 is short
#   make test     lints and runs the tests
# And for work on the kernels:
#   make test-all  make test, and the tests that repeat others at further sizes
#   make gpu      on a machine with an NVIDIA GPU, PyTorch and nvcc: builds, checks and measures for
#                 MINUTES=10 what is worth most, whatever fails; make gpu-full does all for longer
#   make compiled  thousands of cases, and planted faults, on what nvcc and Triton compile, without
#                 a GPU
#   make report   tables and pictures from stored results: make report RESULTS=build/visit/visit.jsonl
#   make wheel    a wheel for this Python with the kernels of every architecture, in dist
#   make budget   registers, spills and instructions of every kernel, against benchmarks/budget.csv
#   make api      docs/api.md, from the docstrings; make models: docs/models.md, from networks
#   make lint, make format, make clean

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
GPU := $(shell nvidia-smi -L 2>/dev/null | grep -o '^GPU' | head -1)
PYTHON_FOLDERS := convmixer convmixer_kernels benchmarks docs examples tests csrc setup.py
BUILD_TOOLS := setup.py $(wildcard csrc/build_tools/*.py)
CPP_FILES := $(shell find benchmarks csrc tests -name '*.cu' -o -name '*.cuh' -o -name '*.cpp' -o -name '*.h')
CUDA_SOURCES := $(filter-out benchmarks/% csrc/interpreter/% tests/%,$(CPP_FILES))

.PHONY: demo test test-all compiled gpu report wheel budget api models lint format clean
.PHONY: gpu-full gpu-present gpu-carry gpu-build gpu-test gpu-sanitize gpu-benchmark

demo: $(VENV)/$(if $(GPU),cuda,installed)
	@out=runs/digits; run=2; while [ -e $$out ]; do out=runs/digits-$$run; run=$$((run + 1)); done; \
	$(BIN)/convmixer train --recipe digits --out $$out $(if $(EPOCHS),--epochs $(EPOCHS))

test: lint $(VENV)/cuda
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not repeats"

test-all: lint $(VENV)/cuda
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

compiled: $(VENV)/cuda
	OMP_NUM_THREADS=1 PYTHONPATH=csrc/build_tools $(BIN)/python -m tests.compiled.main

# These use the Python that is there and no network. A short visit, or all of it: each goal of
# gpu-full can be made by itself.
MINUTES ?= 10
VISIT = $(PYTHON) benchmarks/visit.py --minutes $(MINUTES)
GPU_TESTS = $(sort $(shell grep -rlE --include='test_*.py' '^(pytestmark = .*|@)pytest\.mark\.gpu\b' tests))
# Triton compiles on the CPU.
PARALLEL = $(shell $(PYTHON) -c 'import xdist' 2> /dev/null && echo -n$$(nproc))

# Makes every goal, whatever becomes of the one before it, and fails if one of them did.
make_all = @failed=; for goal in $(1); do \
	  echo "make $$goal"; \
	  $(MAKE) --no-print-directory $$goal || failed="$$failed $$goal"; \
	done; \
	if [ -n "$$failed" ]; then echo "make $@: failed:$$failed"; exit 1; fi

gpu:
	$(VISIT) $(if $(ONLY),--only $(ONLY)) $(if $(MATCH),--match '$(MATCH)')

gpu-full: gpu-present
	$(call make_all,gpu-build gpu-test gpu-sanitize gpu-benchmark)

gpu-present:
	@$(PYTHON) -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' \
	  || { echo "make: PyTorch of $(PYTHON) finds no CUDA device on this machine"; exit 2; }

# For a machine that gets this folder without its history, and no time to compile: the extension for
# ARCHITECTURES and the Python of that machine, and the name of the commit.
gpu-carry:
	CONVMIXER_KERNELS_BUILD_CUDA=1 CONVMIXER_KERNELS_ARCHITECTURES="$(or $(ARCHITECTURES),90)" \
	  $(PYTHON) setup.py --quiet build_ext --inplace
	git describe --always --dirty --exclude='*' --abbrev=40 > build/commit

gpu-build: gpu-present
	CONVMIXER_KERNELS_BUILD_CUDA=1 $(PYTHON) -m pip install --no-index --no-build-isolation --no-deps -e .
	$(PYTHON) -m convmixer_kernels

# The tests that hold gigabytes come by themselves: together they would not fit.
gpu-test: gpu-present
	@status=0; \
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -v $(PARALLEL) -m "gpu and not memory" $(GPU_TESTS) || status=$$?; \
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -v -m "gpu and memory" $(GPU_TESTS) || status=$$?; exit $$status

gpu-sanitize: gpu-present
	$(VISIT) --only extension,sanitize

# The kernels of Triton first, on all cores: the measurements would compile them one by one.
gpu-benchmark: gpu-present
	@mkdir -p build; rm -f build/quick.jsonl
	@$(VISIT) --only triton_smoke || echo "make $@: not every kernel of Triton is right, see above"
	@status=0; \
	$(PYTHON) -m pytest benchmarks --benchmark-only --quick --facts=build/quick.jsonl || status=$$?; \
	$(PYTHON) benchmarks/report.py build/quick.jsonl || status=$$?; exit $$status

report: $(VENV)/installed
	@if [ -z "$(RESULTS)" ]; then echo "make report: name results, as in make report RESULTS=build/visit/visit.jsonl"; exit 2; fi
	$(BIN)/python benchmarks/report.py $(RESULTS)

# Files that an earlier build left in these folders would go into the wheel.
wheel: $(VENV)/installed
	rm -rf build/lib* build/bdist*
	CONVMIXER_KERNELS_BUILD_CUDA=1 CONVMIXER_KERNELS_ARCHITECTURES="$(or $(ARCHITECTURES),all)" \
	  $(BIN)/python -m pip wheel --no-build-isolation --no-deps --wheel-dir dist .

budget: $(VENV)/installed
	$(BIN)/python benchmarks/budget.py

api: $(VENV)/installed
	$(BIN)/python docs/make_api.py

models: $(VENV)/installed
	$(BIN)/python docs/make_models.py

lint: $(VENV)/installed
	$(BIN)/ruff check $(PYTHON_FOLDERS)
	$(BIN)/ruff format --check $(PYTHON_FOLDERS)
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CPP_FILES)

format: $(VENV)/installed
	$(BIN)/ruff check --fix $(PYTHON_FOLDERS)
	$(BIN)/ruff format $(PYTHON_FOLDERS)
	$(BIN)/clang-format -i $(CPP_FILES)

clean:
	rm -rf $(VENV) build *.egg-info convmixer_kernels/_build.json convmixer_kernels/_cuda*.so \
	  .mypy_cache .pytest_cache .ruff_cache

$(VENV)/created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "make: Python 3.10 or newer is needed; name one with: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV) > /dev/null \
	  || { echo "make: $(PYTHON) cannot create virtual environments; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@touch $@

# The dependencies and both packages, without CUDA; its extension is a step of its own because it
# changes with csrc/ and the rest does not.
$(VENV)/installed: $(VENV)/created pyproject.toml constraints.txt $(BUILD_TOOLS)
	CONVMIXER_KERNELS_BUILD_CUDA=0 $(BIN)/python -m pip install --quiet -c constraints.txt -e ".[train,test]"
	@touch $@

$(VENV)/cuda: $(VENV)/installed $(CUDA_SOURCES)
	$(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@
