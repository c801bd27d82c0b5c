"""Models of a few layers, and what `fold` makes of each."""

from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from keras_bn import BatchNormalization as Norm
from keras_bn.tools._folding.affines import Affine

L = keras.layers


class Fold(NamedTuple):
    """Layers, the shape they take, how many batch norms go, and why the rest stay."""

    name: str
    layers: object
    shape: tuple
    folded: int
    left: tuple = ()


IMAGE = (6, 6, 4)
LINE = (6, 4)

FOLDS = [
    Fold("dense", lambda: [L.Dense(3), Norm()], (4,), 1),
    Fold("dense, no bias", lambda: [L.Dense(3, use_bias=False), Norm()], (4,), 1),
    Fold("dense, sequence", lambda: [L.Dense(3), Norm()], LINE, 1),
    Fold("dense after", lambda: [Norm(), L.Dense(3)], LINE, 1),
    Fold("conv1d causal", lambda: [L.Conv1D(3, 3, padding="causal"), Norm()], LINE, 1),
    Fold("conv2d", lambda: [L.Conv2D(3, 3, padding="same"), Norm()], IMAGE, 1),
    Fold("conv2d strides", lambda: [Norm(), L.Conv2D(3, 3, strides=2)], IMAGE, 1),
    Fold("groups", lambda: [Norm(), L.Conv2D(6, 3, groups=2), Norm()], IMAGE, 2),
    Fold("dilation", lambda: [Norm(), L.Conv2D(3, 2, dilation_rate=2)], IMAGE, 1),
    Fold("conv3d", lambda: [Norm(), L.Conv3D(3, 2), Norm()], (4, 4, 4, 2), 2),
    Fold("depthwise1d", lambda: [Norm(), L.DepthwiseConv1D(3), Norm()], LINE, 2),
    Fold(
        "depthwise2d",
        lambda: [Norm(), L.DepthwiseConv2D(3, depth_multiplier=2), Norm()],
        IMAGE,
        2,
    ),
    Fold(
        "separable1d",
        lambda: [Norm(), L.SeparableConv1D(3, 3, depth_multiplier=2), Norm()],
        LINE,
        2,
    ),
    Fold(
        "separable2d",
        lambda: [Norm(), L.SeparableConv2D(3, 3, depth_multiplier=2), Norm()],
        IMAGE,
        2,
    ),
    Fold("transpose1d", lambda: [L.Conv1DTranspose(3, 3, strides=2), Norm()], LINE, 1),
    Fold("transpose2d", lambda: [L.Conv2DTranspose(3, 3), Norm()], IMAGE, 1),
    Fold("transpose3d", lambda: [L.Conv3DTranspose(3, 2), Norm()], (3, 3, 3, 2), 1),
    Fold("two norms", lambda: [L.Dense(3), Norm(), Norm()], (4,), 2),
    Fold("keras's", lambda: [L.Dense(3), L.BatchNormalization()], (4,), 1),
    Fold(
        "no gamma or beta",
        lambda: [L.Dense(3), Norm(-1, 0.9, 1e-3, False, False)],
        (4,),
        1,
    ),
    Fold("renorm", lambda: [L.Dense(3), Norm(renorm=True)], (4,), 1),
    Fold("activation after", lambda: [L.Conv2D(3, 3), Norm(), L.ReLU()], IMAGE, 1),
    Fold(
        "dropout", lambda: [L.Dense(3), L.Dropout(0.5), L.Identity(), Norm()], (4,), 1
    ),
    Fold(
        "flatten", lambda: [Norm(), L.Dropout(0.5), L.Flatten(), L.Dense(3)], IMAGE, 1
    ),
    Fold(
        "two axes, flat", lambda: [Norm(axis=(2, 1)), L.Flatten(), L.Dense(3)], LINE, 1
    ),
    Fold(
        "one scale for all",
        lambda: [Norm(axis=1), L.DepthwiseConv2D((1, 3)), Norm(axis=1)],
        (1, 6, 4),
        2,
    ),
    Fold("reshape", lambda: [L.Dense(12), L.Reshape((2, 2, 3)), Norm()], (4,), 1),
    Fold(
        "permute",
        lambda: [L.Conv2D(3, 1), L.Permute((3, 1, 2)), Norm(axis=1)],
        IMAGE,
        1,
    ),
    Fold("crop", lambda: [L.Conv2D(3, 3), L.Cropping2D(1), Norm()], IMAGE, 1),
    Fold("max pool", lambda: [L.Conv2D(3, 3), L.MaxPooling2D(2), Norm()], IMAGE, 1),
    Fold(
        "average pool",
        lambda: [Norm(), L.AveragePooling2D(2), L.Conv2D(3, 2)],
        IMAGE,
        1,
    ),
    Fold(
        "global pool",
        lambda: [Norm(), L.GlobalAveragePooling2D(), L.Dense(3)],
        IMAGE,
        1,
    ),
    Fold(
        "global pool back",
        lambda: [L.Conv2D(3, 3), L.GlobalAveragePooling2D(), Norm()],
        IMAGE,
        1,
    ),
    Fold("global max", lambda: [Norm(), L.GlobalMaxPooling2D(), L.Dense(3)], IMAGE, 1),
    Fold(
        "same average",
        lambda: [
            L.Conv2D(3, 3),
            L.AveragePooling2D(3, strides=2, padding="same"),
            Norm(),
        ],
        (7, 6, 4),
        1,
    ),
    Fold(
        "same average after",
        lambda: [
            Norm(),
            L.AveragePooling2D((2, 3), strides=1, padding="same"),
            L.Conv2D(3, 2),
        ],
        IMAGE,
        1,
    ),
    Fold("upsampling", lambda: [L.Conv2D(3, 3), L.UpSampling2D(2), Norm()], IMAGE, 1),
    Fold(
        "upsampling, bilinear",
        lambda: [L.Conv2D(3, 3), L.UpSampling2D(2, interpolation="bilinear"), Norm()],
        IMAGE,
        1,
    ),
    Fold(
        "upsampling, bicubic",
        lambda: [L.Conv2D(3, 3), L.UpSampling2D(2, interpolation="bicubic"), Norm()],
        IMAGE,
        1,
    ),
    Fold(
        "nested",
        lambda: [keras.Sequential([L.Conv2D(3, 3), Norm()]), L.ReLU()],
        IMAGE,
        1,
    ),
    Fold("fused", lambda: [L.Dense(3), Norm(activation="relu")], (4,), 1),
    Fold(
        "fused, apart",
        lambda: [L.Dense(3), L.Dropout(0.5), Norm(activation="relu"), L.Dense(2)],
        (4,),
        1,
    ),
    Fold(
        "fused, twice",
        lambda: [L.Dense(3), Norm(activation="relu"), Norm(), L.Dense(2)],
        (4,),
        2,
    ),
    Fold(
        "same 1x1",
        lambda: [Norm(), L.Conv2D(3, 1, strides=2, padding="same")],
        (5, 6, 4),
        1,
    ),
    Fold(
        "same patches",
        lambda: [Norm(), L.Conv2D(3, 2, strides=2, padding="same")],
        IMAGE,
        1,
    ),
    Fold("causal 1", lambda: [Norm(), L.Conv1D(3, 1, padding="causal")], LINE, 1),
    Fold(
        "same separable 1x1",
        lambda: [Norm(), L.SeparableConv2D(3, 1, padding="same")],
        IMAGE,
        1,
    ),
    Fold(
        "transpose after 1x1",
        lambda: [Norm(), L.Conv2DTranspose(3, 1, padding="same")],
        IMAGE,
        1,
    ),
    Fold(
        "norms freed one by one",
        lambda: [L.ReLU(), Norm(), Norm(), L.Dense(3)],
        (4,),
        2,
    ),
    Fold("rescaling", lambda: [L.Dense(4), L.Rescaling(2.0, 0.5), Norm()], (4,), 1),
    Fold(
        "rescaling after",
        lambda: [Norm(), L.Rescaling([0.5, 1.0, -2.0, 3.0], 0.5), L.Dense(3)],
        (4,),
        1,
    ),
    Fold(
        "relu between",
        lambda: [L.Dense(3, activation="relu"), Norm()],
        (4,),
        0,
        ("has an activation",),
    ),
    Fold(
        "relu layer",
        lambda: [L.Dense(3), L.ReLU(), Norm()],
        (4,),
        0,
        ("'re_lu' (ReLU) is in the way",),
    ),
    Fold(
        "padding after",
        lambda: [Norm(), L.Conv2D(3, 3, padding="same")],
        IMAGE,
        0,
        ("pads with zeros (padding='same')",),
    ),
    Fold(
        "zero padding",
        lambda: [Norm(), L.ZeroPadding2D(1), L.Conv2D(3, 3)],
        IMAGE,
        0,
        ("pads with zeros, which it would shift",),
    ),
    Fold(
        "zero padding back",
        lambda: [L.Conv2D(3, 3), L.ZeroPadding2D(1), Norm()],
        IMAGE,
        0,
        ("pads with zeros, which it would shift",),
    ),
    Fold(
        "transpose after",
        lambda: [Norm(), L.Conv2DTranspose(3, 3)],
        IMAGE,
        0,
        ("adds up fewer shifted values at the borders",),
    ),
    Fold(
        "two axes",
        lambda: [L.Dense(3), Norm(axis=(1, 2))],
        LINE,
        0,
        ("scales positions of one channel differently",),
    ),
    Fold(
        "same, strides",
        lambda: [Norm(), L.Conv2D(3, 2, strides=2, padding="same")],
        (5, 6, 4),
        0,
        ("pads with zeros (padding='same')",),
    ),
    Fold(
        "same, one side",
        lambda: [Norm(), L.Conv2D(3, (1, 2), padding="same")],
        IMAGE,
        0,
        ("pads with zeros (padding='same')",),
    ),
    Fold(
        "transpose after, strides",
        lambda: [Norm(), L.Conv2DTranspose(3, 1, strides=2)],
        IMAGE,
        0,
        ("adds up fewer shifted values at the borders",),
    ),
    Fold(
        "dtype",
        lambda: [L.Dense(3, dtype="mixed_bfloat16"), Norm(dtype="float32"), L.ReLU()],
        (4,),
        0,
        ("computes in bfloat16",),
    ),
]
"""Chains: one linear layer, and batch norm around it; those that stay at the end."""

