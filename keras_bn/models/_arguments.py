"""The checks of the arguments that the builders share."""

from collections.abc import Collection
from typing import Any

import keras

Shape = tuple[int | None, ...]


def one_of(name: str, value: Any, allowed: Collection[Any]) -> Any:
    """The value, if it is among those allowed."""
    if value not in allowed:
        raise ValueError(
            f"Argument `{name}` must be one of {', '.join(map(repr, allowed))}. "
            f"Received: {name}={value!r}"
        )
    return value


def at_least(name: str, value: Any, smallest: int) -> int:
    """The value, if it is an integer of at least `smallest`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < smallest:
        raise ValueError(
            f"Argument `{name}` must be an integer of at least {smallest}. "
            f"Received: {name}={value!r}"
        )
    return value


def feature_shape(input_shape: Any) -> tuple[int, ...]:
    """A shape of one dimension or more, of known sizes, as a network that flattens."""
    shape = _sizes(input_shape)
    if not shape or not all(_is_size(size) for size in shape):
        raise ValueError(
            "Argument `input_shape` must be a tuple of one or more sizes of at least "
            f"1, without the batch. Received: input_shape={input_shape!r}"
        )
    return shape


def image_shape(input_shape: Any, *, smallest: int, flattens: bool = False) -> Shape:
    """The shape of an image that stays an image through all of a network's poolings.

    Args:
        input_shape: Height, width and channels, in the order of
            `keras.config.image_data_format()`.
        smallest: The least height and width that the network can take.
        flattens: Whether height and width must be known.
    """
    first = keras.config.image_data_format() == "channels_first"
    order = "(channels, height, width)" if first else "(height, width, channels)"
    shape = _sizes(input_shape)
    sides = shape[1:] if first else shape[:-1]
    if len(shape) != 3 or not all(
        (size is None and not flattens) or (_is_size(size) and size >= smallest)
        for size in sides
    ):
        unknown = "" if flattens else ", or None for an unknown height or width"
        raise ValueError(
            f"Argument `input_shape` must be {order}, with a height and width of at "
            f"least {smallest} for this network's poolings{unknown}. "
            f"Received: input_shape={input_shape!r}"
        )
    if not _is_size(shape[0 if first else -1]):
        raise ValueError(
            f"Argument `input_shape` must be {order}, with a known number of channels. "
            f"Received: input_shape={input_shape!r}"
        )
    return shape


def _sizes(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else ()


def _is_size(size: Any) -> bool:
    return isinstance(size, int) and not isinstance(size, bool) and size >= 1
