"""The parts of a training pass on PyTorch's native CPU operators.

The native training operator adds up values one after the other in float32 where the
channels lie last in memory: on 65k values a channel of mean 1e5 and std 10 it is
thousands of roundings off. Its parts are used instead, fed so that they are exact:

- the statistics of runs of a few thousand values, as if each run were a channel of
  its own (one call, same speed), then merged;
- where the mean dwarfs the deviation, all of it on `x - centre`, which is exact.
"""

import functools
from typing import NamedTuple

import torch

from keras_bn.backend.interface import Axes, Moments, Replicas, Tensor
from keras_bn.backend.torch_activations import activate_, activation_gradient
from keras_bn.backend.torch_layout import (
    Layout,
    as_channels_last,
    per_channel,
    spread,
)

# A mean that is added up in float32 is known to a few roundings. Up to 10 standard
# deviations from zero that is 2e-6 of the deviation; further out values are shifted.
_CENTRE_BEYOND = 10.0**2
# Values added up in a row: short enough to be exact to 1e-6, long enough to be fast.
_RUN = 4096
# Values that the native operators may add up in a row: exact to 7e-5 if they are alike,
# as in the gradient of a mean.
_LONG = 2**14


class Shifted(NamedTuple):
    """Moments of `x - centre`; of `x` itself where centre is None."""

    count: Tensor
    centre: Tensor | None
    mean: Tensor
    variance: Tensor

    def bookkeeping(self) -> Moments:
        """See `CentredMoments.bookkeeping`."""
        mean = self.mean if self.centre is None else self.centre + self.mean
        return Moments(self.count, mean, self.variance)

    def shift(self, x: Tensor) -> Tensor:
        """`x - centre`, of x in a native layout."""
        return x if self.centre is None else x - per_channel(self.centre, x)


