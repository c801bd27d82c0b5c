"""Activations whose gradient can be had from their output.

A kernel that fuses one of them needs to keep no tensor for it: the output is
recomputed from the input that the normalization keeps anyway.
"""

from collections.abc import Callable

from keras import activations, ops

from keras_bn.backend.interface import Tensor

# Keras's defaults; SELU's constants are those of Klambauer et al., 2017.
LEAKY_RELU_SLOPE = 0.2
SELU_ALPHA = 1.6732632423543772848170429916717
SELU_SCALE = 1.0507009873554804934193349852946


def _step(y: Tensor) -> Tensor:
    return ops.maximum(ops.sign(y), 0)


# By signs, not comparisons: XLA for GPUs takes a tensor of booleans for cheap enough to
# be written out and read again.
SLOPES: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": ops.sign,
    "relu6": lambda y: ops.sign(y) * ops.sign(6 - y),
    "leaky_relu": lambda y: _step(y) * (1 - LEAKY_RELU_SLOPE) + LEAKY_RELU_SLOPE,
    "elu": lambda y: 1 + ops.clip(y, -1, 0),
    "selu": lambda y: ops.where(y > 0, SELU_SCALE, y + SELU_SCALE * SELU_ALPHA),
    "sigmoid": lambda y: y * (1 - y),
    "tanh": lambda y: 1 - y * y,
}
"""The derivative of each activation as a function of the activation's output."""


def activate(name: str | None, x: Tensor) -> Tensor:
    """The named activation of `x`; `x` itself for None."""
    return x if name is None else activations.get(name)(x)


def fusible(activation: Callable[[Tensor], Tensor]) -> str | None:
    """The name under which kernels know `activation`, or None if they do not."""
    name = getattr(activation, "__name__", None)
    known = name in SLOPES and activation is activations.get(name)
    return name if known else None
