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
from typing import Any, NamedTuple, Protocol

import torch

from keras_bn.backend import formulas, reference, torch_cuda
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
from keras_bn.backend.torch_context import (
    eager,
    exported,
    transformed,
    warn_outside_of_ddp,
)
from keras_bn.backend.torch_cpu import NativeParts, SmallParts, multiplier
from keras_bn.backend.torch_layout import Layout, spread

# Elements below which the native operators take longer to start their threads than a
# few plain ones take to do the work.
_SMALL = 2**14


class TrainingParts(Protocol):
    """The parts of a training pass, for one input."""

    def moments(self, x: Tensor) -> tuple[Any, Tensor | None]:
        """The moments of this process's x, and x as `normalize` wants it, if changed.

        The moments are a named tuple of tensors (or None), with `bookkeeping()`.
        """

    def merged(self, found: Any, replicas: Replicas) -> Any:
        """The moments of all replicas together."""

    def normalize(
        self,
        x: Tensor,
        values: Tensor | None,
        scale: Tensor,
        offset: Tensor,
        found: Any,
    ) -> Tensor:
        """The output, as x in shape, dtype and memory order: no view of anything."""

    def gradients(
        self,
        x: Tensor,
        scale: Tensor,
        offset: Tensor,
        dy: Tensor,
        found: Any,
        replicas: Replicas | None,
        need_dx: bool,
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """The gradients for x (None unless it is needed), scale and offset."""


class FormulaParts(NamedTuple):
    """The formulas as they stand: on any device, with any mask and axes."""

    axes: Axes
    epsilon: float
    activation: str | None
    mask: Tensor | None = None
    fused: bool = False  # whether a compiler makes one pass of a sampled centre

    def moments(self, x: Tensor) -> tuple[formulas.CentredMoments, None]:
        """See `TrainingParts.moments`."""
        sampled = self.fused and self.mask is None
        about = formulas.sample(x, self.axes) if sampled else None
        values = formulas.widen(x)
        found = formulas.centred_moments(values, self.axes, self.mask, about=about)
        return found, None

    def merged(
        self, found: formulas.CentredMoments, replicas: Replicas
    ) -> formulas.CentredMoments:
        """See `TrainingParts.merged`."""
        return formulas.over_replicas(found, replicas)

    def normalize(
        self,
        x: Tensor,
        values: None,
        scale: Tensor,
        offset: Tensor,
        found: formulas.CentredMoments,
    ) -> Tensor:
        """See `TrainingParts.normalize`."""
        y = formulas.normalize(
            formulas.widen(x), scale, offset, found, self.axes, self.epsilon
        )
        return activate(self.activation, y).to(x.dtype)

    def gradients(
        self,
        x: Tensor,
        scale: Tensor,
        offset: Tensor,
        dy: Tensor,
        found: formulas.CentredMoments,
        replicas: Replicas | None,
        need_dx: bool,
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """See `TrainingParts.gradients`."""
        return formulas.gradients(
            *(x, scale, offset, self.mask, found, dy, self.axes, self.epsilon),
            *(self.activation, replicas),
        )


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
        lambda call: transformed(call.x, call.scale, call.offset),
        lambda call: None,
    ),
    _Choice(
        Service(
            "training, under torch.compile and torch.export",
            "torch_kernels",
            "the formulas, gradient written out, for the compiler to fuse",
        ),
        lambda call: torch.compiler.is_compiling(),
        # A program for export has no sizes, which the choice of a sample hangs on.
        lambda call: call.parts(
            FormulaParts, call.mask, not torch.compiler.is_exporting()
        ),
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
            "training, all else: masks, several axes, synchronized, other devices",
            "torch_kernels",
            "the formulas, gradient written out; saves the input alone",
        ),
        lambda call: True,
        lambda call: call.parts(FormulaParts, call.mask),
    ),
)
"""The first row that serves a call computes it; `services` describes them."""

_INFERENCE = (
    Service(
        "inference, one feature axis",
        "torch_kernels",
        "one multiply-add per element, half precision as it is",
    ),
    Service(
        "inference, several axes, learning gamma, or under a transformation",
        "reference",
        "keras.ops",
    ),
)


def services() -> tuple[Service, ...]:
    """See `Kernels.services`."""
    return (*(choice.service for choice in _CHOICES), *_INFERENCE)


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
) -> tuple[Tensor, Moments]:
    """See `Kernels.train`."""
    if activation is not None and torch.compiler.is_compiling():
        # Inductor fuses it by itself, and keeps its sign. An activation in the gradient
        # it would write out in float32, to read it three times.
        y, moments = train(
            *(x, scale, offset, axes, epsilon, mask, correction, None, replicas)
        )
        return activate(activation, y), moments
    call = _Call(x, scale, offset, axes, epsilon, mask, activation, replicas)
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
    return _Train.apply(x, scale, offset, values, found, settings), moments


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
        values: Tensor | None,
        found: Any,
        settings: tuple[Any, ...],
    ) -> Tensor:
        ctx.save_for_backward(x, scale, offset)
        ctx.found, ctx.settings = found, settings
        return settings[0].normalize(x, values, scale, offset, found)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, offset = ctx.saved_tensors
        parts, axes, epsilon, mask, activation, replicas = ctx.settings
        found = ctx.found
        if torch.is_grad_enabled() or transformed(x, scale, offset, dy):
            # Somebody differentiates this further, or batches it: the formulas from
            # x on, with the way through its moments.
            _refuse_replicas(replicas, "a gradient of gradients")
            parts = FormulaParts(axes, epsilon, activation, mask)
            found, _ = parts.moments(x)
        slopes = parts.gradients(
            x, scale, offset, dy, found, replicas, ctx.needs_input_grad[0]
        )
        return (*slopes, None, None, None)


def _refuse_replicas(replicas: Replicas | None, what: str) -> None:
    if replicas is not None:
        raise NotImplementedError(
            "Argument `synchronized` must be False here: on PyTorch the statistics of "
            f"several processes do not pass through {what}. Received: synchronized=True"
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


ensure_shape = reference.ensure_shape


def moving_average(
    average: Tensor, value: Tensor, momentum: float, where: Tensor | bool
) -> Tensor:
    """See `Kernels.moving_average`."""
    if _served_on_cuda(average, value):
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
