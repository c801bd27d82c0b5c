"""Layers put into a layer of a user's class, so that they are there after loading.

A class that makes a layer in its constructor makes it again when a saved file is
loaded, whatever stood in its place when the file was written. A layer of such a class
is given a class of its own, derived from it, whose config says what was put where.
"""

import contextlib
import functools
import types
import warnings
from collections.abc import Callable, Collection, Container, Iterable
from typing import Any

import keras

from keras_bn.tools._copies.held import Place, held, held_at_any_depth, put, shown
from keras_bn.tools._graphs.walk import (
    Layer,
    any_graph,
    children,
    has_graph,
    is_sequential,
    takes_inputs_and_outputs,
)

PACKAGE, NAME = "keras_bn", "Lasting"


@keras.saving.register_keras_serializable(PACKAGE, NAME)
class Lasting:
    """Before a layer's class: its config holds the layers that were put into it."""

    _replaced: list[Any]

    def get_config(self) -> dict[str, Any]:
        """The config of the layer as its class makes it, and what was put where."""
        inside = dict(held_at_any_depth(self))
        return {
            "layer": _serialized(base_class(self), _own_config(self)),
            "replaced": [
                {"at": ways, "layer": _described(inside[_as_key(ways[0])])}
                for ways in self._replaced
            ],
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """The layer that `get_config` describes, of the class that it describes."""
        layer = keras.saving.deserialize_keras_object(config["layer"])
        for entry in config["replaced"]:
            new = keras.saving.deserialize_keras_object(entry["layer"])
            for way in entry["at"]:
                _put_far(layer, [tuple(place) for place in way], new)
        return _of_lasting_class(layer, [entry["at"] for entry in config["replaced"]])

    def __reduce__(self) -> Any:
        """For pickle, which looks classes up by their names, and finds the other."""
        saved: Any = super().__reduce__()
        unpickle = types.MethodType(saved[0].__func__, base_class(self))
        return (unpickle, *saved[1:])


def make_lasting(layer: Layer, placed: Container[int]) -> None:
    """Gives `layer` a class that saves what was put into it and its own would not.

    Args:
        layer: A layer whose attributes hold others, at any depth.
        placed: The ids of layers that were put in the place of others.

    Warns:
        UserWarning: A layer was put where it is not saved.
    """
    inside = dict(held_at_any_depth(layer))
    before = [_as_key(ways[0]) for ways in getattr(layer, "_replaced", ())]
    ids = {id(one) for one in inside.values() if id(one) in placed}
    ids |= {id(inside[way]) for way in before if way in inside}
    _warn_of_hidden(layer, placed, inside.values())
    if not ids:
        return
    new = {way: one for way, one in inside.items() if id(one) in ids}
    # Its own class does, unless something would be lost.
    object.__setattr__(layer, "__class__", base_class(layer))
    anew = _held_anew(layer, new)
    if anew is None:
        return
    places: dict[int, list[Any]] = {}
    lost: set[int] = set()
    for way, one in new.items():
        places.setdefault(id(one), []).append([list(place) for place in way])
        if way not in anew or _description(anew[way]) != _description(one):
            lost.add(id(one))
    if lost:
        _of_lasting_class(layer, [ways for i, ways in places.items() if i in lost])


def save_as_graph(model: Any) -> None:
    """Has a model of a user's class saved as the graph that it is by now.

    Its constructor would make the graph that it makes. The model keeps the methods.

    Warns:
        UserWarning: What is loaded will be a plain model; or, where the class has a
            `call` of its own, what the constructor makes.
    """
    cls: Any = type(model)
    plain: Any = keras.Sequential if is_sequential(model) else type(any_graph())
    if takes_inputs_and_outputs(cls) or cls.__init__ is plain.__init__:
        return
    lasts = cls.call is plain.call
    if lasts:
        object.__setattr__(model, "__class__", _graph_class(cls, plain))
    warnings.warn(
        f"Model '{model.name}' is of class {cls.__name__}, whose constructor makes its "
        "layers. The copy is of that class, with other layers in it; a saved file "
        + (
            f"holds a plain keras.{plain.__name__}, which computes the same."
            if lasts
            else "does not have them: loading it makes the old ones again."
        ),
        UserWarning,
        stacklevel=2,
    )


@functools.cache
def _graph_class(cls: type, plain: type) -> type:
    # Keras takes a class's config for a graph's by the constructor, and notes the
    # class by these two names.
    names = ("__init__", "get_config", "__module__", "__qualname__")
    body = {name: getattr(plain, name) for name in names} | {"__doc__": cls.__doc__}
    return types.new_class(plain.__name__, (cls,), {}, lambda ns: ns.update(body))


def _warn_of_hidden(
    layer: Layer, placed: Container[int], found: Iterable[Layer]
) -> None:
    known = {id(one) for one in found}
    hidden = [
        one.name
        for one in children(layer)
        if id(one) in placed and id(one) not in known
    ]
    if hidden:
        warnings.warn(
            f"In layer '{layer.name}' of class {base_class(layer).__name__}, {hidden} "
            "stand in no attribute, nor in a list, tuple or dictionary in one: a saved "
            "file will not have them, and its constructor makes the old ones again.",
            UserWarning,
            stacklevel=2,
        )


def _held_anew(layer: Layer, ways: Collection[Any]) -> dict[Any, Layer] | None:
    """What the layer that its class makes of its config holds, at any depth.

    None where it makes none: nothing of it can be saved, whatever is in it. A layer
    that is to hold something in more `ways` is built, which may make layers.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of lambdas: this is no file
        try:
            made = keras.saving.deserialize_keras_object(
                _described(layer), safe_mode=False
            )
        except Exception:
            return None
        if not dict(held_at_any_depth(made)).keys() >= set(ways):
            # Should it fail, what it holds counts as lost, which costs a longer config.
            with (
                contextlib.suppress(Exception),
                keras.StatelessScope(initialize_variables=False),
            ):
                made.build_from_config(layer.get_build_config())
    return dict(held_at_any_depth(made))


def base_class(layer: Layer) -> Any:
    """The class of `layer`, as its author wrote it."""
    cls = type(layer)
    return cls.__bases__[1] if issubclass(cls, Lasting) else cls


def _of_lasting_class(layer: Layer, ways: list[Any]) -> Layer:
    object.__setattr__(layer, "__class__", _lasting_class(base_class(layer)))
    # Not by the layer's own `__setattr__`, which would take the lists for layers.
    object.__setattr__(layer, "_replaced", ways)
    return layer


def _put_far(layer: Layer, way: list[Place], new: Layer) -> None:
    """Puts `new` in its place, or has it put there once a layer has made the place."""
    for step, place in enumerate(way):
        inside = dict(held(layer))
        if place not in inside:
            _once_built(layer, functools.partial(_put_far, layer, way[step:], new))
            return
        if step < len(way) - 1:
            layer = inside[place]
    old = inside[place]
    if old.built and not new.built:  # some constructors build what they make
        new.build_from_config(old.get_build_config())
    put(layer, place, new)


def _once_built(layer: Layer, then: Callable[[], None]) -> None:
    """Calls `then` after the `build` of a layer that makes layers there."""
    if layer.built:
        raise ValueError(
            f"Layer '{layer.name}' of class {base_class(layer).__name__} must make the "
            "layers that it had when it was saved. Received: a layer with "
            f"{[shown(place) for place, _ in held(layer)]}"
        )
    build = layer.build

    @functools.wraps(build)
    def build_and_put(*args: Any, **kwargs: Any) -> None:
        build(*args, **kwargs)
        then()

    object.__setattr__(layer, "build", build_and_put)


@functools.cache
def _lasting_class(cls: type) -> type:
    body = {
        name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")
    }
    made = types.new_class(cls.__name__, (Lasting, cls), {}, lambda ns: ns.update(body))
    # One name for them all: what to make stands in the config, and each reads any.
    known = keras.saving.register_keras_serializable(PACKAGE, NAME)
    return known(made)  # type: ignore[no-any-return]


def _own_config(layer: Layer) -> dict[str, Any]:
    """The config by the class as its author wrote it.

    Keras notes a constructor's arguments for classes without a `get_config`, and asks
    the object whether its class has one.
    """
    cls = type(layer)
    object.__setattr__(layer, "__class__", base_class(layer))
    try:
        return layer.get_config()  # type: ignore[no-any-return]
    finally:
        object.__setattr__(layer, "__class__", cls)


def _serialized(cls: type, config: dict[str, Any]) -> dict[str, Any]:
    return {
        "module": cls.__module__,
        "class_name": cls.__name__,
        "config": config,
        "registered_name": keras.saving.get_registered_name(cls),
    }


def _described(layer: Layer) -> dict[str, Any]:
    """`layer`, serialized; not yet built, where its owner is going to build it."""
    config: dict[str, Any] = keras.saving.serialize_keras_object(layer)
    if not has_graph(layer):
        config.pop("build_config", None)
    return config


def _description(layer: Layer) -> Any:
    """What layers that do the same have in common, whatever they are called."""
    if has_graph(layer):
        # Not the inputs, which a built Sequential has and one to be built has not.
        inner = [
            c for c in children(layer) if not isinstance(c, keras.layers.InputLayer)
        ]
        return [_description(one) for one in inner]
    return _nameless(keras.saving.serialize_keras_object(layer))


def _nameless(config: Any) -> Any:
    ignored = ("name", "build_config", "compile_config", "shared_object_id")
    if isinstance(config, dict):
        return {k: _nameless(v) for k, v in config.items() if k not in ignored}
    return config


def _as_key(way: Any) -> Any:
    return tuple(tuple(place) for place in way)
