"""Follows the `call` of a layer on symbolic tensors, as a graph of its operations."""

import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import keras

from keras_bn._keras import is_used, marks_of_calls
from keras_bn.tools._folding.affines import Inexact
from keras_bn.tools._graphs.walk import (
    Layer,
    called_in_training,
    nodes,
    sublayers,
)

Shape = tuple[int | None, ...]


class Call(NamedTuple):
    """How a layer is called: its arguments, with symbolic tensors in them."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def tensors(self) -> list[Any]:
        """All tensors among the arguments."""
        return _tensors_in(self)

    def mapped(self, change: Any) -> "Call":
        """With each tensor changed."""

        def one(value: Any) -> Any:
            return change(value) if isinstance(value, keras.KerasTensor) else value

        return Call(*keras.tree.map_structure(one, self))

    def with_(self, other: "Call", name: str) -> "Call":
        """A call that stands for both: sizes that differ are unknown.

        Raises:
            Inexact: They differ in more than sizes.
        """
        try:  # which argument is which, too
            return Call(*keras.tree.map_structure(_both, self, other))
        except ValueError as error:
            raise Inexact(f"'{name}' is called in several ways") from error


def _both(one: Any, other: Any) -> Any:
    """What stands for two arguments; a ValueError where nothing can."""
    if all(isinstance(each, keras.KerasTensor) for each in (one, other)):
        sizes = zip(one.shape, other.shape, strict=True)
        shape = tuple(a if a == b else None for a, b in sizes)
        if one.dtype == other.dtype:
            return one if shape == one.shape else _tensor(shape, one.dtype)
    # Of anything but numbers and texts, what is equal may yet be something else.
    plain = type(one) is type(other) and isinstance(one, (bool, int, float, str))
    if one is other or (plain and one == other):
        return one
    raise ValueError("The arguments differ.")


def _tensor(shape: Shape, dtype: str) -> Any:
    return keras.KerasTensor(shape, dtype=dtype)


def _tensors_in(structure: Any) -> list[Any]:
    every = keras.tree.flatten(structure)
    return [one for one in every if isinstance(one, keras.KerasTensor)]


class Followed(NamedTuple):
    """What a `call` does.

    Attributes:
        graph: Its operations, a `keras.Function`.
        read: The variables, by id, whose values it takes by itself, past the layers
            that they belong to.
    """

    graph: Any
    read: set[int]


class _Reads(keras.StatelessScope):  # type: ignore[misc]
    """Assigns nothing to variables, and notes whose value is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.read: set[int] = set()

    def get_current_value(self, variable: Any) -> Any:
        self.read.add(id(variable))
        return super().get_current_value(variable)


def follow(layer: Layer, call: Call) -> Followed:
    """The operations of `layer.call` in inference.

    Raises:
        Inexact: It cannot be called on symbolic tensors, changes a state, or does
            something else where its inputs have a mask.
    """
    name = f"'{layer.name}' ({type(layer).__name__})"
    signature = inspect.signature(layer.call)
    kwargs = dict(call.kwargs)
    if "training" in signature.parameters:
        kwargs["training"] = False
    followed = _run(layer, Call(call.args, kwargs), name)
    masks = _masks(signature, call)
    if masks:
        masked = _run(layer, Call(call.args, {**kwargs, **masks}), name)
        if _skeleton(masked.graph) != _skeleton(followed.graph):
            raise Inexact(f"it is called inside {name}, which reads a mask")
    return followed


def _masks(signature: inspect.Signature, call: Call) -> dict[str, Any]:
    """What Keras hands to a call where its tensors have masks, by the arguments."""
    given = signature.bind(*call.args, **call.kwargs).arguments
    parts = {name: Call((one,), {}) for name, one in given.items()}
    tensors = {name: one for name, one in parts.items() if one.tensors}
    masks = {
        "mask" if len(tensors) == 1 else f"{name}_mask": one.mapped(_mask).args[0]
        for name, one in tensors.items()
    }
    known = signature.parameters
    return {n: m for n, m in masks.items() if n in known and given.get(n) is None}


def _mask(tensor: Any) -> Any:
    return _tensor(tensor.shape[:-1], "bool")


def _run(layer: Layer, call: Call, name: str) -> Followed:
    try:
        with _unnoticed(layer), _Reads() as scope, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outputs = layer.call(*call.args, **call.kwargs)
            if scope.state_mapping:
                raise ValueError("it sets variables, or draws random numbers")
            inputs = [one for one in call.tensors if is_used(one)]
            graph = keras.Function(inputs, _tensors_in(outputs))
            return Followed(graph, scope.read)
    except Exception as error:
        raise Inexact(
            f"it is called inside {name}, whose call cannot be followed: "
            f"{_reason(error)}"
        ) from error


def _reason(error: Exception) -> str:
    """What went wrong, without what Keras writes around it: bold, within its lines."""
    text = str(error).split("\x1b[1m")[-1].split("\x1b[0m")[0].strip()
    return text.splitlines()[-1] if text else type(error).__name__


@contextmanager
def _unnoticed(layer: Layer) -> Iterator[None]:
    """Takes the marks off that symbolic calls leave in the layers inside."""
    inside = [layer, *(one for _, one in sublayers(layer))]
    before = [
        (one, [(marks, len(marks)) for marks in marks_of_calls(one)], dict(vars(one)))
        for one in inside
    ]
    try:
        yield
    finally:
        for one, every, attributes in before:
            # What a call notes in an attribute would be a symbolic tensor here.
            vars(one).clear()
            vars(one).update(attributes)
            for marks, count in every:
                del marks[count:]


def _skeleton(graph: Any) -> list[Any]:
    """Which operation is called on what, masks left out."""
    place: dict[int, Any] = {}  # of what calls make; inputs are the same objects
    calls: list[Any] = []
    for node in nodes(graph):
        sources = [
            place.get(id(tensor), tensor)
            for tensor in node.input_tensors
            if tensor.dtype != "bool"
        ]
        for i, tensor in enumerate(node.outputs):
            place[id(tensor)] = (len(calls), i)
        is_layer = isinstance(node.operation, keras.Layer)
        what = node.operation if is_layer else type(node.operation)
        calls.append((what, sources, called_in_training(node)))
    return calls
