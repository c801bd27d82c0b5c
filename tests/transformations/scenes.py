"""What is transformed: one call of batch normalization, in its several settings.

A call is a function of a *point*, the tensors that it is differentiated for: the input,
gamma and beta, and for the pure function of inference mean and variance. Along a line
through the point every derivative that a transformation gives is one of a few
quantities: see `Expected`.
"""

import math
from typing import Any, NamedTuple

import keras
import numpy as np

import frameworks
import keras_bn
import oracle


class Scene(NamedTuple):
    """One setting of the call."""

    shape: tuple
    axis: int = -1
    training: bool = True
    activation: str | None = None
    mask: bool = False
    renorm: bool = False
    by: str = "layer"  # a name in CALLS


SCENES = {
    "training": Scene((6, 4)),
    "first_tanh": Scene((4, 3, 5), axis=1, activation="tanh"),
    "mask_relu": Scene((5, 7, 4), mask=True, activation="relu"),
    "renorm": Scene((6, 4), renorm=True),
    # Above what any kernel takes for small.
    "large": Scene((9, 8, 8, 32)),
    "large_first_tanh": Scene((9, 32, 8, 8), axis=1, activation="tanh"),
    "large_mask": Scene((9, 8, 8, 32), mask=True),
    "large_renorm_relu": Scene((9, 8, 8, 32), renorm=True, activation="relu"),
    "inference": Scene((6, 4), training=False),
    "inference_first_tanh": Scene((4, 3, 5), axis=1, training=False, activation="tanh"),
    "inference_large_relu": Scene((9, 16, 16, 64), training=False, activation="relu"),
    "inference_large_first_tanh": Scene(
        (9, 64, 16, 16), axis=1, training=False, activation="tanh"
    ),
    "function": Scene((6, 4), by="function"),
    "function_large": Scene((9, 32, 8, 8), axis=1, by="function"),
    "function_inference": Scene((6, 4), training=False, by="function"),
    "function_inference_large": Scene((9, 16, 16, 64), training=False, by="function"),
    "no_update": Scene((6, 4), by="no_update"),
    "no_update_large": Scene((9, 8, 8, 32), by="no_update"),
}

EPSILON = 1e-3
MOMENTUM = 0.9


class Numbers:
    """The random arrays of a scene; other inputs, or parameters, by other seeds."""

    def __init__(self, scene, batch=None, input_seed=1, parameter_seed=1):
        channels = scene.shape[scene.axis]
        shape = (batch or scene.shape[0], *scene.shape[1:])
        rng = np.random.default_rng(0)
        self.statistics = {
            "moving_mean": _normal(rng, channels),
            "moving_variance": _positive(rng, channels),
            "renorm_mean": _normal(rng, channels),
            "renorm_stddev": _positive(rng, channels),
        }
        self.mask = rng.random(scene.shape[:-1]) < 0.7 if scene.mask else None
        self.upstream = _normal(rng, shape)
        self.x = 3 + 2 * _normal(np.random.default_rng(input_seed), shape)
        rng = np.random.default_rng(parameter_seed)
        self.parameters = [_positive(rng, channels), _normal(rng, channels)]
        self.all = [self.x, *self.parameters, *self.statistics.values()]
        self.point = self.all[: _DIFFERENTIATED[scene.by, scene.training]]
        # Short steps: the variance of a few values must not come near 0 on the line.
        self.tangent = [_normal(rng, one.shape) / 2 for one in self.point]


def _positive(rng, shape):
    return rng.uniform(0.5, 2.0, shape).astype("float32")


def _normal(rng, shape):
    return rng.normal(size=shape).astype("float32")


# How many of x, gamma, beta, mean and variance.
_DIFFERENTIATED = {
    ("layer", True): 3,
    ("layer", False): 3,
    ("function", True): 3,
    ("function", False): 5,
    ("no_update", True): 1,
}


