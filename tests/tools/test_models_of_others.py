"""The tools on models of other libraries: nothing lost, nothing of theirs altered."""

from typing import Any, NamedTuple

import keras
import numpy as np
import pytest

import keras_bn
from cases_others import OTHERS
from cases_tools import images, numpy, randomize, weights_of
from keras_bn.tools._graphs.walk import is_batch_norm, sublayers
from slow import slow

ABOUT_THE_CLASS = "ignore:.*a saved file holds a plain keras:UserWarning"
pytestmark = pytest.mark.filterwarnings(
    ABOUT_THE_CLASS,
    "ignore:Using a non-tuple sequence",  # PyTorch, of what Keras 3.14 does in D-FINE
)


def _run(model, x):
    # JAX compiles a whole model sooner than its operations one by one, the others not.
    compiled = keras.backend.backend() == "jax"
    y = model.predict_on_batch(x) if compiled else model(x, training=False)
    return [numpy(one) for one in keras.tree.flatten(y)]


def _state(model):
    """All that a tool could alter: objects, names, classes, flags and weights."""
    inside = list(sublayers(model))
    layers = [(id(one), type(one), path, one.trainable) for path, one in inside]
    variables = [(id(v), v.path, v.trainable) for v in model.variables]
    return layers, variables, weights_of(model)


def _kinds(model):
    return [type(one) for _, one in sublayers(model) if is_batch_norm(one)]


def _check_saved(case, model, x, y, folder):
    """What was put in is there after loading, or there is an error."""
    if case.unsaved:
        with pytest.raises((TypeError, ValueError), match=case.unsaved):
            _loaded(model, folder)
        return
    loaded = _loaded(model, folder)
    assert _kinds(loaded) == _kinds(model)
    _assert_close(_run(loaded, x), y)


def _loaded(model, folder):
    model.save(folder / "model.keras")
    return keras.saving.load_model(folder / "model.keras")


class Example(NamedTuple):
    """A model of others, how it was before any tool, an input and its outputs."""

    case: Any
    model: Any
    before: Any
    x: Any
    y: Any


# What is special about them stands, small, in tests/cases_copies.py: layers and
# variables in a config, configs that are not what was given.
ON_TORCH = slow("large graphs, which JAX compiles five times each", but_on="torch")
LARGE = slow("up to a thousand layers", witness="test_convert_keeps_all_that_is_there")
# One is a part of D-FINE, and the other has layers of its own class, as MobileNet has.
ALIKE = slow(
    "large graphs like those of others", witness="test_convert_keeps_all_that_is_there"
)
MARKS = {
    "LCNet": slow("a graph that JAX compiles five times", but_on="tensorflow"),
    **dict.fromkeys(("RepVGG", "YOLOv8"), LARGE),
    **dict.fromkeys(("HGNetV2", "EfficientNet"), ALIKE),
}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(case, id=case.name, marks=MARKS.get(case.name, ON_TORCH))
        for case in OTHERS
    ],
)
def example(request, cheap_initial_weights):
    case = request.param
    keras.utils.clear_session(free_memory=False)
    model = randomize(case.build())
    x = images(2, case.size, case.size, 3)
    y = _run(model, x)
    return Example(case, model, _state(model), x, y)


def _assert_close(received, expected):
    for one, other in zip(received, expected, strict=True):
        scale = np.abs(other).max()
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * scale)


def test_convert_keeps_all_that_is_there(example, tmp_path):
    case, model, before, x, y = example
    norms = case.folded + case.left[0]
    assert _kinds(model) == [keras.layers.BatchNormalization] * norms
    ours = keras_bn.convert(model)
    assert isinstance(ours, type(model))
    assert _kinds(ours) == [keras_bn.BatchNormalization] * norms
    _assert_close(_run(ours, x), y)
    back = keras_bn.convert(ours, to="keras")
    assert weights_of(back) == weights_of(model)
    names = [[(path, one.name) for path, one in sublayers(m)] for m in (back, model)]
    assert names[0] == names[1]
    _check_saved(case, ours, x, y, tmp_path)
    assert _state(model) == before


def test_fold_leaves_nothing_that_folds(example, tmp_path):
    case, model, before, x, y = example
    folded, report = keras_bn.fold(model, explain=True)
    assert (len(report.folded), len(report.left)) == (case.folded, case.left[0])
    assert all(case.left[1] in row.reason for row in report.left)
    assert len(_kinds(folded)) == case.left[0]
    _assert_close(_run(folded, x), y)
    _check_saved(case, folded, x, y, tmp_path)
    assert _state(model) == before
