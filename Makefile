# make demo | test | bench | lint: each sets up .venv by itself, once, and again when its inputs change.
# All paths are relative: the names of prerequisites cannot hold the spaces that the checkout's own path may.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
# With a CUDA GPU the newest torch is right; without one, 2.13.0 is small and what the project is developed with.
TORCH ?= $(if $(shell nvidia-smi -L 2>/dev/null),torch>=2.11,torch==2.13.0)
BUILD_REQUIREMENTS := 'setuptools>=77' 'cmake>=3.24' ninja 'pybind11>=2.13'
NATIVE := setup.py CMakeLists.txt $(shell find cmake csrc -type f)
TOKENIZER_RESULTS := benchmarks/results/cpu/tokenizer.jsonl
PIP := $(PY) -m pip install --quiet --disable-pip-version-check
FUZZ_SECONDS ?= 60
FUZZ_CXX ?= clang++
# Processes that share the tests, a file to each; WORKERS=0 runs them in this one, which a debugger needs.
WORKERS ?= auto
PYTEST := $(PY) -m pytest --numprocesses $(WORKERS) --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: help setup setup-dev demo test sweep fuzz bench bench-tokenizer lint format clean

help:  ## Shows this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | expand -t 12

demo: setup  ## Trains a small tokenizer and model and generates text, on whatever this machine has
	$(PY) -m llmjp.cli demo

test: setup-dev  ## Runs the test suite (ARGS='-k name' narrows it)
	$(PYTEST) $(ARGS)

sweep: setup-dev  ## Runs the wide random sweeps that the tests leave out
	$(PYTEST) -m sweep $(ARGS)

bench: setup-dev  ## Runs the benchmarks on this machine
	$(PY) benchmarks/run.py $(ARGS)

bench-tokenizer: setup-dev  ## Measures the tokenizer beside its peers; writes the results, table and plot of its page
	$(PIP) 'kitoken>=0.11' 'matplotlib>=3.8' 'splintr-rs>=0.22'
	$(PY) benchmarks/run.py tokenizer --device cpu --replace --output $(TOKENIZER_RESULTS)
	$(PY) benchmarks/tokenizer_suite/report.py $(TOKENIZER_RESULTS) \
	    --page docs/tokenizer.md --plot docs/tokenizer.svg

soak: setup  ## Kills a training run at random for half an hour; ends with an undisturbed run's weights
	$(PY) tools/soak.py $(ARGS)

fuzz: setup-dev  ## Fuzzes the tokenizer, FUZZ_SECONDS a target (60); needs clang with libFuzzer
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" CXX=$(FUZZ_CXX) cmake -G Ninja -S . -B build/fuzz -DLLMJP_FUZZ=ON -DLLMJP_CUDA=OFF -DLLMJP_PYTHON="$(CURDIR)/$(PY)"
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" ninja -C build/fuzz tokenizer_fuzzers
	cd build/fuzz/tokenizer_tests && for target in files search decode; do \
	  mkdir -p corpus/$$target && ./tokenizer_replay $$target --seeds corpus/$$target && \
	  ./tokenizer_fuzz_$$target -max_total_time=$(FUZZ_SECONDS) -timeout=20 -rss_limit_mb=2048 -print_final_stats=1 corpus/$$target || exit 1; \
	done

lint: setup-dev  ## Checks format, style and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	find csrc -name '*.h' -o -name '*.cuh' -o -name '*.cpp' | xargs $(VENV)/bin/clang-format --dry-run -Werror

format: setup-dev  ## Formats all sources
	$(PY) -m ruff check --fix --quiet .
	$(PY) -m ruff format .
	find csrc -name '*.h' -o -name '*.cuh' -o -name '*.cpp' | xargs $(VENV)/bin/clang-format -i

setup: $(VENV)/native.stamp  ## Creates .venv, installs the packages and builds the native modules

setup-dev: $(VENV)/tests.stamp  ## The same with the tools and native modules that tests and lint use

clean:  ## Removes what was built, and .venv
	rm -rf build dist $(VENV) llmjp_ext/*.so *.egg-info

$(VENV)/packages.stamp: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("Python 3.10 or newer is needed, found " + sys.version.split()[0])'
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PIP) $(BUILD_REQUIREMENTS) '$(TORCH)'
	$(PIP) --no-build-isolation --editable '.[train]'
	@touch $@

$(VENV)/native.stamp: $(VENV)/packages.stamp $(NATIVE)
	$(PY) setup.py --quiet build_ext --inplace
	@touch $@

$(VENV)/dev-packages.stamp: pyproject.toml $(VENV)/packages.stamp
	LLMJP_TESTS=ON $(PIP) --no-build-isolation --editable '.[dev]'
	@touch $@

$(VENV)/tests.stamp: $(VENV)/dev-packages.stamp $(NATIVE)
	LLMJP_TESTS=ON $(PY) setup.py --quiet build_ext --inplace
	@touch $(VENV)/native.stamp $@
