"""How scale and offset pass a call: on its other side they do the same to `x`."""

from typing import NamedTuple

import keras
import numpy as np
import pytest
from keras import ops

from cases_fold import some_affine
from cases_tools import images, numpy
from keras_bn._keras import call_of
from keras_bn.tools._folding import operations
from keras_bn.tools._folding.affines import Affine, Inexact
from slow import slow

L = keras.layers
pytestmark = slow("NumPy beside layers that know no backend", but_on="torch")


class Pass(NamedTuple):
    """A call, the shape it takes, and the axes of a sample that are scaled apart."""

    call: object
    shape: tuple
    along: tuple = (-1,)  # of what is called
    back: tuple = (-1,)  # of what is given
    signs: tuple = (-1, 1)
    shifted: bool = True


LINE, IMAGE, SCAN = (6, 4), (6, 4, 3), (4, 4, 4, 3)
FIRST = {"data_format": "channels_first"}
ONE = {"along": (0,), "back": (0,)}
POSITIVE = {"signs": (1,)}
UNSHIFTED = {"shifted": False}
VECTOR = np.asarray([0.5, -2.0, 3.0, 1.0], "float32")


def _rows(shape, *classes, **how):
    """A row for each class of layers, and its first argument, if it needs one."""
    rows = (one if isinstance(one, tuple) else (one,) for one in classes)
    return {
        cls.__name__: Pass(lambda x, cls=cls, given=given: cls(*given)(x), shape, **how)
        for cls, *given in rows
    }


