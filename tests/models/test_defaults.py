"""What the networks are like where nothing is said: sizes, functions, names."""

import re
from collections import Counter
from typing import NamedTuple

import keras
import pytest

from keras_bn import models
from keras_bn._keras import layer_of

L = keras.layers
# Nothing has a value here, on any backend.
pytestmark = pytest.mark.once


class Default(NamedTuple):
    """A network, what is said, and its name, input, classes and functions."""

    build: object
    arguments: dict
    name: str
    shape: tuple
    classes: int
    activation: str
    pools: dict
    initializer: str = "HeNormal"

    def model(self, **more):
        """Without values, which nobody looks at."""
        with keras.StatelessScope(initialize_variables=False):
            return self.build(**self.arguments, **more)


LARGE, SMALL = (224, 224, 3), (32, 32, 3)
MLP = Default(
    *(models.mlp, {}, "mlp", (28, 28, 1), 10, "sigmoid", {}, "GlorotUniform"),
)
LENET = Default(
    *(models.lenet5, {}, "lenet5", (32, 32, 1), 10, "tanh"),
    *({(L.AveragePooling2D, 2, 2): 2}, "GlorotUniform"),
)
PLAIN = Default(models.plain_cnn, {}, "plain_cnn20", SMALL, 10, "relu", {})
MAXIMA = {(L.MaxPooling2D, 2, 2): 5}
VGG = Default(models.vgg, {}, "vgg16", LARGE, 1000, "relu", MAXIMA)
# Figure 5: of ten modules two halve the image, and the last one takes maxima.
POOLS = {
    (L.MaxPooling2D, 3, 2): 2 + 2,
    (L.AveragePooling2D, 3, 1): 7,
    (L.MaxPooling2D, 3, 1): 1,
}
INCEPTION = Default(
    *(models.inception_bn, {}, "inception_bn", LARGE, 1000, "relu", POOLS),
)
RESNET = Default(
    *(models.resnet, {}, "resnet50", LARGE, 1000, "relu"),
    {(L.MaxPooling2D, 3, 2): 1},
)
V2 = {"depth": 20, "preactivation": True}
SHORTCUTS = {(L.MaxPooling2D, 1, 2): 2}
DEFAULTS = [
    *(MLP, LENET, PLAIN, VGG, INCEPTION, RESNET),
    Default(models.vgg, {"head": "small"}, "vgg16", SMALL, 10, "relu", MAXIMA),
    Default(models.resnet, {"depth": 20}, "resnet20", SMALL, 10, "relu", SHORTCUTS),
    Default(models.resnet, V2, "resnet20v2", SMALL, 10, "relu", SHORTCUTS),
]


@pytest.mark.parametrize("case", DEFAULTS, ids=lambda case: f"{case.name}{case.shape}")
def test_defaults(case):
    L.Flatten()
    model = case.model()
    assert model.name == case.name
    assert model.input_shape[1:] == case.shape
    assert model.output_shape == (None, case.classes)
    *hidden, last = model.layers
    assert last.activation is keras.activations.softmax
    kernels = ("kernel_initializer", "depthwise_initializer", "pointwise_initializer")
    initializers = {
        type(getattr(layer, name)).__name__
        for layer in hidden
        for name in kernels
        if getattr(layer, name, None) is not None
    }
    assert initializers == {case.initializer}
    functions = {getattr(layer, "activation", None) for layer in hidden}
    expected = {None, keras.activations.linear, keras.activations.get(case.activation)}
    assert functions == expected
    rates = [layer.rate for layer in hidden if isinstance(layer, L.Dropout)]
    assert rates == ([0.5, 0.5] if case is VGG else [])
    pools = Counter(
        (type(layer), *{*layer.pool_size}, *{*layer.strides})
        for layer in hidden
        if isinstance(layer, (L.MaxPooling2D, L.AveragePooling2D))
    )
    assert pools == case.pools
    # What is padded by a layer of its own is what is subsampled.
    for layer in hidden:
        if isinstance(layer, (L.Conv2D, L.SeparableConv2D)):
            padded = isinstance(layer_of(layer.input), L.ZeroPadding2D)
            assert padded == (layer.strides[0] > 1 and layer.kernel_size[0] > 1)
    # Layers are called as the figures call them: files and readers go by names.
    assert [one.name for one in hidden if _made_up(one)] == []


def _made_up(layer):
    """Whether nobody gave the layer its name, as those of `keras.ops` and inputs."""
    if not isinstance(layer, keras.Layer) or isinstance(layer, L.InputLayer):
        return False
    name, number = re.fullmatch(r"(.*?)(_\d+)?", layer.name).groups()
    if type(layer) is L.Flatten and number is None:
        return False  # it was called so: there is one before it
    return name.replace("_", "") == type(layer).__name__.lower()
