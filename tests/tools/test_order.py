"""What is surely called before what, read from a model's graph."""

import keras
import pytest

from cases_tools import layers_in
from keras_bn.tools._foreign.order import precedence
from slow import slow

L = keras.layers
pytestmark = slow("graphs, which know no backend", but_on="torch")


def _dense(name, **more):
    return L.Dense(4, name=name, **more)


def _sequence():
    inner = keras.Sequential([_dense("b"), _dense("c")])
    return keras.Sequential([keras.Input((4,)), _dense("a"), inner, _dense("d")])


def _skip():
    x = inputs = keras.Input((4,))
    for name in "abc":
        x = L.Add()([x, _dense(name)(x)])
    return keras.Model(inputs, x)


def _fork():
    x = _dense("a")(inputs := keras.Input((4,)))
    x = L.Add()([_dense("b")(x), _dense("c")(x)])
    return keras.Model(inputs, _dense("d")(x))


def _two_outputs():
    x = _dense("a")(inner_inputs := keras.Input((4,)))
    inner = keras.Model(inner_inputs, [_dense("b")(x), x])
    left, right = inner(inputs := keras.Input((4,)))
    return keras.Model(inputs, [_dense("c")(left), _dense("d")(right)])


def _shared():
    b = _dense("b")
    x = b(_dense("a")(inputs := keras.Input((4,))))
    return keras.Model(inputs, b(_dense("c")(x)))


MODELS = {
    "sequence": (_sequence, {"a": "", "b": "a", "c": "ab", "d": "abc"}),
    "skip": (_skip, {"a": "", "b": "a", "c": "ab"}),
    "fork": (_fork, {"a": "", "b": "a", "c": "a", "d": "abc"}),
    # Of a model inside, what all of its outputs come from is known.
    "two outputs": (_two_outputs, {"a": "", "b": "a", "c": "a", "d": "a"}),
    "shared": (_shared, {"a": "", "c": "a"}),
}


@pytest.mark.parametrize("name", MODELS)
def test_precedence(name):
    build, expected = MODELS[name]
    model = build()
    layers = [one for one in layers_in(model) if isinstance(one, L.Dense)]
    found = precedence(model, {id(one): one.name for one in layers})
    assert {name: "".join(sorted(past)) for name, past in found.items()} == expected


def test_a_subclassed_model_gives_none():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = _dense("a")

        def call(self, x):
            return self.dense(x)

    model = Own()
    assert precedence(model, {id(model.dense): "a"}) == {}