class Expected:
    """What the oracle says of the scene at these numbers, on the line through them.

    With f the call, v the tangent, L = sum(f * upstream), and all derivatives taken at
    t = 0:

        value       f                            gradient  grad L
        pushed      d/dt f(p + tv)               hvp       d/dt grad L(p + tv)
        pushed_twice    d²/dt² f(p + tv)         third     d²/dt² grad L(p + tv)

    Gradients are the oracle's, derivatives along the line finite differences of nine
    points. What the definition takes as constant stays as it is at t = 0: the
    correction of batch renormalization, and which values relu lets through.
    """

    def __init__(self, scene, numbers):
        self.scene, self.numbers = scene, numbers
        self._open = None

    def shape(self):
        return self.scene.shape

    def dtype(self):
        return "float32"

    def moving_mean(self):
        """After three calls; `keras.layers.RNN` tries its cell before its two steps."""
        before = self.numbers.statistics["moving_mean"]
        if not self.scene.training:
            return before
        mean = oracle.forward(self.numbers.x, axis=self.scene.axis).mean.ravel()
        return before * MOMENTUM**3 + mean * (1 - MOMENTUM**3)

    def value(self):
        return self._value(0.0)

    def pushed(self):
        return _derivative(self._value, 1)

    def pushed_twice(self):
        return _derivative(self._value, 2)

    def gradient(self):
        return self._gradient(0.0)

    def hvp(self):
        return _derivative(self._gradient, 1)

    def third(self):
        return _derivative(self._gradient, 2)

    def _at(self, t):
        x, *rest = [np.asarray(one, "float64") for one in self.numbers.all]
        rest = [oracle.spread(one, x, self.scene.axis) for one in rest]
        everything = [x, *rest]
        for i, direction in enumerate(self.numbers.tangent):
            step = direction if i == 0 else oracle.spread(direction, x, self.scene.axis)
            everything[i] = everything[i] + t * step
        return everything

    def _value(self, t):
        return self._activated(self._normalized(t))[0]

    def _normalized(self, t):
        x, gamma, beta, mean, variance, *_ = self._at(t)
        axis = self.scene.axis
        if not self.scene.training:
            return oracle.inference(x, mean, variance, gamma, beta, axis, EPSILON)
        return oracle.forward(x, gamma, beta, axis, EPSILON, **self._constants()).y

    def _constants(self):
        x, *_, mean, stddev = self._at(0.0)
        weight = oracle.weights(self.numbers.mask, x, self.scene.axis)
        if not self.scene.renorm:
            return {"weight": weight}
        batch = oracle.forward(x, axis=self.scene.axis, weight=weight)
        r = np.sqrt(batch.variance + EPSILON) / stddev
        return {"weight": weight, "r": r, "d": (batch.mean - mean) / stddev}

    def _activated(self, z):
        """The activation at `z`, and its slope."""
        if self.scene.activation is None:
            return z, np.ones_like(z)
        if self.scene.activation == "tanh":
            y = np.tanh(z)
            return y, 1 - y * y
        if self._open is None:
            self._open = np.float64(self._normalized(0.0) > 0)
        return z * self._open, self._open

    def _gradient(self, t):
        x, gamma, _, mean, variance, *_ = self._at(t)
        slope = self._activated(self._normalized(t))[1]
        dz = self.numbers.upstream * slope
        axis = self.scene.axis
        if self.scene.training:
            found = oracle.backward(x, dz, gamma, axis, EPSILON, **self._constants())
        else:
            found = _inference_gradients(x, dz, gamma, mean, variance, axis)
        count = len(self.numbers.point)
        return [found[0], *(one.ravel() for one in found[1:])][:count]


def _inference_gradients(x, dz, gamma, mean, variance, axis):
    over = oracle.reduction(axis, x.ndim)
    rstd = 1 / np.sqrt(variance + EPSILON)
    factor, normalized = gamma * rstd, (x - mean) * rstd
    dgamma = (dz * normalized).sum(over, keepdims=True)
    dbeta = dz.sum(over, keepdims=True)
    return dz * factor, dgamma, dbeta, -factor * dbeta, -0.5 * rstd * factor * dgamma


_NODES = np.arange(-4, 5)
_STEP = 0.02


def _derivative(function, order):
    """The derivative at 0, of a function that gives an array or a list of arrays."""
    unit = np.zeros(len(_NODES))
    unit[order] = math.factorial(order)
    weights = np.linalg.solve(np.vander(_NODES, increasing=True).T, unit) / _STEP**order
    values = [function(node * _STEP) for node in _NODES]
    if isinstance(values[0], list):
        columns = zip(*values, strict=True)
        return [np.tensordot(weights, np.stack(column), 1) for column in columns]
    return np.tensordot(weights, np.stack(values), 1)


class Together:
    """Several `Expected` as what a batched call must give: stacked."""

    def __init__(self, each):
        self._each = each

    def value(self):
        return np.stack([one.value() for one in self._each])

    def gradient(self):
        columns = zip(*(one.gradient() for one in self._each), strict=True)
        return [np.stack(column) for column in columns]


