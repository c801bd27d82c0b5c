"""Layers put into a layer of a user's class, so that they are there after loading.

A class that makes a layer in its constructor makes it again when a saved file is
loaded, whatever stood in its place when the file was written. A layer of such a class
is given a class of its own, derived from it, whose config says what was put where.
"""

import functools
import json
import types
from collections.abc import Iterable
from typing import Any

import keras

from keras_bn.tools._held import Place, held, held_at_any_depth, put
from keras_bn.tools._walk import Layer, children, has_graph

PACKAGE, NAME = "keras_bn", "Lasting"


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
        return (base_class(self)._unpickle_model, *saved[1:])


def make_lasting(layer: Layer, placed: Iterable[Layer]) -> None:
    """Gives `layer` a class that saves those of `placed` that its own would not.

    Args:
        layer: A layer whose attributes hold others, at any depth.
        placed: The layers that were put there, in the place of what a constructor made.
    """
    cls, ids = base_class(layer), {id(one) for one in placed}
    inside = {way: one for way, one in held_at_any_depth(layer) if id(one) in ids}
    if not inside:
        return
    made = dict(held_at_any_depth(cls.from_config(_own_config(layer))))
    places: dict[int, list[Any]] = {}
    lost: set[int] = set()
    for way, one in inside.items():
        places.setdefault(id(one), []).append([list(place) for place in way])
        if way not in made or _description(made[way]) != _description(one):
            lost.add(id(one))
    if lost:
        _of_lasting_class(layer, [ways for i, ways in places.items() if i in lost])
    else:
        object.__setattr__(layer, "__class__", cls)


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
    for place in way[:-1]:
        layer = dict(held(layer))[place]
    old = dict(held(layer))[way[-1]]
    if old.built and not new.built:  # some constructors build what they make
        new.build_from_config(old.get_build_config())
    put(layer, way[-1], new)


@functools.cache
def _lasting_class(cls: type) -> type:
    body = {
        name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")
    }
    made = types.new_class(cls.__name__, (Lasting, cls), {}, lambda ns: ns.update(body))
    # One name for them all: what to make stands in the config.
    for one in (made, Lasting):
        keras.saving.register_keras_serializable(PACKAGE, NAME)(one)
    return made


keras.saving.register_keras_serializable(PACKAGE, NAME)(Lasting)


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
    return json.dumps(_nameless(keras.saving.serialize_keras_object(layer)))


def _nameless(config: Any) -> Any:
    ignored = ("name", "build_config", "compile_config", "shared_object_id")
    if isinstance(config, dict):
        return {k: _nameless(v) for k, v in config.items() if k not in ignored}
    if isinstance(config, (list, tuple)):
        return [_nameless(one) for one in config]
    return config


def _as_key(way: Any) -> Any:
    return tuple(tuple(place) for place in way)
