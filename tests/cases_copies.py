"""Models that are hard to copy: what each holds, and where a copy could go wrong."""

import weakref
from functools import partial
from typing import NamedTuple

import keras
import numpy as np

L = keras.layers
ops = keras.ops


class Copy(NamedTuple):
    """A model, and its batch norms; or why it cannot be copied."""

    name: str
    build: object
    norms: int = 1
    error: str | None = None


def _model(*layers):
    return keras.Sequential([keras.Input((4,)), *layers])


def _norm():
    return L.BatchNormalization()


class Unclear(L.Layer):
    """Holds itself where nothing can be copied."""

    def __init__(self):
        super().__init__()
        self.pending = (one for one in [self])

    def call(self, inputs):
        return inputs


class HandsOutALayer(L.Layer):
    """Its config has the very layer that it holds."""

    def __init__(self, block, **kwargs):
        super().__init__(**kwargs)
        self.block = block

    def build(self, shape):
        self.block.build(shape)

    def call(self, x):
        return self.block(x)

    def get_config(self):
        return {**super().get_config(), "block": self.block}


class HandsOutAVariable(L.Layer):
    """As the decoder of keras-hub's D-FINE does."""

    def __init__(self, factor=0.5, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def build(self, shape):
        self.factor = self.add_weight(
            shape=(), initializer=keras.initializers.Constant(4.0), trainable=False
        )

    def call(self, x):
        return x * self.factor

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


class Unfaithful(L.Layer):
    """What its config leaves out changes no shape."""

    def __init__(self, power=1, padding="valid", **kwargs):
        super().__init__(**kwargs)
        self.power, self.padding = power, padding or "valid"
        self.pads = padding is not None

    def call(self, x):
        return x**self.power + self.pads

    def get_config(self):
        return {**super().get_config(), "padding": self.padding}


class Failing(L.Layer):
    def __init__(self, needed):
        super().__init__()
        self.inner = L.Dense(needed)

    def build(self, shape):
        self.inner.build(shape)

    def call(self, x):
        return self.inner(x)

    def get_config(self):
        raise RuntimeError("no config")


class Helper:
    def __init__(self, layer):
        self.layer = layer
        self.calls = 0

    def __call__(self, x):
        self.calls += 1
        return self.layer(x)


class Hiding(L.Layer):
    """Holds its parts where neither Keras nor a config knows of them."""

    def __init__(self, how, **kwargs):
        super().__init__(**kwargs)
        self._norm = _norm()
        self.dense = L.Dense(4)
        self.memory = np.zeros(3)
        self.seeds = keras.random.SeedGenerator(3)
        self.mean = keras.metrics.Mean()
        dense = self.dense
        self.run = {
            "helper": lambda: Helper(dense),
            "method": lambda: dense.call,
            "partial": lambda: partial(_call_layer, dense, times=2),
            "closure": lambda: lambda x: dense(x),
            "default": lambda: lambda x, one=dense, *, two=dense: two(one(x)),
            "weak": lambda: weakref.ref(dense),
            "nested": lambda: {"one": [(Helper(lambda x: dense(x)),)]},
            "parent": lambda: Helper(self),
            "generator": lambda: (one for one in [dense]),
            "slots": lambda: Slots(dense),
            "interned": lambda: Interned(dense),
        }[how]()

    def build(self, shape):
        self.dense.build(shape)
        self._norm.build(shape)

    def call(self, x):
        run = self.run
        if isinstance(run, dict):
            run = run["one"][0][0]
        elif isinstance(run, weakref.ref):
            run = run()
        elif isinstance(run, Helper) and run.layer is self:
            run = run.layer.dense
        elif isinstance(run, Slots):
            run = run.layer
        elif not callable(run):
            run = self.dense
        return self._norm(run(x))


class Slots:
    __slots__ = ("layer", "never_set")

    def __init__(self, layer):
        self.layer = layer


class Interned:
    """Its class says how its objects are made."""

    def __new__(cls, layer):
        new = super().__new__(cls)
        new.layer = layer
        return new


def _call_layer(layer, x, times):
    return times * layer(x)


def _closure():
    factor, table = 3.0, {"shift": 1.0}
    return _model(_norm(), L.Lambda(lambda x: _helped(factor * x) + table["shift"]))


def _helped(x):
    return ops.tanh(x)


class Own(L.Lambda):
    """A subclass of Lambda."""


def _activation():
    scale = 0.5
    return _model(
        L.Dense(4, activation=lambda x: ops.tanh(scale * x)),
        _norm(),
        L.Dense(4, activation=_helped, kernel_regularizer=Decay(0.1)),
        _norm(),
    )


class Decay(keras.regularizers.Regularizer):
    """Has no config."""

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, x):
        return self.factor * ops.sum(x * x)


