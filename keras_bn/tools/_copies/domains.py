"""Batch norms for several domains into a model, with an input that says which; and out.

A graph is called anew, layer by layer, on its inputs: the layers are those of a copy,
and only the calls of batch norms are others.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import keras

from keras_bn._keras import call_of, run_graph
from keras_bn.tools._copies.carry import Fill
from keras_bn.tools._copies.rebuild import rebuild
from keras_bn.tools._graphs.walk import (
    Layer,
    batch_norms,
    graph_in,
    has_graph,
    is_domain_norm,
    is_functional,
    is_plain_batch_norm,
    sublayers,
    takes_inputs_and_outputs,
)

INPUT = "domain"
"""The name of the input that is added."""

Structure = Any
"""A symbolic tensor, or a list, tuple or dictionary of them."""


def with_domains(model: Any, make: Callable[[Layer], Layer], fill: Fill) -> Any:
    """A copy of `model` with another input, the domain, for all its batch norms.

    Args:
        model: A Functional or Sequential model.
        make: Gives the domain layer, not built, in the place of a plain batch norm.
        fill: Gives the domain layer the weights of the plain one.
    """
    adding = _Adding(_copy(model), is_plain_batch_norm, make)
    new = adding.run()
    for old, layer in adding.replaced:
        fill(old, layer)
    return new


def without_domains(model: Any, domain: int) -> Any:
    """A copy of `model` with one domain of each batch norm, as a plain layer.

    Inputs that only said which domain are gone.
    """
    return _Removing(
        _copy(model), is_domain_norm, lambda layer: layer.domain_layer(domain)
    ).run()


def _copy(model: Any) -> Any:
    if not has_graph(model):
        raise ValueError(
            "Argument `model` must be a Functional or Sequential model: in a "
            "subclassed one its `call` has to pass the domain on, as in "
            f"`norm(x, domain=domain)`. Received: model of class {type(model).__name__}"
        )
    return rebuild(model, lambda layer: None, lambda old, new: None)


class _Calls(ABC):
    """A model's graphs called anew, with others for the layers that `replaces` names.

    Args:
        model: The model, whose other layers the new one has.
        replaces: Which layers are replaced.
        make: What by.
    """

    def __init__(
        self,
        model: Any,
        replaces: Callable[[Layer], bool],
        make: Callable[[Layer], Layer],
    ) -> None:
        self._model = model
        self._replaces = replaces
        self._make = make
        self._new: dict[int, Layer] = {}
        self._graphs: list[tuple[Layer, Layer]] = []
        self.replaced: list[tuple[Layer, Layer]] = []

    def run(self) -> Any:
        """The new model."""
        new = self._graph(self._model)
        reached = {id(old) for old, _ in self.replaced}
        for path, layer in batch_norms(self._model).items():
            if self._replaces(layer) and id(layer) not in reached:
                raise ValueError(
                    f"Layer '{path}' cannot be converted: it is called inside a class "
                    "whose `call` does not pass a domain on. Received: model "
                    f"'{self._model.name}'"
                )
        self._freeze()
        return new

    def _freeze(self) -> None:
        """Freezes the graphs that were; their flag spreads to all that is in them."""
        for old, new in self._graphs:
            if not old.trainable:
                # Outer layers first, whose flags spread, and weights last.
                inside = [*(layer for _, layer in sublayers(new)), *new.variables]
                flags = [one.trainable for one in inside]
                new.trainable = False
                for one, trainable in zip(inside, flags, strict=True):
                    one.trainable = trainable

    def _layer(self, layer: Layer) -> Layer:
        """What stands in the place of `layer`, one for all its calls."""
        if id(layer) not in self._new:
            if self._replaces(layer):
                self._new[id(layer)] = self._make(layer)
                self.replaced.append((layer, self._new[id(layer)]))
            else:
                self._new[id(layer)] = self._graph(layer)
        return self._new[id(layer)]

    def _changes(self, layer: Layer) -> bool:
        return has_graph(layer) and any(
            self._replaces(one) for _, one in sublayers(layer)
        )

    def _graph(self, model: Any) -> Any:
        outputs, inputs = self._outputs(graph_in(model))
        cls = type(model)
        if not is_functional(model) or not takes_inputs_and_outputs(cls):
            if type(model) is not keras.Sequential:
                warnings.warn(
                    f"Model '{model.name}' is of class {cls.__name__}, whose "
                    "constructor does not take inputs and outputs: the copy is a plain "
                    "keras.Model, without methods such as a custom `train_step`.",
                    UserWarning,
                    stacklevel=2,
                )
            cls = keras.Model
        self._graphs.append((model, cls(inputs, outputs, name=model.name)))
        return self._graphs[-1][1]

    @abstractmethod
    def _outputs(self, graph: Any) -> tuple[Structure, Structure]:
        """The outputs, and the inputs as the new model takes them."""


class _Adding(_Calls):
    """With an input more, of the domain."""

    def _outputs(self, graph: Any) -> tuple[Structure, Structure]:
        names = [one.name for one in graph.inputs]
        if INPUT in names:
            raise ValueError(
                f"Argument `model` must not have an input named '{INPUT}': that is the "
                f"one to be added. Received: a model with inputs {names}"
            )
        domain = keras.Input((), dtype="int32", name=INPUT)

        def call(layer: Layer, *args: Any, **kwargs: Any) -> Any:
            if self._replaces(layer):
                return self._layer(layer)(*args, domain=domain, **kwargs)
            if self._changes(layer):
                given, *rest = args
                return self._layer(layer)(_joined(given, domain), *rest, **kwargs)
            return layer(*args, **kwargs)

        outputs = run_graph(graph, graph.input, call)
        return outputs, _joined(graph.input, domain)


class _Removing(_Calls):
    """Without the inputs that say which domain, and nothing else."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._kept: dict[int, list[bool]] = {}

    def _outputs(self, graph: Any) -> tuple[Structure, Structure]:
        def call(layer: Layer, *args: Any, **kwargs: Any) -> Any:
            if self._replaces(layer):
                del kwargs["domain"]  # given as such, whatever the caller wrote
                return self._layer(layer)(*args, **kwargs)
            if self._changes(layer):
                given, *rest = args
                new = self._layer(layer)
                return new(_only(given, self._kept[id(new)]), *rest, **kwargs)
            return layer(*args, **kwargs)

        outputs = run_graph(graph, graph.input, call)
        gone = _sources(graph.output) - _sources(outputs)
        self._last = [id(one) not in gone for one in graph.inputs]
        return outputs, _only(graph.input, self._last)

    def _graph(self, model: Any) -> Any:
        new = super()._graph(model)
        self._kept[id(new)] = self._last
        return new


def _joined(structure: Structure, domain: Any) -> Structure:
    """Inputs, and the domain as the last of them."""
    if isinstance(structure, dict):
        return {**structure, INPUT: domain}
    if isinstance(structure, (list, tuple)):
        return [*structure, domain]
    return [structure, domain]


def _only(structure: Structure, kept: list[bool]) -> Structure:
    """The inputs that are kept; alone, where it is one of a list."""
    if all(kept):
        return structure
    if isinstance(structure, dict):
        # Flattened, a dictionary is sorted by its keys.
        keys = [key for key, keep in zip(sorted(structure), kept, strict=True) if keep]
        return {key: one for key, one in structure.items() if key in keys}
    flat = zip(keras.tree.flatten(structure), kept, strict=True)
    left = [one for one, keep in flat if keep]
    return left[0] if len(left) == 1 else left


def _sources(outputs: Structure) -> set[int]:
    """The ids of the tensors that `outputs` depend on."""
    seen: set[int] = set()
    pending = keras.tree.flatten(outputs)
    while pending:
        tensor = pending.pop()
        if id(tensor) not in seen:
            seen.add(id(tensor))
            pending += call_of(tensor).input_tensors
    return seen