BEYOND = [
    Fold(
        "einsum",
        lambda: [L.EinsumDense("abc,cde->abde", (None, 2, 3)), Norm()],
        LINE,
        1,
    ),
    Fold(
        "einsum, bias",
        lambda: [L.EinsumDense("...x,xy->...y", 3, bias_axes="y"), Norm()],
        LINE,
        1,
    ),
    Fold(
        "einsum after",
        lambda: [Norm(), L.EinsumDense("abc,dc->abd", (None, 3)), Norm()],
        LINE,
        2,
    ),
    Fold(
        "einsum of positions",
        lambda: [L.EinsumDense("abc,dcb->abd", (6, 3), bias_axes="d"), Norm(axis=1)],
        LINE,
        1,
    ),
    Fold(
        "einsum joins axes",
        lambda: [Norm(axis=1), L.EinsumDense("abc,bcd->ad", 3, bias_axes="d")],
        LINE,
        1,
    ),
    Fold(
        "einsum, ellipsis last",
        lambda: [
            Norm(axis=1),
            L.EinsumDense("ax...,xy->ay...", 3, bias_axes="y"),
            Norm(axis=1),
        ],
        LINE,
        2,
    ),
    Fold(
        "layer norm",
        lambda: [L.ReLU(), L.LayerNormalization(scale=False, center=False), Norm()],
        LINE,
        1,
    ),
    Fold(
        "layer norm of two axes",
        lambda: [L.LayerNormalization(axis=(1, 2)), Norm(axis=1)],
        LINE,
        1,
    ),
    Fold("group norm", lambda: [L.GroupNormalization(2), Norm()], IMAGE, 1),
    # What Flatten does to an image with channels first, before a layer and after one.
    Fold(
        "flatten, turned",
        lambda: [Norm(), L.Flatten(data_format="channels_first"), L.Dense(3)],
        LINE,
        1,
    ),
    Fold(
        "flatten, turned back",
        lambda: [
            L.LayerNormalization(axis=(1, 2)),
            L.Flatten(data_format="channels_first"),
            Norm(),
        ],
        LINE,
        1,
    ),
    Fold(
        "permute after",
        lambda: [Norm(axis=1), L.Permute((2, 3, 1)), L.Dense(3)],
        (6, 5, 4),
        1,
    ),
    Fold(
        "fused, before a mean",
        lambda: [L.Conv2D(3, 2), L.AveragePooling2D(2), Norm(activation="relu")],
        IMAGE,
        1,
    ),
    Fold(
        "fused, first",
        lambda: [Norm(activation="relu"), L.Dense(3)],
        (4,),
        0,
        ("it has an activation",),
    ),
    Fold(
        "fused, apart, twice",
        lambda: [L.Dense(3), L.Dropout(0.5), Norm(activation="relu"), Norm()],
        (4,),
        1,
        ("'batch_normalization' has an activation",),
    ),
    Fold(
        "norm of a norm",
        lambda: [L.ReLU(), Norm(), Norm(), L.ReLU()],
        (4,),
        1,
        ("is in the way",),
    ),
    Fold(
        "norm of a norm of two axes",
        lambda: [L.ReLU(), Norm(axis=(1, 2), scale=False), Norm(), L.ReLU()],
        LINE,
        0,
        ("is in the way", "normalizes along several axes"),
    ),
    Fold(
        "steps",
        lambda: [
            *(L.TimeDistributed(L.Conv2D(3, 2)), L.TimeDistributed(L.MaxPooling2D(2))),
            L.TimeDistributed(Norm(axis=3)),
        ],
        (2, 4, 4, 3),
        1,
    ),
    Fold(
        "steps after",
        lambda: [
            L.TimeDistributed(Norm()),
            L.TimeDistributed(L.Flatten()),
            L.TimeDistributed(L.Dense(2)),
        ],
        (2, 4, 3),
        1,
    ),
    Fold(
        "model of steps",
        lambda: [L.TimeDistributed(keras.Sequential([L.Conv2D(3, 3), Norm()]))],
        (2, 4, 4, 3),
        1,
    ),
    Fold(
        "einsum without such weights",
        lambda: [L.EinsumDense("abc,cd->abd", (6, 3)), Norm(axis=1)],
        LINE,
        0,
        ("has no weights",),
    ),
    Fold(
        "einsum without such a bias",
        lambda: [
            L.EinsumDense("abc,cd->abd", (6, 3), bias_axes="d"),
            L.Rescaling(2.0, np.arange(6.0).reshape(6, 1)),
            Norm(),
        ],
        LINE,
        0,
        ("has no weights",),
    ),
    Fold(
        "einsum with a sum",
        lambda: [Norm(), L.EinsumDense("abc,cd->ad", 3)],
        LINE,
        0,
        ("adds up inputs that no weight multiplies",),
    ),
    Fold(
        "layer norm, other axis",
        lambda: [L.LayerNormalization(), Norm(axis=1)],
        (2, 4),
        0,
        ("has no weights",),
    ),
    Fold(
        "layer norm after",
        lambda: [Norm(), L.LayerNormalization()],
        LINE,
        0,
        ("(LayerNormalization) is in the way",),
    ),
    Fold(
        "rescaling by zero",
        lambda: [L.Dense(4), L.Rescaling(0.0), Norm()],
        (4,),
        0,
        ("multiplies by zero",),
    ),
]
"""Other layers than linear ones, and layers called step by step."""


