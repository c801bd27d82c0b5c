"""How scale and offset pass operations of `keras.ops` in a graph."""

import math
from typing import Any

import keras
import numpy as np

from keras_bn._keras import kind as kind
from keras_bn.tools._folding import affines
from keras_bn.tools._folding.affines import Affine, Inexact, across_line
from keras_bn.tools._graphs.walk import called_in_training, float64, given_to

Shape = tuple[int | None, ...]


def passed(affine: Affine, node: Any, back: bool) -> Affine:
    """The affine on the other side of a call with one input.

    Args:
        affine: What is done after the call, where `back`; otherwise before it.
        node: The call.
        back: Whether the affine is wanted that does the same before the call.

    Raises:
        Inexact: There is none.
    """
    operation = node.operation
    if isinstance(operation, keras.layers.TimeDistributed):
        return _step_by_step(affine, node, back)
    shapes = (node.input_tensors[0].shape, node.outputs[0].shape)
    if affines.is_passable(operation) and not called_in_training(node):
        step = affines.before if back else affines.after
        return step(affine, operation, *shapes)
    rule = _RULES.get(kind(operation))
    if rule is None or len(node.input_tensors) > 1 or len(node.outputs) > 1:
        name = type(operation).__name__
        raise Inexact(f"'{operation.name}' ({name}) is in the way")
    result: Affine = rule(affine, node, back)
    return result


def one_step(affine: Affine, name: str) -> Affine:
    """`affine` of a sequence, as one of each of its steps."""
    if any(values.shape[0] > 1 for values in affine):
        raise Inexact(f"'{name}' does the same to each step, which it scales apart")
    return affine.apply(lambda one: one[0])


def _step_by_step(affine: Affine, node: Any, back: bool) -> Affine:
    layer = node.operation.layer
    if not affines.is_passable(layer):
        raise Inexact(f"'{layer.name}' ({type(layer).__name__}) is in the way")
    shapes = (
        t.shape[:1] + t.shape[2:] for t in (node.input_tensors[0], node.outputs[0])
    )
    step = affines.before if back else affines.after
    result = step(one_step(affine, node.operation.name), layer, *shapes)
    return result.apply(lambda one: one[np.newaxis])


def _constant(value: Any, rank: int) -> np.ndarray:
    """A factor or summand in the layout of a sample."""
    value = float64(value)
    value = value.reshape((1,) * (rank + 1 - value.ndim) + value.shape)
    if value.shape[0] > 1:
        raise Inexact("an operation differs from sample to sample of the batch")
    sample: np.ndarray = value[0]
    return sample


def _line(affine: Affine, node: Any, back: bool) -> Affine:
    """`factor * x + shift`, with constants."""
    tensor = node.input_tensors[0]
    if tensor.shape != node.outputs[0].shape:
        raise Inexact(f"'{node.operation.name}' changes the shape")
    which, rank = kind(node.operation), len(tensor.shape) - 1
    arguments = [*node.arguments.args, *node.arguments.kwargs.values()]
    values = [one for one in arguments if one is not tensor]
    constant = _constant(values[0], rank) if values else np.zeros((1,) * rank)
    first = arguments[0] is tensor
    one, zero = np.ones((1,) * rank), np.zeros((1,) * rank)
    if which in ("ops.Divide", "ops.TrueDivide") and not (first and np.all(constant)):
        raise Inexact(f"'{node.operation.name}' ({which}) is in the way")
    factor, shift = {  # type: ignore[no-untyped-call]
        "ops.Multiply": lambda: (constant, zero),
        "ops.Divide": lambda: (1 / constant, zero),
        "ops.TrueDivide": lambda: (1 / constant, zero),
        "ops.Negative": lambda: (-one, zero),
        "ops.Add": lambda: (one, constant),
        "ops.Subtract": lambda: (one, -constant) if first else (-one, constant),
    }[which]()
    return across_line(affine, factor, shift, back, node.operation.name)


def _same(affine: Affine, node: Any, back: bool) -> Affine:
    if node.input_tensors[0].dtype != node.outputs[0].dtype:
        raise Inexact(f"'{node.operation.name}' changes the dtype")
    return affine


def _order(node: Any) -> list[int]:
    """Which axis of the input each axis of the output is."""
    operation, rank = node.operation, len(node.input_tensors[0].shape)
    axes = list(range(rank))
    if kind(operation) == "ops.Transpose":
        return [axis % rank for axis in operation.axes or reversed(axes)]
    if kind(operation) == "ops.Swapaxes":
        one, other = operation.axis1, operation.axis2
        axes[one], axes[other] = axes[other], axes[one]
        return axes
    moved = np.moveaxis(np.empty(axes), operation.source, operation.destination)
    return list(moved.shape)