class NativeParts(NamedTuple):
    """`TrainingParts` of inputs that are worth starting the operators' threads for."""

    axes: Axes
    epsilon: float
    activation: str | None

    def moments(self, x: Tensor) -> tuple[Shifted, Tensor]:
        """See `TrainingParts.moments`: x in a native layout, shifted where need be."""
        values = Layout.of(x, self.axes).to_native(x)
        mean, variance = _moments(values)
        count = mean.new_tensor(values.numel() // mean.numel())
        one_sample = values.numel() == mean.numel()
        beyond = torch.add(mean * mean, variance, alpha=-_CENTRE_BEYOND).max().item()
        if not one_sample and not beyond > _CENTRE_BEYOND * self.epsilon:
            return Shifted(count, None, mean, variance), values
        values = values - per_channel(mean, values)
        return Shifted(count, mean, *_moments(values)), values

    def normalize(
        self, x: Tensor, values: Tensor, scale: Tensor, offset: Tensor, found: Shifted
    ) -> Tensor:
        """See `TrainingParts.normalize`."""
        y = torch.empty_like(x)
        target = Layout.of(y, self.axes).to_native(y)
        fits = values.dtype == y.dtype
        z = self._affine(values, scale, offset, found, target if fits else None)
        z = activate_(self.activation, z)
        if not fits:
            target.copy_(z)
        return y

    def gradients(
        self,
        x: Tensor,
        scale: Tensor,
        offset: Tensor,
        dy: Tensor,
        found: Shifted,
        replicas: Replicas | None,
        need_dx: bool,
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """See `TrainingParts.gradients`."""
        layout = Layout.of(x, self.axes)
        values = found.shift(layout.to_native(x))
        dy = layout.to_native(dy).to(values.dtype)
        if self.activation is not None:
            z = self._affine(values, scale, offset, found)
            dy = activation_gradient(self.activation, dy, z)
        rstd = (found.variance + self.epsilon).rsqrt()
        dx = None
        if values.shape[2] > _LONG:
            dscale, doffset = _slopes(values, dy, found.mean, rstd)
            if need_dx and values.dtype != rstd.dtype:
                # Three digits of the sums are as many as half precision has.
                dx, _, _ = torch.ops.aten.native_batch_norm_backward(
                    *(dy, values, scale, None, None, found.mean, rstd),
                    *(True, self.epsilon, [True, False, False]),
                )
            elif need_dx:
                factor = scale * rstd
                slope = (factor * rstd * dscale).div_(-found.count)
                level = (factor * doffset).div_(-found.count) - found.mean * slope
                slope, level, factor = (
                    per_channel(one, values) for one in (slope, level, factor)
                )
                dx = torch.addcmul(level, values, slope).addcmul_(dy, factor)
        else:
            dx, dscale, doffset = torch.ops.aten.native_batch_norm_backward(
                *(dy, values, scale, None, None, found.mean, rstd),
                *(True, self.epsilon, [need_dx, True, True]),
            )
        if dx is not None:
            dx = layout.from_native(dx.to(x.dtype))
        return dx, dscale, doffset

    def _affine(
        self,
        values: Tensor,
        scale: Tensor,
        offset: Tensor,
        found: Shifted,
        out: Tensor | None = None,
    ) -> Tensor:
        """Values in a native layout, normalized, scaled and shifted; into `out`."""
        statistics = found.mean, found.variance
        if out is None:
            out = torch.empty_like(values)
        if values.ndim == 4 and values.dtype == scale.dtype:
            rows = _rows(values)
            factor, level = multiplier(*statistics, scale, offset, self.epsilon)
            torch.addcmul(level, rows, factor, out=_rows(out))
            return out
        none = scale.new_empty(0)
        torch.ops.aten.native_batch_norm.out(
            *(values, scale, offset, *statistics, False, 0.0, self.epsilon),
            out=out,
            save_mean=none,
            save_invstd=none,
        )
        return out


def multiplier(
    mean: Tensor, variance: Tensor, scale: Tensor, offset: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """`(factor, level)`, with `x * factor + level` the normalized, scaled, shifted x.

    It may replace `(x - mean) * factor + offset` as long as the mean is not far out.
    """
    factor = (variance + epsilon).rsqrt_().mul_(scale)
    return factor, torch.addcmul(offset, mean, factor, value=-1.0)


def _rows(x: Tensor) -> Tensor:
    """Channels last, `(1, channels, samples, 1)`, as `(samples, channels)`: a view."""
    return x.permute(0, 2, 3, 1).view(-1, x.shape[1])


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance per channel of a tensor in a native layout."""
    channels = x.shape[1]
    runs = _runs(x.shape[2]) if x.ndim == 4 else 1
    if runs == 1 and x.ndim == 4 and x.shape[2] > _LONG:  # no runs of equal length
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        mean = values.mean((0, 2, 3))
        return mean, (values - per_channel(mean, x)).square().mean((0, 2, 3))
    if runs > 1:
        x = as_channels_last(x, runs * channels)
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


def _slopes(x: Tensor, dy: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients for scale and offset, of tensors in a native layout, run by run."""
    channels, runs = x.shape[1], _runs(x.shape[2], _RUN // 4)
    if runs == 1:
        rest = (0, *range(2, x.ndim))
        product = ((x - per_channel(mean, x)) * dy).sum(rest)
        return product.mul_(rstd), dy.sum(rest, dtype=rstd.dtype)
    if x.ndim == 4:
        x, dy = (as_channels_last(one, runs * channels) for one in (x, dy))
        mean, rstd = mean.repeat(runs), rstd.repeat(runs)
        over, shape = 0, (runs, channels)
    else:
        x, dy = (one.view(x.shape[0], channels * runs, -1) for one in (x, dy))
        mean, rstd = mean.repeat_interleave(runs), rstd.repeat_interleave(runs)
        over, shape = 1, (channels, runs)
    _, dscale, doffset = torch.ops.aten.native_batch_norm_backward(
        *(dy, x, torch.ones_like(mean), None, None, mean, rstd),
        *(True, 0.0, [False, True, True]),
    )
    return dscale.view(shape).sum(over), doffset.view(shape).sum(over)


@functools.cache
def _runs(samples: int, longest: int = _RUN) -> int:
    """Into how many equal runs of at most `longest` to cut; 1 if none fit well."""
    for length in range(min(longest, samples), 63, -1):
        if samples % length == 0:
            return samples // length
    return 1


class Small(NamedTuple):
    """Of a small batch: mean = centre + residual, and 1 / sqrt(variance + epsilon)."""

    count: Tensor
    centre: Tensor
    residual: Tensor
    variance: Tensor
    rstd: Tensor

    def bookkeeping(self) -> Moments:
        """See `CentredMoments.bookkeeping`."""
        return Moments(self.count, self.centre + self.residual, self.variance)


class SmallParts(NamedTuple):
    """`TrainingParts` of inputs that a few plain operators are quicker on."""

    axes: Axes
    epsilon: float
    activation: str | None

    def moments(self, x: Tensor) -> tuple[Small, Tensor]:
        """See `TrainingParts.moments`: the values are `x - centre`."""
        over = self.axes.reduction
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        centre = values.mean(over)
        deviation = values - spread(centre, self.axes)
        residual = deviation.mean(over)
        # Not torch.var_mean, which takes as long as all the rest.
        square = (deviation * deviation).mean(over)
        variance = square.addcmul_(residual, residual, value=-1.0).clamp_min_(0.0)
        count = centre.new_tensor(x.numel() // centre.numel())
        rstd = (variance + self.epsilon).rsqrt_()
        return Small(count, centre, residual, variance, rstd), deviation

    def normalize(
        self, x: Tensor, values: Tensor, scale: Tensor, offset: Tensor, found: Small
    ) -> Tensor:
        """See `TrainingParts.normalize`."""
        z = self._affine(values, scale, offset, found)
        return activate_(self.activation, z).to(x.dtype)

    def gradients(
        self,
        x: Tensor,
        scale: Tensor,
        offset: Tensor,
        dy: Tensor,
        found: Small,
        replicas: Replicas | None,
        need_dx: bool,
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """See `TrainingParts.gradients` and `derivatives.gradients`."""
        _, centre, residual, _, rstd = found
        over = self.axes.reduction
        deviation = x - spread(centre, self.axes)
        dy = dy.to(deviation.dtype)
        if self.activation is not None:
            z = self._affine(deviation, scale, offset, found)
            dy = activation_gradient(self.activation, dy, z)
        doffset = dy.sum(over)
        product = (dy * deviation).sum(over)
        dscale = torch.addcmul(product, residual, doffset, value=-1.0).mul_(rstd)
        if not need_dx:
            return None, dscale, doffset
        count = x.numel() // rstd.numel()
        slope = (dscale * rstd).div_(count)
        level = torch.addcmul(doffset / count, residual, slope, value=-1.0)
        slope, level, factor = (
            spread(one, self.axes) for one in (slope, level, scale * rstd)
        )
        dx = (dy - level).addcmul_(deviation, slope, value=-1.0).mul_(factor)
        return dx.to(x.dtype), dscale, doffset

    def _affine(
        self, deviation: Tensor, scale: Tensor, offset: Tensor, found: Small
    ) -> Tensor:
        factor = found.rstd * scale
        level = torch.addcmul(offset, found.residual, factor, value=-1.0)
        factor, level = spread(factor, self.axes), spread(level, self.axes)
        return torch.addcmul(level, deviation, factor)
