"""Batch normalization on PyTorch's native CPU operators, one saved tensor a call.

The native training operator adds up values one after the other in float32 where the
channels lie last in memory: on 65k values a channel of mean 1e5 and std 10 it is
thousands of roundings off. Its parts are used instead, fed so that they are exact:

- the statistics of runs of a few thousand values, as if each run were a channel of
  its own (one call, same speed), then merged;
- where the mean dwarfs the deviation, all of it on `x - centre`, which is exact.

What is not served goes to the reference: see `serves_training`.
"""

import functools
import math
from typing import Any, NamedTuple

import torch

from keras_bn.backend import reference
from keras_bn.backend.activations import LEAKY_RELU_SLOPE, SELU_ALPHA, SELU_SCALE
from keras_bn.backend.interface import (
    Axes,
    Correction,
    Moments,
    Replicas,
    Service,
    Tensor,
    corrected,
)
from keras_bn.backend.torch_synchronized import train_together

# A mean that is added up in float32 is known to a few roundings. Up to 10 standard
# deviations from zero that is 2e-6 of the deviation; further out values are shifted.
_CENTRE_BEYOND = 10.0**2
# Elements below which the native operators take longer to start their threads than a
# few plain ones take to do the work.
_SMALL = 2**14
# Values added up in a row: short enough to be exact to 1e-6, long enough to be fast.
_RUN = 4096

SERVICES = (
    Service(
        "training, one feature axis, no mask, on CPU, outside torch.compile",
        "torch_kernels",
        "native operators on exact statistics; saves the input alone",
    ),
    Service(
        "training, the same, below 16k elements",
        "torch_kernels",
        "a few plain operators; saves the input alone",
    ),
    Service(
        "training, synchronized over processes",
        "torch_synchronized",
        "the formulas, gradient written out; saves the input alone",
    ),
    Service("training, all else", "reference", "keras.ops, torch's autograd"),
    Service(
        "inference, one feature axis",
        "torch_kernels",
        "one multiply-add per element, half precision as it is",
    ),
    Service("inference, several axes", "reference", "keras.ops"),
)


