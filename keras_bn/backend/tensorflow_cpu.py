"""The parts of a training pass by operators that are quick on TensorFlow's CPU.

No other device may run them. `FusedBatchNormGradV3` wants the variance here, and
`1 / sqrt(variance + epsilon)` on a GPU: nothing would tell but the numbers. Products
with ones may round to ten bits there, and a GPU would wait for each condition.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from keras_bn.backend import formulas
from keras_bn.backend.formulas import CentredMoments
from keras_bn.backend.interface import Axes, Tensor

# Up to mean² = 9 variances, E[x²] - mean² costs the variance ten roundings at most.
_PLAIN_WITHIN = 3.0**2
# Values that a product with ones adds up in a row: exact to 1e-6, and fast.
_RUN = 1024
# Runs that are not worth it.
_SHORT = 64
# Values that the fused operators may add up in a row: exact to 7e-5 if they are alike.
_LONG = 2**14


def moments(x: Tensor, axes: Axes) -> CentredMoments:
    """The moments of `x`, about zero where the mean is near it, else about the mean."""
    values = tf.cast(x, tf.float32)
    count = formulas.count_samples(values, axes, None)
    mean, variance = _plain_moments(values, count)
    zero = tf.zeros_like(mean)

    def shifted() -> tuple[Tensor, Tensor, Tensor]:
        return mean, *_plain_moments(values - mean, count)

    near = tf.reduce_all(mean * mean <= _PLAIN_WITHIN * variance)
    found = tf.cond(near, lambda: (zero, mean, variance), shifted)
    return CentredMoments(count, *found)


def gradients(
    x: Tensor, scale: Tensor, centred: CentredMoments, dy: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """As `derivatives.gradients`, of dtype float32 at the most, features last."""

    def on(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dx, dscale, doffset, *_ = tf.raw_ops.FusedBatchNormGradV3(
            y_backprop=as_image(tf.cast(dy, values.dtype), scale),
            x=as_image(values, scale),
            scale=scale,
            reserve_space_1=centred.residual,
            reserve_space_2=centred.variance,
            reserve_space_3=tf.zeros((0,)),
            epsilon=epsilon,
        )
        dx = tf.reshape(dx, tf.shape(x))
        if (x.shape[:-1].num_elements() or _LONG + 1) <= _LONG:
            return tf.cast(dx, x.dtype), dscale, doffset
        total = _total(_rows(tf.cast(dy, tf.float32)))
        if x.dtype == tf.float32:
            # As many digits as half precision has are there in any case.
            rstd = tf.math.rsqrt(centred.variance + epsilon)
            error = (doffset - total) / centred.count  # of no samples no dx has it
            dx = _without(dx, error, scale * rstd, dy)
        return tf.cast(dx, x.dtype), dscale, total

    return on_deviation(x, centred.centre, on)


def _without(dx: Tensor, error: Tensor, factor: Tensor, dy: Tensor) -> Tensor:
    """`dx`, rid of what the mean of dy was off by, where that is more than a rounding.

    The operator adds up one value after the other, and where they are alike, as in the
    gradient of a mean, 400k of them leave three digits of their sum.
    """
    typical = tf.reduce_mean(
        tf.abs(
            formulas.sample(
                dy, Axes((dy.shape.rank - 1,), tuple(range(dy.shape.rank - 1)))
            )
        )
    )
    wrong = tf.reduce_any(tf.abs(error) > 1e-6 * typical)
    return tf.cond(wrong, lambda: dx + factor * error, lambda: dx)


def as_image(x: Tensor, channels: Tensor) -> Tensor:
    """Any rank as the four axes that the fused operators know; no copy.

    `channels` is any tensor of one value per channel.
    """
    return tf.reshape(x, (1, -1, 1, channels.shape[0]))


def on_deviation(x: Tensor, centre: Tensor, function: Callable[[Tensor], Any]) -> Any:
    """`function(x - centre)`; without the subtraction where the centre is zero."""
    return tf.cond(
        tf.reduce_all(centre == 0),
        lambda: function(x),
        lambda: function(tf.cast(x, tf.float32) - centre),
    )


def known_positions(x: Tensor) -> int:
    """How many positions there are; how many a sample has, if that is all we know."""
    leading = x.shape[:-1]
    if leading.num_elements() is not None:
        return int(leading.num_elements())
    return int(leading[1:].num_elements() or 1)


def sums_exactly(x: Tensor) -> bool:
    """Whether x can be cut into runs that are worth it, or needs no cutting."""
    return _run(x) >= _SHORT or known_positions(x) <= _LONG


def _plain_moments(x: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance as E[x] and E[x²] - E[x]²; zero variance at the least.

    Added up in runs of moderate length, which is exact.
    """
    rows = _rows(x)
    divisor = tf.maximum(count, 1.0)
    # The one operator that sums squares without writing them.
    norms = tf.raw_ops.EuclideanNorm(input=rows, axis=1)
    squares = tf.reduce_sum(tf.square(norms), 0)
    first, second = _total(rows) / divisor, squares / divisor
    return first, tf.maximum(second - first * first, 0.0)


def _rows(x: Tensor) -> Tensor:
    """`(number of runs, length of a run, channels)`: a view."""
    return tf.reshape(x, (-1, _run(x), x.shape[-1]))


def _total(rows: Tensor) -> Tensor:
    """Sums over all but the channels, as products with ones: the quickest there is."""
    ones = tf.ones((tf.shape(rows)[0], 1, rows.shape[1]))
    return tf.reduce_sum(tf.matmul(ones, rows), (0, 1))


def _run(x: Tensor) -> int:
    """The longest run, of at most `_RUN` values, into which x can be cut evenly."""
    positions = known_positions(x)
    return max(n for n in range(1, _RUN + 1) if positions % n == 0)
