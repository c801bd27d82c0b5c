"""The examples in the docstrings run, on every backend."""

import doctest
import importlib
import pkgutil

import keras
import pytest

import keras_bn

OTHERS = {"jax", "tensorflow", "torch"} - {keras.backend.backend()}
# Importing these runs a program.
PROGRAMS = {"keras_bn.__main__", "keras_bn.benchmark.__main__"}


def importable(name):
    """Whether a module is for this backend, and not a program."""
    framework = name.removeprefix("keras_bn.backend.").partition("_")[0]
    return framework not in OTHERS and name not in PROGRAMS


MODULES = ["keras_bn"] + [
    module.name
    for module in pkgutil.walk_packages(keras_bn.__path__, "keras_bn.")
    if importable(module.name)
]
WITH_EXAMPLES = [
    "keras_bn.backend",
    "keras_bn.callbacks",
    "keras_bn.cli",
    "keras_bn.layers.batch_normalization",
    "keras_bn.layers.conditional_batch_normalization",
    "keras_bn.layers.domain_batch_normalization",
    "keras_bn.layers.no_update",
    *(f"keras_bn.models.{name}" for name in keras_bn.models.__all__),
    "keras_bn.ops.batch_norm",
    "keras_bn.ops.merge",
    "keras_bn.ops.moving_average",
    "keras_bn.ops.renorm",
    "keras_bn.tools.average_statistics",
    "keras_bn.tools._statistics.moments",
    "keras_bn.tools.convert",
    "keras_bn.tools.fold",
    "keras_bn.tools.from_flax",
    "keras_bn.tools.from_haiku",
    "keras_bn.tools.from_torch",
    "keras_bn.tools.inspect",
    "keras_bn.tools.recalibrate",
    "keras_bn.tools.to_torch",
]


def examples_of(name):
    # With no names but its own: a reader of the site has no others.
    return doctest.DocTestFinder().find(importlib.import_module(name), globs={})


@pytest.mark.usefixtures("zero_kernels")
@pytest.mark.parametrize("name", MODULES)
def test_examples_print_what_they_say(name):
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
    report = []
    for test in examples_of(name):
        runner.run(test, out=report.append)
    assert not runner.failures, "".join(report)


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_module_has_examples(name):
    assert sum(len(test.examples) for test in examples_of(name)) > 0
