"""The calls of a functional graph: who makes and who uses each tensor."""

from collections import defaultdict
from typing import Any

from keras_bn.tools._folding.affines import Inexact
from keras_bn.tools._graphs.walk import called_in_training, graph_in, graphs, nodes


class Graph:
    """Who makes and who uses each tensor of one functional graph.

    Args:
        graph: A functional model, or a `keras.Function`.
        in_training: Whether it is always run in training mode.
        inner: By id of a layer that is called here and nowhere else, the graph that it
            runs: its calls stand in the place of that one, so that a batch norm can go
            across the border.
    """

    def __init__(self, graph: Any, in_training: bool, inner: dict[int, Any]) -> None:
        self.model = graph
        self.in_training = in_training
        self._same: dict[int, int] = {}
        self.nodes = self._with_inner(graph, inner)
        self.outputs = {self.key(tensor) for tensor in graph.outputs}
        self.producers = {
            self.key(tensor): node for node in self.nodes for tensor in node.outputs
        }
        self.users: dict[int, list[Any]] = defaultdict(list)
        for node in self.nodes:
            for tensor in node.input_tensors:
                self.users[self.key(tensor)].append(node)

    def _with_inner(self, graph: Any, inner: dict[int, Any]) -> list[Any]:
        every = []
        for node in nodes(graph):
            within = inner.get(id(node.operation))
            if within is None:
                every.append(node)
                continue
            pairs = [*zip(within.inputs, node.input_tensors, strict=True)]
            pairs += zip(node.outputs, within.outputs, strict=True)
            # A model may be called on the very tensors that it was made of.
            self._same.update((id(a), id(b)) for a, b in pairs if a is not b)
            every += self._with_inner(within, inner)
        return every

    def key(self, tensor: Any) -> int:
        """The same for what an inner graph and its caller call by two names."""
        place = id(tensor)
        while place in self._same:
            place = self._same[place]
        return place

    def only_user(self, tensor: Any) -> Any:
        """The one call that `tensor` goes to.

        Raises:
            Inexact: There are several, or it is an output of the model as well.
        """
        users = self.users[self.key(tensor)]
        if len(users) + (self.key(tensor) in self.outputs) > 1:
            raise Inexact(self.used_by(tensor))
        return users[0] if users else None

    def used_by(self, tensor: Any) -> str:
        """Who uses `tensor`, in words."""
        names = [f"'{node.operation.name}'" for node in self.users[self.key(tensor)]]
        if self.key(tensor) in self.outputs:
            names.append("the model's output")
        source = self.producers.get(self.key(tensor))
        name = source.operation.name if source else "the input"
        return f"what '{name}' gives is used by {' and '.join(names)}"

    def producer(self, tensor: Any) -> Any:
        """The call that makes `tensor`, for its only user.

        Raises:
            Inexact: There is another user, or the tensor comes from outside.
        """
        self.only_user(tensor)
        if self.key(tensor) not in self.producers:
            raise Inexact("nothing comes before it in its model")
        return self.producers[self.key(tensor)]


def tensors(graph: Any) -> set[int]:
    """The ids of all tensors of a graph."""
    made = (tensor for node in nodes(graph) for tensor in node.outputs)
    return {id(tensor) for tensor in (*graph.inputs, *made)}


def fits(node: Any, graph: Any) -> bool:
    """Whether the tensors of a call are one by one like those of the graph it runs."""
    inside, outside = (
        [(one.shape, one.dtype) for one in each]
        for each in (
            [*graph.inputs, *graph.outputs],
            [*node.input_tensors, *node.outputs],
        )
    )
    return inside == outside


def graphs_of(model: Any) -> list[Graph]:
    """The graphs in `model`, and whether one is always run in training mode."""
    every = graphs(model)
    training: set[int] = set()
    for graph in every:  # an outer graph comes before those in it
        for node in nodes(graph):
            if id(graph) in training or called_in_training(node):
                training.add(id(graph_in(node.operation)))
    return [Graph(graph, id(graph) in training, {}) for graph in every]
