"""The derivatives of the formulas, written out, in `keras.ops`.

Kernels that use them keep nothing of the forward pass but its input and a few numbers
a channel.
"""

from collections.abc import Callable

from keras import ops

from keras_bn.backend.activations import SLOPES, activate
from keras_bn.backend.formulas import (
    CentredMoments,
    affine,
    counted,
    divisor_of,
    normalize,
    total,
    widen,
)
from keras_bn.backend.interface import Axes, Replicas, Tensor


def gradients(
    x: Tensor,
    scale: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    centred: CentredMoments,
    dy: Tensor,
    axes: Axes,
    epsilon: float,
    activation: str | None,
    replicas: Replicas | None = None,
    about: Callable[[Tensor, Tensor, Tensor, Axes], Tensor] | None = None,
    again: Callable[[Tensor], Tensor] | None = None,
    of_weights: bool = False,
) -> tuple[Tensor, ...]:
    """The gradients of `sum(dy * activation(normalize(x)))` for x, scale and offset.

    With n the normalized values, g the gradient for `n * scale + offset`, N the count:

        doffset = sum(g)    dscale = sum(g * n)
        dx = f * g - w * f * (doffset + n * dscale) / N

    with f = scale / sqrt(variance + epsilon), and w the weights, or 1 where the mask is
    True and 0 where it is not: the sums run over all positions, but each has its part
    in the statistics by its weight. In dx the sums are those of all `replicas`, whose
    losses are summed. Source: Ioffe and Szegedy, 2015, section 3, with the chain
    through mean and variance multiplied out.

    With `of_weights` the gradient for the weights comes fourth: see `_for_weights`.

    All that can be done per channel is, so that an element costs one product for
    the sums and two for dx. A compiler that would sum `g * (x - centre)` badly is given
    its own way, `about`; one that would write down for dx what it had for the sums, an
    x that it does not know for the same, `again`.
    """

    def read(x: Tensor) -> tuple[Tensor, Tensor]:
        g = widen(dy)
        if activation is not None:
            y = normalize(x, scale, offset, centred, axes, epsilon)
            g = g * SLOPES[activation](activate(activation, y))
        return widen(x), g

    values, g = read(x)
    rstd = ops.rsqrt(centred.variance + epsilon)
    doffset = total(g, axes)
    product = (about or total_about)(g, values, centred.centre, axes)
    dscale = (product - centred.residual * doffset) * rstd

    count = divisor_of(centred.count)
    sums = (dscale, doffset)
    if replicas is not None:
        sums = ops.unstack(replicas.total(ops.stack(sums)), 2)
    factor = scale * rstd
    slope = factor * rstd * sums[0] / count
    level = factor * sums[1] / count - centred.residual * slope
    if again is not None:
        values, g = read(again(x))
    statistics = affine(values, centred.centre, slope, level, axes)
    # Not `(g - statistics) * factor`: XLA takes an operation on one large operand for
    # cheap, and would compute all of this again for every reader of dx.
    dx = g * axes.broadcast(factor) - counted(statistics, mask)
    slopes = (ops.cast(dx, x.dtype), dscale, doffset)
    if not of_weights:
        return slopes
    return *slopes, _for_weights(values, scale, mask, centred, sums, axes, epsilon)


def _for_weights(
    values: Tensor,
    scale: Tensor,
    weights: Tensor,
    centred: CentredMoments,
    sums: tuple[Tensor, Tensor],
    axes: Axes,
    epsilon: float,
) -> Tensor:
    """The gradient for the weights, with the `sums` dscale and doffset of `gradients`.

    Of the mean it is (x - mean) / N, of the variance ((x - mean)² - variance) / N, so

        dw = -sum(scale / N * (doffset * n + dscale / 2 * (n² - V)))

    with V = variance / (variance + epsilon), and the sum over what shares a weight.
    """
    rstd = ops.rsqrt(centred.variance + epsilon)
    n = affine(values, centred.centre, rstd, -centred.residual * rstd, axes)
    share = -scale / divisor_of(centred.count)
    slope, curve = share * sums[1], 0.5 * share * sums[0]
    level = curve * centred.variance * ops.square(rstd)
    dw = n * axes.broadcast(slope) + ops.square(n) * axes.broadcast(curve)
    dw = dw - axes.broadcast(level)
    for axis in range(axes.ndim):
        if weights.shape[axis] == 1:
            dw = ops.sum(dw, axis=axis, keepdims=True)
    return dw


