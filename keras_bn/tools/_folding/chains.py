"""Where rounding to eight bits goes: chains of layers, and ends of groups of them."""

import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_bn.tools._folding import affines, linear_layers
from keras_bn.tools._folding.affines import Affine, Inexact
from keras_bn.tools._folding.plan import Plan
from keras_bn.tools._folding.takes import Take
from keras_bn.tools._graphs.graph import Graph
from keras_bn.tools._graphs.reached import Reached
from keras_bn.tools._graphs.walk import (
    Layer,
    graph_in,
    has_graph,
    is_batch_norm,
    sublayers,
)


class Chain(NamedTuple):
    """Layers that become one once folded.

    Attributes:
        graph: The graph that calls them.
        nodes: Their calls, in order.
    """

    graph: Graph
    nodes: list[Any]

    @property
    def layers(self) -> list[Layer]:
        """The layers, in order."""
        return [node.operation for node in self.nodes]


class ChainPlan(Plan):
    """What goes into one linear layer along one way of layers in a graph."""

    def _reach(self, model: Any, opaque: dict[type, str] | None) -> Reached:
        return Reached(model, opaque, inside=False)

    def _check(self, graph: Graph, node: Any) -> None:
        super()._check(graph, node)
        if not is_batch_norm(node.operation):
            raise Inexact("it is called by a wrapper")

    def _takes(self, layer: Layer) -> bool:
        return linear_layers.is_linear(layer)

    def _users(self, graph: Graph, tensor: Any) -> list[Any]:
        user = graph.only_user(tensor)
        return [] if user is None else [user]

    def _through(self, source: Any, affine: Affine, go: Any) -> list[Take]:
        raise _in_the_way(source.operation)

    def _joined(self, affine: Affine, node: Any, tensor: Any) -> Affine:
        raise _in_the_way(node.operation)

    def _taken(
        self, graph: Graph, norm: Any, node: Any, affine: Affine, after: bool
    ) -> Take:
        if not linear_layers.is_linear(node.operation):
            raise _in_the_way(node.operation)
        return super()._taken(graph, norm, node, affine, after)

    def _passed(self, affine: Affine, node: Any, back: bool) -> Affine:
        if not affines.is_passable(node.operation):
            raise _in_the_way(node.operation)
        return super()._passed(affine, node, back)


def _in_the_way(operation: Any) -> Inexact:
    return Inexact(f"'{operation.name}' ({type(operation).__name__}) is in the way")


class Chains(ChainPlan):
    """What `fold` would fold, whatever values the weights come to have.

    Attributes:
        chains: By the id of each linear layer.
        held: The ids of layers that stand in others, where nothing can follow.
    """

    def __init__(self, model: Any) -> None:
        self._linked: dict[int, list[Any]] = defaultdict(list)
        super().__init__(model)
        self.chains: dict[int, Chain] = {}
        self.every = self.reached.graphs
        self.held = _held(self.every)
        for graph in self.every:
            for node in graph.nodes:
                layer = node.operation
                if linear_layers.is_linear(layer) and id(layer) not in self.held:
                    norms = self._linked[id(layer)]
                    self.chains[id(layer)] = Chain(graph, _chain(graph, node, norms))

    def _affine_of(self, layer: Layer, rank: int, node: Any) -> Affine:
        """Another number for each channel: equal ones would pass where others do not.

        Of the real ones only the signs count, which few trained weights change.
        """
        real = super()._affine_of(layer, rank, node)
        shape = layer.moving_variance.shape
        values = np.linspace(1.0, 1.5, math.prod(shape)).reshape(shape)
        distinct = affines.laid_out(values, layer.axis, rank)
        return Affine(np.where(real.scale < 0, -distinct, distinct), distinct)

    def _check(self, graph: Graph, node: Any) -> None:
        super()._check(graph, node)
        if len(node.input_tensors) > 1:
            raise Inexact("it is called with a mask or weights of its own")

    def _passed(self, affine: Affine, node: Any, back: bool) -> Affine:
        layer = node.operation
        if self._calls[id(layer)] > 1:
            raise Inexact(f"'{layer.name}' is called {self._calls[id(layer)]} times")
        return super()._passed(affine, node, back)

    def _take(self, graph: Graph, node: Any, takes: list[Take]) -> None:
        super()._take(graph, node, takes)
        (take,) = takes
        self._linked[id(take.layer)].append(node)


def _held(every: list[Graph]) -> set[int]:
    """Layers inside others that are not graphs: they stand where nothing can follow."""
    operations = [node.operation for graph in every for node in graph.nodes]
    return {
        id(inner)
        for one in operations
        if isinstance(one, keras.Layer) and not has_graph(one)
        for _, inner in sublayers(one)
    }


