"""What this package asks Keras for by names that are not public, all of them.

The layer does without those that it asks for. Tools that copy a model or read its graph
cannot: where a name is gone they raise an error that says so. `USES` is the list.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import keras

from keras_bn._private import private

Layer = Any
"""A `keras.layers.Layer`, or an operation of a functional model's graph."""


class Use(NamedTuple):
    """An attribute of one of Keras's objects, and what needs it."""

    of: str
    needed_by: str


USES = {
    "_convert_input_args": Use("layer", "the layer, not to look for what to convert"),
    "_inbound_nodes": Use("layer", "tools that read graphs: who calls a layer"),
    "_outbound_nodes": Use("layer", "following a `call`, which is to leave no mark"),
    "_layers": Use("layer", "finding the layers in a layer of a user's class"),
    "_trainable_variables": Use("layer", "telling a layer's own weights"),
    "_non_trainable_variables": Use("layer", "telling a layer's own weights"),
    "_tracker": Use("layer", "putting another layer into an attribute"),
    "_post_build": Use("layer", "copies, whose weights PyTorch is to know"),
    "_path": Use("layer", "copies, which keep the paths"),
    "_autocast": Use("variable", "copies of variables"),
    "_value": Use("variable", "the check that FSDP has not replaced weights"),
    "_functional": Use("sequential", "the graph that a Sequential model runs"),
    "_nodes_by_depth": Use("functional", "reading graphs: the calls in order"),
    "_run_through_graph": Use("functional", "converting to domains, and back"),
    "_keras_history": Use("tensor", "reading graphs: which call made a tensor"),
    "_keras_mask": Use("tensor", "copies of graphs, in which masks are handed on"),
    "_compile_config": Use("compiled", "compiling a copy by the same objects"),
    "torch_params": Use("torch layer", "the check that FSDP has not replaced weights"),
    "config": Use("tracker", "copies, whose layers and weights are tracked"),
    "stored_ids": Use("tracker", "copies, whose layers and weights are tracked"),
    "operation": Use("node", "reading graphs"),
    "arguments": Use("node", "reading graphs"),
    "input_tensors": Use("node", "reading graphs"),
    "outputs": Use("node", "reading graphs"),
    "is_input": Use("node", "reading graphs"),
    "fill_in": Use("arguments", "copies of graphs"),
    "keras_tensors": Use("arguments", "reading graphs: what a call is given"),
}
"""By name: what it stands on, and what is lost where it is gone."""

OF_CALLS = {
    "_inbound_nodes": list,
    "_outbound_nodes": list,
    "_losses": list,
    "_loss_ids": set,
    "_losses_override": list,
}
"""What calls leave on a layer: of that layer, not of its copy."""

OF_COMPILE = (
    *("optimizer", "loss", "compiled", "history", "stop_training"),
    *("_compile_config", "_compile_loss", "_compile_metrics", "_loss_tracker"),
    *("_compiled_trainable_state", "_eval_epoch_iterator", "_jax_state"),
    *("train_function", "test_function", "predict_function"),
)
"""What `compile` and `fit` leave on a model."""

OF_GRAPH = ("_keras_history", "_keras_mask")
"""What a graph leaves on a symbolic tensor."""

WRAPPED = ("build", "quantize")
"""Methods that Keras wraps in each layer, when it is made; since 3.16 `build` alone."""

RUN_BY_BATCH_NORM = ("__call__", "call", "_moments")
"""What runs when Keras's batch normalization is called."""

_get_mask = private(
    "keras.src.backend.common.masking:get_keras_mask",
    "a mask is read off its tensor, and not every backend's tensors can hold one",
)
_Node: Any = private("keras.src.ops.node:Node", "no tool can copy a model")
Tracker: Any = private("keras.src.utils.tracking:Tracker", "no tool can copy a model")


def _of(owner: Any, name: str) -> Any:
    """`owner.name`, or an error that says what this Keras has not got."""
    try:
        return getattr(owner, name)
    except AttributeError as error:
        raise _gone(f"{type(owner).__name__}.{name}", USES[name].needed_by) from error


def _gone(name: str, needed_by: str) -> RuntimeError:
    return RuntimeError(
        f"Keras {keras.__version__} has no `{name}`, which is private to it, and which "
        f"keras_bn needs for {needed_by}. Use a version of Keras that keras_bn is "
        "tested with, or a newer keras_bn"
    )


def attached_mask(tensor: Any) -> Any:
    """The mask that Keras has attached to a tensor, or None."""
    if _get_mask is None:
        return getattr(tensor, "_keras_mask", None)
    return _get_mask(tensor)


def converts_arguments(layer: Layer) -> bool:
    """Whether Keras looks through the arguments of a call for what to convert."""
    return getattr(layer, "_convert_input_args", True)


def convert_arguments(layer: Layer, whether: bool) -> None:
    """Has Keras look through the arguments of the next calls, or not."""
    layer._convert_input_args = whether


def direct_layers(layer: Layer) -> list[Layer]:
    """The layers in a layer that has no graph, in the order that it was given them."""
    return list(_of(layer, "_layers")) if isinstance(layer, keras.Layer) else []


def own_variables(layer: Layer) -> list[Any]:
    """The variables of a layer without those of the layers in it."""
    names = ("_trainable_variables", "_non_trainable_variables")
    return [variable for name in names for variable in _of(layer, name)]