LAYERS = {
    **_rows(LINE, (L.Activation, "linear"), L.ActivityRegularization, L.Identity),
    **_rows(LINE, (L.Dropout, 0.5), (L.AlphaDropout, 0.5), (L.GaussianDropout, 0.5)),
    **_rows(LINE, (L.GaussianNoise, 0.5), (L.SpatialDropout1D, 0.5)),
    **_rows(IMAGE, (L.SpatialDropout2D, 0.5)),
    **_rows(SCAN, (L.SpatialDropout3D, 0.5)),
    **_rows(LINE, (L.AveragePooling1D, 2), (L.Cropping1D, 1), (L.UpSampling1D, 2)),
    **_rows(IMAGE, (L.AveragePooling2D, 2), (L.Cropping2D, 1), (L.UpSampling2D, 2)),
    **_rows(SCAN, (L.AveragePooling3D, 2), (L.Cropping3D, 1), (L.UpSampling3D, 2)),
    **_rows(LINE, L.GlobalAveragePooling1D),
    **_rows(IMAGE, L.GlobalAveragePooling2D),
    **_rows(SCAN, L.GlobalAveragePooling3D),
    **_rows(LINE, L.MaxPooling1D, L.GlobalMaxPooling1D, **POSITIVE),
    **_rows(IMAGE, L.MaxPooling2D, L.GlobalMaxPooling2D, **POSITIVE),
    **_rows(SCAN, L.MaxPooling3D, L.GlobalMaxPooling3D, **POSITIVE),
    **_rows(LINE, L.ZeroPadding1D, **UNSHIFTED),
    **_rows(IMAGE, L.ZeroPadding2D, **UNSHIFTED),
    **_rows(SCAN, L.ZeroPadding3D, **UNSHIFTED),
    "pooling, first": Pass(lambda x: L.AveragePooling2D(2, **FIRST)(x), IMAGE, **ONE),
    "global, first": Pass(lambda x: L.GlobalAveragePooling2D(**FIRST)(x), IMAGE, **ONE),
    "global, kept": Pass(lambda x: L.GlobalAveragePooling2D(keepdims=True)(x), IMAGE),
    "global max, first, kept": Pass(
        lambda x: L.GlobalMaxPooling2D(keepdims=True, **FIRST)(x),
        IMAGE,
        **ONE,
        **POSITIVE,
    ),
    "permuted": Pass(lambda x: L.Permute((3, 1, 2))(x), IMAGE),
    "permuted, two axes": Pass(
        lambda x: L.Permute((2, 3, 1))(x), IMAGE, (0, 2), (1, 2)
    ),
    "flat": Pass(lambda x: L.Flatten()(x), IMAGE),
    "flat, first": Pass(lambda x: L.Flatten(**FIRST)(x), IMAGE, (0,)),
    "flat, first, of all": Pass(lambda x: L.Flatten(**FIRST)(x), IMAGE, (0, 1, 2)),
    "flat already": Pass(lambda x: L.Flatten(**FIRST)(x), (5,)),
    "reshaped, channels last": Pass(lambda x: L.Reshape((2, 3, 4))(x), LINE),
    "reshaped, all alike": Pass(lambda x: L.Reshape((-1,))(x), LINE, (), ()),
    "reshaped, other channels": Pass(lambda x: L.Reshape((3, 8))(x), LINE),
    "reshaped, other axes": Pass(lambda x: L.Reshape((4, 6))(x), LINE, (0,), (0, 1)),
    "rescaled": Pass(lambda x: L.Rescaling(-2.0, 0.5)(x), LINE),
    "rescaled by channel": Pass(lambda x: L.Rescaling([1, 2, 3, -4], VECTOR)(x), LINE),
    "rescaled by position": Pass(
        lambda x: L.Rescaling(VECTOR[:, None])(x), (4, 6), (1,), (0,)
    ),
    "step by step": Pass(lambda x: L.TimeDistributed(L.Permute((3, 1, 2)))(x), SCAN),
    "step by step, positions": Pass(
        lambda x: L.TimeDistributed(L.Permute((2, 1)))(x), IMAGE, (1,), (1,)
    ),
}
OPERATIONS = {
    "plus": Pass(lambda x: ops.add(x, VECTOR), LINE),
    "plus, first": Pass(lambda x: ops.add(2.0, x), LINE),
    "minus": Pass(lambda x: ops.subtract(x, VECTOR), LINE),
    "minus whole numbers": Pass(
        lambda x: ops.subtract(x, np.arange(4, dtype="uint8")), LINE
    ),
    "from": Pass(lambda x: ops.subtract(VECTOR, x), LINE),
    "times": Pass(lambda x: ops.multiply(x, VECTOR), LINE),
    "times, by position": Pass(
        lambda x: ops.multiply(VECTOR[None, :, None], x), (4, 6), (1,), (0,)
    ),
    "over": Pass(lambda x: ops.true_divide(x, VECTOR), LINE),
    "divided": Pass(lambda x: ops.divide(x, VECTOR), LINE),
    "negative": Pass(lambda x: -x, LINE),
    "the same dtype": Pass(lambda x: ops.cast(x, "float32"), LINE),
    "stopped": Pass(ops.stop_gradient, LINE),
    "transposed": Pass(lambda x: ops.transpose(x, (0, 3, 1, 2)), IMAGE),
    "swapped": Pass(lambda x: ops.swapaxes(x, 1, -1), IMAGE, (0, 1), (1, 2)),
    "moved": Pass(lambda x: ops.moveaxis(x, -1, 1), IMAGE),
    "moved, several": Pass(lambda x: ops.moveaxis(x, (1, 3), (2, 1)), IMAGE, (1,)),
    "wider": Pass(lambda x: ops.expand_dims(x, 1), LINE),
    "wider at the end": Pass(lambda x: ops.expand_dims(x, -1), LINE, (1,), (1,)),
    "squeezed": Pass(lambda x: ops.squeeze(x, 2), (6, 1, 4)),
    "to a number": Pass(lambda x: ops.squeeze(x, 1), (1,), back=()),
    "of a number": Pass(lambda x: ops.expand_dims(x, 1), (), along=()),
    "samples joined": Pass(lambda x: ops.reshape(x, (-1, 4)), LINE),
    "samples joined, alike": Pass(lambda x: ops.reshape(x, (-1, 6, 2)), LINE, (), ()),
    "mean": Pass(lambda x: ops.mean(x, 1), IMAGE, (1, 2), (1,)),
    "mean of two axes": Pass(lambda x: ops.mean(x, (-2, 1)), IMAGE),
    "mean, kept": Pass(lambda x: ops.mean(x, (3, 1), keepdims=True), IMAGE, (1,), (1,)),
    "max": Pass(lambda x: ops.max(x, 2), IMAGE, (0, 2), (0, 1), **POSITIVE),
    "amax": Pass(lambda x: ops.amax(x, -1, True), IMAGE, (0,), (1,), **POSITIVE),
    "pooled": Pass(lambda x: ops.average_pool(x, 2, 2), IMAGE),
    "pooled, first": Pass(
        lambda x: ops.average_pool(x, 2, 2, data_format="channels_first"), IMAGE, **ONE
    ),
    "maxima": Pass(lambda x: ops.max_pool(x, 2, 2), IMAGE, **POSITIVE),
    "resized": Pass(lambda x: ops.image.resize(x, (5, 7)), IMAGE),
    "reflected": Pass(lambda x: ops.pad(x, ((0, 0), (1, 1), (0, 0)), "reflect"), LINE),
    "not padded": Pass(lambda x: ops.pad(x, ((0, 0),) * 3, "reflect"), LINE),
    "zeros around": Pass(
        lambda x: ops.pad(x, ((0, 0), (0, 1), (0, 0))), LINE, **UNSHIFTED
    ),
}


