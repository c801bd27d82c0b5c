"""Batch renormalization: the correction of batch statistics by moving ones."""

import math
from collections.abc import Mapping
from typing import Any

from keras import ops

from keras_bn.backend.interface import Tensor
from keras_bn.ops._settings import positive_epsilon, renorm_limits


def renorm_correction(
    mean: Tensor,
    variance: Tensor,
    renorm_mean: Tensor,
    renorm_stddev: Tensor,
    *,
    epsilon: float = 1e-3,
    clipping: Mapping[str, float | Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """The correction `(r, d)` that makes a training batch see moving statistics.

        r = sqrt(variance + epsilon) / renorm_stddev    clipped to [rmin, rmax]
        d = (mean - renorm_mean) / renorm_stddev        clipped to [-dmax, dmax]

    so that `(x - mean) / sqrt(variance + epsilon) * r + d`, unclipped, equals
    `(x - renorm_mean) / renorm_stddev`.

    Args:
        mean: Mean of the batch, per channel.
        variance: Variance of the batch, per channel.
        renorm_mean: Moving mean.
        renorm_stddev: Moving standard deviation, `sqrt(epsilon)` at the least.
        epsilon: Added to the variance; greater than 0.
        clipping: Limits under the optional keys `"rmax"`, `"rmin"` and `"dmax"`. Scalar
            tensors, whose values may not be known yet, are taken as they are.

    Returns:
        `(r, d)`, of the shape and dtype of `mean`, for
        `batch_norm_train(correction=...)`.

    Raises:
        TypeError: `epsilon` or a limit is not a number.
        ValueError: `epsilon` is not above 0, `clipping` has unknown keys, rmax < rmin,
            or dmax < 0.

    Reference:
        [Ioffe, 2017](https://arxiv.org/abs/1702.03275), algorithm 1.

    Example:

    >>> import numpy as np
    >>> from keras_bn.ops import renorm_correction
    >>> one = np.ones(1, "float32")
    >>> r, d = renorm_correction(3 * one, 4 * one, 2 * one, one, clipping={"rmax": 1.5})
    >>> float(r[0]), float(d[0])
    (1.5, 1.0)
    """
    epsilon = positive_epsilon(epsilon)
    limits = _limits(clipping)
    mean = ops.convert_to_tensor(mean)

    def tensor(value: Tensor) -> Tensor:
        return ops.convert_to_tensor(value, dtype=mean.dtype)

    def constant(value: float | Tensor) -> Tensor:
        # On torch, `ops.clip` would round a number to float32, and `ops.full` send it
        # to the device.
        return ops.ones_like(mean) * value

    def limit(key: str, otherwise: float) -> Tensor:
        given = limits.get(key, otherwise)
        return constant(tensor(given) if ops.is_tensor(given) else given)

    # The moving deviation may start at 0 (a zeros initializer): never divide by it.
    stddev = ops.clip(tensor(renorm_stddev), constant(epsilon**0.5), constant(math.inf))
    r = ops.sqrt(tensor(variance) + epsilon) / stddev
    d = (mean - tensor(renorm_mean)) / stddev
    low, high = limit("rmin", -math.inf), limit("rmax", math.inf)
    # Of schedules that cross, rmax counts; in TensorFlow's clip it would be rmin.
    r = ops.clip(r, ops.where(low < high, low, high), high)
    return r, ops.clip(d, -limit("dmax", math.inf), limit("dmax", math.inf))


def _limits(clipping: Mapping[str, float | Tensor] | None) -> dict[str, Any]:
    if not isinstance(clipping, Mapping):
        return {**renorm_limits(clipping)}
    unread = {key: one for key, one in clipping.items() if ops.is_tensor(one)}
    return {**renorm_limits({**clipping, **dict.fromkeys(unread)}), **unread}
