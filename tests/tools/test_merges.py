"""How scale and offset pass what joins several tensors: in parts of it."""

import keras
import numpy as np
import pytest
from keras import ops

from cases_fold import some_affine
from cases_tools import images, numpy
from keras_bn._keras import call_of
from keras_bn.tools._folding import merges
from slow import slow

L = keras.layers
pytestmark = slow("NumPy beside layers that know no backend", but_on="torch")
LINE = (6, 4)

# Calls of several tensors, and the shapes that they take.
JOINED = {
    "sum": (lambda *every: L.Add()(every), [LINE] * 3, (-1,)),
    "sum of two": (ops.add, [LINE] * 2, (-1,)),
    "difference": (ops.subtract, [LINE] * 2, (0, 1)),
    "difference of layers": (lambda *every: L.Subtract()(every), [LINE] * 2, (-1,)),
    "average": (lambda *every: L.Average()(every), [LINE] * 3, (-1,)),
    "maximum": (lambda *every: L.Maximum()(every), [LINE] * 3, (-1,)),
    "minimum": (ops.minimum, [LINE] * 2, (-1,)),
    "concatenation": (
        lambda *every: L.Concatenate()(every),
        *([(6, 4), (6, 1), (6, 3)], (-1,)),
    ),
    "concatenation of positions": (
        lambda *every: ops.concatenate(every, 1),
        *([(2, 3), (1, 3), (5, 3)], (0,)),
    ),
    "concatenation across": (
        lambda *every: ops.concatenate(every, -2),
        *([(2, 3), (1, 3)], (1,)),
    ),
}


@pytest.mark.parametrize("name", JOINED)
def test_what_is_joined_is_scaled_in_parts(name):
    call, shapes, along = JOINED[name]
    outputs = call(*map(keras.Input, shapes))
    signs = (1,) if name in ("maximum", "minimum") else (-1, 1)
    given = some_affine(outputs.shape[1:], along, signs, True)
    parts, offset, takers = merges.split(given, call_of(outputs))
    every = [images(2, *shape, seed=i) for i, shape in enumerate(shapes)]
    expected = given.scale * _run(call, *every) + given.offset
    changed = [one.scale * x + one.offset for one, x in zip(parts, every, strict=True)]
    for one, shape in zip(parts, shapes, strict=True):
        for values in one:
            assert np.broadcast_shapes(values.shape, shape) == shape
            assert values.ndim == len(shape)
    for i in range(len(takers) or 1):  # any one of them can take it in
        shifted = [*changed]
        shifted[i] = shifted[i] + (takers or [0])[i] * offset
        np.testing.assert_allclose(_run(call, *shifted), expected, 1e-5, 1e-5)


@pytest.mark.parametrize(
    ("call", "shapes", "axis", "place"),
    [
        (lambda *every: L.Concatenate()(every), [(6, 4), (6, 1), (6, 3)], 1, 0),
        (lambda *every: ops.concatenate(every, 1), [(2, 3), (1, 3), (5, 3)], 0, 2),
        (lambda *every: ops.concatenate(every, 1), [(2, 3), (1, 3)], 1, 1),
    ],
)
def test_one_part_of_a_concatenation_is_scaled(call, shapes, axis, place):
    inputs = [*map(keras.Input, shapes)]
    given = some_affine(shapes[place], (axis,), (-1, 1), True)
    made = merges.joined(given, call_of(call(*inputs)), inputs[place])
    every = [images(2, *shape, seed=i) for i, shape in enumerate(shapes)]
    expected = made.scale * _run(call, *every) + made.offset
    every[place] = given.scale * every[place] + given.offset
    np.testing.assert_allclose(_run(call, *every), expected, 1e-5, 1e-5)


def _run(call, *given):
    return numpy(call(*(ops.convert_to_tensor(x, "float32") for x in given)))