def _transposed(affine: Affine, node: Any, back: bool) -> Affine:
    order = _order(node)
    if order[0] != 0:
        raise Inexact(f"'{node.operation.name}' moves the batch")
    order = [axis - 1 for axis in order[1:]]
    return affine.apply(lambda one: one.transpose(np.argsort(order) if back else order))


def _reshaped(affine: Affine, node: Any, back: bool) -> Affine:
    shapes = (node.input_tensors[0].shape[1:], node.outputs[0].shape[1:])
    old, new = reversed(shapes) if back else shapes

    def change(one: np.ndarray) -> np.ndarray:
        if one.size == one.shape[-1] and old[-1:] == new[-1:] != (None,):
            return one.reshape([1] * (len(new) - 1) + [-1])
        if None in old or None in new or math.prod(old) != math.prod(new):
            raise Inexact(f"'{node.operation.name}' reshapes axes of unknown size")
        return np.broadcast_to(one, old).reshape(new)

    return affine.apply(change)


def _reduced(affine: Affine, node: Any, back: bool) -> Affine:
    operation, rank = node.operation, len(node.input_tensors[0].shape)
    axes = range(rank) if operation.axis is None else np.ravel(operation.axis)
    places = tuple(sorted(int(axis) % rank - 1 for axis in axes))
    if -1 in places:
        raise Inexact(f"'{operation.name}' goes over the batch")
    if getattr(operation, "initial", None) is not None:
        raise Inexact(f"'{operation.name}' starts at a constant, which it would shift")
    if kind(operation) != "ops.Mean" and np.any(affine.scale < 0):
        raise Inexact(f"'{operation.name}' takes extremes, and a scale is negative")
    if back:
        if operation.keepdims:
            return affine
        return affine.apply(lambda one: np.expand_dims(one, places))
    if any(one.shape[place] > 1 for one in affine for place in places):
        raise Inexact(f"'{operation.name}' joins positions that it scales differently")
    return (
        affine if operation.keepdims else affine.apply(lambda one: one.squeeze(places))
    )


def _uniform(affine: Affine, node: Any, back: bool) -> Affine:
    """Positions of a channel are dropped, repeated or averaged."""
    operation = node.operation
    if getattr(operation, "pad_to_aspect_ratio", False):
        raise Inexact(f"'{operation.name}' pads with a constant, which it would shift")
    if kind(operation) == "ops.MaxPool" and np.any(affine.scale < 0):
        raise Inexact(f"'{operation.name}' takes maxima, and a scale is negative")
    return affines.uniform(affine, operation)


def _padded(affine: Affine, node: Any, back: bool) -> Affine:
    operation = node.operation
    if operation.mode == "constant":
        fill = [one for one in given_to(node)[1:] if one is not None]
        if np.any(affine.offset) or any(np.any(float64(one)) for one in fill):
            raise Inexact(
                f"'{operation.name}' pads with a constant, which it would shift"
            )
    rank, width = len(node.input_tensors[0].shape), operation.pad_width
    widths = list(width) * rank if len(width) == 1 else list(width)
    if any(widths[0]):
        raise Inexact(f"'{operation.name}' pads the batch")
    if any(
        any(pair) and one.shape[place] > 1
        for one in affine
        for place, pair in enumerate(widths[1:])
    ):
        raise Inexact(f"'{operation.name}' pads an axis that it scales")
    return affine


_RULES: dict[str, Any] = {
    **dict.fromkeys(
        (
            "ops.Add",
            "ops.Divide",
            "ops.Multiply",
            "ops.Negative",
            "ops.Subtract",
            "ops.TrueDivide",
        ),
        _line,
    ),
    **dict.fromkeys(("ops.Cast", "ops.StopGradient"), _same),
    **dict.fromkeys(("ops.Moveaxis", "ops.Swapaxes", "ops.Transpose"), _transposed),
    **dict.fromkeys(("ops.ExpandDims", "ops.Reshape", "ops.Squeeze"), _reshaped),
    **dict.fromkeys(("ops.Amax", "ops.Max", "ops.Mean"), _reduced),
    **dict.fromkeys(("ops.AveragePool", "ops.MaxPool", "ops.Resize"), _uniform),
    "ops.Pad": _padded,
}
"""How each operation of one tensor lets an affine pass. One not here stops it."""
