"""A model of 1,000 layers: seconds, not minutes."""

import time
import tracemalloc

import keras
import pytest

from keras_bn.benchmark.tools import TOOLS, deep_model
from keras_bn.tools._walk import sublayers

L = keras.layers


@pytest.fixture(scope="module")
def large():
    model = deep_model(4)
    assert sum(1 for _ in sublayers(model)) > 1000
    return model


@pytest.mark.parametrize("tool", TOOLS)
def test_seconds(large, tool):
    start = time.process_time()
    TOOLS[tool](large)
    assert time.process_time() - start < 60


@pytest.mark.parametrize("tool", ["convert", "fold"])
def test_memory_is_that_of_the_copy(tool):
    """One model's worth at the most: weights travel one by one.

    NumPy counts the copy itself where a framework takes over the memory of an array.
    """
    layers = []
    for _ in range(16):
        layers += [L.Dense(512), L.BatchNormalization()]
    model = keras.Sequential([keras.Input((512,)), *layers])
    TOOLS[tool](model)  # what is allocated once is not the tool's
    tracemalloc.start()
    TOOLS[tool](model)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.25 * 4 * model.count_params()
