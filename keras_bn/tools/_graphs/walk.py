"""What the tools share: finding the batch norm layers of a model, and its graphs."""

import functools
import inspect
from collections import Counter
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_bn._keras import (
    RUN_BY_BATCH_NORM,
    direct_layers,
    graph_of_sequential,
)
from keras_bn._keras import Layer as Layer
from keras_bn._keras import nodes as nodes
from keras_bn.layers import (
    BatchNormalization,
    ConditionalBatchNormalization,
    DomainBatchNormalization,
)
from keras_bn.ops._settings import shown

STATISTICS = ("moving_mean", "moving_variance")
RENORM_STATISTICS = ("moving_stddev", "renorm_mean", "renorm_stddev")
COUNTS = ("moving_count", "moving_weight", "renorm_weight")
"""What the averages are made of, where a layer keeps that."""


def is_batch_norm(layer: Layer) -> bool:
    """Whether `layer` normalizes by batch statistics, ours or Keras's."""
    return isinstance(layer, (BatchNormalization, keras.layers.BatchNormalization))


def is_plain_batch_norm(layer: Layer) -> bool:
    """`is_batch_norm`, but for subclasses, whose `call` may do anything."""
    return type(layer) in (BatchNormalization, keras.layers.BatchNormalization)


def normalizes_by_batch(layer: Layer) -> bool:
    """Whether `layer` uses, and averages, the statistics of the batch in training."""
    return bool(layer.trainable) and not getattr(layer, "freeze_statistics", False)


def infers_by_batch(layer: Layer) -> bool:
    """Whether `layer` uses the statistics of the batch in inference, and moves none."""
    return getattr(layer, "inference_statistics", "moving") == "batch"


def computes_plainly(layer: Layer) -> bool:
    """Whether `layer` is a batch norm, and nothing of a subclass runs in its `call`."""
    ours = isinstance(layer, BatchNormalization)
    base = BatchNormalization if ours else keras.layers.BatchNormalization
    # Of no other layer are these the same, `call` to begin with.
    return all(getattr(type(layer), n) is getattr(base, n) for n in _RUN[base])


_RUN = {
    BatchNormalization: (
        *("call", "__call__", "_normalize", "_parameter", "_by_batch"),
        *("_fused_activation", "_statistics"),
    ),
    keras.layers.BatchNormalization: RUN_BY_BATCH_NORM,
}
"""What runs when a batch norm is called."""


def is_domain_norm(layer: Layer) -> bool:
    """Whether `layer` keeps statistics for each of several domains."""
    return isinstance(layer, DomainBatchNormalization)


def is_conditional(layer: Layer) -> bool:
    """Whether `layer` has a gamma and beta for each sample."""
    return type(layer) is ConditionalBatchNormalization


def why_not_plainly(layer: Layer) -> str:
    """Why a batch norm that does not compute plainly has no place where one must."""
    if is_domain_norm(layer):
        return (
            "it has statistics for each domain: take one out by `convert(model, "
            "domain=...)`"
        )
    if is_conditional(layer):
        return "its gamma and beta are other ones for each sample"
    return f"its class {type(layer).__name__} may compute something else"


def is_sequential(layer: Layer) -> bool:
    """Whether `layer` is a `keras.Sequential`."""
    return isinstance(layer, keras.Sequential)


def is_functional(layer: Layer) -> bool:
    """Whether `layer` is a model with a graph that can be walked."""
    return isinstance(layer, keras.Function)


def activation_of(layer: Layer) -> Any:
    """The activation fused into `layer`, or None where there is none (or linear)."""
    activation = getattr(layer, "activation", None)
    return None if activation is keras.activations.linear else activation


def children(layer: Layer) -> list[Layer]:
    """The layers directly inside, in the order that their weights are listed in."""
    return layer.layers if is_functional(layer) else direct_layers(layer)


def sublayers(model: Layer) -> Iterator[tuple[str, Layer]]:
    """Each layer inside `model`, at any depth, once: its path, and the layer."""
    seen: set[int] = set()
    pending = [(child.name, child) for child in reversed(children(model))]
    while pending:
        path, layer = pending.pop()
        if id(layer) in seen:
            continue
        seen.add(id(layer))
        yield path, layer
        pending += [(f"{path}/{c.name}", c) for c in reversed(children(layer))]


def is_built(model: Layer) -> bool:
    """Whether `model` is built, and one of its batch norm layers, if it has any."""
    every = (model, *(layer for _, layer in sublayers(model)))
    norms = [layer for layer in every if is_batch_norm(layer)]
    known = not norms or any(layer.moving_mean is not None for layer in norms)
    return bool(model.built) and known


