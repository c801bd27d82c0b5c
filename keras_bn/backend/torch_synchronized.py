"""Batch normalization on PyTorch by the statistics of all processes together.

The formulas with the gradient written out: one gather in the forward pass, one
reduction in the backward pass, on any device, with any mask and axes.
"""

from typing import Any

import torch

from keras_bn.backend import formulas
from keras_bn.backend.activations import activate
from keras_bn.backend.interface import (
    Axes,
    Correction,
    Moments,
    Replicas,
    Tensor,
    corrected,
)
from keras_bn.backend.torch_context import warn_outside_of_ddp


# torch.compile breaks its graph here: it would compile the collectives anew for each
# process, and not always in one order.
@torch.compiler.disable
def train_together(
    x: Tensor,
    scale: Tensor,
    offset: Tensor,
    axes: Axes,
    epsilon: float,
    mask: Tensor | None,
    correction: Correction | None,
    activation: str | None,
    replicas: Replicas,
) -> tuple[Tensor, Moments]:
    """See `Kernels.train`."""
    if torch.is_grad_enabled() and (x.requires_grad or scale.requires_grad):
        warn_outside_of_ddp()
    with torch.no_grad():
        own = formulas.centred_moments(formulas.widen(x), axes, mask)
        centred = formulas.over_replicas(own, replicas)
        moments = centred.bookkeeping()
    scale, offset = corrected(scale, offset, moments, correction)
    constants = (mask, centred, axes, epsilon, activation, replicas)
    return _Normalize.apply(x, scale, offset, *constants), moments


class _Normalize(torch.autograd.Function):
    """Normalizes by the moments of all processes and keeps nothing but `x`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        offset: Tensor,
        mask: Tensor | None,
        centred: formulas.CentredMoments,
        axes: Axes,
        epsilon: float,
        activation: str | None,
        replicas: Replicas,
    ) -> Tensor:
        ctx.save_for_backward(x, scale, offset)
        ctx.constants = mask, centred, axes, epsilon, activation, replicas
        y = formulas.normalize(formulas.widen(x), scale, offset, centred, axes, epsilon)
        return activate(activation, y).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise NotImplementedError(
                "Gradients of gradients do not pass through a layer with "
                "synchronized=True on PyTorch. Received: create_graph=True"
            )
        x, scale, offset = ctx.saved_tensors
        mask, centred, axes, epsilon, activation, replicas = ctx.constants
        gradients = formulas.gradients(
            *(x, scale, offset, mask, centred, dy, axes, epsilon, activation, replicas)
        )
        return (*gradients, *[None] * 6)
