"""Keras's own tests of its layer, which its wheel holds, pass with ours put in."""

import collections
import functools
import importlib.util
import unittest
import warnings

import keras
import pytest

import frameworks
import keras_bn

KERAS_TESTS = "keras.src.layers.normalization.batch_normalization_test"
# What these tests find the class in.
LAYERS = "keras.src.layers"

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec(KERAS_TESTS) is None,
    reason="Keras's wheels before 3.15.1, and nightly ones, lack the test file",
)


@pytest.fixture(scope="module")
def calls_of_ours():
    """Ours in the place of Keras's, which cannot be built: the calls, by module."""
    calls = collections.Counter()
    ours, call = keras_bn.BatchNormalization, keras_bn.BatchNormalization.call

    @functools.wraps(call)
    def counted(self, *args, **kwargs):
        calls[type(self).__module__] += 1
        return call(self, *args, **kwargs)

    filtering = keras.config.is_traceback_filtering_enabled()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keras.layers.BatchNormalization, "__init__", refuse)
        patch.setattr(importlib.import_module(LAYERS), "BatchNormalization", ours)
        patch.setattr(ours, "call", counted)
        yield calls
    if filtering:  # Keras's tests leave it switched off.
        keras.config.enable_traceback_filtering()


def refuse(self, *args, **kwargs):
    raise AssertionError("Keras's own layer was built: the swap did not reach a test")


@pytest.fixture(scope="module")
def result(calls_of_ours):
    """What became of Keras's tests."""
    result = unittest.TestResult()
    module = importlib.import_module(KERAS_TESTS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras's tests raise some
        unittest.defaultTestLoader.loadTestsFromModule(module).run(result)
    return result


def test_all_33_pass(result):
    failed = [*result.failures, *result.errors, *result.skipped]
    assert failed == [], "\n".join(f"{test}: {text}" for test, text in failed)
    # Later versions of Keras may add to the 33 of 3.15.1.
    assert result.testsRun == 33 or (
        result.testsRun > 33 and frameworks.KERAS > (3, 15, 1)
    )


def test_the_class_under_test_is_ours(result, calls_of_ours):
    assert list(calls_of_ours) == ["keras_bn.layers.batch_normalization"]
    assert calls_of_ours["keras_bn.layers.batch_normalization"] > 100
