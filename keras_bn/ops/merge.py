"""The moments of two batches put together."""

from keras import ops

from keras_bn.backend.interface import Moments


def merge_moments(a: Moments, b: Moments) -> Moments:
    """The moments of the values behind `a` and `b` together.

    With counts n, means m, biased variances v and d = m_b - m_a:

        n = n_a + n_b
        m = m_a + d * n_b / n
        v = (v_a * n_a + v_b * n_b) / n + d² * n_a * n_b / n²

    An average of variances would lose the last term, the spread between the batches.

    Args:
        a: Moments, as `batch_norm_train` returns them.
        b: Moments of the same shape and dtype.

    Returns:
        The `Moments`; mean and variance are 0 where both counts are.

    Reference:
        Chan, Golub and LeVeque, 1979, "Updating formulae and a pairwise algorithm for
        computing sample variances".

    Example:

    >>> import keras
    >>> from keras_bn.ops import Moments, merge_moments
    >>> one, two = (
    ...     Moments(*map(keras.ops.convert_to_tensor, moments))
    ...     for moments in ((2.0, [1.0], [0.0]), (2.0, [3.0], [0.0]))
    ... )
    >>> merged = merge_moments(one, two)
    >>> float(merged.count), float(merged.mean[0]), float(merged.variance[0])
    (4.0, 2.0, 1.0)
    """
    count = a.count + b.count
    divisor = ops.where(count > 0, count, ops.ones_like(count))
    share_a, share_b = a.count / divisor, b.count / divisor
    difference = b.mean - a.mean
    mean = a.mean + difference * share_b
    spread = ops.square(difference) * (share_a * share_b)
    return Moments(count, mean, a.variance * share_a + b.variance * share_b + spread)
