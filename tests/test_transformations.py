"""Whatever composes with Keras's layer composes with ours: one table.

The rows are in `transformations/rows.py`, what they are applied to in `scenes.py`, how
each backend does them in `in_<backend>.py`. Keras's own layer goes through the table as
well, and breaks exactly the rows that `keras_own.py` says.
"""

import importlib
from contextlib import nullcontext

import keras
import numpy as np
import pytest

import frameworks
import keras_bn
from promises import assert_near
from slow import slow
from transformations import keras_own
from transformations.call import Call
from transformations.expected import Expected
from transformations.rows import BOTH, ROWS, TAPES
from transformations.scenes import SCENES, Numbers

BACKEND = keras.backend.backend()
GLUE = importlib.import_module(f"transformations.in_{BACKEND}").Glue()

pytestmark = pytest.mark.filterwarnings(
    # The rules of torch's forward mode are written in a language that it gives up.
    "ignore:`torch.jit:DeprecationWarning",
    # `torch.func.linearize` of the graph that it has just made itself.
    "ignore:Attempted to insert a get_attr Node:UserWarning",
)

CASES = [
    (name, scene)
    for name, row in ROWS.items()
    if BACKEND in row.where
    for scene in row.scenes
]

# Of the largest number expected: some three times what rounding in float32 costs the
# worst of them, and of a derivative of any order no more.
ALLOWED = 2e-5


TRACED = slow("is compiled on JAX, traced on TensorFlow", but_on="torch")
COMPILED = slow("is compiled or exported for seconds", witness="test_our_layer")


def rare(name, scene):
    if scene not in ROWS[name].rare:
        return ()
    return TRACED if ROWS[name].where in (BOTH, TAPES) else COMPILED


@pytest.mark.parametrize(
    ("name", "scene"), [pytest.param(*case, marks=rare(*case)) for case in CASES]
)
def test_our_layer(name, scene):
    check(ROWS[name], name, SCENES[scene], keras_bn.BatchNormalization)


KEPT = slow("shows that Keras's own layer keeps a row", witness="test_our_layer")


@pytest.mark.parametrize(
    ("name", "scene"),
    [
        pytest.param(
            *(name, scene),
            marks=() if (name, scene) in keras_own.BREAKS[BACKEND] else KEPT,
        )
        for name, scene in CASES
        if scene in keras_own.SCENES and SCENES[scene].by == "layer"
    ],
)
def test_kerass_layer(name, scene):
    broken = keras_own.BREAKS[BACKEND].get((name, scene))
    with pytest.raises(broken.error, match=broken.match) if broken else nullcontext():
        check(ROWS[name], name, SCENES[scene], keras.layers.BatchNormalization)


def test_every_method_has_a_row():
    used = {row.does or name for name, row in ROWS.items() if BACKEND in row.where}
    assert used == {name for name in dir(GLUE) if not name.startswith("_")}


@pytest.mark.parametrize(
    "scene", [scene for scene in SCENES.values() if np.prod(scene.shape) < 1000]
)
def test_expected_quantities_agree(scene):
    """The gradient is derived by hand, what is pushed forward by differences alone."""
    numbers = Numbers(scene)
    expected = Expected(scene, numbers)
    for forward, backward in (("pushed", "gradient"), ("pushed_twice", "hvp")):
        one = np.sum(getattr(expected, forward)() * numbers.upstream)
        pairs = zip(getattr(expected, backward)(), numbers.tangent, strict=True)
        assert one == pytest.approx(sum(np.sum(a * b) for a, b in pairs), abs=1e-8)


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
    """All tensors that are there within what is allowed; shapes and dtypes exactly."""
    if quantity in ("shape", "dtype"):
        assert found == expected
        return
    if not isinstance(expected, list):
        found, expected = [found], [expected]
    for i, (one, right) in enumerate(zip(found, expected, strict=True)):
        if one is not None:
            size = np.max(np.abs(right), initial=0.1)
            got = frameworks.numpy(one)
            assert_near(f"{quantity} {i}", got, right, ALLOWED * size)
