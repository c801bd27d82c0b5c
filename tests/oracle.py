"""Batch normalization in float64 NumPy, written from the definition.

The oracle knows nothing of how the package computes. Two passes, plain formulas; the
gradient is derived by hand and checked against finite differences in test_oracle.py.
"""

from typing import NamedTuple

import numpy as np


class Result(NamedTuple):
    """What one training call gives, all float64; statistics keep the input's rank."""

    y: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    count: np.ndarray


class Gradients(NamedTuple):
    """Gradients of `sum(y * dy)`; those of gamma and beta keep the input's rank."""

    x: np.ndarray
    gamma: np.ndarray
    beta: np.ndarray


def features(axis, ndim):
    """The feature axes as a set of non-negative ints."""
    return {one % ndim for one in np.atleast_1d(axis)}


def reduction(axis, ndim):
    """The axes that statistics are taken over."""
    return tuple(one for one in range(ndim) if one not in features(axis, ndim))


def spread(parameter, x, axis):
    """A per-channel parameter in a shape that broadcasts against x."""
    shape = [n if i in features(axis, x.ndim) else 1 for i, n in enumerate(x.shape)]
    return np.asarray(parameter, "float64").reshape(shape)


def weights(mask, x, axis, drop=None):
    """How often a value counts, in the shape of x: 1 and 0 of a mask."""
    if mask is None:
        return np.ones(x.shape)
    dropped = features(axis, x.ndim) if drop is None else {drop % x.ndim}
    mask = np.expand_dims(np.asarray(mask, "float64"), tuple(sorted(dropped)))
    return np.broadcast_to(mask, x.shape)


def forward(x, gamma=1.0, beta=0.0, axis=-1, epsilon=1e-3, weight=None, r=1.0, d=0.0):
    """`((x - mean) / sqrt(variance + epsilon) * r + d) * gamma + beta`."""
    x = np.asarray(x, "float64")
    weight = np.ones(x.shape) if weight is None else weight
    over = reduction(axis, x.ndim)
    count = weight.sum(over, keepdims=True)
    divisor = np.where(count > 0, count, 1)
    values = np.where(weight > 0, x, 0)
    mean = (weight * values).sum(over, keepdims=True) / divisor
    variance = (weight * (values - mean) ** 2).sum(over, keepdims=True) / divisor
    normalized = (x - mean) / np.sqrt(variance + epsilon)
    return Result((normalized * r + d) * gamma + beta, mean, variance, count)


def backward(x, dy, gamma=1.0, axis=-1, epsilon=1e-3, weight=None, r=1.0, d=0.0):
    """The gradients of `sum(forward(x).y * dy)`, r and d held constant.

    With n = (x - mean) / s, s = sqrt(variance + epsilon), g = dy * gamma * r, the
    weights w and their sum N:

        dx = (g - w * (sum(g) + n * sum(g * n)) / N) / s

    where the sums run over all positions, masked out or not: all are normalized by
    the statistics, while each has its part in them by its weight.
    """
    x, dy = np.asarray(x, "float64"), np.asarray(dy, "float64")
    weight = np.ones(x.shape) if weight is None else weight
    over = reduction(axis, x.ndim)
    _, mean, variance, count = forward(x, axis=axis, epsilon=epsilon, weight=weight)
    deviation = np.sqrt(variance + epsilon)
    normalized = (x - mean) / deviation
    g = dy * gamma * r
    sums = g.sum(over, keepdims=True) + normalized * (g * normalized).sum(
        over, keepdims=True
    )
    dx = (g - weight * sums / np.where(count > 0, count, 1)) / deviation
    dgamma = (dy * (normalized * r + d)).sum(over, keepdims=True)
    return Gradients(dx, dgamma, dy.sum(over, keepdims=True))


