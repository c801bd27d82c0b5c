"""Inference on PyTorch: one multiply-add, or the operator that exporters know."""

import torch

from keras_bn.backend import reference
from keras_bn.backend.activations import activate
from keras_bn.backend.interface import Axes, Service, Tensor
from keras_bn.backend.torch_activations import activate_
from keras_bn.backend.torch_context import eager, exported, transformed
from keras_bn.backend.torch_cpu import multiplier
from keras_bn.backend.torch_layout import Layout, spread

SERVICES = (
    Service(
        "inference, one feature axis",
        "torch_inference",
        "one multiply-add per element, half precision as it is",
    ),
    Service(
        "inference, several axes, learning gamma, or under a transformation",
        "reference",
        "keras.ops",
    ),
)


def inference(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    scale: Tensor,
    offset: Tensor,
    axes: Axes,
    epsilon: float,
    activation: str | None,
) -> Tensor:
    """See `Kernels.inference`.

    What autograd keeps is never a variable, nor x: a later training call may move the
    statistics, and the caller change x in place, before the backward pass.
    """
    statistics = mean, variance, scale, offset
    if exported() and len(axes.features) == 1 and not _learn(mean, variance):
        return activate(activation, _as_exporters_know(x, *statistics, axes, epsilon))
    if (
        len(axes.features) > 1
        or not eager(x)
        or transformed(x, *statistics)
        or x.numel() == 0
        or _learn(*statistics)
    ):
        return reference.inference(x, *statistics, axes, epsilon, activation)
    if x.dtype == mean.dtype and (axes.features[0] == x.ndim - 1 or _learn(x)):
        factor, level = multiplier(*statistics, epsilon)
        y = torch.addcmul(spread(level, axes), x, spread(factor, axes))
        return _activated(activation, y)
    layout = Layout.of(x, axes)
    if _learn(x):
        mean, variance = mean.clone(), variance.clone()
    y = torch.nn.functional.batch_norm(
        layout.to_native(x), mean, variance, scale, offset, False, 0.0, epsilon
    )
    return layout.from_native(_activated(activation, y))


def _learn(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(one.requires_grad for one in tensors)


def _activated(activation: str | None, y: Tensor) -> Tensor:
    """In place where nothing but this has seen y."""
    return activate(activation, y) if y.requires_grad else activate_(activation, y)


def _as_exporters_know(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    scale: Tensor,
    offset: Tensor,
    axes: Axes,
    epsilon: float,
) -> Tensor:
    """The operator that exporters know and runtimes fuse, with channels where it wants.

    No size is looked at, which would hold for the traced batch alone.
    """
    channel = axes.features[0]
    y = torch.nn.functional.batch_norm(
        x.movedim(channel, 1), mean, variance, scale, offset, False, 0.0, epsilon
    )
    return y.movedim(1, channel)
