"""A model of 1,000 layers: seconds, not minutes."""

import time
import tracemalloc

import keras
import pytest

import frameworks
from keras_bn.benchmark import tools
from keras_bn.tools._graphs.walk import sublayers
from slow import slow

L = keras.layers
TOOLS = tools.TOOLS
ON_TORCH = slow("hundreds of layers, built by Keras", but_on="torch")


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(2, id="200 layers"),
        pytest.param(
            10,
            id="1,000 layers",
            marks=slow("half a minute, most of it Keras's", witness="test_seconds"),
        ),
    ],
)
def blocks_and_model(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tools, "_BLOCKS", request.param)
        model = tools.deep_model(4)
    assert sum(1 for _ in sublayers(model)) > 100 * request.param
    return request.param, model


@ON_TORCH
@pytest.mark.parametrize("tool", TOOLS)
def test_seconds(blocks_and_model, tool):
    blocks, model = blocks_and_model
    start = time.process_time()
    TOOLS[tool](model)
    assert time.process_time() - start < 6 * blocks


@pytest.mark.skipif(
    frameworks.KERAS < (3, 15),
    reason="Keras 3.14 leaves arrays to the garbage collector, which comes late",
)
@pytest.mark.parametrize("tool", ["convert", pytest.param("fold", marks=ON_TORCH)])
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
