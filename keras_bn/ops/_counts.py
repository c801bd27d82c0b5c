"""How often each position counts in the statistics: the checks of mask and weights."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import backend, ops

from keras_bn.backend import readable
from keras_bn.backend.interface import Axes, Tensor, as_tensor
from keras_bn.ops._arguments import real_dtype


def counts(mask: Any, weights: Any, x: Tensor, axes: Axes, dtype: str) -> Tensor | None:
    """How often each position counts, as kernels take it for a mask.

    Boolean of a mask alone, of `dtype` where there are weights; None of neither.
    """
    if mask is not None:
        mask = broadcast_mask(as_tensor(mask), x, axes)
    if weights is None:
        return mask
    weights = _broadcast_weights(weights, x, axes, dtype)
    if mask is None:
        return weights
    return ops.where(mask, weights, ops.zeros_like(weights))


def broadcast_mask(mask: Tensor, x: Tensor, axes: Axes) -> Tensor:
    """`mask` as a boolean tensor of the rank of `x` that broadcasts to it."""
    dropped = mask_lacks(mask, tuple(x.shape), axes)
    return ops.expand_dims(ops.cast(mask, "bool"), axis=dropped)


def _broadcast_weights(weights: Any, x: Tensor, axes: Axes, dtype: str) -> Tensor:
    """`weights` in `dtype` and of the rank of `x`, such that they broadcast to it."""
    shape = tuple(x.shape)
    dropped = weights_lack(weights, shape, axes)
    weights = _not_negative(as_tensor(weights, dtype))
    if None in tuple(weights.shape):
        # So that nobody takes for a size of 1 what is known only when it runs.
        sizes = ops.shape(x)
        kept = [sizes[i] for i in range(len(shape)) if i not in dropped]
        weights = ops.broadcast_to(weights, kept)
    return ops.expand_dims(weights, axis=dropped)


def _not_negative(weights: Tensor) -> Tensor:
    """`weights`, which must be finite and not negative.

    Where they have no values, or a look at them would cost something, a NaN for each
    that is not: then so is the output, and the moving statistics stay as they are.
    """
    if not readable(weights):
        spoilt = ops.where(weights >= 0, 0.0, float("nan"))
        return weights + ops.cast(spoilt, weights.dtype)
    values = ops.convert_to_numpy(weights)
    bad = values[~(np.isfinite(values) & (values >= 0))]
    if bad.size:
        raise ValueError(
            "Argument `weights` must hold finite numbers that are not negative. "
            f"Received: weights with {bad.size} other values, the first {bad.flat[0]}"
        )
    return weights


def weights_lack(
    weights: Any, shape: tuple[int | None, ...], axes: Axes
) -> tuple[int, ...]:
    """The axes of an input of this shape that `weights` lack: see `mask_lacks`."""
    lacks = _lacked("weights", weights, shape, axes)
    real_dtype("weights", weights)
    return lacks


def mask_lacks(mask: Any, shape: tuple[int | None, ...], axes: Axes) -> tuple[int, ...]:
    """The axes of an input of this shape that `mask` lacks.

    Two forms are accepted, in this order:

    1. the shape of `x` without its feature axes (or broadcastable to it);
    2. the shape of `x` without its last axis: what `keras.layers.Masking` and
       `Embedding` propagate, wherever the feature axis is. A position that is masked
       out counts for no channel.
    """
    lacks = _lacked("mask", mask, shape, axes)
    dtype = real_dtype("mask", mask)
    if dtype != "bool" and not _is_of_zeros_and_ones(mask, dtype):
        raise TypeError(
            "Argument `mask` must be boolean: it says whether a position counts. (One "
            "of zeros and ones is taken too, where it can be looked at.) How often it "
            "counts is for the argument `weights` to say. Received: mask of dtype "
            f"{backend.standardize_dtype(mask.dtype)}, not of zeros and ones alone"
        )
    return lacks


def _is_of_zeros_and_ones(mask: Any, dtype: str) -> bool:
    """Whether numbers in a `mask` say yes or no, as some do in Keras's own tests.

    Floats must be seen to. Integers, which are a mask more often, may be unseen.
    """
    if not isinstance(mask, np.ndarray):
        if backend.is_keras_tensor(mask) or not readable(mask):
            return not backend.is_float_dtype(dtype)
        mask = ops.convert_to_numpy(mask)
    return bool(np.isin(mask, (0, 1)).all())


def _lacked(
    name: str, mask: Any, shape: tuple[int | None, ...], axes: Axes
) -> tuple[int, ...]:
    if not hasattr(mask, "shape"):
        raise TypeError(
            f"Argument `{name}` must be a tensor or an array. "
            f"Received: {name} of type {type(mask).__name__}"
        )
    last = len(shape) - 1
    for dropped in (axes.features, (last,)):
        kept = [n for i, n in enumerate(shape) if i not in dropped]
        if _broadcasts(tuple(mask.shape), kept):
            return dropped
    expected = tuple(n for i, n in enumerate(shape) if i not in axes.features)
    raise ValueError(
        f"Argument `{name}` must have the input's shape without the feature axis, "
        f"{expected}, or without the last axis, {shape[:-1]}, or broadcast to one of "
        f"them at equal rank. Received: {name} of shape {tuple(mask.shape)} for an "
        f"input of shape {shape}, feature axis {axes.features}"
    )


def _broadcasts(shape: Sequence[int | None], target: Sequence[int | None]) -> bool:
    return len(shape) == len(target) and all(
        one in (1, None, other) or other is None
        for one, other in zip(shape, target, strict=True)
    )
