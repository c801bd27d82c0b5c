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

import keras_bn
from keras_bn.tools._graphs.walk import sublayers


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
        83,
        0,
    ),
    Family("Xception", _public("Xception"), 71, 40, 0),
    Family("InceptionV3", _public("InceptionV3"), 75, 94, 0),
    Family("InceptionResNetV2", _public("InceptionResNetV2"), 75, 204, 0),
]


class InTraining(keras.layers.Layer):
    """Calls its norm in training mode whatever the mode is."""

    def __init__(self, **settings):
        super().__init__()
        self.norm = keras_bn.BatchNormalization(**settings)

    def build(self, shape):
        self.norm.build(shape)

    def call(self, x):
        return self.norm(x, training=True)


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


def layers_in(model):
    """The model, and each layer inside it at any depth."""
    return [model, *(layer for _, layer in sublayers(model))]


def weights_of(model):
    """Every variable of the model, to compare bit by bit."""
    return [np.array(keras.ops.convert_to_numpy(v)).tobytes() for v in model.variables]
