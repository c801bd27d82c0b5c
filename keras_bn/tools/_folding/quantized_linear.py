"""A linear layer whose weights are rounded as they will be once folded."""

import functools
import inspect
import operator
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_bn.ops import statistics_dtype
from keras_bn.tools._copies.carry import carry_leaf, made_like
from keras_bn.tools._copies.rebuild import Replacement, rebuild
from keras_bn.tools._folding import affines, linear_layers
from keras_bn.tools._folding.affines import Affine
from keras_bn.tools._folding.fake_quantize import FakeQuantize, fake_quantize_weights
from keras_bn.tools._graphs.walk import (
    Layer,
    assign_copy,
    is_batch_norm,
    sublayers,
)

Shape = tuple[int | None, ...]

NEGLIGIBLE = 1e-30
"""Scales below this are taken for 0: what they multiply will be 0 once folded."""


@keras.saving.register_keras_serializable(package="keras_bn")
class QuantizedLinear(keras.layers.Layer):  # type: ignore[misc]
    """A linear layer and the batch norms that `fold` multiplies into it, in a chain.

    Runs the layers one after the other, and the linear one with the kernel

        scale  = gamma / sqrt(moving_variance + epsilon)
        kernel = fake_quantize(kernel * scale) / scale

    so that in inference, and in training with frozen statistics, it computes what the
    folded layer does with weights of eight bits. In training with batch statistics the
    batch norm divides by the deviation of the batch, which corrects for the scale's
    long-term one: the rounding follows the slow average, not the batch.

    Args:
        layers: One linear layer, batch norms before and after it, and layers between
            them that only move values.
        per_channel: Whether each output channel has a step of its own; otherwise there
            is one for the kernel.
        **kwargs: Keyword arguments of `keras.layers.Layer`.

    Reference:
        [Krishnamoorthi, 2018](https://arxiv.org/abs/1806.08342), section 3.2.2.
    """

    def __init__(self, layers: list[Layer], per_channel: bool, **kwargs: Any) -> None:
        self.position = [linear_layers.is_linear(one) for one in layers].index(True)
        # Nothing here is computed in half precision but by the layers themselves.
        kwargs["dtype"] = layers[self.position].variable_dtype
        super().__init__(autocast=False, **kwargs)
        self.layers = layers
        self.per_channel = per_channel
        self._sources: tuple[tuple[int, str, np.ndarray], ...] = ()

    @property
    def linear(self) -> Layer:
        """The linear layer."""
        return self.layers[self.position]

    def build(self, input_shape: Shape) -> None:
        """Builds the layers, and finds which scale each weight has."""
        shapes = [input_shape]
        for layer in self.layers:
            if not layer.built:
                layer.build(shapes[-1])
            shapes.append(layer.compute_output_shape(shapes[-1]))
        # By position: tools may put another layer in a norm's place.
        self._sources = tuple(
            (place, *self._source(place, shapes))
            for place, layer in enumerate(self.layers)
            if is_batch_norm(layer)
        )

    def _source(self, place: int, shapes: list[Shape]) -> tuple[str, np.ndarray]:
        """The kernel that a norm scales, and the channel for each of its weights."""
        norm, linear, position = self.layers[place], self.linear, self.position
        family = linear_layers.FAMILIES[type(linear)]
        channels = np.arange(1.0, np.prod(norm.moving_variance.shape) + 1)
        one = affines.laid_out(
            channels.reshape(norm.moving_variance.shape),
            norm.axis,
            len(shapes[place]) - 1,
        )
        affine = Affine(one, one)  # no offset is read
        back = place > position
        between = range(place - 1, position, -1) if back else range(place + 1, position)
        for other in between:
            step = affines.before if back else affines.after
            affine = step(affine, self.layers[other], *shapes[other : other + 2])
        shape = shapes[position + 1] if back else shapes[position]
        axis = linear_layers.channel_axis(linear, len(shape) - 1)
        vector = affines.channel_vector(affine.scale, axis, shape[1:][axis])  # type: ignore[arg-type]
        weights = linear_layers.no_weights(linear)
        if back:
            name, factor = family.kernels[-1], family.scaled_after(weights, vector)
        else:
            name = family.kernels[0]
            factor = family.scaled_before(linear, weights, vector)
            if np.all(factor == factor[..., :1]):  # without groups
                factor = factor[..., :1]
        return name, factor.astype("int32") - 1

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """The shape of the last layer's output."""
        for layer in self.layers:
            input_shape = layer.compute_output_shape(input_shape)
        return input_shape

    def compute_output_spec(self, inputs: Any, training: bool | None = None) -> Any:
        """The shape and dtype of the last layer's output."""
        for layer in self.layers:
            inputs = layer.compute_output_spec(inputs)
        return inputs

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        """None: where the layers hand a mask on, the output has it already."""
        return None

    def rematerialized_call(self, layer_call: Any, *args: Any, **kwargs: Any) -> Any:
        """`layer_call` itself: batch norm does not want to be recomputed."""
        return layer_call

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Runs the layers; see the class."""
        x = inputs
        # Before a norm in front of it moves the average that this is to follow.
        kernels = self.quantized_kernels()
        for layer in self.layers:
            if layer is self.linear:
                x = self._run_linear(x, kernels)
            elif "training" in inspect.signature(layer.call).parameters:
                x = layer(x, training=training)  # not known otherwise in stateless_call
            else:
                x = layer(x)
        return x

    def _run_linear(self, x: Any, kernels: dict[str, Any]) -> Any:
        """The layer's own call, whatever it does with its kernels, on other ones."""
        state = {id(v): (v, v.value) for v in self.linear.variables}
        for name, value in kernels.items():
            kernel = getattr(self.linear, name)
            state[id(kernel)] = (kernel, value)
        # All of its variables are made; those of others are not made here.
        settings = {"collect_losses": True, "initialize_variables": False}
        with keras.StatelessScope(state.values(), **settings) as scope:
            y = self.linear(x)
        for loss in scope.losses:
            self.add_loss(loss)
        return y

    def quantized_kernels(self) -> dict[str, Any]:
        """The kernels that the linear layer is run with, by name, before any cast."""
        return {
            name: self._quantized(name, getattr(self.linear, name).value)
            for name in linear_layers.FAMILIES[type(self.linear)].kernels
        }

    def _quantized(self, name: str, kernel: Any) -> Any:
        axes = None
        if self.per_channel:
            axes = linear_layers.axes_of_one_channel(self.linear, name)
        wide = ops.cast(kernel, statistics_dtype(kernel.dtype))
        scales = [
            ops.take(_scale(self.layers[place], wide.dtype), channel)
            for place, which, channel in self._sources
            if which == name
        ]
        if not scales:
            return fake_quantize_weights(wide, axes)
        scale = functools.reduce(operator.mul, scales)
        lost = ops.abs(scale) < NEGLIGIBLE
        divisor = ops.where(lost, ops.ones_like(scale), scale)
        rounded = fake_quantize_weights(wide * scale, axes) / divisor
        # A weight that will be 0 is left as it is: gamma must be able to grow again.
        return ops.where(lost, wide, rounded)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, layers serialized."""
        return {
            **super().get_config(),
            "layers": [keras.saving.serialize_keras_object(one) for one in self.layers],
            "per_channel": self.per_channel,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "QuantizedLinear":
        """The layer of a config."""
        layers = [
            keras.saving.deserialize_keras_object(one) for one in config["layers"]
        ]
        return cls(**{**config, "layers": layers})


def _scale(norm: Layer, dtype: Any) -> Any:
    """`gamma / sqrt(moving_variance + epsilon)`; no gradient for the variance."""
    variance = ops.cast(ops.stop_gradient(norm.moving_variance.value), dtype)
    scale = 1 / ops.sqrt(variance + norm.epsilon)
    if norm.gamma is not None:
        scale = ops.multiply(scale, norm.gamma.value)  # of any dtype
    return scale


def is_quantize_aware(model: Any) -> bool:
    """Whether `model` has layers of this kind in it."""
    kinds = (QuantizedLinear, FakeQuantize)
    return any(isinstance(one, kinds) for _, one in sublayers(model))


def without_rounding(model: Any) -> Any:
    """A copy of plain layers, with the rounded kernels for weights.

    It computes what `model` does in inference, but for the rounding of activations.
    """
    parts: dict[int, list[Layer]] = {}

    def replace(layer: Layer) -> Replacement | None:
        if isinstance(layer, FakeQuantize):
            return Replacement(None)
        if not isinstance(layer, QuantizedLinear):
            return None
        copies = parts[id(layer)] = [made_like(one) for one in _without_range(layer)]
        return Replacement(copies[0], (*copies[1:],))

    def fill(old: Layer, new: Layer) -> None:
        for source, target in zip(_without_range(old), parts[id(old)], strict=True):
            fill_part(source, target)
        (linear,) = (one for one in parts[id(old)] if linear_layers.is_linear(one))
        for name, kernel in old.quantized_kernels().items():
            assign_copy(getattr(linear, name), kernel)

    return rebuild(model, replace, fill)


def fill_part(source: Layer, target: Layer) -> None:
    """The weights and flags of one layer of a chain, a low-rank update merged in."""
    target.trainable = source.trainable
    if not linear_layers.is_linear(source):
        carry_leaf(source, target)
        return
    names = (*linear_layers.FAMILIES[type(source)].kernels, "bias")
    for name in names:
        if getattr(source, name) is not None:
            assign_copy(getattr(target, name), getattr(source, name))


def _without_range(block: QuantizedLinear) -> list[Layer]:
    return [one for one in block.layers if not isinstance(one, FakeQuantize)]
