"""The layers that a layer holds in its attributes, and putting others there."""

import functools
from collections.abc import Iterator
from typing import Any

import keras

from keras_bn._keras import replace_tracked
from keras_bn.tools._graphs.walk import Layer, has_graph

Place = tuple[str, *tuple[str | int, ...]]
"""An attribute's name, then keys into the lists, tuples and dictionaries in it."""


def held(layer: Layer) -> Iterator[tuple[Place, Layer]]:
    """Each layer in an attribute of `layer`, and where it is; none inside these.

    Instance attributes only: properties such as `input` raise or compute.
    """
    others = {*dir(type(layer)), *_of_keras()}
    for name in dir(layer):  # sorted, so that a saved file is the same every time
        if name not in others:
            yield from _in((name,), getattr(layer, name))


@functools.cache
def _of_keras() -> set[str]:
    """The attributes in which Keras, or the backend, keeps what a layer holds."""
    return set(dir(keras.Model(name="bare"))) - set(dir(keras.Model))


def held_at_any_depth(layer: Layer) -> Iterator[tuple[tuple[Place, ...], Layer]]:
    """`held`, and what is held by these, but for what is inside a model's graph."""
    pending: list[tuple[tuple[Place, ...], Layer]] = [((), layer)]
    seen: set[int] = set()
    while pending:
        way, owner = pending.pop()
        if id(owner) in seen:
            continue
        seen.add(id(owner))
        for place, inner in held(owner):
            yield (*way, place), inner
            if not has_graph(inner):
                pending.append(((*way, place), inner))


def put(owner: Layer, place: Place, layer: Layer) -> None:
    """Puts `layer` into the place in `owner` where another layer is."""
    name, keys = place[0], place[1:]
    held = getattr(owner, name)
    # An attribute set anew leaves the old layer tracked, and the order changed.
    old = _at(held, keys)
    replace_tracked(owner, old, layer)  # if it was not in another place too
    value = _with(held, keys, layer)
    if value is not held:
        setattr(owner, name, value)


def shown(place: Place) -> str:
    """`place` as it is written in Python."""
    return place[0] + "".join(f"[{key!r}]" for key in place[1:])


def _in(place: Place, value: Any) -> Iterator[tuple[Place, Layer]]:
    if isinstance(value, keras.layers.Layer):
        yield place, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _in((*place, key), inner)
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            yield from _in((*place, index), inner)


def _at(value: Any, keys: tuple[str | int, ...]) -> Any:
    for key in keys:
        value = value[key]
    return value


def _with(value: Any, keys: tuple[str | int, ...], layer: Layer) -> Any:
    """`value` with `layer` at `keys`: itself, or another where it is a tuple."""
    if not keys:
        return layer
    key = keys[0]
    inner = _with(value[key], keys[1:], layer)
    if isinstance(value, tuple):
        items = [inner if i == key else one for i, one in enumerate(value)]
        # TensorFlow puts the tuples that it tracks into one of its own, by its type.
        named = getattr(value.__class__, "_make", tuple)
        return named(items)
    if inner is not value[key]:
        value[key] = inner
    return value
