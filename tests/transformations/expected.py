"""What the float64 oracle says that the transformations of a scene must give."""

import math

import numpy as np

import oracle
from transformations.scenes import EPSILON, MOMENTUM


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
        along = 3 if self.scene.by == "along" else None  # what of it comes by `_along`
        for i, direction in enumerate(self.numbers.tangent[:along]):
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
        _, residual = self._along(t)
        constants = self._constants(t)
        return oracle.forward(x, gamma, beta, axis, EPSILON, **constants).y + residual

    def _along(self, t):
        """The weights, or the mask, and the residual."""
        if self.scene.by != "along":
            return self.numbers.mask, 0.0
        pairs = zip(self.numbers.point[3:], self.numbers.tangent[3:], strict=True)
        return [np.asarray(one, "float64") + t * direction for one, direction in pairs]

    def _constants(self, t):
        x, *_, mean, stddev = self._at(0.0)
        weight = oracle.weights(self._along(t)[0], x, self.scene.axis)
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
        along = []
        if self.scene.training:
            constants = self._constants(t)
            found = oracle.backward(x, dz, gamma, axis, EPSILON, **constants)
            if self.scene.by == "along":
                dw = oracle.for_weights(x, dz, gamma, axis, EPSILON, **constants)
                along = [dw.sum(-1), dz]
        else:
            found = _inference_gradients(x, dz, gamma, mean, variance, axis)
        every = [found[0], *(one.ravel() for one in found[1:]), *along]
        return every[: len(self.numbers.point)]


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