def for_weights(x, dy, gamma=1.0, axis=-1, epsilon=1e-3, weight=None, r=1.0):
    """The gradient of `sum(forward(x).y * dy)` for the weights, in the shape of x.

    A weight moves the mean by (x - mean) / N, the variance by ((x - mean)² - V) / N;
    the mean moves y by -gamma * r / s, the variance by -gamma * r * (x - mean) / 2s³.
    """
    x, g = np.asarray(x, "float64"), np.asarray(dy, "float64") * gamma * r
    over = reduction(axis, x.ndim)
    _, mean, variance, count = forward(x, axis=axis, epsilon=epsilon, weight=weight)
    s = np.sqrt(variance + epsilon)
    by_mean = -(g / s).sum(over, keepdims=True)
    by_variance = -(g * (x - mean) / (2 * s**3)).sum(over, keepdims=True)
    apart = x - mean
    return (by_mean * apart + by_variance * (apart**2 - variance)) / count


def inference(x, mean, variance, gamma=1.0, beta=0.0, axis=-1, epsilon=1e-3):
    """The output by given statistics."""
    x = np.asarray(x, "float64")
    mean, variance, gamma, beta = (
        spread(p, x, axis) if np.ndim(p) else p for p in (mean, variance, gamma, beta)
    )
    return (x - mean) / np.sqrt(variance + epsilon) * gamma + beta


def group_norm(x, gamma=1.0, beta=0.0, groups=1, axis=-1, epsilon=1e-3):
    """The output by statistics of each sample's groups of neighbouring channels."""
    x = np.moveaxis(np.asarray(x, "float64"), axis, 1)
    parts = x.reshape(len(x), groups, -1)
    mean, variance = parts.mean(-1, keepdims=True), parts.var(-1, keepdims=True)
    y = ((parts - mean) / np.sqrt(variance + epsilon)).reshape(x.shape)
    return np.moveaxis(y, 1, axis) * gamma + beta


def layer_norm(x, gamma=1.0, beta=0.0, axis=-1, epsilon=1e-3):
    """The output by statistics over `axis` of every other position."""
    x, over = np.asarray(x, "float64"), tuple(features(axis, np.ndim(x)))
    mean, variance = x.mean(over, keepdims=True), x.var(over, keepdims=True)
    return (x - mean) / np.sqrt(variance + epsilon) * gamma + beta


def tolerance(x, variance, gamma=1.0, epsilon=1e-3, dtype=None):
    """How far an output may be off: a few roundings of the input, plus 1e-5.

    `4 * ulp(max|x|) / sqrt(variance + epsilon) + 1e-5`, times gamma where it enlarges,
    with the ulp of the dtype that the input has; in float64, 1e-14 for 1e-5.
    """
    size = np.max(np.abs(np.asarray(x, "float64")), initial=0.0)
    roundings = 4 * ulp(size, dtype or x.dtype) / np.sqrt(variance + epsilon)
    rest = 1e-14 if str(dtype or x.dtype) == "float64" else 1e-5
    return (roundings + rest) * np.maximum(1.0, np.abs(gamma))


def ulp(size, dtype):
    """The distance from `size` to the next larger number of the dtype."""
    digits = {"float16": 10, "bfloat16": 7, "float32": 23, "float64": 52}[str(dtype)]
    return 2.0 ** (np.floor(np.log2(size)) - digits) if size > 0 else 0.0


def moving_statistics(batches, momentum, zero_debias=False, initial=(0.0, 1.0)):
    """Moving mean and variance after batches of shape (values, channels).

    `momentum` is one number a batch, or None for the moments of all values together. A
    batch with a NaN in a channel is not there for that channel.
    """
    momenta = [None] * len(batches) if momentum is None else momentum
    channels = []
    for channel in range(batches[0].shape[1]):
        seen = [
            (np.asarray(x[:, channel], "float64"), m)
            for x, m in zip(batches, momenta, strict=True)
            if len(x) and np.isfinite(x[:, channel]).all()
        ]
        if not seen:
            channels.append(initial)
        elif momentum is None:
            values = np.concatenate([x for x, _ in seen])
            channels.append((values.mean(), values.var()))
        else:
            channels.append(_averaged(seen, zero_debias, initial))
    return np.array(channels).T


def _averaged(seen, zero_debias, initial):
    average = np.zeros(2) if zero_debias else np.array(initial)
    for x, m in seen:
        average = average * m + np.array([x.mean(), x.var()]) * (1 - m)
    return average / (1 - np.prod([m for _, m in seen])) if zero_debias else average