def trained_variables(layer: Layer) -> list[Any]:
    """Those of `own_variables` that training changes."""
    return list(_of(layer, "_trainable_variables"))


def graph_of_sequential(model: Any) -> Any:
    """The functional model that a Sequential one runs; None where it is not built."""
    return _of(model, "_functional")


def nodes(graph: Any) -> list[Any]:
    """The calls of a graph in an order in which they can be run, inputs left out."""
    by_depth = _of(graph, "_nodes_by_depth")
    every = (
        node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]
    )
    return [node for node in every if node.operation and not node.is_input]


def calls_of(operation: Layer) -> list[Any]:
    """The calls of a layer or an operation in graphs, in the order they were made."""
    return _of(operation, "_inbound_nodes")  # type: ignore[no-any-return]


def marks_of_calls(layer: Layer) -> tuple[list[Any], list[Any]]:
    """The lists in which a layer notes its calls in graphs, and who takes from it."""
    return _of(layer, "_inbound_nodes"), _of(layer, "_outbound_nodes")


def layer_of(tensor: Any) -> Layer:
    """What has made a symbolic tensor; None where nothing in a graph has."""
    return getattr(tensor, "_keras_history", (None,))[0]


def call_of(tensor: Any) -> Any:
    """The call that has made a symbolic tensor; None where nothing in a graph has."""
    operation = layer_of(tensor)
    if operation is None:
        return None
    return calls_of(operation)[tensor._keras_history.node_index]


def is_used(tensor: Any) -> bool:
    """Whether a call has taken, or made, a symbolic tensor."""
    return hasattr(tensor, "_keras_history")


def attach_mask(tensor: Any, mask: Any) -> None:
    """Attaches a mask to a symbolic tensor, for the layers that it will be given to."""
    tensor._keras_mask = mask


def require_copies() -> None:
    """Raises where the classes are gone without which no model can be copied."""
    for name, found in (("Node", _Node), ("Tracker", Tracker)):
        if found is None:
            raise _gone(name, "copies of models")


def note_call(layer: Layer, args: Any, kwargs: Any, outputs: Any) -> None:
    """Has a graph know `outputs` for those of a call, which does not run for it."""
    _Node(operation=layer, call_args=args, call_kwargs=kwargs, outputs=outputs)


def run_graph(graph: Any, inputs: Any, call: Any) -> Any:
    """The outputs of a graph on `inputs`, with `call(layer, *args)` for each call."""
    return _of(graph, "_run_through_graph")(inputs, call_fn=call)


def replace_tracked(owner: Layer, old: Layer, new: Layer) -> None:
    """Has `owner` know `new` for the layer that `old` was, in the same place."""
    tracker = _of(owner, "_tracker")
    if tracker.is_in_store("layers", old):
        tracker.replace_tracked_value("layers", old, new)


def recount_tracked(tracker: Any) -> None:
    """Has a copied tracker know what is in the stores that were copied with it."""
    stores = {name: store for name, (_, store) in _of(tracker, "config").items()}
    tracker.stored_ids = {
        name: {id(one) for one in store} for name, store in stores.items()
    }


def copied_variable(old: Any, value: Any) -> Any:
    """A variable like `old`, of the same class and path."""
    # What a variable was made as says whether it can be trained at all, on TensorFlow;
    # its flag says whether it is trained now.
    made = getattr(tensor_of(old), "trainable", old.trainable)
    new = type(old)(
        value,
        dtype=old.dtype,
        trainable=made,
        autocast=_of(old, "_autocast"),
        aggregation=old.aggregation,
        synchronization=old.synchronization,
        name=old.name,
    )
    new.trainable = old.trainable
    new._path = old.path
    new.overwrite_with_gradient = old.overwrite_with_gradient
    new.regularizer, new.constraint = old.regularizer, old.constraint
    return new


def set_path(one: Any, path: str) -> None:
    """Gives a layer or a variable another path."""
    one._path = path


def finish_copy(layer: Layer) -> None:
    """Has the backend take note of a copied layer's weights."""
    _of(layer, "_post_build")()


def without_listed_weights(name: str, value: Any) -> Any:
    """An attribute's value without PyTorch's list of weights, which is made anew."""
    if name != "_modules":
        return value
    return {
        key: one for key, one in value.items() if type(one).__name__ != "ParameterDict"
    }


def compile_arguments(model: Any) -> Mapping[str, Any] | None:
    """What a model was compiled with, as objects; None where that is not known."""
    kept = getattr(model, "_compile_config", None)
    return getattr(kept, "config", None)


def kind(operation: Layer) -> str:
    """The name of one of Keras's own classes, as `ops.Add`, `layers.Add`."""
    module, name = type(operation).__module__, type(operation).__name__
    # Keras exports its functions, and not the classes that stand in graphs for them.
    for part in ("ops", "layers"):
        if module.startswith(f"keras.src.{part}."):
            return f"{part}.{name}"
    return name


def tensor_of(variable: Any) -> Any:
    """The tensor that a variable holds, in no scope."""
    return _of(variable, "_value")


def torch_parameters(layer: Layer) -> Mapping[str, Any]:
    """On PyTorch: the parameters that the module of a layer has, by path."""
    return _of(layer, "torch_params")  # type: ignore[no-any-return]