def serves_training(x: Tensor, axes: Axes, mask: Tensor | None) -> bool:
    """Whether `train` runs natively rather than on the reference.

    `torch.compile` fuses the reference by itself, and could not follow the look at
    the statistics that decides on shifting; a GPU would have to wait for it.
    """
    return (
        mask is None
        and len(axes.features) == 1
        and x.device.type == "cpu"
        and x.numel() > 0
        and not torch.compiler.is_compiling()
    )


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
    arguments = (axes, epsilon, mask, correction, activation)
    if replicas is not None:
        return train_together(x, scale, offset, *arguments, replicas)
    if not serves_training(x, axes, mask):
        return reference.train(x, scale, offset, *arguments)
    if x.numel() < _SMALL:
        return _train_small(x, scale, offset, axes, epsilon, correction, activation)
    with torch.no_grad():
        layout = _Layout.of(x, axes)
        values, centred = _centred(layout.to_native(x), epsilon)
        count = centred.mean.new_tensor(x.numel() // centred.mean.numel())
        moments = Moments(count, centred.true_mean(), centred.variance)
    scale, offset = corrected(scale, offset, moments, correction)
    settings = (layout, centred, axes, epsilon, activation)
    return _Normalize.apply(x, scale, offset, values, settings), moments


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
    """See `Kernels.inference`. The native operator has no gradient for statistics."""
    statistics_learn = torch.is_grad_enabled() and (
        mean.requires_grad or variance.requires_grad
    )
    if len(axes.features) > 1 or statistics_learn or x.numel() == 0:
        return reference.inference(
            x, mean, variance, scale, offset, axes, epsilon, activation
        )
    learns = torch.is_grad_enabled() and any(
        one.requires_grad for one in (x, scale, offset)
    )
    if axes.features[0] == x.ndim - 1 and x.dtype == mean.dtype and not learns:
        y = _multiply_add(x, mean, variance, scale, offset, epsilon)
        return _activate(activation, y)
    layout = _Layout.of(x, axes)
    y = torch.nn.functional.batch_norm(
        layout.to_native(x), mean, variance, scale, offset, False, 0.0, epsilon
    )
    return layout.from_native(_activate(activation, y))


def usable(moments: Moments) -> Tensor | bool:
    """See `Kernels.usable`. On CPU a look at the values is quicker than the guards."""
    count, mean, variance = moments
    if mean.device.type == "cpu" and not torch.compiler.is_compiling():
        # Not finite if any of them is not: 0 times infinity is NaN.
        checksum = torch.dot(mean.flatten(), variance.flatten()).item()
        if math.isfinite(checksum) and count.numel() == 1 and count.item() > 0:
            return True
    return reference.usable(moments)


def _train_small(
    x: Tensor,
    scale: Tensor,
    offset: Tensor,
    axes: Axes,
    epsilon: float,
    correction: Correction | None,
    activation: str | None,
) -> tuple[Tensor, Moments]:
    """As the formulas have it, in few operators."""
    with torch.no_grad():
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        centre = values.mean(axes.reduction)
        deviation = values - _spread(centre, x, axes)
        residual = deviation.mean(axes.reduction)
        # Not torch.var_mean, which takes as long as all the rest.
        square = (deviation * deviation).mean(axes.reduction)
        variance = square.addcmul_(residual, residual, value=-1.0).clamp_min_(0.0)
        count = centre.new_tensor(x.numel() // centre.numel())
        moments = Moments(count, centre + residual, variance)
    scale, offset = corrected(scale, offset, moments, correction)
    small = _Small(centre, residual, (variance + epsilon).rsqrt_())
    arguments = (deviation, small, axes, epsilon, activation)
    return _NormalizeSmall.apply(x, scale, offset, *arguments), moments


def _spread(parameter: Tensor, x: Tensor, axes: Axes) -> Tensor:
    """`parameter`, in a shape that broadcasts against x."""
    after = x.ndim - 1 - axes.features[0]
    return parameter.view(-1, *[1] * after) if after else parameter


class _Small(NamedTuple):
    """Of a small batch: mean = centre + residual, and 1 / sqrt(variance + epsilon)."""

    centre: Tensor
    residual: Tensor
    rstd: Tensor

    def normalize(
        self,
        deviation: Tensor,
        scale: Tensor,
        offset: Tensor,
        axes: Axes,
    ) -> Tensor:
        factor = self.rstd * scale
        level = torch.addcmul(offset, self.residual, factor, value=-1.0)
        factor, level = (_spread(one, deviation, axes) for one in (factor, level))
        return torch.addcmul(level, deviation, factor)


class _NormalizeSmall(torch.autograd.Function):
    """`_Normalize` for inputs that a few plain operators are quicker on."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        offset: Tensor,
        deviation: Tensor,
        small: _Small,
        axes: Axes,
        epsilon: float,
        activation: str | None,
    ) -> Tensor:
        ctx.save_for_backward(x, scale, offset)
        ctx.constants = small, axes, epsilon, activation
        y = small.normalize(deviation, scale, offset, axes)
        return _activate(activation, y).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, offset = ctx.saved_tensors
        small, axes, epsilon, activation = ctx.constants
        if torch.is_grad_enabled():  # create_graph=True: a gradient of gradients
            gradients = _differentiable_gradients(
                ctx.needs_input_grad, x, scale, offset, dy, axes, epsilon, activation
            )
            return (*gradients, None, None, None, None, None)
        centre, residual, rstd = small
        deviation = x - _spread(centre, x, axes)
        dy = dy.to(deviation.dtype)
        if activation is not None:
            z = small.normalize(deviation, scale, offset, axes)
            dy = _activation_gradient(activation, dy, z)
        # See `formulas.gradients`.
        doffset = dy.sum(axes.reduction)
        product = (dy * deviation).sum(axes.reduction)
        dscale = torch.addcmul(product, residual, doffset, value=-1.0).mul_(rstd)
        if not ctx.needs_input_grad[0]:
            return None, dscale, doffset, None, None, None, None, None
        count = x.numel() // rstd.numel()
        slope = (dscale * rstd).div_(count)
        level = torch.addcmul(doffset / count, residual, slope, value=-1.0)
        slope, level, factor = (
            _spread(one, x, axes) for one in (slope, level, scale * rstd)
        )
        dx = (dy - level).addcmul_(deviation, slope, value=-1.0).mul_(factor)
        return dx.to(x.dtype), dscale, doffset, None, None, None, None, None


class _Layout(NamedTuple):
    """How to see a tensor of any rank as one that the native operators are fast on.

    They know two memory layouts: `(samples, channels, size)` in one piece, and
    channels last, as `(1, channels, samples, 1)` in that memory format. Any single
    feature axis in any memory order becomes one of them by a view, or by one copy.
    """

    permutation: tuple[int, ...] | None  # brings the axes into memory's order, if any
    shape: torch.Size  # in that order
    channel: int  # where the feature axis then is

    @classmethod
    def of(cls, x: Tensor, axes: Axes) -> "_Layout":
        channel = axes.features[0]
        if x.is_contiguous():
            return cls(None, x.shape, channel)
        # Axes of size 1 have strides that mean nothing; any order that packs will do.
        stride = x.stride()
        order = tuple(sorted(range(x.ndim), key=lambda axis: -stride[axis]))
        ordered = x.permute(order)
        if not ordered.is_contiguous():
            return cls(None, x.shape, channel)
        return cls(order, ordered.shape, order.index(channel))

    def to_native(self, x: Tensor) -> Tensor:
        channels = self.shape[self.channel]
        packed = x if self.permutation is None else x.permute(self.permutation)
        packed = packed.contiguous()
        if self.shape[self.channel + 1 :].numel() == 1:
            return _channels_last(packed, channels)
        return packed.view(self.shape[: self.channel].numel(), channels, -1)

    def from_native(self, y: Tensor) -> Tensor:
        if y.ndim == 4:
            y = y.permute(0, 2, 3, 1)
        y = y.reshape(self.shape)
        if self.permutation is None:
            return y
        order = self.permutation
        return y.permute(sorted(range(len(order)), key=order.__getitem__))


def _channels_last(packed: Tensor, channels: int) -> Tensor:
    """`(..., channels)` in one piece as `(1, channels, samples, 1)`: a view."""
    samples = packed.numel() // channels
    strides = (packed.numel(), 1, channels, channels)
    return packed.as_strided((1, channels, samples, 1), strides)


class _Centred(NamedTuple):
    """Moments of `x - centre`; of `x` itself where centre is None."""

    centre: Tensor | None
    mean: Tensor
    variance: Tensor

    def shift(self, x: Tensor) -> Tensor:
        if self.centre is None:
            return x
        return x - _per_channel(self.centre, x)

    def true_mean(self) -> Tensor:
        return self.mean if self.centre is None else self.centre + self.mean


def _centred(x: Tensor, epsilon: float) -> tuple[Tensor, _Centred]:
    """`x`, shifted where its mean is far from zero, and the moments of that."""
    mean, variance = _moments(x)
    one_sample = x.numel() == mean.numel()
    beyond = torch.add(mean * mean, variance, alpha=-_CENTRE_BEYOND).max().item()
    far = beyond > _CENTRE_BEYOND * epsilon
    if not one_sample and not far:
        return x, _Centred(None, mean, variance)
    x = x - _per_channel(mean, x)
    return x, _Centred(mean, *_moments(x))


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance per channel of a tensor in a native layout."""
    channels = x.shape[1]
    runs = _runs(x.shape[2]) if x.ndim == 4 else 1
    if runs > 1:
        x = _channels_last(x, runs * channels)
    running = (None, None)
    if x.dtype not in (torch.float32, torch.float64):
        # Running statistics, thrown away: with them, the moments are float32.
        running = torch.empty(2, x.shape[1], dtype=torch.float32).unbind()
    mean, variance = torch.batch_norm_update_stats(x, *running, 0.0)
    if runs == 1:
        return mean, variance
    means, variances = mean.view(runs, channels), variance.view(runs, channels)
    mean = means.mean(0)  # torch.var_mean takes ten times as long in this layout
    apart = means.sub_(mean)
    return mean, variances.addcmul_(apart, apart).mean(0)


@functools.cache
def _runs(samples: int) -> int:
    """Into how many equal runs of at most `_RUN` values to cut; 1 if none fit well."""
    for length in range(min(_RUN, samples), 63, -1):
        if samples % length == 0:
            return samples // length
    return 1


class _Normalize(torch.autograd.Function):
    """Normalizes by the batch's own moments and keeps nothing but `x`.

    The activation's gradient needs what it was given, which the backward pass computes
    again from `x`: one cheap pass for a whole tensor less in memory.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        offset: Tensor,
        values: Tensor,
        settings: tuple[_Layout, _Centred, Axes, float, str | None],
    ) -> Tensor:
        ctx.save_for_backward(x, scale, offset)
        ctx.settings = settings
        layout, centred, _, epsilon, activation = settings
        y = _activate(activation, _affine(values, centred, scale, offset, epsilon))
        return layout.from_native(y.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, offset = ctx.saved_tensors
        layout, centred, axes, epsilon, activation = ctx.settings
        if torch.is_grad_enabled():  # create_graph=True: a gradient of gradients
            gradients = _differentiable_gradients(
                ctx.needs_input_grad, x, scale, offset, dy, axes, epsilon, activation
            )
            return (*gradients, None, None)
        values = centred.shift(layout.to_native(x))
        dy = layout.to_native(dy).to(values.dtype)
        if activation is not None:
            z = _affine(values, centred, scale, offset, epsilon)
            dy = _activation_gradient(activation, dy, z)
        rstd = (centred.variance + epsilon).rsqrt()
        dx, dscale, doffset = torch.ops.aten.native_batch_norm_backward(
            *(dy, values, scale, None, None, centred.mean, rstd),
            *(True, epsilon, ctx.needs_input_grad[:3]),
        )
        if dx is not None:
            dx = layout.from_native(dx.to(x.dtype))
        return dx, dscale, doffset, None, None


def _affine(
    x: Tensor, centred: _Centred, scale: Tensor, offset: Tensor, epsilon: float
) -> Tensor:
    """`x` in a native layout, normalized, scaled and shifted."""
    if x.ndim == 4 and x.dtype == scale.dtype:
        channels = x.shape[1]
        rows = x.permute(0, 2, 3, 1).view(-1, channels)
        y = _multiply_add(rows, centred.mean, centred.variance, scale, offset, epsilon)
        return _channels_last(y, channels)
    return torch.native_batch_norm(
        x, scale, offset, centred.mean, centred.variance, False, 0.0, epsilon
    )[0]


def _multiply_add(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    scale: Tensor,
    offset: Tensor,
    epsilon: float,
) -> Tensor:
    """`_affine` of x whose channels lie last: quicker than the native operator."""
    factor = (variance + epsilon).rsqrt_().mul_(scale)
    level = torch.addcmul(offset, mean, factor, value=-1.0)
    return torch.addcmul(level, x, factor)


def _per_channel(parameter: Tensor, x: Tensor) -> Tensor:
    """`parameter`, in a shape that broadcasts against x in a native layout."""
    return parameter.view(1, -1, *[1] * (x.ndim - 2))


def _differentiable_gradients(
    needed: tuple[bool, ...],
    x: Tensor,
    scale: Tensor,
    offset: Tensor,
    dy: Tensor,
    axes: Axes,
    epsilon: float,
    activation: str | None,
) -> list[Tensor | None]:
    """The gradients as the reference has them, which autograd can follow further."""
    inputs = (x, scale, offset)
    y, _ = reference.train(*inputs, axes, epsilon, None, None, activation)
    wanted = [one for one, need in zip(inputs, needed, strict=False) if need]
    found = iter(torch.autograd.grad(y, wanted, dy, create_graph=True))
    return [next(found) if need else None for need in needed[:3]]


def _activate(name: str | None, x: Tensor) -> Tensor:
    """The activation, in place: `x` is a fresh output that nothing else has seen."""
    functional = torch.nn.functional
    if name is None:
        return x
    if name == "relu6":
        return functional.hardtanh_(x, 0.0, 6.0)
    if name == "leaky_relu":
        return functional.leaky_relu_(x, LEAKY_RELU_SLOPE)
    in_place = {
        "relu": torch.relu_,
        "elu": functional.elu_,
        "selu": torch.selu_,
        "sigmoid": torch.sigmoid_,
        "tanh": torch.tanh_,
    }
    return in_place[name](x)


def _activation_gradient(name: str, dy: Tensor, z: Tensor) -> Tensor:
    """`dy` times the activation's derivative at `z`, in the memory of `z`."""
    aten = torch.ops.aten
    if name == "relu":
        aten.threshold_backward.grad_input(dy, z, 0, grad_input=z)
    elif name == "relu6":
        aten.hardtanh_backward.grad_input(dy, z, 0.0, 6.0, grad_input=z)
    elif name == "leaky_relu":
        slope = LEAKY_RELU_SLOPE
        aten.leaky_relu_backward.grad_input(dy, z, slope, False, grad_input=z)
    elif name == "elu":
        aten.elu_backward.grad_input(dy, 1.0, 1.0, 1.0, False, z, grad_input=z)
    elif name == "selu":
        constants = (SELU_ALPHA, SELU_SCALE, 1.0)
        aten.elu_backward.grad_input(dy, *constants, False, z, grad_input=z)
    elif name == "sigmoid":
        aten.sigmoid_backward.grad_input(dy, z.sigmoid_(), grad_input=z)
    elif name == "tanh":
        aten.tanh_backward.grad_input(dy, z.tanh_(), grad_input=z)
    else:
        raise NotImplementedError(name)
    return z
