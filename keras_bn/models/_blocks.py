"""What the networks are made of: layers of weights with their norm and activation."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import keras
from keras import layers

from keras_bn.models._arguments import one_of

Norm = Callable[..., keras.Layer]
"""A factory of norm layers, called as `norm(axis=..., name=...)`: a layer's class, or
`functools.partial` of one with arguments of its own."""

PLACEMENTS = ("before", "after")


class Blocks:
    """Makes convolutions and dense layers, each with its norm and activation.

    `placement="before"` is weights, norm, activation, as in the batch-norm paper;
    "after" is weights, activation, norm. A bias that a norm with beta follows at once
    is left out: the norm subtracts it with the mean.

    Args:
        norm: The factory of norm layers, or None for a network without.
        placement: Of the norm: "before" or "after" the activation.
        activation: Of all these layers.
        kernel_initializer: Of their kernels.
    """

    def __init__(
        self,
        norm: Norm | None,
        placement: str = "before",
        activation: Any = "relu",
        kernel_initializer: Any = "he_normal",
    ) -> None:
        if norm is not None and not callable(norm):
            raise ValueError(
                "Argument `norm` must be None or a callable that makes a layer from "
                f"the keywords `axis` and `name`. Received: norm={norm!r}"
            )
        self.norm = norm
        self.placement = one_of("placement", placement, PLACEMENTS)
        self.activation = activation
        self.kernel_initializer = kernel_initializer
        # Such a norm, keras_bn's own, keeps less for the backward pass than a norm and
        # an activation apart.
        self.fuses = "activation" in _parameters(norm)
        probe: Any = None if norm is None else self._norm("probe")
        self.use_bias = not getattr(probe, "center", False)
        # Whether the norm adds a residual before its activation.
        self.adds = self.fuses and "residual" in _parameters(probe.call)

    def conv(
        self,
        x: Any,
        filters: int,
        size: int,
        strides: int = 1,
        *,
        name: str,
        padding: str = "same",
    ) -> Any:
        """A square convolution, padded by `size // 2` on each side if "same"."""
        x, make = self._conv(x, filters, size, strides, name, padding)
        return self.unit(x, make, name=name)

    def normed_conv(
        self, x: Any, filters: int, size: int, strides: int, *, name: str
    ) -> Any:
        """A convolution and its norm, whose activation comes later: after a sum."""
        x = self.bare_conv(x, filters, size, strides, name=name)
        return self._normalize(x, name)

    def bare_conv(
        self, x: Any, filters: int, size: int, strides: int, *, name: str
    ) -> Any:
        """A convolution alone, whose norm and activation come later."""
        x, make = self._conv(x, filters, size, strides, name, "same")
        return make(use_bias=self.use_bias, name=name)(x)

    def _conv(
        self, x: Any, filters: int, size: int, strides: int, name: str, padding: str
    ) -> tuple[Any, Callable[..., keras.Layer]]:
        if padding == "same" and 1 not in (size, strides):
            # What Keras pads depends on whether the image's side is even, which moves
            # the grid of a network whose weights come from elsewhere.
            x = layers.ZeroPadding2D(size // 2, name=f"{name}_pad")(x)
            padding = "valid"
        make = partial(
            layers.Conv2D,
            filters,
            size,
            strides,
            padding=padding,
            kernel_initializer=self.kernel_initializer,
        )
        return x, make

    def dense(self, x: Any, units: int, *, name: str) -> Any:
        """A fully connected layer."""
        make = partial(layers.Dense, units, kernel_initializer=self.kernel_initializer)
        return self.unit(x, make, name=name)

    def unit(self, x: Any, make: Callable[..., keras.Layer], *, name: str) -> Any:
        """The layer `make(use_bias=..., name=...)`, its norm and its activation."""
        if self.placement == "after":
            return self._normalize(self._activate(make(name=name)(x), name), name)
        x = make(use_bias=self.use_bias, name=name)(x)
        return self.norm_and_activation(x, name=name)

    def norm_and_activation(self, x: Any, *, name: str, **call: Any) -> Any:
        """The norm, then the activation, in one layer where the norm can.

        `call` are arguments of the norm's call.
        """
        if self.fuses:
            return self._norm(name, activation=self.activation)(x, **call)
        return self._activate(self._normalize(x, name), name)

    def _activate(self, x: Any, name: str) -> Any:
        return layers.Activation(self.activation, name=f"{name}_activation")(x)

    def _normalize(self, x: Any, name: str) -> Any:
        return x if self.norm is None else self._norm(name)(x)

    def _norm(self, name: str, **arguments: Any) -> keras.Layer:
        # Of two axes, those of dense layers, the second one is the last.
        return self.norm(  # type: ignore[misc]
            axis=channel_axis(), name=f"{name}_norm", **arguments
        )


def channel_axis() -> int:
    """The axis of an image's channels under Keras's `image_data_format`."""
    return 1 if keras.config.image_data_format() == "channels_first" else -1


def square_image(side: int, channels: int) -> tuple[int, int, int]:
    """The shape of a square image under Keras's `image_data_format`."""
    return (channels, side, side) if channel_axis() == 1 else (side, side, channels)


def max_pool(x: Any, *, name: str) -> Any:
    """Maxima of 3x3 at every second pixel, of what comes out of a ReLU.

    There is one zero more on each side.
    """
    x = layers.ZeroPadding2D(1, name=f"{name}_pad")(x)
    return layers.MaxPooling2D(3, 2, name=name)(x)


def classifier(x: Any, classes: int, activation: Any) -> Any:
    """The last layer: a number a class."""
    return layers.Dense(classes, activation=activation, name="classes")(x)


def _parameters(function: Any) -> Any:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # None; some callables of C have no signature.
        return ()
