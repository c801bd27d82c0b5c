"""Decides, layer by layer, into what each batch norm of a model can be folded."""

from collections import Counter, defaultdict
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_bn.tools import _affine, _linear
from keras_bn.tools._affine import Affine, Inexact
from keras_bn.tools._linear import Weights
from keras_bn.tools._walk import (
    Layer,
    activation_of,
    batch_norms,
    called_in_training,
    computes_plainly,
    graphs,
    is_batch_norm,
    nodes,
    sublayers,
    why_not_plainly,
)


class Folding(NamedTuple):
    """What became of one batch norm layer.

    Attributes:
        layer: Its path in the model.
        into: The path of the layer that took it in; None where it stays.
        reason: Why it stays; the empty string where it was folded.
    """

    layer: str
    into: str | None
    reason: str


class Graph:
    """Who makes and who uses each tensor of one functional graph."""

    def __init__(self, prefix: str, graph: Any, in_training: bool) -> None:
        self.prefix = prefix
        self.model = graph
        self.in_training = in_training
        self.nodes = nodes(graph)
        self.outputs = {id(tensor) for tensor in graph.outputs}
        self.producers = {id(t): node for node in self.nodes for t in node.outputs}
        self.users: dict[int, list[Any]] = defaultdict(list)
        for node in self.nodes:
            for tensor in node.input_tensors:
                self.users[id(tensor)].append(node)

    def only_user(self, tensor: Any) -> Any:
        """The one call that `tensor` goes to.

        Raises:
            Inexact: There are several, or it is an output of the model as well.
        """
        names = [f"'{node.operation.name}'" for node in self.users[id(tensor)]]
        if id(tensor) in self.outputs:
            names.append("the model's output")
        if len(names) > 1:
            source = self.producers.get(id(tensor))
            name = source.operation.name if source else "the input"
            raise Inexact(f"what '{name}' gives is used by {' and '.join(names)}")
        return self.users[id(tensor)][0] if self.users[id(tensor)] else None

    def producer(self, tensor: Any) -> Any:
        """The call that makes `tensor`, for its only user.

        Raises:
            Inexact: There is another user, or the tensor comes from outside.
        """
        self.only_user(tensor)
        if id(tensor) not in self.producers:
            raise Inexact("nothing comes before it in its model")
        return self.producers[id(tensor)]


def graphs_of(model: Any) -> list[Graph]:
    """The graphs in `model`, and whether one is always run in training mode."""
    every = graphs(model)
    training: set[int] = set()
    for _, graph in every:  # an outer graph comes before those in it
        for node in nodes(graph):
            if id(graph) in training or called_in_training(node):
                inner = node.operation
                training.add(id(getattr(inner, "_functional", None) or inner))
    return [Graph(prefix, graph, id(graph) in training) for prefix, graph in every]


def times_called(model: Any, every: list[Graph]) -> Counter[int]:
    """How often each layer, by id, is called in the graphs or held out of them."""
    count: Counter[int] = Counter()
    for graph in every:
        for node in graph.nodes:
            operation = node.operation
            count[id(operation)] += 1
            if isinstance(operation, keras.Layer) and not graphs(operation):
                count.update(id(layer) for _, layer in sublayers(operation))
    return count


