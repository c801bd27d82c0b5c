"""What the calls in a model's graphs say of its batch norm layers, for `inspect`."""

from collections import Counter
from typing import Any

import keras

from keras_bn.tools._folding import linear_layers
from keras_bn.tools._folding.affines import Inexact
from keras_bn.tools._graphs.graph import graphs_of
from keras_bn.tools._graphs.walk import (
    Layer,
    activation_of,
    called_in_training,
    children,
    graphs,
    has_graph,
    is_batch_norm,
    nodes,
    normalizes_by_batch,
    sublayers,
)


def from_graphs(model: Any) -> tuple[dict[int, str], set[int]]:
    """By id of a batch norm: the biased layer before it; those always in training."""
    paths = {id(layer): path for path, layer in sublayers(model)}
    calls = _calls(model)
    biases: dict[int, str] = {}
    training: set[int] = set()
    for graph in graphs_of(model):
        for node in graph.nodes:
            layer = node.operation
            if not is_batch_norm(layer):
                continue
            if graph.in_training or called_in_training(node):
                training.add(id(layer))
            linear = _linear_before(graph, node)
            if linear is None or calls[id(linear)] > 1 or not linear.use_bias:
                continue
            if normalizes_by_batch(layer):
                biases[id(layer)] = paths[id(linear)]
    return biases, training


def _calls(model: Any) -> Counter[int]:
    """How often a layer, by id, is called in graphs, or held by what has none."""
    every = (model, *(layer for _, layer in sublayers(model)))
    held = (one for layer in every if not has_graph(layer) for one in children(layer))
    called = (node.operation for graph in graphs(model) for node in nodes(graph))
    return Counter(map(id, (*held, *called)))


_LAYERS = keras.layers
_KEEPS_CHANNELS = (
    _LAYERS.AveragePooling1D,
    _LAYERS.AveragePooling2D,
    _LAYERS.AveragePooling3D,
    _LAYERS.MaxPooling1D,
    _LAYERS.MaxPooling2D,
    _LAYERS.MaxPooling3D,
    _LAYERS.Identity,
)
"""A constant added to a channel before these is the same constant after them."""


def _linear_before(graph: Any, node: Any) -> Layer | None:
    """The linear layer whose constants per channel this batch norm removes."""
    try:
        source = graph.producer(node.input_tensors[0])
        while type(source.operation) in _KEEPS_CHANNELS:
            source = graph.producer(source.input_tensors[0])
    except Inexact:
        return None
    linear, rank = source.operation, len(node.outputs[0].shape)
    if not linear_layers.is_linear(linear) or activation_of(linear) is not None:
        return None
    axis = node.operation.axis
    channel = 1 + linear_layers.channel_axis(linear, rank - 1)
    return linear if isinstance(axis, int) and axis % rank == channel else None
