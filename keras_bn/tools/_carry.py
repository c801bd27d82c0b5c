"""Carries state from a model to its copy: weights, flags, and how it was compiled."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
from keras.src.saving.serialization_lib import SafeModeScope

from keras_bn.tools._lasting import base_class
from keras_bn.tools._walk import (
    Layer,
    assign_copy,
    children,
    has_graph,
    sublayers,
)

Fill = Callable[[Layer, Layer], None]
"""Gives a replaced layer's state to the layer in its place: `fill(old, new)`."""


@contextmanager
def classes_known(model: Any) -> Iterator[None]:
    """Lets configs name the classes in `model`, and Lambda layers be copied.

    The configs come from live objects, not from a file: there is nothing to distrust.
    """
    classes = {base_class(layer) for _, layer in sublayers(model)} | {base_class(model)}
    names = {
        cls.__name__: cls
        for cls in classes
        if not cls.__module__.startswith("keras.")
        and ">" not in keras.saving.get_registered_name(cls)
    }
    with keras.saving.custom_object_scope(names), SafeModeScope(False):
        yield


def carry_state(
    copies: list[tuple[Layer, Any]], replaced: set[int], fill: Fill
) -> None:
    """Weights, random states and flags, from each layer to its copy."""
    known = {id(old) for old, _ in copies}
    # Containers were noted after what they hold; their flag is set first, since it
    # spreads to everything inside.
    for old, (new, *_) in reversed(copies):
        if not isinstance(old, keras.layers.Layer) or new is None:
            continue
        if new.trainable != old.trainable:
            new.trainable = old.trainable
        if id(old) in replaced:
            fill(old, new)
        elif not has_graph(old):
            carry_leaf(old, new, known)


def carry_leaf(old: Layer, new: Layer, known: set[int]) -> None:
    """Copies what `old` owns, and what layers in it own that have no entry."""
    for source, target in zip(_own(old), _own(new), strict=True):
        assign_copy(target, source)
        target.trainable = source.trainable
    for inner, copied in zip(children(old), children(new), strict=True):
        if id(inner) not in known:
            if copied.trainable != inner.trainable:
                copied.trainable = inner.trainable
            carry_leaf(inner, copied, known)


def _own(layer: Layer) -> list[Any]:
    """The variables of `layer` that belong to no layer inside it."""
    inner = {id(v) for child in children(layer) for v in child.variables}
    inner |= {id(v) for v in getattr(layer, "metrics_variables", ())}
    return [v for v in layer.variables if id(v) not in inner]


def carry_compile(model: Any, copy: Any, slots: bool = True) -> None:
    """Compiles `copy` as `model` was; with `slots`, carries the optimizer's state.

    What cannot be carried (a loss that does not serialize) is left, with a warning.
    """
    if not getattr(model, "compiled", False):
        return
    try:
        with classes_known(model):
            copy.compile_from_config(model.get_compile_config())
    except Exception as error:
        warnings.warn(
            f"The compile state of model '{model.name}' could not be carried over: "
            f"{error}. Call `compile()` on the new model.",
            UserWarning,
            stacklevel=3,
        )
        return
    old, new = getattr(model, "optimizer", None), getattr(copy, "optimizer", None)
    if slots and old is not None and old.built and new is not None:
        _carry_slots(model, copy, old, new)


def _carry_slots(model: Any, copy: Any, old: Any, new: Any) -> None:
    # Paths hold names that Keras makes up anew, so it is what they end in that counts.
    names = [
        [(v.name, tuple(v.shape)) for v in one.trainable_variables]
        for one in (model, copy)
    ]
    shapes = [[tuple(v.shape) for v in one.variables] for one in (old, new)]
    if names[0] != names[1] or shapes[0] != shapes[1]:
        warnings.warn(
            f"The optimizer of model '{model.name}' starts anew: the new model has "
            "other trainable weights.",
            UserWarning,
            stacklevel=4,
        )
        return
    for source, target in zip(old.variables, new.variables, strict=True):
        assign_copy(target, source)
