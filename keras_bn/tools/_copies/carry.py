"""What goes along to a copy: classes, a layer's own objects, how it was compiled."""

import inspect
import types
import warnings
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from typing import Any

import keras

from keras_bn._keras import compile_arguments, set_path
from keras_bn.tools._copies.lasting import base_class
from keras_bn.tools._graphs.walk import Layer, assign_copy, sublayers

OWN = (
    types.FunctionType,
    *(keras.Initializer, keras.Regularizer, keras.constraints.Constraint),
)

Fill = Callable[[Layer, Layer], None]
"""Gives a replaced layer's state to the layer in its place: `fill(old, new)`."""


@contextmanager
def classes_known(model: Any) -> Iterator[None]:
    """Lets configs name the classes in `model`."""
    classes = {base_class(layer) for _, layer in [("", model), *sublayers(model)]}
    names = {
        keras.saving.get_registered_name(cls): cls
        for cls in classes
        if not cls.__module__.startswith("keras.")
    }
    with keras.saving.custom_object_scope(names):
        yield


def made_like(layer: Layer, without: Container[str] = (), **changes: Any) -> Layer:
    """A layer of the class and the config of `layer`, not built.

    Args:
        layer: The layer.
        without: Arguments that are left to their defaults.
        **changes: Arguments of other values.
    """
    config, own = config_of(layer)
    config = {key: value for key, value in config.items() if key not in without}
    new = type(layer).from_config({**config, **changes})
    return with_own(new, {k: v for k, v in own.items() if k not in changes})


def config_of(layer: Layer) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config of `layer`, and the user's own objects that it would hold.

    These (functions, initializers, regularizers, constraints) may have no config, or
    one that makes something else; `with_own` puts the objects themselves in.
    """
    own = {
        name: value
        for name, value in vars(layer).items()
        if isinstance(value, OWN) and not str(value.__module__).startswith("keras.")
    }
    twin = keras.layers.Layer.__new__(type(layer))
    vars(twin).update(vars(layer))
    for name, value in own.items():
        is_function = isinstance(value, types.FunctionType)
        vars(twin)[name] = keras.activations.linear if is_function else None
    config = twin.get_config()
    return config, {name: value for name, value in own.items() if name in config}


def with_own(layer: Layer, own: dict[str, Any]) -> Layer:
    """`layer` with the user's own objects in the attributes that it has for them."""
    for name, value in own.items():
        if hasattr(layer, name):  # another class has fewer arguments
            setattr(layer, name, value)
    return layer


def take_over(old: Layer, new: Layer, fill: Fill) -> None:
    """Gives `new`, which stands where `old` stood, its path and its state."""
    if old.built and not new.built:
        with _cheap_weights(new):
            new.build_from_config(old.get_build_config())
    if new.built:  # a wrapper may keep the unbuilt layer that it made its own from
        _name_alike(old, new)
        fill(old, new)


def called(layer: Layer, args: Any, kwargs: Any) -> Any:
    """The outputs of `layer`, which may never have been called."""
    if "mask" in kwargs and "mask" not in inspect.signature(layer.call).parameters:
        del kwargs["mask"]
    with _cheap_weights(layer):
        return layer(*args, **kwargs)


_MAY_BE_NEW = ("gamma_initializer", "beta_initializer")


@contextmanager
def _cheap_weights(layer: Layer) -> Iterator[None]:
    """Zeros, for random numbers that would be written over at once.

    But for gamma and beta, which the layer that stood there may not have had.
    """
    saved = []
    for one in (layer, *(inner for _, inner in sublayers(layer))):
        for name, value in vars(one).items():
            if isinstance(value, keras.Initializer) and name not in _MAY_BE_NEW:
                saved.append((vars(one), name, value))
                vars(one)[name] = keras.initializers.Zeros()
    try:
        yield
    finally:
        for state, name, value in saved:
            state[name] = value


def _name_alike(old: Layer, new: Layer) -> None:
    """The path by which `old` is known, and its weights, for `new`."""
    before, after = new.path, old.path
    for one in (*new.variables, new, *(inner for _, inner in sublayers(new))):
        if one.path is not None and f"{one.path}/".startswith(f"{before}/"):
            set_path(one, after + one.path[len(before) :])


def carry_leaf(old: Layer, new: Layer) -> None:
    """Copies the weights of `old`, and flags, into a layer of the same class."""
    for source, target in zip(old.variables, new.variables, strict=True):
        assign_copy(target, source)
        target.trainable = source.trainable


def carry_compile(model: Any, copy: Any, *, slots: bool) -> None:
    """Compiles `copy` as `model` was; with `slots`, carries the optimizer's state.

    What cannot be carried (a loss that does not serialize) is left, with a warning.
    """
    if not getattr(model, "compiled", False):
        return
    try:
        with classes_known(model):
            _compile_alike(model, copy)
    except Exception as error:
        warnings.warn(
            f"The compile state of model '{model.name}' could not be carried over: "
            f"{error}. Call `compile()` on the new model.",
            UserWarning,
            stacklevel=3,
        )
        return
    # There is none where a model is to be evaluated, or compiles in its own way.
    optimizer = getattr(copy, "optimizer", None)
    if optimizer is not None and model.optimizer.built:
        # One that has begun is saved with its slots: Keras warns of a file without.
        optimizer.build(copy.trainable_variables)
        if slots:
            _carry_slots(model, copy)


def _compile_alike(model: Any, copy: Any) -> None:
    arguments = compile_arguments(model)
    if arguments is None or type(model).compile is not keras.Model.compile:
        copy.compile_from_config(model.get_compile_config())
        return
    copy.compile(**_again(arguments))


def _again(value: Any) -> Any:
    """What to compile another model with: new optimizers and metrics, the same losses.

    A function is not made anew from its bytecode, which has lost what it refers to.
    """
    if isinstance(value, dict):
        return {key: _again(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_again(one) for one in value]
    if isinstance(value, (types.FunctionType, keras.losses.Loss)):
        return value
    saved = keras.saving.serialize_keras_object(value)
    # Of a live object, not from a file: there is nothing to distrust.
    return keras.saving.deserialize_keras_object(saved, safe_mode=False)


def _trained(model: Any) -> Any:
    """What an optimizer's state is of, to compare: weights, and slots for them."""
    # Paths hold names that Keras makes up anew, so it is what they end in that counts.
    weights = [(v.name, v.shape) for v in model.trainable_variables]
    return weights, [v.shape for v in model.optimizer.variables]


def _carry_slots(model: Any, copy: Any) -> None:
    if _trained(model) != _trained(copy):
        warnings.warn(
            f"The optimizer of model '{model.name}' starts anew: the new model has "
            "other trainable weights.",
            UserWarning,
            stacklevel=4,
        )
        return
    old, new = model.optimizer.variables, copy.optimizer.variables
    for source, target in zip(old, new, strict=True):
        assign_copy(target, source)