class Plan:
    """Which layers go, which get new weights, and why the others stay.

    Attributes:
        foldings: One row a batch norm layer, in the order of the model.
        steps: What linear layers take in, by id: functions of `_linear`, and their
            scale and offset. No weights, which would be more copies of the model.
        activations: Activations that linear layers take over, by id.
        removed: By id, the activation left in the place of a folded batch norm.
    """

    def __init__(self, model: Any) -> None:
        self.steps: dict[int, list[tuple[Any, np.ndarray, np.ndarray]]] = {}
        self.activations: dict[int, Any] = {}
        self.removed: dict[int, Any] = {}
        every = graphs_of(model)
        self._calls = times_called(model, every)
        rows: dict[int, tuple[str | None, str]] = {}
        for graph in every:
            for node in graph.nodes:
                if is_batch_norm(node.operation):
                    rows[id(node.operation)] = self._fold(graph, node)
        outside = (None, "it is called inside a class whose calls are not in a graph")
        self.foldings = [
            Folding(path, *rows.get(id(layer), outside))
            for path, layer in batch_norms(model).items()
        ]

    def _fold(self, graph: Graph, node: Any) -> tuple[str | None, str]:
        """Where the batch norm of this call went, and why if nowhere."""
        layer = node.operation
        try:
            self._check(graph, node)
            affine = self._affine_of(layer, len(node.outputs[0].shape) - 1)
        except Inexact as error:
            return None, str(error)
        reasons = []
        for fold in (self._fold_back, self._fold_ahead):
            try:
                return graph.prefix + fold(graph, node, affine), ""
            except Inexact as error:
                reasons.append(str(error))
        return None, "before: {}; after: {}".format(*reasons)

    def _affine_of(self, layer: Layer, rank: int) -> Affine:
        return _affine.affine_of(layer, rank)

    def _check(self, graph: Graph, node: Any) -> None:
        layer = node.operation
        if graph.in_training or called_in_training(node):
            raise Inexact("it is called with training=True")
        if not computes_plainly(layer):
            raise Inexact(why_not_plainly(layer))
        if self._calls[id(layer)] > 1:
            raise Inexact(f"it is called {self._calls[id(layer)]} times")

    def _fold_back(self, graph: Graph, node: Any, affine: Affine) -> str:
        """Into the linear layer before it."""
        layer, adjacent = node.operation, True
        source = graph.producer(node.input_tensors[0])
        while not _linear.is_linear(source.operation):
            affine = self._passed(_affine.before, affine, source)
            adjacent = adjacent and id(source.operation) in self.removed
            source = graph.producer(source.input_tensors[0])
        linear = source.operation
        self._check_linear(layer, linear)
        if activation_of(linear) or id(linear) in self.activations:
            raise Inexact(f"'{linear.name}' has an activation")
        self._take(_linear.fold_after, source, affine, source.outputs[0].shape)
        activation = activation_of(layer)
        if activation is not None and adjacent:
            self.activations[id(linear)] = activation
            activation = None
        self.removed[id(layer)] = activation
        return str(linear.name)

    def _fold_ahead(self, graph: Graph, node: Any, affine: Affine) -> str:
        """Into the linear layer after it."""
        layer = node.operation
        if activation_of(layer) is not None:
            raise Inexact("it has an activation")
        user = graph.only_user(node.outputs[0])
        while user is not None and not _linear.is_linear(user.operation):
            affine = self._passed(_affine.after, affine, user)
            user = graph.only_user(user.outputs[0])
        if user is None:
            raise Inexact("the model ends")
        self._check_linear(layer, user.operation)
        self._take(_linear.fold_before, user, affine, user.input_tensors[0].shape)
        self.removed[id(layer)] = None
        return str(user.operation.name)

    def _passed(self, step: Any, affine: Affine, node: Any) -> Affine:
        """`affine` on the other side of a layer that is not linear."""
        layer = node.operation
        if id(layer) in self.removed and self.removed[id(layer)] is None:
            return affine
        if not _affine.is_passable(layer) or called_in_training(node):
            raise Inexact(f"'{layer.name}' ({type(layer).__name__}) is in the way")
        shapes = (node.input_tensors[0].shape, node.outputs[0].shape)
        return step(affine, layer, *shapes)  # type: ignore[no-any-return]

    def _check_linear(self, layer: Layer, linear: Layer) -> None:
        if self._calls[id(linear)] > 1:
            raise Inexact(f"'{linear.name}' is called {self._calls[id(linear)]} times")
        if layer.compute_dtype != linear.compute_dtype:
            raise Inexact(f"'{linear.name}' computes in {linear.compute_dtype}")

    def _take(self, fold: Any, node: Any, affine: Affine, shape: Any) -> None:
        """Gives the linear layer of this call its new weights."""
        linear = node.operation
        axis = _linear.channel_axis(linear, len(shape) - 1)
        vectors = [_affine.channel_vector(v, axis, shape[1:][axis]) for v in affine]
        steps = [*self.steps.get(id(linear), []), (fold, *vectors)]
        weights = folded_weights(linear, steps)
        with np.errstate(over="ignore"):
            for one in (*weights.kernels.values(), weights.bias):
                cast = keras.ops.cast(one, linear.variable_dtype)
                if not np.isfinite(keras.ops.convert_to_numpy(cast).astype("f4")).all():
                    raise Inexact(f"its weights do not fit {linear.variable_dtype}")
        self.steps[id(linear)] = steps


def folded_weights(
    linear: Layer, steps: list[tuple[Any, np.ndarray, np.ndarray]]
) -> Weights:
    """The weights of a linear layer after these steps of a plan."""
    weights = _linear.read_weights(linear)
    for fold, scale, offset in steps:
        weights = fold(linear, weights, scale, offset)
    return weights