def tangent(
    x: Tensor,
    scale: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    centred: CentredMoments,
    tangents: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    axes: Axes,
    epsilon: float,
    activation: str | None,
    replicas: Replicas | None = None,
) -> Tensor:
    """The derivative of `activation(normalize(x))` along tangents.

    They are those of x, scale, offset and the weights, if any; None where zero. With n
    the normalized values and tx, ts and to the first three tangents, and the means by
    the mask or the weights, over all `replicas`:

        n' = (tx - mean(tx) - n * mean(n * tx)) / sqrt(variance + epsilon)
        y' = activation'(y) * (n' * scale + n * ts + to)

    and with the way of the weights, see `_along_weights`. It is linear in the tangents;
    `gradients` is its transpose.
    """
    values = widen(x)
    rstd = ops.rsqrt(centred.variance + epsilon)
    tx, tscale, toffset, tweights = tangents
    # y' = f * tx + (values - centre) * rate + level, as far as the activation.
    zero = ops.zeros_like(rstd)
    rate = zero if tscale is None else tscale * rstd
    level = zero if toffset is None else toffset
    if tx is not None:
        tx = widen(tx)
        factor = scale * rstd
        moving = counted(tx, mask)
        sums = (
            total(moving, axes),
            total_about(moving, values, centred.centre, axes),
        )
        if replicas is not None:
            sums = ops.unstack(replicas.total(ops.stack(sums)), 2)
        count = divisor_of(centred.count)
        product = sums[1] - centred.residual * sums[0]
        rate = rate - factor * ops.square(rstd) * product / count
        level = level - factor * sums[0] / count
    if tweights is not None:
        mean, variance = _along_weights(values, tweights, centred, axes, replicas)
        level = level - scale * rstd * mean
        rate = rate - 0.5 * scale * rstd * ops.square(rstd) * variance
    ty = affine(values, centred.centre, rate, level - centred.residual * rate, axes)
    if tx is not None:
        ty = ty + tx * axes.broadcast(factor)
    if activation is not None:
        y = normalize(x, scale, offset, centred, axes, epsilon)
        ty = ty * SLOPES[activation](activate(activation, y))
    return ops.cast(ty, x.dtype)


def _along_weights(
    values: Tensor,
    tweights: Tensor,
    centred: CentredMoments,
    axes: Axes,
    replicas: Replicas | None,
) -> tuple[Tensor, Tensor]:
    """The derivatives of mean and variance along a tangent of the weights.

    With tw that tangent, and N the count:

        mean'     = sum(tw * (x - mean)) / N
        variance' = sum(tw * ((x - mean)² - variance)) / N
    """
    one = ops.ones_like(centred.variance)
    apart = affine(values, centred.centre, one, -centred.residual, axes)
    spread = ops.square(apart) - axes.broadcast(centred.variance)
    sums = total(tweights * apart, axes), total(tweights * spread, axes)
    if replicas is not None:
        sums = ops.unstack(replicas.total(ops.stack(sums)), 2)
    count = divisor_of(centred.count)
    return sums[0] / count, sums[1] / count


def inference_gradients(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    scale: Tensor,
    offset: Tensor,
    dy: Tensor,
    axes: Axes,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of `sum(dy * y)` for x, mean, variance, scale and offset.

    `y = (x - mean) / sqrt(variance + epsilon) * scale + offset`, with mean and variance
    given, not taken from x.
    """
    del offset
    values, g = widen(x), widen(dy)
    rstd = ops.rsqrt(variance + epsilon)
    factor = rstd * scale
    doffset, product = total(g, axes), total_about(g, values, mean, axes)
    dx = ops.cast(g * axes.broadcast(factor), x.dtype)
    dvariance = -0.5 * factor * rstd * rstd * product
    return dx, -factor * doffset, dvariance, rstd * product, doffset


def total_about(values: Tensor, x: Tensor, centre: Tensor, axes: Axes) -> Tensor:
    """`total(values * (x - centre))`."""
    return total(values * (x - axes.broadcast(centre)), axes)
