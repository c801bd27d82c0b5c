"""The arithmetic of batch normalization, written once, in `keras.ops`.

The reference follows it by autodiff; kernels that write their gradient out use
`gradients`, which keeps nothing of the forward pass but its input.
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

from keras import backend, ops

from keras_bn.backend.interface import (
    Axes,
    Moments,
    Replicas,
    Tensor,
    statistics_dtype,
)


class CentredMoments(NamedTuple):
    """Moments about a centre near the mean: `mean = centre + residual`, exactly.

    Keeping the two apart keeps what the rounding of the mean would lose: at mean 1e4
    a float32 mean is known to 5e-4 only, while `x - centre` is exact.
    """

    count: Tensor
    centre: Tensor
    residual: Tensor
    variance: Tensor

    def bookkeeping(self) -> Moments:
        """The moments that are returned to the user: without gradient."""
        mean = self.centre + self.residual
        return Moments(*map(ops.stop_gradient, (self.count, mean, self.variance)))


def widen(x: Tensor) -> Tensor:
    """`x` in the dtype of its statistics."""
    return ops.cast(x, statistics_dtype(x.dtype))


def sample(x: Tensor, axes: Axes) -> Tensor:
    """A 32nd of `x` or more, by whose mean `centred_moments` can centre all of it.

    A slice of x as it is, so that nobody has to widen all of it first.
    """
    axis = axes.reduction[0]
    size = x.shape[axis]
    if size is None:
        size = ops.shape(x)[axis]
    part = slice((size + _SHARES - 1) // _SHARES)
    return x[(slice(None),) * axis + (part,)]


_SHARES = 32


def centred_moments(
    x: Tensor,
    axes: Axes,
    mask: Tensor | None,
    settled: Callable[[Tensor], Tensor] = lambda centre: centre,
    about: Tensor | None = None,
    squares: Callable[[Tensor], Tensor] = ops.square,
) -> CentredMoments:
    """Two passes: the centre first, then the moments about it.

    With weights w for a mask: the count is sum(w), the mean sum(w * x) / count, the
    variance sum(w * (x - mean)²) / count, so that a weight of 2 is a value twice.

    Sums of x and x² taken in one pass would cancel at large means (variance -16 at
    mean 1e4, std 1 in float32). The second pass also averages `x - centre`, so an
    inaccurate first sum moves the centre but not the result.

    With `about`, a `sample` of x without a mask, the centre is its mean, and the first
    pass no pass. Of a share s of the values, (mean - centre)² <= variance * (1 - s) / s
    (Cauchy and Schwarz), whatever they are: the variance loses a factor of 1 / s of
    roundings at the most.

    All readers must see one and the same centre. XLA would give them two: it fuses the
    division of the sum into each, rounded in one, part of a multiply-add with
    `x - centre` in another. There, `settled` takes the last bit off the centre, and no
    multiply-add reaches through that. A compiler that would sum squares badly is given
    its own, `squares`.
    """
    count = count_samples(x, axes, mask)
    divisor = divisor_of(count)

    def mean(values: Tensor) -> Tensor:
        return total(counted(values, mask), axes) / divisor

    # The moments do not depend on the choice of the centre, so no gradient does.
    if about is None:
        centre = mean(x)
    else:
        part = widen(about)
        centre = total(part, axes) / divisor_of(count_samples(part, axes, None))
    centre = ops.stop_gradient(settled(centre))
    deviation = x - axes.broadcast(centre)
    residual = mean(deviation)
    # At least 0. Not ops.maximum: on torch that is float32 for float64.
    variance = ops.relu(mean(squares(deviation)) - ops.square(residual))
    return CentredMoments(count, centre, residual, variance)


def divisor_of(count: Tensor) -> Tensor:
    """`count`; 1 where it is 0: the sums of an empty batch are 0, not NaN, then."""
    return ops.where(count > 0, count, ops.ones_like(count))


def over_replicas(centred: CentredMoments, replicas: Replicas) -> CentredMoments:
    """The moments of all replicas' values together: one gather, then `over_rows`."""
    shapes = [tuple(part.shape) for part in centred]
    sizes = [math.prod(shape) for shape in shapes]
    parts = [
        ops.reshape(part, (size,)) for part, size in zip(centred, sizes, strict=True)
    ]
    rows = replicas.gather(ops.concatenate(parts))
    # Not ops.split, which on torch would send the device the ends, and wait for them.
    ends = itertools.accumulate(sizes)
    found = over_rows(
        CentredMoments(
            *(rows[:, end - size : end] for end, size in zip(ends, sizes, strict=True))
        )
    )
    return CentredMoments(
        *(ops.reshape(part, shape) for part, shape in zip(found, shapes, strict=True))
    )