class Graph(NamedTuple):
    """A function from inputs to outputs, a shape, and as in `Fold`."""

    name: str
    call: object
    shape: tuple
    folded: int
    left: tuple = ()


def _shared_norm(x):
    norm = Norm()
    return norm(L.Dense(3)(x)), norm(L.Dense(3)(x))


def _forked(x):
    y = Norm()(x)
    return L.Add()([L.Dense(3)(y), L.Dense(3)(L.Dropout(0.5)(y))])


def _forked_to_a_relu(x):
    y = Norm()(x)
    return L.Add()([L.Dense(3)(y), L.Dense(3)(L.ReLU()(y))])


def _forked_to_the_output(x):
    y = Norm()(x)
    return y, L.Dense(3)(y)


def _read_by_two_norms(x):
    y = L.Dense(3)(x)
    return Norm()(y), Norm()(y)


def _same_layer_twice(x):
    dense = L.Dense(3)
    return Norm()(L.Add()([dense(x), dense(L.ReLU()(x))]))


def _sum_used_elsewhere(x):
    y = L.Add()([L.Dense(3)(x), L.Dense(3)(x)])
    return Norm()(y), y


def _weights_used_elsewhere(x):
    dense = L.Dense(4)
    y = Norm()(dense(x))
    return y, ops.matmul(x, dense.kernel)


