"""The calls of a functional graph: who makes and who uses each tensor."""

from collections import defaultdict
from typing import Any

from keras_bn.tools._affine import Inexact
from keras_bn.tools._walk import called_in_training, graphs, nodes


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
        users = self.users[id(tensor)]
        if len(users) + (id(tensor) in self.outputs) > 1:
            raise Inexact(self.used_by(tensor))
        return users[0] if users else None

    def used_by(self, tensor: Any) -> str:
        """Who uses `tensor`, in words."""
        names = [f"'{node.operation.name}'" for node in self.users[id(tensor)]]
        if id(tensor) in self.outputs:
            names.append("the model's output")
        source = self.producers.get(id(tensor))
        name = source.operation.name if source else "the input"
        return f"what '{name}' gives is used by {' and '.join(names)}"

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
