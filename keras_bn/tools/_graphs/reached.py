"""Every graph that a model runs, those of its users' own layers too."""

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import keras

from keras_bn._keras import own_variables
from keras_bn.tools._copies.lasting import base_class
from keras_bn.tools._folding.affines import Inexact
from keras_bn.tools._graphs.follow import Call, Followed, follow
from keras_bn.tools._graphs.graph import Graph, fits, tensors
from keras_bn.tools._graphs.walk import (
    Layer,
    called_in_training,
    given_to,
    graph_in,
    has_graph,
    is_batch_norm,
    nodes,
    sublayers,
)


class _Run(NamedTuple):
    """What runs where a layer is called, and whether ever in training mode."""

    layer: Layer
    graph: Any
    training: bool


class Reached:
    """The graphs that `model` runs, outer ones first, and what else calls layers.

    Attributes:
        graphs: Functional graphs, and the operations of layers of other classes that
            hold batch norm.
        calls: How often each layer, by id, is called in these, or held where its calls
            are not known.
        read: The variables, by id, that something else than their layer reads.
        why_not: By id of a batch norm: why the call that it stands in is not known.
        owners: By id of a batch norm or a layer around it: the layer of a user's class
            whose followed call holds it.
    """

    def __init__(
        self, model: Any, opaque: dict[type, str] | None = None, inside: bool = True
    ) -> None:
        self.calls: Counter[int] = Counter()
        self.read: set[int] = set()
        self.why_not: dict[int, str] = {}
        self._opaque = opaque or {}
        self._inside = inside
        self._runs: dict[int, _Run] = {}
        self._calls: dict[int, Call] = {}
        self._unknown: set[int] = set()
        if has_graph(model):
            self._enter_graph(model, graph_in(model), training=False)
        else:
            self._follow_model(model)
        self._count(model)
        inner = self._called_once() if inside else {}
        self.graphs = [
            Graph(run.graph, run.training, inner)
            for run in self._runs.values()
            if id(run.layer) not in inner
        ]
        self.owners = {
            id(node.operation): run.layer
            for run in self._runs.values()
            if not has_graph(run.layer)
            for node in nodes(run.graph)
        }

    def _follow_model(self, model: Any) -> None:
        """Follows the call of a subclassed model, on what it was built for.

        Raises:
            ValueError: It cannot be followed.
        """
        shape = (model.get_build_config() or {}).get("input_shape")

        def symbol(shape: Any) -> Any:
            return keras.KerasTensor((None, *shape[1:]))

        try:
            if shape is None:
                raise Inexact("it has no single input of a known shape")
            inputs = keras.tree.map_shape_structure(symbol, shape)
            self._follow(model, Call((inputs,), {}), training=False)
            if id(model) in self._unknown:
                raise Inexact(next(iter(self.why_not.values())))
        except Inexact as error:
            raise ValueError(
                "Argument `model` must be a Functional or Sequential model, or one "
                "whose `call` can be followed on symbolic tensors. Fold the models "
                f"inside of it. Received: model of class {type(model).__name__}: "
                f"{error}"
            ) from error

    def _enter(self, layer: Layer, call: Call, training: bool) -> None:
        """Goes into what one call runs."""
        if has_graph(layer):
            self._enter_graph(layer, graph_in(layer), training)
        elif not self._inside:
            return
        elif type(layer) is keras.layers.TimeDistributed:
            # The wrapper's own arguments go to a layer that takes them.
            self._enter(layer.layer, Call(call.mapped(_step).args, {}), training)
        elif any(is_batch_norm(one) for _, one in sublayers(layer)):
            self._follow(layer, call, training)

    def _enter_graph(self, layer: Layer, graph: Any, training: bool) -> None:
        known = self._runs.get(id(layer))
        training = training or (known is not None and known.training)
        run = self._runs[id(layer)] = _Run(layer, graph, training)
        if run == known:
            return
        for node in nodes(graph):
            kwargs = dict(node.arguments.kwargs)
            kwargs.pop("training", None)  # what is followed is inference
            call = Call(node.arguments.args, kwargs)
            self._enter(node.operation, call, training or called_in_training(node))

    def _follow(self, layer: Layer, call: Call, training: bool) -> None:
        if id(layer) in self._unknown:
            return
        try:
            call = call.mapped(lambda one: _as_input(layer, one))
            self._enter_graph(layer, self._graph_of(layer, call), training)
        except Inexact as error:
            self._runs.pop(id(layer), None)
            self._unknown.add(id(layer))
            for _, one in sublayers(layer):
                self.why_not[id(one)] = str(error)

    def _graph_of(self, layer: Layer, call: Call) -> Any:
        """What `layer` does in this call, and in all that came before."""
        if base_class(layer) in self._opaque:
            raise Inexact(self._opaque[base_class(layer)])
        known = self._calls.get(id(layer))
        if known is not None:
            call = known.with_(call, layer.name)
            if call == known:
                return self._runs[id(layer)].graph
        followed, self._calls[id(layer)] = _followed(layer, call)
        self.read |= followed.read
        return followed.graph

    def _called_once(self) -> dict[int, Any]:
        """By id of a layer, the graph that it runs, where just one call does."""
        found = {}
        graphs = Counter(i for run in self._runs.values() for i in tensors(run.graph))
        for outer in self._runs.values():
            for node in nodes(outer.graph):
                run = self._runs.get(id(node.operation))
                if run is None or self.calls[id(node.operation)] > 1:
                    continue
                # An input that another graph has too would stand for two tensors.
                pairs = zip(run.graph.inputs, node.input_tensors, strict=False)
                clear = all(a is b or graphs[id(a)] == 1 for a, b in pairs)
                if clear and run.training == outer.training and fits(node, run.graph):
                    found[id(node.operation)] = run.graph
        return found

    def _count(self, model: Any) -> None:
        """Counts calls, and notes who reads what belongs to another layer."""
        for run in self._runs.values():
            for node in nodes(run.graph):
                self.calls[id(node.operation)] += 1
                self.calls.update(id(one) for one in self._held_by(node.operation))
                given = given_to(node)
                self.read |= {id(v) for v in given if isinstance(v, keras.Variable)}
        owned = Counter(
            id(variable)
            for _, layer in sublayers(model)
            for variable in own_variables(layer)
        )
        self.read |= {variable for variable, times in owned.items() if times > 1}

    def _held_by(self, layer: Layer) -> Iterator[Layer]:
        """What `layer` calls in ways that are not known."""
        if id(layer) in self._runs:
            return
        if type(layer) is keras.layers.TimeDistributed:
            yield layer.layer
            yield from self._held_by(layer.layer)
            return
        yield from (one for _, one in sublayers(layer))


def _followed(layer: Layer, call: Call) -> tuple[Followed, Call]:
    """What `layer` does, and the call that was followed."""
    try:
        return follow(layer, call), call
    except Inexact as error:
        # A model inside may be built for one size and take others, but as symbols.
        wider = call.mapped(_of_any_size)
        try:
            return follow(layer, wider), wider
        except Inexact:
            raise error from None


def _of_any_size(tensor: Any) -> Any:
    last = len(tensor.shape) - 1
    shape = (*(None,) * last, *tensor.shape[last:])
    return keras.KerasTensor(shape, dtype=tensor.dtype)


def _step(tensor: Any) -> Any:
    """One step of what goes to `TimeDistributed`."""
    shape = (None, *tensor.shape[2:])
    return keras.KerasTensor(shape, dtype=tensor.dtype)


def _as_input(layer: Layer, tensor: Any) -> Any:
    """A tensor as `layer.__call__` hands it to `call`."""
    dtype = tensor.dtype
    if layer.autocast and keras.backend.is_float_dtype(dtype):
        dtype = layer.compute_dtype
    return keras.KerasTensor(tensor.shape, dtype=dtype)