def over_rows(rows: CentredMoments) -> CentredMoments:
    """The moments of all rows (along the first axis) together: Chan's merge.

    With n the counts, c the centres, r the residuals, v the variances, N = sum(n):

        C = sum(n * c) / N      R = sum(n * (c - C + r)) / N
        V = sum(n * (v + (c - C + r - R)²)) / N

    Centres are subtracted from each other before anything is squared, and the residuals
    keep what their rounding lost: sums of x and x² over the rows would lose all of the
    variance at mean / std 1e4, a merge of rounded means three digits of it. Source:
    Chan, Golub and LeVeque, 1979.
    """
    count, centre, residual, variance = rows
    total_count = ops.sum(count, axis=0)
    share = count / divisor_of(total_count)

    def mean(values: Tensor) -> Tensor:
        # A row without data has a mean of 0, which may be far from all others.
        return ops.sum(
            ops.where(count > 0, share * values, ops.zeros_like(values)), axis=0
        )

    common = mean(centre)
    offset = centre - common + residual
    remaining = mean(offset)
    spread = mean(variance + ops.square(offset - remaining))
    return CentredMoments(total_count, common, remaining, spread)


def affine(
    x: Tensor, centre: Tensor, factor: Tensor, offset: Tensor, axes: Axes
) -> Tensor:
    """`(x - centre) * factor + offset`: subtracted before it is scaled."""
    deviation = x - axes.broadcast(centre)
    return deviation * axes.broadcast(factor) + axes.broadcast(offset)


def normalize(
    x: Tensor,
    scale: Tensor,
    offset: Tensor,
    centred: CentredMoments,
    axes: Axes,
    epsilon: float,
) -> Tensor:
    """`(x - mean) / sqrt(variance + epsilon) * scale + offset`, in the wide dtype.

    Of an x in half precision, given as it is, it is one multiply-add: what float32
    rounds off the mean there is a thousandth of what x was rounded by. XLA for GPUs
    takes that for cheap enough to do again, and keeps a tensor less.
    """
    factor = ops.rsqrt(centred.variance + epsilon) * scale
    if backend.standardize_dtype(x.dtype) in ("float16", "bfloat16"):
        level = offset - (centred.centre + centred.residual) * factor
        return widen(x) * axes.broadcast(factor) + axes.broadcast(level)
    return affine(x, centred.centre, factor, offset - centred.residual * factor, axes)


def counted(values: Tensor, mask: Tensor | None) -> Tensor:
    """`values`, each as often as it counts: 0 where the mask is False, or 0.

    There, it is 0 whatever the value, also of a NaN.
    """
    if mask is None:
        return values
    if not is_weights(mask):
        return ops.where(mask, values, ops.zeros_like(values))
    # Not `where(mask == 0, 0, values * mask)`, whose derivative for a weight of 0 is 0.
    lost = (mask == 0) & ~ops.isfinite(values)
    return ops.where(lost, ops.zeros_like(values), values) * mask


def is_weights(mask: Tensor | None) -> bool:
    """Whether a mask says how often values count, rather than whether they do."""
    return mask is not None and backend.is_float_dtype(mask.dtype)


def total(values: Tensor, axes: Axes) -> Tensor:
    """The sum over the reduction axes, one axis at a time: a sum of sums.

    TensorFlow on CPU adds up all the values of a joint reduction one after the other,
    which costs 400k of them four digits.
    """
    if axes.jointly:
        keepdims = len(axes.features) > 1
        return ops.sum(values, axis=axes.reduction, keepdims=keepdims)
    for axis in reversed(axes.reduction):
        values = ops.sum(values, axis=axis, keepdims=len(axes.features) > 1)
    return values


def count_samples(x: Tensor, axes: Axes, mask: Tensor | None) -> Tensor:
    """How many values each statistic is taken over, in the dtype of `x`.

    Of weights it is the sum.
    """
    if mask is not None:
        return total(ops.cast(ops.broadcast_to(mask, ops.shape(x)), x.dtype), axes)
    samples = axes.samples(tuple(x.shape))
    if samples is None:
        shape = ops.shape(x)
        sizes = [ops.cast(shape[axis], x.dtype) for axis in axes.reduction]
        return ops.cast(ops.prod(ops.stack(sizes)), x.dtype)
    # Not a number made a tensor, which a GPU would have to be sent.
    return ops.ones((), dtype=x.dtype) * samples
