"""The kernels in plain `keras.ops`: complete, and the same on every Keras backend.

Gradients come from the framework's autodiff. Every other kernel file is measured
against this one.
"""

from typing import NamedTuple

from keras import backend, ops

from keras_bn.backend.interface import Axes, Correction, Moments, Tensor, corrected


def train(
    x: Tensor,
    scale: Tensor,
    offset: Tensor,
    axes: Axes,
    epsilon: float,
    mask: Tensor | None,
    correction: Correction | None,
) -> tuple[Tensor, Moments]:
    """See `Kernels.train`."""
    # Once, so that the parts of the gradient for x are added up before they are
    # rounded to half precision.
    wide = _widen(x)
    centred = _moments(wide, axes, mask)
    moments = Moments(
        centred.count,
        ops.stop_gradient(centred.centre + centred.residual),
        ops.stop_gradient(centred.variance),
    )
    scale, offset = corrected(scale, offset, moments, correction)
    factor = ops.rsqrt(centred.variance + epsilon) * scale
    offset = offset - centred.residual * factor
    y = _affine(wide, centred.centre, factor, offset, axes)
    return ops.cast(y, x.dtype), moments


def inference(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    scale: Tensor,
    offset: Tensor,
    axes: Axes,
    epsilon: float,
) -> Tensor:
    """See `Kernels.inference`."""
    factor = ops.rsqrt(variance + epsilon) * scale
    return ops.cast(_affine(_widen(x), mean, factor, offset, axes), x.dtype)


class _CentredMoments(NamedTuple):
    """Moments about a centre near the mean: `mean = centre + residual`, exactly.

    Keeping the two apart keeps what the rounding of the mean would lose: at mean 1e4
    a float32 mean is known to 5e-4 only, while `x - centre` is exact.
    """

    count: Tensor
    centre: Tensor
    residual: Tensor
    variance: Tensor


def _moments(x: Tensor, axes: Axes, mask: Tensor | None) -> _CentredMoments:
    """Two passes: the centre first, then the moments about it.

    Sums of x and x² taken in one pass would cancel at large means (variance -16 at
    mean 1e4, std 1 in float32). The second pass also averages `x - centre`, so an
    inaccurate first sum moves the centre but not the result.
    """
    count = _count(x, axes, mask)
    # An empty batch has zero sums: dividing them by 1 gives 0, not NaN.
    divisor = ops.maximum(count, 1)

    def mean(values: Tensor) -> Tensor:
        if mask is not None:
            values = ops.where(mask, values, ops.zeros_like(values))
        return _sum(values, axes) / divisor

    # The moments do not depend on the choice of the centre, so no gradient does.
    centre = ops.stop_gradient(mean(x))
    deviation = x - axes.broadcast(centre)
    residual = mean(deviation)
    variance = mean(ops.square(deviation)) - ops.square(residual)
    return _CentredMoments(count, centre, residual, ops.maximum(variance, 0))


def _affine(
    x: Tensor, centre: Tensor, factor: Tensor, offset: Tensor, axes: Axes
) -> Tensor:
    """`(x - centre) * factor + offset`: subtracted before it is scaled."""
    deviation = x - axes.broadcast(centre)
    return deviation * axes.broadcast(factor) + axes.broadcast(offset)


def _widen(x: Tensor) -> Tensor:
    return ops.cast(x, backend.result_type(x.dtype, "float32"))


def _sum(values: Tensor, axes: Axes) -> Tensor:
    # One axis at a time: a sum of sums. TensorFlow on CPU adds up all the values of a
    # joint reduction one after the other, which costs 400k of them four digits.
    for axis in reversed(axes.reduction):
        values = ops.sum(values, axis=axis, keepdims=len(axes.features) > 1)
    return values


def _count(x: Tensor, axes: Axes, mask: Tensor | None) -> Tensor:
    if mask is not None:
        return _sum(ops.cast(ops.broadcast_to(mask, ops.shape(x)), x.dtype), axes)
    samples = axes.samples(tuple(x.shape))
    if samples is None:
        shape = ops.shape(x)
        sizes = [ops.cast(shape[axis], x.dtype) for axis in axes.reduction]
        return ops.prod(ops.stack(sizes))
    return ops.convert_to_tensor(samples, dtype=x.dtype)
