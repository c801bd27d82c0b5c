"""Ragged tensors: the layer takes their flat values, in which nothing is ragged."""

from typing import NamedTuple

import tensorflow as tf

from keras_bn.backend.interface import Axes, Tensor


class Flat(NamedTuple):
    """The values of a ragged tensor, one after the other, and which axes they have."""

    x: Tensor
    axes: Axes
    mask: Tensor | None


def flat(x: tf.RaggedTensor, axes: Axes, mask: Tensor | None = None) -> Flat:
    """The flat values of `x`, and of a mask that is ragged as `x` is.

    Raises:
        ValueError: Statistics that are not of the flat values: a feature axis that is
            ragged, several of them, or a mask that is not ragged.
    """
    lost = x.ragged_rank
    if len(axes.features) > 1 or axes.features[0] <= lost:
        raise ValueError(
            "Argument `axis` must be one axis that is not ragged, for inputs that are "
            f"ragged. Received: feature axes {axes.features} of a ragged tensor of "
            f"shape {tuple(x.shape)} and ragged rank {lost}"
        )
    if mask is not None:
        if not isinstance(mask, tf.RaggedTensor):
            raise ValueError(
                "Argument `mask` must be ragged as the inputs are, for inputs that are "
                f"ragged. Received: mask of type {type(mask).__name__} and shape "
                f"{tuple(mask.shape)}"
            )
        mask = mask.flat_values
    feature = axes.features[0] - lost
    others = (axis for axis in range(axes.ndim - lost) if axis != feature)
    return Flat(x.flat_values, Axes((feature,), tuple(others)), mask)
