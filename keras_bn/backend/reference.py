"""The kernels in plain `keras.ops`: complete, and the same on every Keras backend.

Gradients come from the framework's autodiff. Every other kernel file is measured
against this one.
"""

from keras import backend, ops

from keras_bn.backend.interface import Axes, CentredMoments, Tensor


def moments(x: Tensor, axes: Axes, mask: Tensor | None) -> CentredMoments:
    """See `Kernels.moments`. Two passes: the centre first, then the moments about it.

    Sums of x and x² taken in one pass would cancel at large means (variance -16 at
    mean 1e4, std 1 in float32). The second pass also averages `x - centre`, so an
    inaccurate first sum (a framework that adds 65k values one after the other is off
    by thousands of roundings) moves the centre but not the result.
    """
    x = _widen(x)
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
    return CentredMoments(count, centre, residual, ops.maximum(variance, 0))


def normalize(
    x: Tensor,
    moments: CentredMoments,
    scale: Tensor,
    offset: Tensor,
    axes: Axes,
    epsilon: float,
    mask: Tensor | None,
) -> Tensor:
    """See `Kernels.normalize`. Autodiff follows `moments` back to `x`."""
    del mask
    factor = ops.rsqrt(moments.variance + epsilon) * scale
    return _affine(x, moments.centre, factor, offset - moments.residual * factor, axes)


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
    return _affine(x, mean, ops.rsqrt(variance + epsilon) * scale, offset, axes)


def _affine(
    x: Tensor, centre: Tensor, factor: Tensor, offset: Tensor, axes: Axes
) -> Tensor:
    """`(x - centre) * factor + offset`: subtracted before scaling, in float32 or wider."""
    deviation = _widen(x) - axes.broadcast(centre)
    y = deviation * axes.broadcast(factor) + axes.broadcast(offset)
    return ops.cast(y, x.dtype)


def _widen(x: Tensor) -> Tensor:
    return ops.cast(x, backend.result_type(x.dtype, "float32"))


def _sum(values: Tensor, axes: Axes) -> Tensor:
    return ops.sum(values, axis=axes.reduction, keepdims=len(axes.features) > 1)


def _count(x: Tensor, axes: Axes, mask: Tensor | None) -> Tensor:
    if mask is not None:
        return _sum(ops.cast(ops.broadcast_to(mask, ops.shape(x)), x.dtype), axes)
    samples = axes.samples(tuple(x.shape))
    if samples is None:
        shape = ops.shape(x)
        sizes = [ops.cast(shape[axis], x.dtype) for axis in axes.reduction]
        return ops.prod(ops.stack(sizes))
    return ops.convert_to_tensor(samples, dtype=x.dtype)