def batch_norms(model: Any) -> dict[str, Layer]:
    """The batch norm layers of `model` by path, in the order of its layers.

    Raises:
        TypeError: `model` is not a Keras model or layer.
        ValueError: It is not built, has no batch norm layer, or is quantized.
    """
    if not isinstance(model, keras.layers.Layer):
        raise TypeError(
            "Argument `model` must be a Keras model. "
            f"Received: model={shown(model)} of type {type(model).__name__}"
        )
    everything = [(model.name, model), *sublayers(model)]
    for path, layer in everything:
        # Quantized weights are whole numbers with a scale: no tool here knows them.
        if layer.quantization_mode is not None:
            raise ValueError(
                "Argument `model` must not be quantized: use the tool first, then "
                f"quantize. Received: layer '{path}' with quantization_mode="
                f"{layer.quantization_mode!r}"
            )
    found = [(path, layer) for path, layer in everything if is_batch_norm(layer)]
    # A wrapper may keep the unbuilt layer that it made its own from (Bidirectional).
    built = [(path, layer) for path, layer in found if layer.moving_mean is not None]
    if not is_built(model):
        raise ValueError(
            "Argument `model` must be built, so that it has weights: call it on data, "
            "or `model.build(input_shape)`. Received: the unbuilt model "
            f"'{model.name}'"
        )
    if not found:
        raise ValueError(
            "Argument `model` must have a batch normalization layer. Received: model "
            f"'{model.name}' with {len(everything) - 1} layers, none of them one"
        )
    return _distinct(built)


def _distinct(found: list[tuple[str, Layer]]) -> dict[str, Layer]:
    """By path; a number tells apart layers that were given the same name."""
    repeated = Counter(path for path, _ in found)
    numbered: Counter[str] = Counter()
    named = {}
    for path, layer in found:
        if repeated[path] > 1:
            numbered[path] += 1
            path = f"{path}#{numbered[path]}"
        named[path] = layer
    return named


def graphs(model: Layer) -> list[Any]:
    """Each functional graph in `model`, outer ones first."""
    every = [model, *(layer for _, layer in sublayers(model))]
    return [graph for one in every if (graph := graph_in(one)) is not None]


def has_graph(layer: Layer) -> bool:
    """Whether `layer` is a model made of layers, Functional or Sequential."""
    return is_sequential(layer) or is_functional(layer)


def graph_in(layer: Layer) -> Any:
    """The functional graph of `layer`; None where it has none (a subclassed model)."""
    # A built Sequential holds the Functional that it runs.
    layer = graph_of_sequential(layer) if is_sequential(layer) else layer
    return layer if is_functional(layer) else None


@functools.cache
def any_graph() -> Any:
    """Some functional model."""
    inputs = keras.Input((1,), name="any")
    return keras.Model(inputs, inputs, name="any")


def takes_inputs_and_outputs(cls: Any) -> bool:
    """Whether a class of models can be made of inputs and outputs, as Keras sees it.

    By the names of its constructor's arguments. If so, its config is that of its graph.
    """
    plain, given = (
        inspect.getfullargspec(one.__init__) for one in (type(any_graph()), cls)
    )
    takes_any = given.varargs is not None and given.varkw is not None
    return takes_any or given.args[1:] == plain.args[1:]


def given_to(node: Any) -> list[Any]:
    """All arguments of a call, one by one."""
    given = (node.arguments.args, node.arguments.kwargs)
    return keras.tree.flatten(given)  # type: ignore[no-any-return]


def called_in_training(node: Any) -> bool:
    """Whether this call has `training=True` written into it."""
    # Keras wants it by keyword in a graph.
    return node.arguments.kwargs.get("training") is True


def called_with(node: Any, name: str) -> bool:
    """Whether this call has an argument of this name, which takes a keyword only."""
    return node.arguments.kwargs.get(name) is not None


def array(weight: Any, dtype: str | None = None) -> np.ndarray:
    """A copy of `weight` (None stays None to the caller: do not pass it)."""
    # Some backends hand out a view of the weight itself.
    return np.array(keras.ops.convert_to_numpy(weight), dtype=dtype)


def assign_copy(target: Any, source: Any) -> None:
    """Gives `target` the value of `source`, in memory of its own.

    `target.assign(source)` may share it, and JAX deletes what a training step was
    given: training one model would take the weights of the other away.
    """
    target.assign(array(source))


def float64(weight: Any) -> np.ndarray:
    """A copy of `weight` in float64."""
    return array(weight, "float64")


def at_initial_values(layer: Layer) -> bool:
    """Whether the moving statistics are what their initializers gave."""
    for name in ("moving_mean", "moving_variance"):
        weight = getattr(layer, name)
        initializer = getattr(layer, f"{name}_initializer")
        fixed = (keras.initializers.Zeros, keras.initializers.Ones)
        if not isinstance(initializer, (*fixed, keras.initializers.Constant)):
            return False
        initial = initializer(weight.shape, dtype=weight.dtype)
        if keras.ops.any(weight != initial):
            return False
    return True