class Call:
    """The call of a scene, ready to be transformed.

    Attributes:
        function: `function(*point)` gives the output.
        point: The tensors that it is differentiated for.
        in_axes: 0 for each of them that a batched call has stacked, else None.
        tangent: A direction for each.
        upstream: A cotangent of the output.
        layer: The layer, its weights and statistics being those of the scene; None
            where the call is one of a pure function.
        expected: See `Expected`.
    """

    def __init__(self, scene, layer_class=keras_bn.BatchNormalization, row=None):
        self.scene, self._class = scene, layer_class
        numbers = Numbers(scene)
        self.mask = None if numbers.mask is None else frameworks.tensor(numbers.mask)
        self.layer = None if scene.by == "function" else self._new_layer(numbers)
        self.function = CALLS[scene.by](self)
        self.point = [frameworks.tensor(one) for one in numbers.point]
        self.tangent = [frameworks.tensor(one) for one in numbers.tangent]
        self.upstream = frameworks.tensor(numbers.upstream)
        if row is not None and row.then:
            scene = scene._replace(activation=row.then)
        self.in_axes = None
        self.expected = Expected(scene, numbers)
        if row is not None and row.over:
            self.point, self.in_axes, self.expected = self._batched(row.over)

    def _new_layer(self, numbers):
        scene = self.scene
        options = {"axis": scene.axis, "epsilon": EPSILON, "momentum": MOMENTUM}
        options["renorm"] = scene.renorm
        if self._class is keras_bn.BatchNormalization:
            options["activation"] = scene.activation
        layer = self._class(**options)
        layer.build(scene.shape)
        layer.gamma.assign(numbers.parameters[0])
        layer.beta.assign(numbers.parameters[1])
        for name, value in numbers.statistics.items():
            if hasattr(layer, name):
                getattr(layer, name).assign(value)
        return layer

    def activated(self, y):
        """`y`, or for Keras's layer, which has no such argument, its activation."""
        if self._class is keras_bn.BatchNormalization:
            return y
        return keras.activations.get(self.scene.activation)(y)

    def of_layer(self, x, training=None):
        """The layer called as it is: its statistics move."""
        training = self.scene.training if training is None else training
        return self.activated(self.layer(x, training=training, mask=self.mask))

    def other_input(self):
        """An input of another batch size, to trace with."""
        return frameworks.tensor(Numbers(self.scene, batch=self.scene.shape[0] + 3).x)

    def _batched(self, over):
        """`(point, in_axes, expected)` of three calls at once.

        Stacked is what they differ in: the inputs, or gamma and beta.
        """
        seed = {"inputs": "input_seed", "parameters": "parameter_seed"}[over]
        each = [Numbers(self.scene, **{seed: i}) for i in (1, 2, 3)]
        differ = {"inputs": (0,), "parameters": (1, 2)}[over]
        in_axes = tuple(0 if i in differ else None for i in range(len(self.point)))
        point = [
            np.stack([numbers.point[i] for numbers in each]) if axis == 0 else one
            for i, (axis, one) in enumerate(zip(in_axes, each[0].point, strict=True))
        ]
        expected = Together([Expected(self.scene, numbers) for numbers in each])
        return [frameworks.tensor(one) for one in point], in_axes, expected


def _by_layer(call):
    """By `stateless_call`, as functional code calls a layer."""
    layer, scene = call.layer, call.scene
    fixed = [variable.value for variable in layer.non_trainable_variables]

    def function(x, gamma, beta):
        y, _ = layer.stateless_call(
            [gamma, beta], fixed, x, training=scene.training, mask=call.mask
        )
        return call.activated(y)

    return function


def _by_function(call):
    scene = call.scene
    options: dict[str, Any] = {
        "axis": scene.axis,
        "epsilon": EPSILON,
        "activation": scene.activation,
    }

    def training(x, gamma, beta):
        return keras_bn.ops.batch_norm_train(x, gamma, beta, mask=call.mask, **options)[
            0
        ]

    def inference(x, gamma, beta, mean, variance):
        return keras_bn.ops.batch_norm_inference(
            x, mean, variance, gamma, beta, **options
        )

    return training if scene.training else inference


def _by_no_update(call):
    """The layer as it is, its statistics left alone."""

    def function(x):
        with keras_bn.no_update():
            return call.of_layer(x)

    return function


CALLS = {"layer": _by_layer, "function": _by_function, "no_update": _by_no_update}
