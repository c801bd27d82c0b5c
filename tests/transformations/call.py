"""The call of a scene, by the layer or by the pure functions, to be transformed."""

import keras
import numpy as np

import frameworks
import keras_bn
from transformations.expected import Expected, Together
from transformations.scenes import EPSILON, MOMENTUM, Numbers


class Call:
    """The call of a scene, ready to be transformed.

    Attributes:
        function: `function(*point)` gives the output.
        point: The tensors that it is differentiated for.
        in_axes: 0 for each of them that a batched call has stacked, else None.
        tangent: A direction for each.
        upstream: A cotangent of the output.
        layer_class: The layer's class, ours or Keras's.
        layer: The layer, its weights and statistics being those of the scene; None
            where the call is one of a pure function.
        expected: What its transformations must give.
    """

    def __init__(self, scene, layer_class=keras_bn.BatchNormalization, row=None):
        self.scene, self.layer_class = scene, layer_class
        numbers = Numbers(scene)
        self.mask = None if numbers.mask is None else frameworks.tensor(numbers.mask)
        of_function = scene.by in ("function", "along")
        self.layer = None if of_function else self._new_layer(numbers)
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
        if self.layer_class is keras_bn.BatchNormalization:
            options["activation"] = scene.activation
        layer = self.layer_class(**options)
        layer.build(scene.shape)
        layer.gamma.assign(numbers.parameters[0])
        layer.beta.assign(numbers.parameters[1])
        for name, value in numbers.statistics.items():
            if hasattr(layer, name):
                getattr(layer, name).assign(value)
        return layer

    def activated(self, y):
        """`y`, or for Keras's layer, which has no such argument, its activation."""
        if self.layer_class is keras_bn.BatchNormalization:
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
    options = {"axis": scene.axis, "epsilon": EPSILON, "activation": scene.activation}

    def training(x, gamma, beta):
        y, _ = keras_bn.ops.batch_norm_train(x, gamma, beta, mask=call.mask, **options)
        return y

    def inference(x, gamma, beta, mean, variance):
        return keras_bn.ops.batch_norm_inference(
            x, mean, variance, gamma, beta, **options
        )

    return training if scene.training else inference


def _by_along(call):
    """The pure function, with weights and a residual."""
    options = {"epsilon": EPSILON, "activation": call.scene.activation}

    def function(x, gamma, beta, weights, residual):
        along = {"weights": weights, "residual": residual}
        return keras_bn.ops.batch_norm_train(x, gamma, beta, **along, **options)[0]

    return function


def _by_no_update(call):
    """The layer as it is, its statistics left alone."""

    def function(x):
        with keras_bn.no_update():
            return call.of_layer(x)

    return function


CALLS = {
    "layer": _by_layer,
    "function": _by_function,
    "along": _by_along,
    "no_update": _by_no_update,
}