@pytest.mark.parametrize("back", [False, True], ids=["on", "back"])
@pytest.mark.parametrize("name", [*LAYERS, *OPERATIONS])
def test_both_sides_compute_the_same(name, back):
    case = {**LAYERS, **OPERATIONS}[name]
    inputs = keras.Input(case.shape)
    outputs = case.call(inputs)
    shapes = inputs.shape[1:], outputs.shape[1:]
    axes = case.back if back else case.along
    given = some_affine(shapes[back], axes, case.signs, case.shifted)
    made = operations.passed(given, call_of(outputs), back)
    for one in made:
        assert one.ndim == len(shapes[not back])
        assert all(
            had in (1, size)
            for had, size in zip(one.shape, shapes[not back], strict=True)
        )
    before, after = (made, given) if back else (given, made)
    x = images(2, *case.shape)
    expected = after.scale * _run(case.call, x) + after.offset
    received = _run(case.call, before.scale * x + before.offset)
    np.testing.assert_allclose(received, expected, rtol=1e-5, atol=1e-5)


def _run(call, x):
    return numpy(call(ops.convert_to_tensor(x, "float32")))


class Own(L.TimeDistributed):
    """May do anything."""


# A call, the shape it takes, and what is said of it.
IN_THE_WAY = {
    "training": (lambda x: L.Dropout(0.5)(x, training=True), LINE, "is in the way"),
    "training, step by step": (
        lambda x: L.TimeDistributed(L.Dropout(0.5))(x, training=True),
        *(LINE, "is in the way"),
    ),
    "own wrapper": (lambda x: Own(L.Dropout(0.5))(x), LINE, r"\(Own\) is in the way"),
    "two tensors": (lambda x: ops.multiply(x, x), LINE, r"\(Multiply\) is in the way"),
    "over zero": (
        lambda x: ops.true_divide(x, VECTOR - 1),
        *(LINE, r"\(ops.TrueDivide\) is in the way"),
    ),
    "over": (
        lambda x: ops.divide(VECTOR, x),
        *(LINE, r"\(ops.Divide\) is in the way"),
    ),
    "mean of all": (ops.mean, LINE, "goes over the batch"),
    "padded to a ratio": (
        lambda x: ops.image.resize(x, (5, 7), pad_to_aspect_ratio=True),
        *(IMAGE, "pads with a constant, which it would shift"),
    ),
    "padded, no pair each": (
        lambda x: ops.pad(x, 1, "reflect"),
        LINE,
        "pads the batch",
    ),
}


@pytest.mark.parametrize("back", [False, True], ids=["on", "back"])
@pytest.mark.parametrize("name", IN_THE_WAY)
def test_what_is_in_the_way(name, back):
    call, shape, reason = IN_THE_WAY[name]
    inputs = keras.Input(shape)
    outputs = call(inputs)
    sizes = [1] * (len((inputs, outputs)[back].shape) - 1)
    given = Affine(np.full(sizes, 2.0), np.full(sizes, 1.0))
    with pytest.raises(Inexact, match=reason):
        operations.passed(given, call_of(outputs), back)


APART = {
    "averages": L.AveragePooling1D(2),
    "maxima": L.MaxPooling1D(2),
    "all averages": L.GlobalAveragePooling1D(),
    "all maxima": L.GlobalMaxPooling1D(),
    "cropped": L.Cropping1D(1),
    "repeated": L.UpSampling1D(2),
    "padded": L.ZeroPadding1D(1),
    "operation": lambda x: ops.average_pool(x, 2),
}


@pytest.mark.parametrize("name", APART)
def test_positions_that_are_scaled_apart_do_not_move(name):
    node = call_of(APART[name](keras.Input(LINE)))
    affine = Affine(np.arange(1.0, 7.0)[:, None], np.zeros((6, 1)))
    with pytest.raises(Inexact, match="moves positions, which it scales differently"):
        operations.passed(affine, node, False)


@pytest.mark.parametrize("back", [False, True], ids=["on", "back"])
def test_a_scale_of_channels_that_come_first_is_in_the_way(back):
    """Keras lays it out along them, but an offset along the last axis."""
    affine = Affine(np.ones((1, 1, 1)), np.zeros((1, 1, 1)))
    form = keras.config.image_data_format()
    keras.config.set_image_data_format("channels_first")
    try:
        one, several = (
            call_of(L.Rescaling(scale)(keras.Input((2, 4, 4))))
            for scale in (3.0, [3.0, 4.0])
        )
        assert operations.passed(affine, one, back) == affine
        with pytest.raises(Inexact, match="a scale of channels, which come first"):
            operations.passed(affine, several, back)
    finally:
        keras.config.set_image_data_format(form)