def _tied():
    """A weight of one layer in an operation of the graph, and in a function."""
    inputs = keras.Input((4,))
    dense = L.Dense(4)
    x = _norm()(dense(inputs))
    x = ops.matmul(x, dense.kernel)
    return keras.Model(inputs, L.Lambda(lambda y: y + dense.bias)(x))


def _global_layer():
    global _DENSE
    _DENSE = L.Dense(4)
    return _model(_DENSE, _norm(), L.Lambda(lambda x: x + _DENSE.bias))


_MODEL = None


def _global_model():
    global _MODEL
    _MODEL = None
    _MODEL = _model(_norm(), L.Lambda(lambda x: x + (_MODEL is None)))
    return _MODEL


class Backbone(keras.Model):
    """A functional model of a class with other arguments, as keras-hub's are."""

    def __init__(self, units, **kwargs):
        inputs = keras.Input((4,))
        dense, norm = L.Dense(units), _norm()
        middle = norm(dense(inputs))
        x = L.Dense(4)(L.ReLU()(middle))
        super().__init__(inputs, x, **kwargs)
        self.units, self.dense, self.norm = units, dense, norm
        self.levels = {"P1": middle, "P2": x}

    def widths(self):
        return self.units, self.dense.units

    def get_config(self):
        return {"units": self.units, "name": self.name}


class Stack(keras.Sequential):
    def __init__(self, units):
        super().__init__([keras.Input((4,)), L.Dense(units), _norm()])
        self.units = units


class Two(keras.Model):
    """Functional models that share layers, and a graph, in a class without a config."""

    def __init__(self, function):
        super().__init__()
        inputs = keras.Input((4,))
        features = _norm()(L.Dense(4)(inputs))
        self.middle = features
        self.features = keras.Model(inputs, features)
        self.whole = keras.Model(inputs, L.Dense(2)(features))
        self.function = function
        self.built = True

    def call(self, x):
        return self.function(self.whole(x)), self.features(x)


COPIES = [
    Copy("layer in the config", lambda: _model(HandsOutALayer(_norm()))),
    Copy(
        "model in the config",
        lambda: _model(HandsOutALayer(keras.Sequential([L.Dense(4), _norm()]))),
    ),
    Copy("variable in the config", lambda: _model(HandsOutAVariable(), _norm())),
    Copy("unfaithful config", lambda: _model(Unfaithful(2, None), _norm())),
    Copy("failing config", lambda: _model(Failing(4), _norm())),
    Copy("lambda", _closure),
    Copy("subclass of lambda", lambda: _model(_norm(), Own(lambda x: _helped(x)))),
    Copy("activations", _activation, 2),
    Copy("tied", _tied),
    Copy("class of its own", lambda: Backbone(3)),
    Copy("sequential of its own", lambda: Stack(3)),
    Copy("two models", lambda: Two(lambda x: ops.tanh(x))),
    *(
        Copy(how, lambda how=how: _model(Hiding(how)))
        for how in (
            *("helper", "method", "partial", "closure", "default", "weak"),
            *("nested", "parent", "slots"),
        )
    ),
    *(
        Copy(
            how,
            lambda how=how: _model(Hiding(how)),
            error=r"^Layer 'hiding\w*' of class Hiding cannot be copied, for its "
            rf"attribute `run`: an object of class (?i:{how}) holds a part of the "
            "model, and cannot be taken apart$",
        )
        for how in ("generator", "interned")
    ),
    Copy("global", _global_layer, error="uses the global '_DENSE'"),
    Copy("global model", _global_model, error="uses the global '_MODEL'"),
]
