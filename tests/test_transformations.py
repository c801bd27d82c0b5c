"""Whatever composes with Keras's layer composes with ours: one table.

The rows are in `transformations/rows.py`, what they are applied to in `scenes.py`, how
each backend does them in `in_<backend>.py`.
"""

import importlib

import keras
import numpy as np
import pytest

import frameworks
import keras_bn
from promises import assert_near
from transformations.rows import ROWS
from transformations.scenes import SCENES, Call

BACKEND = keras.backend.backend()
GLUE = importlib.import_module(f"transformations.in_{BACKEND}").Glue()

pytestmark = pytest.mark.filterwarnings(
    # The rules of torch's forward mode are written in a language that it gives up.
    "ignore:`torch.jit:DeprecationWarning",
)

CASES = [
    (name, scene)
    for name, row in ROWS.items()
    if BACKEND in row.where
    for scene in row.scenes
]

# Of the largest number expected.
ALLOWED = {
    "value": 1e-5,
    "moving_mean": 1e-5,
    "pushed": 1e-4,
    "gradient": 1e-4,
    "pushed_twice": 1e-3,
    "hvp": 1e-3,
    "third": 1e-2,
}


@pytest.mark.parametrize(("name", "scene"), CASES)
def test_our_layer(name, scene):
    check(ROWS[name], name, SCENES[scene], keras_bn.BatchNormalization)


def check(row, name, scene, layer_class):
    call = Call(scene, layer_class, row)
    transform = getattr(GLUE, row.does or name)
    if row.raises is not None:
        with pytest.raises(row.raises.error, match=row.raises.match):
            transform(call, **row.options)
        return
    found = transform(call, **row.options)
    assert set(found) == set(row.gives)
    for quantity, value in found.items():
        compare(quantity, value, getattr(call.expected, quantity)())


def compare(quantity, found, expected):
    """All tensors that are there within what is allowed; the rest to the letter."""
    if quantity not in ALLOWED:
        assert found == expected
        return
    if not isinstance(expected, list):
        found, expected = [found], [expected]
    for i, (one, right) in enumerate(zip(found, expected, strict=True)):
        if one is not None:
            size = np.max(np.abs(right), initial=0.1)
            got = frameworks.numpy(one)
            assert_near(f"{quantity} {i}", got, right, ALLOWED[quantity] * size)
