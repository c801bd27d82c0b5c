"""Which layers take a flattened image: one with the order of its values to turn."""

import keras
import pytest

import keras_bn
from keras_bn.tools._foreign.layouts import MIXED, flattened
from slow import slow

L = keras.layers
pytestmark = slow("graphs, which know no backend", but_on="torch")

IMAGE_IN = (3, 2, 4)


def _norm(x, name="bn", **more):
    return keras_bn.BatchNormalization(name=name)(x, **more)


def _turned(x):
    return L.Flatten(data_format="channels_first")(x)


def _shared(x, again):
    norm = keras_bn.BatchNormalization(name="bn")
    return L.Add()([norm(L.Flatten()(x)), norm(again(x))])


def _inside(x):
    inputs = keras.Input(IMAGE_IN)
    inner = keras.Model(inputs, [L.ReLU()(inputs), L.Flatten()(inputs)])
    image, flat = inner(x)
    return _norm(L.Activation("relu")(flat)), image


def _lora(x):
    dense = L.Dense(24)
    y = dense(x)
    dense.enable_lora(2)
    return y


# What is made of an input of that shape, and the image that the layer `bn` takes then.
FLATTENED = {
    "flat": (lambda x: _norm(L.Flatten()(x)), IMAGE_IN),
    "twice": (lambda x: _norm(L.Flatten()(L.Flatten()(x))), IMAGE_IN),
    "with channels first": (lambda x: _norm(_turned(x)), (2, 4, 3)),
    "reshaped": (lambda x: _norm(L.Reshape((24,))(x)), IMAGE_IN),
    "by an operation": (lambda x: _norm(keras.ops.reshape(x, (-1, 24))), IMAGE_IN),
    "rows": (lambda x: _norm(keras.ops.reshape(x, (-1, 8))), MIXED),
    "positions": (lambda x: _norm(keras.ops.reshape(x, (-1, 4))), None),
    "not flat": (lambda x: _norm(L.Reshape((6, 4))(x)), None),
    "no position": (lambda x: _norm(L.Flatten()(L.Reshape((1, 1, 24))(x))), None),
    "with a residual": (
        lambda x: _norm(L.Flatten()(x), residual=L.Flatten()(x)),
        IMAGE_IN,
    ),
    "sum": (lambda x: _norm(L.Add()([L.Flatten()(x), L.Flatten()(x)])), IMAGE_IN),
    "sum of others": (lambda x: _norm(L.Add()([L.Flatten()(x), _turned(x)])), MIXED),
    "with a vector": (
        lambda x: _norm(L.Add()([L.Flatten()(x), L.Dense(24)(L.Flatten()(x))])),
        MIXED,
    ),
    "joined": (lambda x: _norm(L.Concatenate()([L.Flatten()(x)] * 2)), MIXED),
    "dense": (lambda x: _norm(L.Dense(24)(L.Flatten()(x))), None),
    "dense with LoRA": (lambda x: _norm(_lora(L.Flatten()(x))), None),
    "shared": (lambda x: _shared(x, L.Flatten()), IMAGE_IN),
    "shared among orders": (lambda x: _shared(x, _turned), MIXED),
    "shared with a vector": (
        lambda x: _shared(x, lambda x: L.Dense(24)(L.Flatten()(x))),
        MIXED,
    ),
    "from inside": (_inside, IMAGE_IN),
    "of unknown size": (lambda x: _norm(L.Reshape((24,))(x)), MIXED, (None, 2, 4)),
    "a number": (lambda x: _norm(_turned(x)), None, ()),
}


@pytest.mark.parametrize("case", FLATTENED)
def test_who_takes_a_flattened_image(case):
    build, expected, *shape = FLATTENED[case]
    x = keras.Input(*(shape or [IMAGE_IN]))
    model = keras.Model(x, build(x))
    found = flattened(model)
    assert found.get(id(model.get_layer("bn"))) == expected


def test_of_a_subclassed_model_nothing_is_known():
    class Own(keras.Model):
        def call(self, x):
            return x

    assert flattened(Own()) == {}
