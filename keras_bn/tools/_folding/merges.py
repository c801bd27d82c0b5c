"""How scale and offset pass layers and operations that join several tensors."""

from typing import Any, NamedTuple

import numpy as np

from keras_bn.tools._folding.affines import Affine, Inexact
from keras_bn.tools._folding.operations import kind


class Split(NamedTuple):
    """An affine of a joined tensor, as one of each tensor that is joined.

    Attributes:
        parts: One for each, all of which must be done.
        offset: What is left to add in any one of them.
        signs: With which sign each takes that in.
    """

    parts: list[Affine]
    offset: np.ndarray
    signs: list[int]


def joins(node: Any) -> bool:
    """Whether a call joins several tensors in a way that is known here."""
    known = kind(node.operation) in (*_SUMS, *_ALIKE, *_CONCATENATIONS)
    return known and len(node.input_tensors) > 1


def split(affine: Affine, node: Any) -> Split:
    """`affine` after a call that joins tensors, as one of each before it.

    Raises:
        Inexact: There are none.
    """
    which, count = kind(node.operation), len(node.input_tensors)
    zero = np.zeros((1,) * affine.scale.ndim)
    if which in _CONCATENATIONS:
        return Split(_pieces(affine, node), zero, [])
    if which in _SUMS:
        # scale * (a - b) + offset = (scale * a + offset) - scale * b
        parts, offset = [Affine(affine.scale, zero)] * count, affine.offset
        signs = [1] * count if which.endswith("Add") else [1, -1]
    else:
        if which in _EXTREMES and np.any(affine.scale < 0):
            raise Inexact(
                f"'{node.operation.name}' takes extremes, and a scale is negative"
            )
        parts, offset, signs = [affine] * count, zero, []
    for tensor in node.input_tensors:
        if tensor.shape[1:] != node.outputs[0].shape[1:]:
            raise Inexact(f"'{node.operation.name}' joins tensors of several shapes")
    return Split(parts, offset, signs)


def _axis(node: Any) -> int:
    """The axis of a concatenation, the batch left out."""
    axis: int = node.operation.axis % len(node.outputs[0].shape)
    if axis == 0:
        raise Inexact(f"'{node.operation.name}' joins batches")
    return axis - 1


def _pieces(affine: Affine, node: Any) -> list[Affine]:
    place = _axis(node)
    sizes = [tensor.shape[1 + place] for tensor in node.input_tensors]

    def cut(values: np.ndarray) -> list[np.ndarray]:
        if values.shape[place] == 1:
            return [values] * len(sizes)
        return np.split(values, np.cumsum(sizes[:-1]), place)

    return [Affine(*pair) for pair in zip(*map(cut, affine), strict=True)]


def joined(affine: Affine, node: Any, tensor: Any) -> Affine:
    """What `affine` of one tensor does to a concatenation, whose others stay.

    Raises:
        Inexact: The call is no concatenation of axes of known sizes.
    """
    operation = node.operation
    if kind(operation) not in _CONCATENATIONS:
        raise Inexact(f"'{operation.name}' ({type(operation).__name__}) is in the way")
    place = _axis(node)
    sizes = [one.shape[1 + place] for one in node.input_tensors]
    if None in sizes:
        raise Inexact(f"'{operation.name}' joins axes of unknown size")
    mine = [one is tensor for one in node.input_tensors]

    def wide(values: np.ndarray, others: float) -> np.ndarray:
        shape = list(values.shape)
        rows = []
        for size, own in zip(sizes, mine, strict=True):
            shape[place] = size
            rows.append(np.broadcast_to(values if own else others, shape))
        return np.concatenate(rows, axis=place)

    return Affine(wide(affine.scale, 1.0), wide(affine.offset, 0.0))


_CONCATENATIONS = ("layers.Concatenate", "ops.Concatenate")
_SUMS = ("layers.Add", "layers.Subtract", "ops.Add", "ops.Subtract")
_EXTREMES = ("layers.Maximum", "layers.Minimum", "ops.Maximum", "ops.Minimum")
_ALIKE = ("layers.Average", *_EXTREMES)
"""These give `affine` of their result where each of their inputs is given it."""