def _chain(graph: Graph, node: Any, norms: list[Any]) -> list[Any]:
    """The calls from the first to the last of these; all have one user."""
    before = [*_before(graph, node)]
    calls = [*reversed(before), node, *_after(graph, node)]
    ours = {id(one) for one in (node, *norms)}
    places = [place for place, one in enumerate(calls) if id(one) in ours]
    return calls[places[0] : places[-1] + 1]


def _before(graph: Graph, node: Any) -> Iterator[Any]:
    """The calls that lead to a call by their first inputs, the last one first."""
    while id(node.input_tensors[0]) in graph.producers:
        node = graph.producers[id(node.input_tensors[0])]
        yield node


def _after(graph: Graph, node: Any) -> Iterator[Any]:
    """The calls that follow a call, as long as each is the only user of another."""
    while len(users := graph.users[id(node.outputs[0])]) == 1:
        (node,) = users
        yield node


def ends(plan: Chains) -> set[int]:
    """The operations, by id, after which a deployed graph rounds activations.

    Those that compute something, but for what the next one is fused into: ReLU into
    whatever is before it. Batch norm is fused too: of a chain the last layer counts.
    """
    return {
        id(node.operation)
        for graph in plan.every
        for node in graph.nodes
        if id(node.operation) not in plan.held and _rounds(plan, graph, node)
    }


def _rounds(plan: Chains, graph: Graph, node: Any) -> bool:
    operation, outputs = node.operation, node.outputs
    if has_graph(operation) or _moves(operation) or len(outputs) != 1:
        return False
    if not keras.backend.is_float_dtype(outputs[0].dtype):
        return False
    return not _goes_to_relu(plan, graph, outputs[0])


def _goes_to_relu(plan: Chains, graph: Graph, tensor: Any) -> bool:
    """Whether nothing but one ReLU reads a tensor, which may be an inner model's."""
    users, leaves = graph.users[id(tensor)], id(tensor) in graph.outputs
    if len(users) + leaves != 1:
        return False
    if users:
        return _is_relu(users[0].operation)
    place = [id(one) for one in graph.model.outputs].index(id(tensor))
    calls = [*_calls(plan, graph)]
    if not calls:
        return False
    return all(_goes_to_relu(plan, outer, node.outputs[place]) for outer, node in calls)


def _calls(plan: Chains, graph: Graph) -> Iterator[tuple[Graph, Any]]:
    """The calls of an inner model in outer ones."""
    for outer in plan.every:
        for node in outer.nodes:
            if graph_in(node.operation) is graph.model:
                yield outer, node


def _is_relu(operation: Any) -> bool:
    """Whether deployed graphs make this a bound of what comes before it."""
    if type(operation) is keras.layers.ReLU:
        plain = not (operation.negative_slope or operation.threshold)
        return plain and operation.max_value in (None, 6)
    bounds = (keras.activations.relu, keras.activations.relu6)
    fused = getattr(operation, "activation", None) in bounds
    return type(operation) is keras.layers.Activation and fused


_AVERAGES = (
    keras.layers.AveragePooling1D,
    keras.layers.AveragePooling2D,
    keras.layers.AveragePooling3D,
    keras.layers.GlobalAveragePooling1D,
    keras.layers.GlobalAveragePooling2D,
    keras.layers.GlobalAveragePooling3D,
)
_MOVING_OPERATIONS = (
    *("Cast", "ExpandDims", "Flip", "GetItem", "Moveaxis", "Reshape", "Squeeze"),
    *("Swapaxes", "Transpose"),
)


def _moves(operation: Any) -> bool:
    """Whether it hands rounded values on as they are."""
    if isinstance(operation, keras.Layer):
        blends = getattr(operation, "interpolation", "nearest") != "nearest"
        averages = blends or type(operation) in _AVERAGES
        return affines.is_passable(operation) and not averages
    return type(operation).__name__ in _MOVING_OPERATIONS


def reads_inputs(plan: Chains, chain: Chain) -> bool:
    """Whether a chain reads the model's input, which nothing has rounded."""
    return _is_raw(plan, chain.graph, chain.nodes[0].input_tensors[0])


def _is_raw(plan: Chains, graph: Graph, tensor: Any) -> bool:
    while id(tensor) in graph.producers:
        node = graph.producers[id(tensor)]
        if not _moves(node.operation):
            return False
        tensor = node.input_tensors[0]
    if graph is plan.every[0]:
        return True
    place = [id(one) for one in graph.model.inputs].index(id(tensor))
    return any(
        _is_raw(plan, outer, node.input_tensors[place])
        for outer, node in _calls(plan, graph)
    )
