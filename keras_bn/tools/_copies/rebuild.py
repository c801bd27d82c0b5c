"""Copies a model with other layers in the place of chosen ones."""

from collections.abc import Callable
from itertools import count
from typing import Any, NamedTuple

import keras

from keras_bn import _keras
from keras_bn.tools._copies.carry import Fill, called, classes_known, take_over
from keras_bn.tools._copies.lasting import make_lasting, save_as_graph
from keras_bn.tools._copies.values import NotCopied, Values
from keras_bn.tools._graphs.walk import (
    Layer,
    graph_in,
    has_graph,
    is_functional,
    nodes,
    sublayers,
)
from keras_bn.tools._reports.progress import Progress

SAME = object()
"""As the layer of a `Replacement`: a copy of the one that stood there."""


class Replacement(NamedTuple):
    """What stands in the copy where a layer stood.

    Attributes:
        layer: The layer that is called instead; None to hand the input on, `SAME` for
            a copy of the old one.
        then: What follows it, called on the result alone: layers, or functions
            that make one, a new one for each call of a layer that is shared.
        add: Makes the layer that adds a `residual` that the old one was called with,
            before `then`; None where the new one is called with it.
    """

    layer: Layer | None
    then: tuple[Layer | Callable[[], Layer], ...] = ()
    add: Callable[[], Layer] | None = None


class OutOfReach(ValueError):
    """A layer cannot be copied with what stands in the place of others.

    Attributes:
        owner: The layer.
    """

    def __init__(self, message: str, owner: Layer) -> None:
        super().__init__(message)
        self.owner = owner


Replace = Callable[[Layer], Replacement | None]
"""Says what to put in the place of a layer; None to copy it as it is."""


def rebuild(model: Any, replace: Replace, fill: Fill) -> Any:
    """A copy of `model`, of the same names, weights, random states and flags.

    Layers that are shared in the model are shared in the copy. Layers are copied as
    they stand, attribute by attribute, and none of the model's code is run: neither
    constructors nor `get_config` nor `call`. A function is the user's own; a layer or a
    variable of the model that it refers to is the copy's.

    Raises:
        OutOfReach: Something that refers to a part of the model cannot be copied; the
            message names the layer and the attribute.
    """
    _keras.require_copies()
    layers = 1 + sum(1 for _ in sublayers(model))
    with Progress(f"copying {model.name}", layers) as progress, classes_known(model):
        copier = _Copier(model, replace, progress.advance)
        copy: Any = copier.copy(model).layer
        copier.finish(fill)
    _check_apart(model, copy)
    return copy


