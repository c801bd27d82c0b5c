"""Every family of `keras.applications` that has batch norm."""

from typing import NamedTuple

import keras
import numpy as np
import pytest

import keras_bn
from cases_tools import FAMILIES, images, numpy, randomize, weights_of
from slow import slow

pytestmark = pytest.mark.usefixtures("cheap_initial_weights")


def _build(case):
    shape = (case.size, case.size, 3)
    settings = {"classes": 10, "classifier_activation": None}
    return case.build(weights=None, input_shape=shape, **settings)


def _run(model, x):
    # JAX compiles a whole model sooner than its operations one by one, the others not.
    compiled = keras.backend.backend() == "jax"
    return numpy(model.predict_on_batch(x) if compiled else model(x, training=False))


class Example(NamedTuple):
    """One family's case and model, the same with our layer, an input and its output."""

    case: object
    model: object
    ours: object
    x: object
    y: object


ON_TORCH = slow("large graphs, which JAX compiles twice each", but_on="torch")
# Of the same layers as the others, and hundreds of them.
LARGE = slow("up to 800 layers", witness="test_there_and_back_gives_the_same_bits")
# Made of the blocks of the others: MobileNetV3's, EfficientNet's and ResNetV2's.
ALIKE = slow(
    "large graphs of the same blocks as others",
    witness="test_there_and_back_gives_the_same_bits",
)
MARKS = {
    "ResNetV2": (),  # some of its norms fold, and some stay
    **dict.fromkeys(("NASNet", "Xception", "InceptionV3", "InceptionResNetV2"), LARGE),
    **dict.fromkeys(("MobileNet", "MobileNetV2", "EfficientNetV2", "ResNet"), ALIKE),
}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(case, id=case.name, marks=MARKS.get(case.name, ON_TORCH))
        for case in FAMILIES
    ],
)
def example(request, cheap_initial_weights):
    case = request.param
    keras.utils.clear_session(free_memory=False)
    model = randomize(_build(case))
    x = images(1, case.size, case.size, 3)
    y = _run(model, x)
    return Example(case, model, keras_bn.convert(model), x, y)


def _norms(model):
    kinds = (keras_bn.BatchNormalization, keras.layers.BatchNormalization)
    return [layer for layer in model.layers if isinstance(layer, kinds)]


def test_there_and_back_gives_the_same_bits(example):
    back = keras_bn.convert(example.ours, to="keras")
    assert [layer.name for layer in back.layers] == [
        layer.name for layer in example.model.layers
    ]
    assert {type(one) for one in _norms(example.ours)} == {keras_bn.BatchNormalization}
    assert {type(one) for one in _norms(back)} == {keras.layers.BatchNormalization}
    # Of what computes the same by the same weights, outputs are the same.
    assert back.get_config() == example.model.get_config()
    assert weights_of(back) == weights_of(example.model)


def test_fold_agrees_and_counts_are_as_stated(example):
    folded, report = keras_bn.fold(example.ours, explain=True)
    counts = (len(report.folded), len(report.left))
    assert counts == (example.case.folded, example.case.left)
    difference = np.abs(_run(folded, example.x) - example.y).max()
    assert difference <= 1e-4 * np.abs(example.y).max()
