"""Batch normalization on PyTorch: one training operator, made of exchangeable parts.

A training pass is moments, normalization and, backwards, the gradients. `_Train` ties
the three together for autograd: it keeps the input and a few numbers a channel,
whatever the device, the mask, the axes, the activation, and however many processes take
their statistics together. Which parts compute it is looked up in `_CHOICES`.

Whoever else follows the call - forward mode, `torch.func`, a tracer - gets the plain
formulas, which PyTorch differentiates, batches and exports by itself.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from keras_bn.backend import formulas, reference, torch_cuda, torch_inference
from keras_bn.backend.activations import activate
from keras_bn.backend.interface import (
    Axes,
    Correction,
    Moments,
    Replicas,
    Service,
    Tensor,
    corrected,
)
from keras_bn.backend.torch_activations import activate_
from keras_bn.backend.torch_context import eager, transformed
from keras_bn.backend.torch_cpu import NativeParts, SmallParts
from keras_bn.backend.torch_layout import Joined
from keras_bn.backend.torch_parts import FormulaParts, TrainingParts
from keras_bn.backend.torch_replicas import warn_outside_of_ddp

# Elements below which the native operators take longer to start their threads than a
# few plain ones take to do the work.
_SMALL = 2**14


class _Call(NamedTuple):
    """A training call, as `Kernels.train` is given it."""

    x: Tensor
    scale: Tensor
    offset: Tensor
    axes: Axes
    epsilon: float
    mask: Tensor | None
    activation: str | None
    replicas: Replicas | None

    def native(self) -> bool:
        """Whether the native CPU operators know the case."""
        return (
            self.mask is None
            and self.replicas is None
            and len(self.axes.features) == 1
            and self.x.device.type == "cpu"
            and self.x.numel() > 0
        )

    def weights(self) -> tuple[Tensor, ...]:
        """The mask, where it is of numbers that may be differentiated for."""
        return (self.mask,) if formulas.is_weights(self.mask) else ()

    def joinable(self) -> bool:
        """Whether they would know it if its several feature axes were one."""
        return (
            len(self.axes.features) > 1
            and self._replace(axes=Joined.of(self.axes).axes).native()
            and eager(self.x)
            and not transformed(self.x, self.scale, self.offset)
        )

    def parts(self, kind: Callable[..., Any], *more: Any) -> Any:
        return kind(self.axes, self.epsilon, self.activation, *more)


class _Choice(NamedTuple):
    """A row of the table: which calls it serves, and by which parts."""

    service: Service
    serves: Callable[[_Call], bool]
    parts: Callable[[_Call], TrainingParts | None]


_CHOICES = (
    _Choice(
        Service(
            "training, under torch.func, in forward mode, in torch.jit.trace",
            "reference",
            "keras.ops, differentiated and batched by PyTorch",
        ),
        lambda call: transformed(call.x, call.scale, call.offset, *call.weights()),
        lambda call: None,
    ),
    _Choice(
        Service(
            "training, under torch.compile and torch.export",
            "torch_parts",
            "the formulas, gradient written out, for the compiler to fuse",
        ),
        lambda call: torch.compiler.is_compiling(),
        # A program for export has no sizes, which the choice of a sample hangs on. For
        # a GPU the compiler splits sums by itself, into fewer parts than ours have.
        lambda call: call._replace(
            axes=call.axes._replace(jointly=call.x.device.type == "cuda")
        ).parts(FormulaParts, call.mask, not torch.compiler.is_exporting()),
    ),
    _Choice(
        Service(
            "training, one feature axis, no mask, up to float32, on CUDA with Triton",
            "torch_cuda",
            "six launches, eight passes, no wait; saves the input alone",
        ),
        lambda call: torch_cuda.why_not(call.x, call.axes, call.mask) is None,
        lambda call: call.parts(torch_cuda.CudaParts),
    ),
    _Choice(
        Service(
            "training, one feature axis, no mask, on CPU, below 16k elements",
            "torch_cpu",
            "a few plain operators; saves the input alone",
        ),
        lambda call: call.native() and eager(call.x) and call.x.numel() < _SMALL,
        lambda call: call.parts(SmallParts),
    ),
    _Choice(
        Service(
            "training, one feature axis, no mask, on CPU",
            "torch_cpu",
            "native operators on exact statistics; saves the input alone",
        ),
        lambda call: call.native() and eager(call.x),
        lambda call: call.parts(NativeParts),
    ),
    _Choice(
        Service(
            "training, all else: masks, weights, several axes, synchronized, other "
            "devices",
            "torch_parts",
            "the formulas, gradient written out; saves the input alone",
        ),
        lambda call: True,
        lambda call: call.parts(FormulaParts, call.mask),
    ),
)
"""The first row that serves a call computes it; `services` describes them."""


_JOINED = Service(
    "training, several feature axes, no mask, on CPU",
    "torch_layout",
    "laid out as one feature axis, then as there",
)


def services() -> tuple[Service, ...]:
    """See `Kernels.services`."""
    training = [choice.service for choice in _CHOICES]
    training.insert(-1, _JOINED)
    reason = torch_cuda.unavailable()
    if reason is not None:
        training = [
            row._replace(how=f"not here: {reason}")
            if row.kernel == "torch_cuda"
            else row
            for row in training
        ]
    return (*training, *torch_inference.SERVICES)


def train(
    x: Tensor,
    scale: Tensor,
    offset: Tensor,
    axes: Axes,
    epsilon: float,
    mask: Tensor | None,
    correction: Correction | None,
    activation: str | None,
    replicas: Replicas | None = None,
    shortcut: Tensor | None = None,
) -> tuple[Tensor, Moments]:
    """See `Kernels.train`."""
    fused = activation is None or not torch.compiler.is_compiling()
    if shortcut is not None or not fused:
        # Inductor fuses an activation by itself, and keeps its sign. In the gradient it
        # would write it out in float32, to read it three times.
        y, moments = train(
            *(x, scale, offset, axes, epsilon, mask, correction, None, replicas)
        )
        return _added(y, shortcut, activation), moments
    call = _Call(x, scale, offset, axes, epsilon, mask, activation, replicas)
    if correction is None and call.joinable():
        return _joined(call)
    parts = next(choice.parts(call) for choice in _CHOICES if choice.serves(call))
    if parts is None:
        _refuse_replicas(replicas, "torch.func, forward mode or torch.jit.trace")
        arguments = (axes, epsilon, mask, correction, activation)
        return reference.train(x, scale, offset, *arguments)
    with torch.no_grad():
        found, values = parts.moments(x)
        if replicas is not None:
            warn_outside_of_ddp(x, scale)
            found = parts.merged(found, replicas)
        moments = found.bookkeeping()
    scale, offset = corrected(scale, offset, moments, correction)
    settings = parts, axes, epsilon, mask, activation, replicas
    (weights,) = call.weights() or (None,)
    return _Train.apply(x, scale, offset, weights, values, found, settings), moments


def _added(y: Tensor, shortcut: Tensor | None, activation: str | None) -> Tensor:
    """`activation(y + shortcut)`, in the memory of y, which nothing else has seen.

    Autograd keeps the result for it, and nothing else.
    """
    if shortcut is None:
        return activate(activation, y)
    if torch.compiler.is_compiling() or transformed(y, shortcut):
        return activate(activation, y + shortcut)
    return activate_(activation, y.add_(shortcut))


def _joined(call: _Call) -> tuple[Tensor, Moments]:
    """The output and moments of a call on several feature axes, seen as one."""
    joined = Joined.of(call.axes)
    scale, offset = call.scale.flatten(), call.offset.flatten()
    settings = joined.axes, call.epsilon, None, None, call.activation
    y, moments = train(joined.join(call.x), scale, offset, *settings)
    shape = call.axes.parameter_shape(call.x.shape)
    mean, variance = (one.reshape(shape) for one in moments[1:])
    return joined.split(y, call.x), Moments(moments.count, mean, variance)


class _Train(torch.autograd.Function):
    """Normalizes by the moments found, and keeps nothing but `x` and them.

    An activation's gradient needs what the activation was given, which the backward
    pass computes again from `x`: one cheap pass for a whole tensor less in memory.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        offset: Tensor,
        weights: Tensor | None,
        values: Tensor | None,
        found: Any,
        settings: tuple[Any, ...],
    ) -> Tensor:
        ctx.save_for_backward(x, scale, offset, weights)
        ctx.found, ctx.settings = found, settings
        return settings[0].normalize(x, values, scale, offset, found)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, offset, weights = ctx.saved_tensors
        parts, axes, epsilon, mask, activation, replicas = ctx.settings
        found = ctx.found
        if weights is not None:
            mask = weights
            parts = parts._replace(mask=mask, of_weights=ctx.needs_input_grad[3])
        if torch.is_grad_enabled() or transformed(x, scale, offset, dy):
            # Somebody differentiates this further, or batches it: the formulas from
            # x on, with the way through its moments.
            _refuse_replicas(replicas, "a gradient of gradients")
            of_weights = ctx.needs_input_grad[3]
            parts = FormulaParts(axes, epsilon, activation, mask, of_weights=of_weights)
            found, _ = parts.moments(x)
        slopes = parts.gradients(
            x, scale, offset, dy, found, replicas, ctx.needs_input_grad[0]
        )
        return (*slopes, *[None] * (7 - len(slopes)))


