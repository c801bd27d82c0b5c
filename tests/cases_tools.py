"""The case tables of the tests over models."""

from typing import NamedTuple

import keras
import numpy as np
from keras.src.applications import (
    densenet,
    efficientnet,
    efficientnet_v2,
    nasnet,
    resnet,
)

from keras_bn import BatchNormalization as Norm

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
    Fold("upsampling", lambda: [L.Conv2D(3, 3), L.UpSampling2D(2), Norm()], IMAGE, 1),
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
    # What must stay, and a word of the reason.
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
        "same average",
        lambda: [L.Conv2D(3, 3), L.AveragePooling2D(3, padding="same"), Norm()],
        IMAGE,
        0,
        ("averages padding in",),
    ),
    Fold(
        "interpolates",
        lambda: [L.Conv2D(3, 3), L.UpSampling2D(2, interpolation="bilinear"), Norm()],
        IMAGE,
        0,
        ("interpolates",),
    ),
    Fold(
        "dtype",
        lambda: [L.Dense(3, dtype="mixed_bfloat16"), Norm(dtype="float32"), L.ReLU()],
        (4,),
        0,
        ("computes in bfloat16",),
    ),
]


class Family(NamedTuple):
    """A family of `keras.applications`, in a small size, and what fold makes of it."""

    name: str
    build: object
    size: int
    folded: int
    left: int


def _public(name, **arguments):
    return lambda **more: getattr(keras.applications, name)(**arguments, **more)


def _residual(stack, preact):
    """The blocks of ResNet50, one of each size (and two where a stack needs them)."""

    def stacks(x):
        for i, filters in enumerate((16, 32, 32, 64), 1):
            x = stack(x, filters, 1 + preact, 1 if i == 1 else 2, name=f"conv{i}")
        return x

    return lambda **more: resnet.ResNet(stacks, preact, True, weights_name=None, **more)


# Where the smallest public member is large, a smaller one of the same blocks.
FAMILIES = [
    Family("MobileNet", _public("MobileNet", alpha=0.25), 32, 27, 0),
    Family("MobileNetV2", _public("MobileNetV2", alpha=0.35), 32, 52, 0),
    Family("MobileNetV3", _public("MobileNetV3Small", alpha=0.75), 32, 34, 0),
    Family(
        "EfficientNet",
        lambda **more: efficientnet.EfficientNet(0.25, 0.1, 32, **more),
        32,
        22,
        0,
    ),
    Family(
        "EfficientNetV2",
        lambda **more: efficientnet_v2.EfficientNetV2(
            0.25, 0.1, 32, name="efficientnetv2-b0", **more
        ),
        32,
        16,
        0,
    ),
    Family(
        "ResNet", _residual(resnet.stack_residual_blocks_v1, preact=False), 32, 17, 0
    ),
    Family(
        "ResNetV2", _residual(resnet.stack_residual_blocks_v2, preact=True), 32, 16, 9
    ),
    Family(
        "DenseNet", lambda **more: densenet.DenseNet([2, 2, 2, 2], **more), 32, 9, 12
    ),
    Family(
        "NASNet",
        lambda **more: nasnet.NASNet(
            penultimate_filters=96, num_blocks=1, stem_block_filters=8, **more
        ),
        32,
        79,
        4,
    ),
    Family("Xception", _public("Xception"), 71, 40, 0),
    Family("InceptionV3", _public("InceptionV3"), 75, 94, 0),
    Family("InceptionResNetV2", _public("InceptionResNetV2"), 75, 204, 0),
]


def randomize(model, seed=0):
    """Weights and statistics as of a trained model: no zeros and ones left."""
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        name, shape = variable.path.rsplit("/")[-1], tuple(variable.shape)
        if "seed" in variable.path:
            continue
        if name in (
            "gamma",
            "moving_variance",
            "variance",
            "moving_stddev",
            "renorm_stddev",
        ):
            value = rng.uniform(0.5, 1.5, shape)
        elif "kernel" in name:
            value = rng.normal(0, (shape[-1] / np.prod(shape)) ** 0.5, shape)
        else:
            value = rng.normal(0, 0.1, shape)
        variable.assign(value)
    return model


def numpy(tensor):
    return keras.ops.convert_to_numpy(tensor).astype("float64")


def images(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def weights_of(model):
    """Every variable of the model, to compare bit by bit."""
    return [np.array(keras.ops.convert_to_numpy(v)).tobytes() for v in model.variables]
