"""The weights of linear layers with an affine of each channel multiplied in.

Pure arithmetic in float64 NumPy; one class a family of layers, one row a layer class.
"""

import math
from typing import Any, NamedTuple, Protocol

import keras
import numpy as np

from keras_bn.tools._folding.affines import Inexact
from keras_bn.tools._graphs.walk import Layer, float64

Shape = tuple[int | None, ...]


class Weights(NamedTuple):
    """The kernels of a linear layer by name, and its bias, in float64."""

    kernels: dict[str, np.ndarray]
    bias: np.ndarray

    def times(self, name: str, factor: np.ndarray, bias: np.ndarray) -> "Weights":
        """With one kernel multiplied, and another bias."""
        return Weights({**self.kernels, name: self.kernels[name] * factor}, bias)


class Family(Protocol):
    """How a family of linear layers stores its weights."""

    kernels: tuple[str, ...]

    def scaled_after(self, w: Weights, scale: np.ndarray) -> np.ndarray:
        """The factor of the last kernel that scales each output channel."""

    def scaled_before(self, layer: Layer, w: Weights, scale: np.ndarray) -> np.ndarray:
        """The factor of the first kernel that scales each input channel."""

    def response(self, layer: Layer, w: Weights, offset: np.ndarray) -> np.ndarray:
        """What a constant input of `offset` per channel adds to each output channel."""

    def channel_axes(self, name: str) -> tuple[int, ...]:
        """The last axes of a kernel along which its output channels lie."""


class _Kernel:
    """Dense and convolutions: (…, input channels of one group, output channels)."""

    kernels: tuple[str, ...] = ("kernel",)

    def scaled_after(self, w: Weights, scale: np.ndarray) -> np.ndarray:
        return scale

    def _per_group(self, layer: Layer, w: Weights, values: np.ndarray) -> np.ndarray:
        """One value per (input channel of the group, output channel)."""
        groups = getattr(layer, "groups", 1)
        filters = w.bias.size // groups
        return np.repeat(values.reshape(groups, -1), filters, axis=0).T

    def scaled_before(self, layer: Layer, w: Weights, scale: np.ndarray) -> np.ndarray:
        return self._per_group(layer, w, scale)

    def response(self, layer: Layer, w: Weights, offset: np.ndarray) -> np.ndarray:
        kernel = w.kernels["kernel"] * self._per_group(layer, w, offset)
        return _total(kernel, 1)

    def channel_axes(self, name: str) -> tuple[int, ...]:
        return (-1,)


class _Transposed:
    """Transposed convolutions: (…, output channels, input channels)."""

    kernels: tuple[str, ...] = ("kernel",)

    def scaled_after(self, w: Weights, scale: np.ndarray) -> np.ndarray:
        return scale[:, np.newaxis]

    def scaled_before(self, layer: Layer, w: Weights, scale: np.ndarray) -> np.ndarray:
        return scale

    def response(self, layer: Layer, w: Weights, offset: np.ndarray) -> np.ndarray:
        if any(size != 1 for size in (*layer.kernel_size, *layer.strides)):
            raise Inexact(f"'{layer.name}' adds up fewer shifted values at the borders")
        total: np.ndarray = _total(w.kernels["kernel"], 2) @ offset
        return total

    def channel_axes(self, name: str) -> tuple[int, ...]:
        return (-2,)


class _Depthwise:
    """Depthwise convolutions: (…, input channels, multiplier)."""

    kernels: tuple[str, ...] = ("kernel",)

    def scaled_after(self, w: Weights, scale: np.ndarray) -> np.ndarray:
        return scale.reshape(w.kernels["kernel"].shape[-2:])

    def scaled_before(self, layer: Layer, w: Weights, scale: np.ndarray) -> np.ndarray:
        return scale[:, np.newaxis]

    def response(self, layer: Layer, w: Weights, offset: np.ndarray) -> np.ndarray:
        return _total(w.kernels[self.kernels[0]] * offset[:, np.newaxis], 2).ravel()

    def channel_axes(self, name: str) -> tuple[int, ...]:
        return (-2, -1)


class _Separable(_Depthwise):
    """A depthwise convolution, then one of single points."""

    kernels: tuple[str, ...] = ("depthwise_kernel", "pointwise_kernel")

    def scaled_after(self, w: Weights, scale: np.ndarray) -> np.ndarray:
        return scale

    def response(self, layer: Layer, w: Weights, offset: np.ndarray) -> np.ndarray:
        pointwise = w.kernels["pointwise_kernel"]
        flat = pointwise.reshape(pointwise.shape[-2:])
        total: np.ndarray = super().response(layer, w, offset) @ flat
        return total

    def channel_axes(self, name: str) -> tuple[int, ...]:
        return (-1,) if name == "pointwise_kernel" else (-2, -1)


