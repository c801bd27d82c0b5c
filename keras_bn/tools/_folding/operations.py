"""How scale and offset pass operations of `keras.ops` in a graph."""

from typing import Any

import keras
import numpy as np

from keras_bn._keras import kind as kind
from keras_bn.tools._folding import affines
from keras_bn.tools._folding.affines import Affine, Inexact, across_line, constant
from keras_bn.tools._graphs.walk import called_in_training, float64, given_to


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
    rule = _RULES.get(kind(operation)) if len(node.input_tensors) == 1 else None
    if type(operation) is keras.layers.TimeDistributed:
        rule = _step_by_step
    elif affines.is_passable(operation):
        rule = _layer
    if rule is None or called_in_training(node):
        name = type(operation).__name__
        raise Inexact(f"'{operation.name}' ({name}) is in the way")
    result: Affine = rule(affine, node, back)
    return result


def _layer(affine: Affine, node: Any, back: bool) -> Affine:
    shapes = (node.input_tensors[0].shape, node.outputs[0].shape)
    step = affines.before if back else affines.after
    return step(affine, node.operation, *shapes)


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


def _line(affine: Affine, node: Any, back: bool) -> Affine:
    """`factor * x + shift`, with constants."""
    tensor, which = node.input_tensors[0], kind(node.operation)
    if tensor.shape != node.outputs[0].shape:
        raise Inexact(f"'{node.operation.name}' changes the shape")
    arguments = [*node.arguments.args, *node.arguments.kwargs.values()]
    first = arguments[0] is tensor
    (value,) = (one for one in arguments if one is not tensor)
    given = constant(value, len(tensor.shape) - 1)
    factor: Any = 1.0
    shift: Any = 0.0
    if which == "ops.Multiply":
        factor = given
    elif which == "ops.Add":
        shift = given
    elif which == "ops.Subtract":
        factor, shift = (1.0, -given) if first else (-1.0, given)
    elif first and np.all(given):
        factor = 1.0 / given
    else:
        raise Inexact(f"'{node.operation.name}' ({which}) is in the way")
    return across_line(affine, factor, shift, back, node.operation.name)


def _negated(affine: Affine, node: Any, back: bool) -> Affine:
    return affine._replace(offset=-affine.offset)


def _same(affine: Affine, node: Any, back: bool) -> Affine:
    if node.input_tensors[0].dtype != node.outputs[0].dtype:
        raise Inexact(f"'{node.operation.name}' changes the dtype")
    return affine


def _order(node: Any) -> tuple[int, ...]:
    """Which axis of the input each axis of the output is."""
    operation = node.operation
    numbered = np.empty(range(len(node.input_tensors[0].shape)))  # by the axes' sizes
    if kind(operation) == "ops.Transpose":
        return np.transpose(numbered, operation.axes).shape
    if kind(operation) == "ops.Swapaxes":
        return np.swapaxes(numbered, operation.axis1, operation.axis2).shape
    return np.moveaxis(numbered, operation.source, operation.destination).shape


def _transposed(affine: Affine, node: Any, back: bool) -> Affine:
    order = _order(node)
    if order[0] != 0:
        raise Inexact(f"'{node.operation.name}' moves the batch")
    axes = [axis - 1 for axis in order[1:]]
    return affine.apply(lambda one: one.transpose(np.argsort(axes) if back else axes))


def _reshaped(affine: Affine, node: Any, back: bool) -> Affine:
    shapes = (node.input_tensors[0].shape[1:], node.outputs[0].shape[1:])
    old, new = reversed(shapes) if back else shapes
    return affines.reshaped(affine, old, new, node.operation.name)


def _reduced(affine: Affine, node: Any, back: bool) -> Affine:
    operation, rank = node.operation, len(node.input_tensors[0].shape)
    axes = range(rank) if operation.axis is None else np.ravel(operation.axis)
    places = tuple(axis % rank - 1 for axis in axes)
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
        if np.any(affine.offset) or any(float64(one).any() for one in fill):
            raise Inexact(
                f"'{operation.name}' pads with a constant, which it would shift"
            )
    widths = operation.pad_width  # one pair, if all axes are padded alike
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
            "ops.Subtract",
            "ops.TrueDivide",
        ),
        _line,
    ),
    "ops.Negative": _negated,
    **dict.fromkeys(("ops.Cast", "ops.StopGradient"), _same),
    **dict.fromkeys(("ops.Moveaxis", "ops.Swapaxes", "ops.Transpose"), _transposed),
    **dict.fromkeys(("ops.ExpandDims", "ops.Reshape", "ops.Squeeze"), _reshaped),
    **dict.fromkeys(("ops.Amax", "ops.Max", "ops.Mean"), _reduced),
    **dict.fromkeys(("ops.AveragePool", "ops.MaxPool", "ops.Resize"), _uniform),
    "ops.Pad": _padded,
}
"""How each operation of one tensor lets an affine pass. One not here stops it."""
