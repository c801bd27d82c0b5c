"""Training written by hand, as people write it who do not call `model.fit`.

One class a framework, the same names in each. A way is a name in `WAYS`: how a function
is wrapped before it is called (not at all, or by one of the framework's compilers).
"""

import keras
import numpy as np

import frameworks


class _TensorFlow:
    def __init__(self):
        import tensorflow as tf

        self.tf = tf
        self.ways = {
            "plain": lambda function: function,
            "compiled": frameworks.compiled,
            "xla": frameworks.xla,
        }

    def training_call(self, layer, wrap):
        return wrap(lambda x, mask: layer(x, training=True, mask=mask))

    def training_step(self, model, loss, rate, wrap):
        variables = [v.value for v in model.trainable_variables]

        def step(x, y):
            with self.tf.GradientTape() as tape:
                value = loss(y, model(x, training=True))
            slopes = tape.gradient(value, variables)
            for variable, slope in zip(variables, slopes, strict=True):
                variable.assign_sub(rate * slope)
            return value

        return wrap(step)


class _Jax:
    def __init__(self):
        import jax

        self.jax = jax
        self.ways = {"plain": lambda function: function, "compiled": jax.jit}

    def training_call(self, layer, wrap):
        @wrap
        def pure(trainable, fixed, x, mask):
            return layer.stateless_call(trainable, fixed, x, training=True, mask=mask)

        def call(x, mask):
            y, fixed = pure(
                _values(layer.trainable_variables),
                _values(layer.non_trainable_variables),
                x,
                mask,
            )
            _assign(layer.non_trainable_variables, fixed)
            return y

        return call

    def training_step(self, model, loss, rate, wrap):
        def forward(trainable, fixed, x, y):
            prediction, fixed = model.stateless_call(trainable, fixed, x, training=True)
            return loss(y, prediction), fixed

        @wrap
        def pure(trainable, fixed, x, y):
            (value, fixed), slopes = self.jax.value_and_grad(forward, has_aux=True)(
                trainable, fixed, x, y
            )
            pairs = zip(trainable, slopes, strict=True)
            return value, [weight - rate * slope for weight, slope in pairs], fixed

        def step(x, y):
            value, trainable, fixed = pure(
                _values(model.trainable_variables),
                _values(model.non_trainable_variables),
                x,
                y,
            )
            _assign(model.trainable_variables, trainable)
            _assign(model.non_trainable_variables, fixed)
            return value

        return step


class _Torch:
    def __init__(self):
        import torch

        self.torch = torch
        self.ways = {
            "plain": lambda function: function,
            "compiled": frameworks.compiled,
        }

    def training_call(self, layer, wrap):
        return wrap(lambda x, mask: layer(x, training=True, mask=mask))

    def training_step(self, model, loss, rate, wrap):
        compute = wrap(lambda x, y: loss(y, model(x, training=True)))

        def step(x, y):
            model.zero_grad()
            value = compute(x, y)
            value.backward()
            with self.torch.no_grad():
                for variable in model.trainable_variables:
                    variable.value.sub_(rate * variable.value.grad)
            return value

        return step


def _values(variables):
    return [variable.value for variable in variables]


def _assign(variables, values):
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


_FRAMEWORK = {"tensorflow": _TensorFlow, "jax": _Jax, "torch": _Torch}[
    keras.backend.backend()
]()

WAYS = list(_FRAMEWORK.ways)

# JAX compiles op by op what is not compiled whole, which takes longer.
QUICKEST = "compiled" if keras.backend.backend() == "jax" else "plain"


def training_call(layer, way):
    """`call(x, mask=None) -> y`, in NumPy: the layer in training mode."""
    call = _FRAMEWORK.training_call(layer, _FRAMEWORK.ways[way])

    def in_numpy(x, mask=None):
        if not layer.built:
            layer.build(x.shape)
        x, mask = (
            frameworks.tensor(one) if isinstance(one, np.ndarray) else one
            for one in (x, mask)
        )
        return frameworks.numpy(call(x, mask))

    return in_numpy


def train(model, batches, loss, rate, way):
    """Plain gradient descent over the batches; the losses."""
    step = _FRAMEWORK.training_step(model, loss, rate, _FRAMEWORK.ways[way])
    losses = [step(frameworks.tensor(x), frameworks.tensor(y)) for x, y in batches]
    return [float(keras.ops.convert_to_numpy(value)) for value in losses]
