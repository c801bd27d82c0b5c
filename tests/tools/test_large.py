"""A model of 1,000 layers: seconds, not minutes."""

import time
import tracemalloc

import keras
import pytest

import keras_bn
from cases_tools import images

L = keras.layers


@pytest.fixture(scope="module")
def large():
    """Ten blocks: Keras builds a chain of 1,000 layers by too deep a recursion."""
    x = inputs = keras.Input((4,))
    for block in range(10):
        y = start = keras.Input((4,))
        for _ in range(33):
            y = L.ReLU()(L.BatchNormalization()(L.Dense(4)(y)))
        x = L.Identity()(keras.Model(start, y, name=f"block{block}")(x))
    return keras.Model(inputs, x)


TOOLS = {
    "convert": lambda model: keras_bn.convert(model),
    "fold": lambda model: keras_bn.fold(model),
    "inspect": lambda model: keras_bn.inspect(model),
    "inspect with data": lambda model: keras_bn.inspect(model, images(8, 4)),
}


@pytest.mark.parametrize("tool", TOOLS)
def test_seconds(large, tool):
    start = time.perf_counter()
    TOOLS[tool](large)
    assert time.perf_counter() - start < 30


@pytest.mark.parametrize("tool", ["convert", "fold"])
def test_memory_is_that_of_the_copy(tool):
    """In NumPy, never as much as the model: weights travel one by one."""
    layers = []
    for _ in range(16):
        layers += [L.Dense(512), L.BatchNormalization()]
    model = keras.Sequential([keras.Input((512,)), *layers])
    TOOLS[tool](model)  # what is allocated once is not the tool's
    tracemalloc.start()
    TOOLS[tool](model)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * model.count_params()