def _refuse_replicas(replicas: Replicas | None, what: str) -> None:
    if replicas is not None:
        raise NotImplementedError(
            "Argument `synchronized` must be False here: on PyTorch the statistics of "
            f"several processes do not pass through {what}. Received: synchronized=True"
        )


inference = torch_inference.inference
ensure_shape = reference.ensure_shape


def moving_average(
    average: Tensor, value: Tensor, momentum: float | Tensor, where: Tensor | bool
) -> Tensor:
    """See `Kernels.moving_average`."""
    if isinstance(momentum, float) and _served_on_cuda(average, value):
        return torch_cuda.moving_average(average, value, momentum, where)
    return reference.moving_average(average, value, momentum, where)


def _served_on_cuda(*vectors: Tensor) -> bool:
    return (
        torch_cuda.serves_statistics(*vectors)
        and not torch.compiler.is_compiling()  # fuses these by itself
        and not transformed(*vectors)
    )


def usable(moments: Moments) -> Tensor | bool:
    """See `Kernels.usable`. On CPU a look at the values is quicker than the guards."""
    count, mean, variance = moments
    if _served_on_cuda(mean, variance):
        return torch_cuda.usable(moments)
    if mean.device.type == "cpu" and eager(mean) and not transformed(mean):
        # Not finite if any of them is not: 0 times infinity is NaN.
        checksum = torch.dot(mean.flatten(), variance.flatten()).item()
        if math.isfinite(checksum) and count.numel() == 1 and count.item() > 0:
            return True
    return reference.usable(moments)
