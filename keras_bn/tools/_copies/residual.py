"""Residuals that a norm is called with, as layers of their own."""

from typing import Any

from keras_bn.tools._copies.carry import carry_leaf, made_like
from keras_bn.tools._copies.converted import activation_layer
from keras_bn.tools._copies.rebuild import Replacement, adder, rebuild
from keras_bn.tools._graphs.walk import (
    Layer,
    activation_of,
    called_with,
    computes_plainly,
    graphs,
    nodes,
)


def with_sums(model: Any) -> Any:
    """A copy of `model` that adds residuals by layers; itself where there are none.

    `norm(x, residual=r)` becomes the norm, an `Add`, and the norm's activation: the
    same, in layers that all tools and exporters know.
    """
    called = {
        id(node.operation)
        for graph in graphs(model)
        for node in nodes(graph)
        if computes_plainly(node.operation) and called_with(node, "residual")
    }
    if not called:
        return model

    def replace(layer: Layer) -> Replacement | None:
        if id(layer) not in called:
            return None
        activation = activation_of(layer)
        then = () if activation is None else (activation_layer(layer, activation),)
        bare = made_like(layer, without=("activation",))
        return Replacement(bare, then, adder(layer))

    return rebuild(model, replace, carry_leaf)