class _Copier:
    """Each layer's copy, made once."""

    def __init__(
        self, model: Any, replace: Replace, advance: Callable[[], None]
    ) -> None:
        self._replace = replace
        self._advance = advance
        self._copies: dict[int, tuple[Layer, Replacement]] = {}
        self._replaced: dict[int, Layer | None] = {}
        self._followers: dict[int, list[Layer]] = {}
        self._tensors: dict[int, tuple[Any, Any]] = {}
        self._other: set[int] = set()
        self._values = Values(model, self._standing, self._tensor)
        self._bare = vars(keras.Model(name="bare"))

    def copy(self, layer: Layer) -> Replacement:
        if id(layer) not in self._copies:
            chosen = self._replace(layer) or Replacement(SAME)
            if chosen.layer is SAME:
                self._same(layer, chosen)
            else:
                self._copies[id(layer)] = (layer, chosen)
                self._replaced[id(layer)] = chosen.layer
            self._advance()
        return self._copies[id(layer)][1]

    def finish(self, fill: Fill) -> None:
        """Gives replaced layers their state, and lets all of them be saved."""
        self._values.finish()
        pairs: list[Any] = [(old, new) for old, (new, *_) in self._copies.values()]
        pairs = [pair for pair in pairs if isinstance(pair[1], keras.layers.Layer)]
        for old, new in pairs:
            if id(old) in self._replaced:
                take_over(old, new, fill)
        for _, new in pairs:
            if new.built:  # with the weights in it, which have their names by now
                _keras.finish_copy(new)
        placed = {id(one) for one in self._replaced.values() if one is not None}
        if placed:
            # What holds another was noted before it.
            for _, new in reversed(pairs):
                if has_graph(new):
                    if any(id(one) in placed for _, one in sublayers(new)):
                        placed.add(id(new))
                        save_as_graph(new)
                else:
                    make_lasting(new, placed)

    def _same(self, old: Layer, chosen: Replacement) -> None:
        is_layer = isinstance(old, keras.layers.Layer)
        new = (keras.layers.Layer if is_layer else keras.Operation).__new__(type(old))
        self._copies[id(old)] = (old, chosen._replace(layer=new))
        if graph_in(old) is not None:  # of a Sequential; a graph itself has been noted
            self.copy(graph_in(old))
        of_graph = self._graph(old) if is_functional(old) else {}
        loose, self._values.loose = self._values.loose, has_graph(old)
        try:
            self._attributes(old, new, set(of_graph))
        finally:
            self._values.loose = loose
        vars(new).update(of_graph)

    def _attributes(self, old: Layer, new: Layer, left_out: set[str]) -> None:
        # The methods that `__new__` has wrapped are the new layer's own.
        left_out |= {*_keras.WRAPPED, *_keras.OF_CALLS}
        state: dict[str, Any] = new.__dict__
        state.update((name, kind()) for name, kind in _keras.OF_CALLS.items())
        if isinstance(old, keras.Model):
            compiled = _keras.OF_COMPILE
            left_out |= set(compiled)
            state.update((n, self._bare[n]) for n in compiled if n in self._bare)
        for name, value in vars(old).items():
            if name in left_out:
                continue
            try:
                state[name] = self._values.of(
                    _keras.without_listed_weights(name, value)
                )
            except NotCopied as error:
                raise OutOfReach(
                    f"Layer '{old.name}' of class {type(old).__name__} cannot be "
                    f"copied, for its attribute `{name}`: {error}",
                    old,
                ) from error

    def _graph(self, model: Any) -> dict[str, Any]:
        """What a functional model knows of its graph, for the copy of the graph."""
        for node in nodes(model):
            if not all(id(one) in self._tensors for one in node.outputs):
                self._call(node)
        inputs, outputs = (
            keras.tree.map_structure(self._tensor, structure)
            for structure in (model.input, model.output)
        )
        graph = keras.Model(inputs, outputs, name=model.name)
        return {k: v for k, v in vars(graph).items() if k not in self._bare}

    def _tensor(self, old: Any) -> Any:
        """The symbolic tensor in the copy that `old` is in the model."""
        if id(old) not in self._tensors:
            made_by = _keras.call_of(old)
            if made_by is None:
                return old  # of no graph
            self._call(made_by)
        return self._tensors[id(old)][1]

    def _note(self, old: list[Any], new: list[Any]) -> None:
        for one, other in zip(old, new, strict=True):
            self._tensors[id(one)] = (one, other)
            if (one.shape, one.dtype) != (other.shape, other.dtype):
                self._other.add(id(other))

    def _call(self, node: Any) -> None:
        """Repeats a call of the graph, with what stands in the layer's place."""
        old, given = node.operation, node.input_tensors
        if node.is_input:  # before its layer, which has its tensor for an attribute
            self._note(node.outputs, [_like(one) for one in node.outputs])
        new = {id(one): self._tensor(one) for one in given}
        args, kwargs = keras.tree.map_structure(
            self._argument, node.arguments.fill_in(new)
        )
        layer, then, add = self.copy(old)
        residual = None if add is None else kwargs.pop("residual", None)
        changed = any(id(one) in self._other for one in new.values())
        if layer is None:
            outputs = new[id(given[0])]  # a mask comes after the inputs
        elif id(old) in self._replaced or changed:
            self._give_masks(given)
            outputs = called(layer, args, kwargs)
        else:
            # A copy's outputs are known to be as the layer's: it need not run for them.
            outputs = [
                self._tensors[id(t)][1] if node.is_input else _like(t)
                for t in node.outputs
            ]
            _keras.note_call(layer, args, kwargs, outputs)
        for one in then if residual is None or add is None else (add, *then):
            follower = _made(one)
            self._followers.setdefault(id(old), []).append(follower)
            (outputs,) = keras.tree.flatten(outputs)
            outputs = follower([outputs, residual] if one is add else outputs)
        if not node.is_input:
            self._note(node.outputs, keras.tree.flatten(outputs))

    def _argument(self, value: Any) -> Any:
        """An argument of a call: a weight of the model's is the copy's there."""
        return self._values.of(value) if self._values.own(value) else value

    def _give_masks(self, tensors: list[Any]) -> None:
        """What a layer that is called anew looks for on its inputs."""
        for old in tensors:
            mask = _keras.attached_mask(old)
            if mask is not None and id(mask) in self._tensors:
                _keras.attach_mask(self._tensor(old), self._tensor(mask))

    def _standing(self, old: Layer) -> list[Layer]:
        """The layers in the place of `old`: one, but where it is in a graph."""
        first, then, _ = self.copy(old)
        if id(old) not in self._followers:
            self._followers[id(old)] = [_made(one) for one in then]
        every = [first, *self._followers.get(id(old), ())]
        return [one for one in every if one is not None]


def adder(layer: Layer) -> Callable[[], Layer]:
    """As `add` of a `Replacement` for `layer`."""
    numbers = count()

    def add() -> Layer:
        number = next(numbers)
        name = f"{layer.name}_add" + (f"_{number}" if number else "")
        return keras.layers.Add(name=name, dtype=layer.dtype_policy)

    return add


def _made(layer: Any) -> Layer:
    return layer if isinstance(layer, keras.Operation) else layer()


def _like(tensor: Any) -> Any:
    """A symbolic tensor like `tensor`, in no graph."""
    new = object.__new__(type(tensor))
    state = {k: v for k, v in vars(tensor).items() if k not in _keras.OF_GRAPH}
    vars(new).update(state)
    return new


def _check_apart(model: Any, copy: Any) -> None:
    """Checks that the copy holds nothing that is the model's."""
    ours = {id(one) for _, one in sublayers(model)} | {id(v) for v in model.variables}
    inside = [*sublayers(copy), *((v.path, v) for v in copy.variables)]
    shared = [path for path, one in inside if id(one) in ours]
    if shared:
        raise ValueError(
            f"Model '{model.name}' cannot be copied: the copy would hold layers or "
            f"weights of the model itself. Received: {shared}"
        )