def _total(kernel: np.ndarray, kept: int) -> np.ndarray:
    """The sum over all but the last `kept` axes."""
    total: np.ndarray = kernel.sum(axis=tuple(range(kernel.ndim - kept)))
    return total


_LAYERS = keras.layers
FAMILIES: dict[type, Family] = {
    **dict.fromkeys(
        (_LAYERS.Conv1D, _LAYERS.Conv2D, _LAYERS.Conv3D, _LAYERS.Dense), _Kernel()
    ),
    **dict.fromkeys(
        (_LAYERS.Conv1DTranspose, _LAYERS.Conv2DTranspose, _LAYERS.Conv3DTranspose),
        _Transposed(),
    ),
    **dict.fromkeys((_LAYERS.DepthwiseConv1D, _LAYERS.DepthwiseConv2D), _Depthwise()),
    **dict.fromkeys((_LAYERS.SeparableConv1D, _LAYERS.SeparableConv2D), _Separable()),
}


def is_linear(layer: Layer) -> bool:
    """Whether `layer` is of a class that a batch norm can be folded into."""
    return type(layer) in FAMILIES


def channel_axis(layer: Layer, rank: int) -> int:
    """The channel axis of inputs and outputs, the batch axis left out."""
    first = getattr(layer, "data_format", None) == "channels_first"
    return 0 if first else rank - 1


def read_weights(layer: Layer) -> Weights:
    """The weights of `layer`, whose bias is zeros where it has none."""
    kernels = {
        name: float64(getattr(layer, name)) for name in FAMILIES[type(layer)].kernels
    }
    bias = float64(layer.bias) if layer.use_bias else np.zeros(_outputs(layer))
    return Weights(kernels, bias)


def no_weights(layer: Layer) -> Weights:
    """Zeros of the shapes of the weights of `layer`, which take no memory."""
    kernels = {
        name: np.broadcast_to(0.0, getattr(layer, name).shape)
        for name in FAMILIES[type(layer)].kernels
    }
    return Weights(kernels, np.broadcast_to(0.0, (_outputs(layer),)))


def axes_of_one_channel(layer: Layer, name: str) -> tuple[int, ...]:
    """The axes of a kernel that belong to one and the same output channel."""
    rank = len(getattr(layer, name).shape)
    kept = {axis % rank for axis in FAMILIES[type(layer)].channel_axes(name)}
    return tuple(axis for axis in range(rank) if axis not in kept)


def _outputs(layer: Layer) -> int:
    family = FAMILIES[type(layer)]
    last = family.kernels[-1]
    shape: Any = getattr(layer, last).shape
    return math.prod(shape[axis] for axis in family.channel_axes(last))


def fold_after(
    layer: Layer, weights: Weights, scale: np.ndarray, offset: np.ndarray
) -> Weights:
    """The weights with which `layer` computes `scale * layer(x) + offset`.

    Args:
        layer: A layer of a class in `FAMILIES`.
        weights: Its weights.
        scale: One number per output channel.
        offset: One number per output channel.
    """
    family = FAMILIES[type(layer)]
    factor = family.scaled_after(weights, scale)
    return weights.times(family.kernels[-1], factor, weights.bias * scale + offset)


def fold_before(
    layer: Layer,
    weights: Weights,
    scale: np.ndarray,
    offset: np.ndarray,
    inputs: Shape,
) -> Weights:
    """The weights with which `layer` computes `layer(scale * x + offset)`.

    Args:
        layer: A layer of a class in `FAMILIES`.
        weights: Its weights.
        scale: One number per input channel.
        offset: One number per input channel.
        inputs: The shape of x.

    Raises:
        Inexact: No weights do: the layer pads with zeros, which are not shifted.
    """
    family = FAMILIES[type(layer)]
    bias = weights.bias
    if np.any(offset):
        bias = bias + family.response(layer, weights, offset)
        if pads(layer, inputs):
            raise Inexact(f"'{layer.name}' pads with zeros (padding={layer.padding!r})")
    factor = family.scaled_before(layer, weights, scale)
    return weights.times(family.kernels[0], factor, bias)


def pads(layer: Layer, inputs: Shape) -> bool:
    """Whether `layer` puts zeros around an input of this shape, or might."""
    padding = getattr(layer, "padding", "valid")
    if padding == "valid":
        return False
    rates = zip(layer.kernel_size, layer.dilation_rate, strict=True)
    spans = [(size - 1) * rate + 1 for size, rate in rates]
    first = layer.data_format == "channels_first"
    spatial = inputs[2:] if first else inputs[1:-1]
    if padding == "causal":
        return any(span > 1 for span in spans)
    return any(
        span > 1 and (size is None or (-(-size // step) - 1) * step + span > size)
        for size, span, step in zip(spatial, spans, layer.strides, strict=True)
    )
