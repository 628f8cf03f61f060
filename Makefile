# Everything from a fresh clone: each target makes its own environment in .venv first.
#
#   make demo     train on Bach's chorales, LeakyRNN against a plain PyTorch loop (DATA=file: your own rolls)
#   make test     the test suite, reduced to a quarter of an hour (TESTS='tests/nn -k decay': a part of it)
#   make test-all   all tests: every case, instruction set and architecture, under all sanitizers; over an hour
#   make paper-quick   the study on polyphonic music with Bach's chorales, ten minutes (DATA=file: your own rolls)
#   make paper    the whole study on your own rolls, hours (DATA=file or folder)
#   make bench    the benchmark behind README's table
#   make gpu-report   build, tests, sanitizers and benchmarks where there is an NVIDIA GPU
#   make lint     format, spelling, types and common mistakes, without building the extension
#   make clean    remove what the others made
#
# TORCH=...   another requirement for torch      PYTHON=...   another interpreter
# RNNKERNELS_CUDA=1   with the CUDA kernels, =0 without them. They take minutes, so by default they are built
# here only where there is a GPU; `pip install .` builds them wherever it finds nvcc.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SOURCES := $(shell find csrc -type f) CMakeLists.txt setup.py cuda_build.py pyproject.toml
ifeq ($(RNNKERNELS_CUDA),)
RNNKERNELS_CUDA := $(shell nvidia-smi > /dev/null 2>&1 || echo 0)
endif
export RNNKERNELS_CUDA

.PHONY: help demo paper-quick paper test test-all bench gpu-report lint lint-python lint-cpp lint-binding lint-text clean always
.DELETE_ON_ERROR:

help:
	@sed -n 's/^#   //p' Makefile

# torch first and by itself: the extension is built against the torch that is there.
$(VENV)/torch.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "rnnkernels needs Python 3.10 or newer (PYTHON=... names another one)"; exit 1; }
	@command -v $${CXX:-c++} > /dev/null || { echo "rnnkernels needs a C++ compiler (g++ or clang++)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet "$(TORCH)" numpy "setuptools>=77" "pybind11>=2.13" "cmake>=3.22" ninja
	@touch $@

# Newer when RNNKERNELS_CUDA is another than the last time.
$(VENV)/cuda.setting: $(VENV)/torch.stamp always
	@echo "$(RNNKERNELS_CUDA)" | cmp -s - $@ || echo "$(RNNKERNELS_CUDA)" > $@

# The extension, in place.
$(VENV)/package.stamp: $(VENV)/torch.stamp $(VENV)/cuda.setting $(SOURCES)
	$(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@

# The package without its extension, and one of the extras of pyproject.toml.
$(VENV)/%.extra: $(VENV)/torch.stamp pyproject.toml
	RNNKERNELS_EXTENSION=0 $(PIP) install --quiet --no-build-isolation --editable ".[$*]"
	@touch $@

# Both at the same time: one waits for the network, the other for the processor.
with = @$(MAKE) --no-print-directory -j2 $(VENV)/package.stamp $(VENV)/$(1).extra

demo:
	$(call with,demo)
	$(BIN)/python examples/demo.py $(if $(DATA),--data "$(DATA)")

paper-quick:
	$(call with,demo)
	PYTHONPATH=examples $(BIN)/python -m polyphonic_music --plan quick $(if $(DATA),--data "$(DATA)") $(ARGS)

paper:
	$(call with,demo)
	PYTHONPATH=examples $(BIN)/python -m polyphonic_music --plan full $(if $(DATA),--data "$(DATA)") $(ARGS)

test:
	$(call with,test)
	$(BIN)/python -m pytest $(TESTS)

test-all:
	$(call with,test)
	$(BIN)/python -m pytest --full $(TESTS)

bench:
	$(call with,bench)
	$(BIN)/python -m benchmarks recurrence

# Without .venv: nothing is downloaded, and the installed torch is used, because it supports the GPU.
gpu-report:
	$(PYTHON) -m benchmarks gpu-report $(ARGS)

lint: $(VENV)/dev.extra
	@$(MAKE) --no-print-directory -j2 --output-sync=target lint-python lint-cpp lint-binding lint-text

lint-python: $(VENV)/dev.extra
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

CPP := $(shell find csrc tests/native benchmarks -name '*.h' -o -name '*.cpp' -o -name '*.cu')
TIDY := $(BIN)/clang-tidy --quiet
CPP_FLAGS := -x c++ -std=c++20 -Icsrc -DRNNKERNELS_EMULATED

# clang-tidy reads the CUDA sources as C++ for the emulated GPU.
lint-cpp: $(VENV)/dev.extra
	$(BIN)/clang-format --dry-run --Werror $(CPP)
	$(TIDY) $(filter-out csrc/binding/% %.h %properties.cu benchmarks/%,$(CPP)) -- $(CPP_FLAGS) -DRNNKERNELS_ISA_NAME=generic

# The files of the binding are read as three, since torch's headers take longer than they do. Files that use
# the same name in their anonymous namespaces are apart.
BINDING := $(filter csrc/binding/%.cpp,$(CPP))
BINDING_NADE := $(filter csrc/binding/nade% csrc/binding/backward.cpp,$(BINDING))
BINDING_AUTOGRAD := csrc/binding/autograd.cpp
BINDING_REST := $(filter-out $(BINDING_NADE) $(BINDING_AUTOGRAD),$(BINDING))

lint-binding: $(VENV)/dev.extra
	@mkdir -p build/lint
	@printf '#include "%s"\n' $(BINDING_NADE:csrc/%=%) > build/lint/nade.cpp
	@printf '#include "%s"\n' $(BINDING_AUTOGRAD:csrc/%=%) > build/lint/autograd.cpp
	@printf '#include "%s"\n' $(BINDING_REST:csrc/%=%) > build/lint/rest.cpp
	$(TIDY) --checks=-bugprone-suspicious-include build/lint/nade.cpp build/lint/autograd.cpp build/lint/rest.cpp \
	  -- $(CPP_FLAGS) $$($(BIN)/python -c "$$PRINT_TORCH_FOLDERS") \
	  $(foreach name,VERSION COMPILER TORCH_VERSION CUDA_ARCHITECTURES,-DRNNKERNELS_$(name)='""')

# Not INCLUDES, which nvcc reads.
define PRINT_TORCH_FOLDERS
import sysconfig, pybind11, torch.utils.cpp_extension as torch
folders = [*torch.include_paths(), pybind11.get_include(), sysconfig.get_path('include')]
print(*(f'-isystem {folder}' for folder in folders))
endef
export PRINT_TORCH_FOLDERS

lint-text: $(VENV)/dev.extra
	git ls-files | xargs $(BIN)/codespell
	git ls-files '*.md' | xargs $(BIN)/pymarkdown scan

clean:
	rm -rf $(VENV) build dist *.egg-info rnnkernels/*.so rnnkernels/_build.json demo.png seeds.png benchmark-results experiments