def _gamma_used_elsewhere(x):
    norm = Norm()
    y = norm(L.Dense(3)(x))
    return y, ops.multiply(y, norm.gamma)


def _always_training(x):
    y = L.Concatenate()([L.Dense(3)(x), L.Dense(3)(x)])
    return Norm()(y, training=True)


def _called_on_its_own_input(x):
    inner = keras.Model(x, Norm()(L.ReLU()(Norm()(_dense(x)))))
    return L.Add()([_dense(inner(x)), _dense(x)])


def _called_on_its_own_output(x):
    y = Norm()(_dense(x, 4))
    return keras.Model(x, y)(_dense(y, 4))


def _of_one_input_called_on_two(x):
    given = keras.Input((3,))
    normed = keras.Model(given, Norm()(given))
    flat = keras.Model(given, _dense(given))
    return L.Subtract()([flat(_dense(x)), normed(_dense(x))])


def _dense(x, units=3, **more):
    return L.Dense(units, **more)(x)


GRAPHS = [
    Graph(
        "concatenation",
        lambda x: Norm(activation="relu")(
            L.Concatenate()([_dense(x, 2), L.Dropout(0.5)(_dense(x, 3))])
        ),
        (4,),
        1,
    ),
    Graph(
        "concatenation along another axis",
        lambda x: Norm()(L.Concatenate(axis=1)([_dense(x), _dense(x)])),
        LINE,
        1,
    ),
    Graph(
        "concatenation of concatenations, fused",
        lambda x: Norm(activation="relu")(
            ops.concatenate(
                [_dense(x), ops.concatenate([_dense(x), _dense(x)], -1)], -1
            )
        ),
        (4,),
        1,
    ),
    Graph(
        "concatenation after",
        lambda x: _dense(
            L.Concatenate()([L.ReLU()(x), Norm()(x), L.Concatenate()([Norm()(x), x])])
        ),
        (4,),
        2,
    ),
    Graph("sum", lambda x: Norm()(L.Add()([_dense(x), _dense(x), _dense(x)])), (4,), 1),
    Graph(
        "sum of concatenations",
        lambda x: Norm()(
            L.Concatenate()([_dense(x, 2), _dense(x, 3)])
            + L.Concatenate()([_dense(x, 3), _dense(x, 2)])
        ),
        (4,),
        1,
    ),
    Graph("difference", lambda x: Norm()(_dense(x) - _dense(x)), (4,), 1),
    Graph(
        "weighted sum",
        lambda x: Norm()(0.25 * _dense(x) + _dense(x) / 4 - 1.0),
        (4,),
        1,
    ),
    Graph(
        "sum, one side padded",
        lambda x: Norm()(
            L.Add()([L.ZeroPadding2D(1)(L.Conv2D(3, 3)(x)), L.Conv2D(3, 1)(x)])
        ),
        IMAGE,
        1,
    ),
    Graph(
        "difference, one side padded",
        lambda x: Norm()(L.ZeroPadding2D(1)(L.Conv2D(3, 3)(x)) - L.Conv2D(3, 1)(x)),
        IMAGE,
        1,
    ),
    Graph(
        "residual",
        lambda x: Norm(activation="relu")(_dense(x, 4), residual=L.ReLU()(x)),
        (4,),
        1,
    ),
    Graph("a model called on its own input", _called_on_its_own_input, (4,), 2),
    Graph(
        "a model called on its own output",
        *(_called_on_its_own_output, (4,), 0),
        ("",),
    ),
    Graph(
        "models of one input, called on two tensors",
        *(_of_one_input_called_on_two, (4,), 0),
        ("nothing comes before it",),
    ),
    Graph("by keyword", lambda x: L.ReLU()(Norm()(inputs=_dense(x))), (4,), 1),
    Graph("average", lambda x: Norm()(L.Average()([_dense(x), _dense(x)])), (4,), 1),
    Graph("maximum", lambda x: Norm()(L.Maximum()([_dense(x), _dense(x)])), (4,), 1),
    Graph("several readers", _forked, (4,), 1),
    Graph(
        "constants",
        lambda x: Norm()(
            3.0 - ops.multiply(np.asarray([1.0, -2.0, 0.5], "f4"), -_dense(x))
        ),
        (4,),
        1,
    ),
    Graph("constants after", lambda x: _dense(1.0 - (Norm()(x) + 2.0) / 2.0), (4,), 1),
    Graph(
        "transposes",
        lambda x: Norm(axis=1)(
            ops.moveaxis(ops.swapaxes(ops.transpose(_dense(x), (0, 2, 1)), 1, 2), 2, 1)
        ),
        LINE,
        1,
    ),
    Graph("mean", lambda x: Norm()(ops.mean(_dense(x), axis=1)), LINE, 1),
    Graph(
        "mean after",
        lambda x: _dense(
            ops.squeeze(ops.mean(Norm()(x), (1, 2), keepdims=True), (1, 2))
        ),
        IMAGE,
        1,
    ),
    Graph("mean after, dropped", lambda x: _dense(ops.mean(Norm()(x), 1)), LINE, 1),
    Graph("max", lambda x: Norm()(ops.max(_dense(x), axis=1)), LINE, 1),
    Graph(
        "reshapes",
        lambda x: Norm()(ops.expand_dims(ops.reshape(_dense(x, 6), (-1, 3, 2)), 1)),
        (4,),
        1,
    ),
    Graph(
        "batch in a reshape",
        lambda x: Norm()(ops.reshape(_dense(x), (-1, 3))),
        LINE,
        1,
    ),
    Graph(
        "resizing",
        lambda x: Norm()(
            ops.image.resize(ops.average_pool(L.Conv2D(3, 1)(x), 2, 2, "same"), (5, 7))
        ),
        IMAGE,
        1,
    ),
    Graph(
        "padding by the border",
        lambda x: L.Conv2D(3, 3)(
            ops.pad(Norm()(x), ((0, 0), (1, 1), (1, 1), (0, 0)), "reflect")
        ),
        IMAGE,
        1,
    ),
    Graph(
        "embedding", lambda x: Norm()(L.Embedding(9, 3)(ops.cast(x, "int32"))), LINE, 1
    ),
    # What must stay.
    Graph(
        "concatenation with an activation",
        lambda x: Norm()(L.Concatenate()([_dense(x), _dense(x, activation="relu")])),
        (4,),
        0,
        ("has an activation",),
    ),
    Graph(
        "concatenation with the input",
        lambda x: Norm()(L.Concatenate()([_dense(x), x])),
        (4,),
        0,
        ("what 'the input' gives is used by",),
    ),
    Graph("sum of one layer twice", _same_layer_twice, (4,), 0, ("is called 2 times",)),
    Graph("sum used elsewhere", _sum_used_elsewhere, (4,), 0, ("the model's output",)),
    Graph(
        "product",
        lambda x: Norm()(L.Multiply()([_dense(x), _dense(x)])),
        (4,),
        0,
        ("(Multiply) is in the way",),
    ),
    Graph(
        "sum of other shapes",
        lambda x: Norm()(L.Add()([_dense(x), _dense(x, 1)])),
        (4,),
        0,
        ("joins tensors of several shapes",),
    ),
    Graph("shared norm", _shared_norm, (4,), 0, ("it is called 2 times",)),
    Graph("a reader is a relu", _forked_to_a_relu, (4,), 0, ("(ReLU) is in the way",)),
    Graph(
        "a reader is outside", _forked_to_the_output, (4,), 0, ("the model's output",)
    ),
    Graph("two norms of one", _read_by_two_norms, (4,), 0, ("is used by",) * 2),
    Graph(
        "weights read elsewhere",
        _weights_used_elsewhere,
        (4,),
        0,
        ("something else reads the weights of",),
    ),
    Graph(
        "gamma read elsewhere",
        _gamma_used_elsewhere,
        (4,),
        0,
        ("something else reads the weights of 'batch_normalization'",),
    ),
    Graph(
        "sum, both sides padded",
        lambda x: Norm()(
            L.Add()([L.ZeroPadding2D(1)(L.Conv2D(3, 3)(x)) for _ in range(2)])
        ),
        IMAGE,
        0,
        ("pads with zeros, which it would shift",),
    ),
    Graph("always in training", _always_training, (4,), 0, ("training=True",)),
    Graph(
        "padding by a constant",
        lambda x: L.Conv2D(3, 3)(ops.pad(Norm()(x), ((0, 0), (1, 1), (1, 1), (0, 0)))),
        IMAGE,
        0,
        ("pads with a constant",),
    ),
    Graph(
        "max with a constant",
        lambda x: Norm()(ops.max(_dense(x), axis=1, initial=0.0)),
        LINE,
        0,
        ("starts at a constant",),
    ),
    Graph(
        "mean over the batch",
        lambda x: Norm()(ops.mean(_dense(x), axis=0, keepdims=True)),
        (4,),
        0,
        ("goes over the batch",),
    ),
    Graph(
        "division by it",
        lambda x: Norm()(1.0 / _dense(x)),
        (4,),
        0,
        ("is in the way",),
    ),
    Graph(
        "times zero",
        lambda x: Norm()(ops.multiply(np.asarray([1.0, 0.0, 1.0], "f4"), _dense(x))),
        (4,),
        0,
        ("multiplies by zero",),
    ),
]


def some_affine(shape, axes, signs, shifted):
    """Another scale and offset at each place along these axes."""
    rng = np.random.default_rng(0)
    axes = {axis % len(shape) for axis in axes}
    sizes = [size if axis in axes else 1 for axis, size in enumerate(shape)]
    scale = rng.uniform(0.5, 1.5, sizes) * rng.choice(signs, sizes)
    return Affine(scale, rng.normal(size=sizes) * shifted)
