"""Follows the `call` of a layer on symbolic tensors, as a graph of its operations."""

import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import keras

from keras_bn._keras import marks_of_calls
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
    def flat(self) -> list[Any]:
        """All arguments."""
        return keras.tree.flatten((self.args, self.kwargs))  # type: ignore[no-any-return]

    def mapped(self, change: Any) -> "Call":
        """With each tensor changed."""

        def one(value: Any) -> Any:
            return change(value) if isinstance(value, keras.KerasTensor) else value

        return Call(*keras.tree.map_structure(one, (self.args, self.kwargs)))

    def with_(self, other: "Call", name: str) -> "Call":
        """A call that stands for both: sizes that differ are unknown.

        Raises:
            Inexact: They differ in more than sizes.
        """
        same_length = len(self.flat) == len(other.flat)
        if not same_length or not all(map(_alike, self.flat, other.flat)):
            raise Inexact(f"'{name}' is called in several ways")
        others = iter(other.flat)

        def one(value: Any) -> Any:
            there = next(others)
            if not isinstance(value, keras.KerasTensor):
                return value
            sizes = zip(value.shape, there.shape, strict=True)
            shape = tuple(a if a == b else None for a, b in sizes)
            return value if shape == value.shape else _tensor(shape, value.dtype)

        return Call(*keras.tree.map_structure(one, (self.args, self.kwargs)))


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, keras.KerasTensor) and isinstance(other, keras.KerasTensor):
        return len(one.shape) == len(other.shape) and one.dtype == other.dtype
    return type(one) is type(other) and bool(one is other or one == other)


def _tensor(shape: Shape, dtype: str) -> Any:
    return keras.KerasTensor(shape, dtype=dtype)


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
    parameters = inspect.signature(layer.call).parameters
    kwargs = dict(call.kwargs)
    if "training" in parameters:
        kwargs["training"] = False
    followed = _run(layer, Call(call.args, kwargs), name)
    if "mask" in parameters and kwargs.get("mask") is None and len(call.args) == 1:
        masks = keras.tree.map_structure(_mask, call.args[0])
        masked = _run(layer, Call(call.args, {**kwargs, "mask": masks}), name)
        if _skeleton(masked.graph) != _skeleton(followed.graph):
            raise Inexact(f"it is called inside {name}, which reads a mask")
    return followed


def _mask(tensor: Any) -> Any:
    return _tensor(tensor.shape[:-1], "bool")


def _run(layer: Layer, call: Call, name: str) -> Followed:
    inputs = [one for one in call.flat if isinstance(one, keras.KerasTensor)]
    try:
        with (
            _unnoticed(layer),
            _Reads() as scope,
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            outputs = layer.call(*call.args, **call.kwargs)
            if scope.state_mapping:
                raise ValueError("it sets variables, or draws random numbers")
            tensors = [
                one
                for one in keras.tree.flatten(outputs)
                if isinstance(one, keras.KerasTensor)
            ]
            return Followed(keras.Function(inputs, tensors), scope.read)
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
    place: dict[int, Any] = {id(tensor): i for i, tensor in enumerate(graph.inputs)}
    calls: list[Any] = []
    for node in nodes(graph):
        sources = [
            place.get(id(tensor))
            for tensor in node.input_tensors
            if tensor.dtype != "bool"
        ]
        for i, tensor in enumerate(node.outputs):
            place[id(tensor)] = (len(calls), i)
        is_layer = isinstance(node.operation, keras.Layer)
        what = id(node.operation) if is_layer else type(node.operation)
        calls.append((what, sources, called_in_training(node)))
    return calls
