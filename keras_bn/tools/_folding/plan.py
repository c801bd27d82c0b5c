"""Decides, layer by layer, into what each batch norm of a model can be folded."""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_bn.tools._folding import affines, merges, operations
from keras_bn.tools._folding.affines import Affine, Inexact
from keras_bn.tools._folding.takers import is_taker
from keras_bn.tools._folding.takes import Take, check_fits, folded_weights
from keras_bn.tools._graphs.graph import Graph
from keras_bn.tools._graphs.reached import Reached
from keras_bn.tools._graphs.walk import (
    Layer,
    activation_of,
    batch_norms,
    called_in_training,
    computes_plainly,
    is_batch_norm,
    sublayers,
    why_not_plainly,
)


class Folding(NamedTuple):
    """What became of one batch norm layer.

    Attributes:
        layer: Its path in the model.
        into: The path of the layer that took it in, several with commas between them;
            None where it stays.
        reason: Why it stays; the empty string where it was folded.
    """

    layer: str
    into: str | None
    reason: str


class Plan:
    """Which layers go, which get new weights, and why the others stay.

    Attributes:
        foldings: One row a batch norm layer, in the order of the model.
        steps: What layers take in, by id. No weights, which would be more copies of
            the model.
        activations: Activations that linear layers take over, by id.
        removed: By id, the activation left in the place of a folded batch norm.
        reached: The graphs, and the calls in them.
    """

    def __init__(self, model: Any, opaque: dict[type, str] | None = None) -> None:
        self.steps: dict[int, list[Take]] = {}
        self.activations: dict[int, Any] = {}
        self.removed: dict[int, Any] = {}
        self.reached = self._reach(model, opaque)
        self._calls = self.reached.calls
        self._paths = {id(layer): path for path, layer in sublayers(model)}
        rows = self._fold_all()
        outside = "nothing that is followed calls it"
        why_not = self.reached.why_not
        self.foldings = [
            Folding(path, *rows.get(id(layer), (None, why_not.get(id(layer), outside))))
            for path, layer in batch_norms(model).items()
        ]

    def _reach(self, model: Any, opaque: dict[type, str] | None) -> Reached:
        return Reached(model, opaque)

    def _fold_all(self) -> dict[int, tuple[str | None, str]]:
        """Folds what it can, until nothing more goes: one may free another's way."""
        pending = [
            (graph, node)
            for graph in self.reached.graphs
            for node in graph.nodes
            if is_batch_norm(_called(node))
        ]
        rows: dict[int, tuple[str | None, str]] = {}
        for last_resort in (False, True):
            count = None
            while count != len(pending):
                count = len(pending)
                left = []
                for graph, node in pending:
                    into, reason = self._fold(graph, node, last_resort)
                    rows[id(_called(node))] = into, reason
                    if into is None:
                        left.append((graph, node))
                pending = left
        return rows

    def _fold(
        self, graph: Graph, node: Any, last_resort: bool
    ) -> tuple[str | None, str]:
        """Where the batch norm of this call went, and why if nowhere."""
        layer = _called(node)
        try:
            self._check(graph, node)
            affine = self._affine_of(layer, len(node.outputs[0].shape) - 1, node)
        except Inexact as error:
            return None, str(error)
        reasons: list[Inexact] = []
        for direction in (self._back, self._ahead):
            try:
                takes = direction(graph, node, affine, last_resort)
                self._take(graph, node, takes)
            except Inexact as error:
                reasons.append(error)
                continue
            return ", ".join(self._paths[id(take.layer)] for take in takes), ""
        return None, "before: {}; after: {}".format(*reasons)

    def _affine_of(self, layer: Layer, rank: int, node: Any) -> Affine:
        wrapped = layer is not node.operation
        affine = affines.affine_of(layer, rank - wrapped)
        for take in self.steps.get(id(layer), ()):  # another norm, as a last resort
            scale, offset = take.affine
            affine = Affine(affine.scale * scale, affine.offset * scale + offset)
        return affine.apply(lambda one: one[np.newaxis]) if wrapped else affine

    def _check(self, graph: Graph, node: Any) -> None:
        layer = _called(node)
        if graph.in_training or called_in_training(node):
            raise Inexact("it is called with training=True")
        if not computes_plainly(layer):
            raise Inexact(why_not_plainly(layer))
        for name, value in node.arguments.kwargs.items():
            # Neither a mask nor weights make a difference in inference.
            known = name in ("inputs", "mask", "training", "weights")
            if not known and value is not None:
                raise Inexact(f"it is called with `{name}`")
        if self._calls[id(layer)] > 1:
            raise Inexact(f"it is called {self._calls[id(layer)]} times")
        self._check_read(layer)

    def _check_read(self, layer: Layer) -> None:
        if any(id(variable) in self.reached.read for variable in layer.variables):
            raise Inexact(f"something else reads the weights of '{layer.name}'")

    def _back(
        self, graph: Graph, node: Any, affine: Affine, last_resort: bool
    ) -> list[Take]:
        """What the layers before the batch norm must take in."""

        def go(tensor: Any, affine: Affine) -> list[Take]:
            source = graph.producer(tensor)
            if id(source.operation) in self.removed:
                if self.removed[id(source.operation)] is not None:
                    raise Inexact(f"'{source.operation.name}' has an activation")
                return go(source.input_tensors[0], affine)
            layer = _called(source)
            if self._takes(layer) and (last_resort or not is_batch_norm(layer)):
                return [self._taken(graph, node, source, affine, after=True)]
            if merges.joins(source):
                return self._through(source, affine, go)
            return go(source.input_tensors[0], self._passed(affine, source, back=True))

        return go(node.input_tensors[0], affine)

    def _through(
        self, source: Any, affine: Affine, go: Callable[[Any, Affine], list[Take]]
    ) -> list[Take]:
        """What the layers before a call that joins tensors must take in."""
        parts, offset, signs = merges.split(affine, source)
        inputs = source.input_tensors
        takes = [go(*pair) for pair in zip(inputs, parts, strict=True)]
        if np.any(offset):
            for i, sign in enumerate(signs):
                try:
                    takes[i] = go(inputs[i], parts[i]._replace(offset=sign * offset))
                    break
                except Inexact:
                    if i + 1 == len(signs):
                        raise
        return [take for one in takes for take in one]

    def _ahead(
        self, graph: Graph, node: Any, affine: Affine, last_resort: bool
    ) -> list[Take]:
        """What the layers after the batch norm must take in, all that there are."""
        if activation_of(_called(node)) is not None:
            raise Inexact("it has an activation")

        def go(tensor: Any, affine: Affine) -> list[Take]:
            users = self._users(graph, tensor)
            if not users:
                raise Inexact("the model ends")
            return [take for user in users for take in into(user, tensor, affine)]

        def into(user: Any, tensor: Any, affine: Affine) -> list[Take]:
            if self.removed.get(id(user.operation), self) is None:
                return go(user.outputs[0], affine)
            layer = _called(user)
            if self._takes(layer) and not is_batch_norm(layer):
                return [self._taken(graph, node, user, affine, after=False)]
            if len(user.input_tensors) > 1:
                return go(user.outputs[0], self._joined(affine, user, tensor))
            return go(user.outputs[0], self._passed(affine, user, back=False))

        return go(node.outputs[0], affine)

    def _takes(self, layer: Layer) -> bool:
        return is_taker(layer)

    def _passed(self, affine: Affine, node: Any, back: bool) -> Affine:
        return operations.passed(affine, node, back)

    def _joined(self, affine: Affine, node: Any, tensor: Any) -> Affine:
        return merges.joined(affine, node, tensor)

    def _users(self, graph: Graph, tensor: Any) -> list[Any]:
        """The calls that `tensor` goes to, if it goes nowhere else."""
        users = [*{id(one): one for one in graph.users[graph.key(tensor)]}.values()]
        if users and graph.key(tensor) in graph.outputs:
            raise Inexact(graph.used_by(tensor))
        return users

    def _taken(
        self, graph: Graph, norm: Any, node: Any, affine: Affine, after: bool
    ) -> Take:
        """Checks that the layer of a call may get other weights."""
        layer, other = _called(node), _called(norm)
        if self._calls[id(layer)] > 1:
            raise Inexact(f"'{layer.name}' is called {self._calls[id(layer)]} times")
        if other.compute_dtype != layer.compute_dtype:
            raise Inexact(f"'{layer.name}' computes in {layer.compute_dtype}")
        if after and (activation_of(layer) or id(layer) in self.activations):
            raise Inexact(f"'{layer.name}' has an activation")
        if is_batch_norm(layer):
            self._check(graph, node)
        self._check_read(layer)
        shapes = [node.input_tensors[0].shape, node.outputs[0].shape]
        if layer is not node.operation:
            affine = operations.one_step(affine, node.operation.name)
            shapes = [(*shape[:1], *shape[2:]) for shape in shapes]
        return Take(node, layer, after, affine, *shapes)

    def _take(self, graph: Graph, node: Any, takes: list[Take]) -> None:
        """Gives the layers their new weights, or none of them."""
        every = dict(self.steps)
        for take in takes:
            steps = every[id(take.layer)] = [*every.get(id(take.layer), []), take]
            check_fits(take.layer, folded_weights(take.layer, steps))
        activation = activation_of(_called(node))
        if activation is not None and self._can_activate(graph, node, takes[0]):
            self.activations[id(takes[0].layer)] = activation
            activation = None
        self.steps = every
        self.removed[id(node.operation)] = activation

    def _can_activate(self, graph: Graph, node: Any, take: Take) -> bool:
        """Whether nothing stands between a norm and a layer that takes activations."""
        source = graph.producer(node.input_tensors[0])
        while id(source.operation) in self.removed:
            source = graph.producer(source.input_tensors[0])
        return source is take.node and hasattr(take.layer, "activation")


def _called(node: Any) -> Any:
    """The layer that a call goes to; that in it, of one that goes step by step."""
    operation = node.operation
    if type(operation) is keras.layers.TimeDistributed:
        return operation.layer
    return operation
