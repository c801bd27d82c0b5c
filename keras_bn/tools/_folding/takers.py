"""Layers that can take scale and offset into their weights, and with which config."""

import re
from typing import Any, Protocol

import keras
import numpy as np

from keras_bn.layers import BatchNormalization
from keras_bn.tools._folding import linear_layers
from keras_bn.tools._folding.affines import Affine, Inexact, channel_vector
from keras_bn.tools._folding.linear_layers import FAMILIES, Weights
from keras_bn.tools._graphs.walk import Layer, float64

Shape = tuple[int | None, ...]


class Taker(Protocol):
    """How a kind of layer takes an affine in; shapes have the batch axis."""

    def read(self, layer: Layer, outputs: Shape) -> Weights:
        """The weights in float64; a bias that it lacks is zeros."""

    def after(
        self, layer: Layer, w: Weights, affine: Affine, outputs: Shape
    ) -> Weights:
        """The weights with which it computes `affine(layer(x))`, or `Inexact`."""

    def before(
        self, layer: Layer, w: Weights, affine: Affine, inputs: Shape
    ) -> Weights:
        """The weights with which it computes `layer(affine(x))`, or `Inexact`."""

    def config(self, layer: Layer) -> dict[str, Any]:
        """What its config must have to hold such weights."""

    def fill(self, new: Layer, w: Weights) -> None:
        """Gives them to a layer of that config."""


class _Linear:
    """The families of `_linear`."""

    def read(self, layer: Layer, outputs: Shape) -> Weights:
        return linear_layers.read_weights(layer)

    def _vectors(self, layer: Layer, affine: Affine, shape: Shape) -> list[np.ndarray]:
        axis = linear_layers.channel_axis(layer, len(shape) - 1)
        size: Any = shape[1:][axis]
        return [channel_vector(values, axis, size) for values in affine]

    def after(
        self, layer: Layer, w: Weights, affine: Affine, outputs: Shape
    ) -> Weights:
        return linear_layers.fold_after(
            layer, w, *self._vectors(layer, affine, outputs)
        )

    def before(
        self, layer: Layer, w: Weights, affine: Affine, inputs: Shape
    ) -> Weights:
        vectors = self._vectors(layer, affine, inputs)
        return linear_layers.fold_before(layer, w, vectors[0], vectors[1], inputs)

    def config(self, layer: Layer) -> dict[str, Any]:
        return {"use_bias": True}

    def fill(self, new: Layer, w: Weights) -> None:
        for name, kernel in w.kernels.items():
            getattr(new, name).assign(kernel)
        new.bias.assign(w.bias)


class _Embedding:
    """A table of vectors: each row is scaled and shifted."""

    def read(self, layer: Layer, outputs: Shape) -> Weights:
        return Weights({"embeddings": float64(layer.embeddings)}, np.zeros(0))

    def after(
        self, layer: Layer, w: Weights, affine: Affine, outputs: Shape
    ) -> Weights:
        scale, offset = (channel_vector(v, -1, layer.output_dim) for v in affine)
        return Weights({"embeddings": w.kernels["embeddings"] * scale + offset}, w.bias)

    def before(
        self, layer: Layer, w: Weights, affine: Affine, inputs: Shape
    ) -> Weights:
        raise Inexact(f"'{layer.name}' takes indices")

    def config(self, layer: Layer) -> dict[str, Any]:
        return {}

    def fill(self, new: Layer, w: Weights) -> None:
        new.embeddings.assign(w.kernels["embeddings"])


class _Normalizing:
    """A normalization that ends in `gamma * y + beta`."""

    def _axes(self, layer: Layer, rank: int) -> list[int]:
        axes = [layer.axis] if isinstance(layer.axis, int) else layer.axis
        return sorted(axis % rank for axis in axes)

    def read(self, layer: Layer, outputs: Shape) -> Weights:
        if getattr(layer, "rms_scaling", False):
            raise Inexact(f"'{layer.name}' has no offset (rms_scaling=True)")
        axes = self._axes(layer, len(outputs))
        shape: Any = tuple(outputs[axis] for axis in axes)
        gamma = np.ones(shape) if layer.gamma is None else float64(layer.gamma)
        beta = np.zeros(shape) if layer.beta is None else float64(layer.beta)
        if gamma.shape != shape or beta.shape != shape:
            raise Inexact(f"'{layer.name}' normalizes along several axes")
        return Weights({"gamma": gamma}, beta)

    def after(
        self, layer: Layer, w: Weights, affine: Affine, outputs: Shape
    ) -> Weights:
        axes = self._axes(layer, len(outputs))
        others = {*range(len(outputs))} - {*axes}
        scale, offset = (
            _without(values[np.newaxis], others, layer) for values in affine
        )
        gamma = w.kernels["gamma"]
        return Weights({"gamma": gamma * scale}, w.bias * scale + offset)

    def before(
        self, layer: Layer, w: Weights, affine: Affine, inputs: Shape
    ) -> Weights:
        raise Inexact(f"'{layer.name}' ({type(layer).__name__}) is in the way")

    def config(self, layer: Layer) -> dict[str, Any]:
        return {"scale": True, "center": True}

    def fill(self, new: Layer, w: Weights) -> None:
        new.gamma.assign(w.kernels["gamma"])
        new.beta.assign(w.bias)


def _without(values: np.ndarray, axes: set[int], layer: Layer) -> np.ndarray:
    """`values` without axes on which they may not depend."""
    if any(values.shape[axis] > 1 for axis in axes):
        raise Inexact(f"it scales along axes on which '{layer.name}' has no weights")
    return values.squeeze((*axes,))


class _Einsum:
    """EinsumDense. The bias is kept in the layout of an output, the batch with it."""

    def _letters(self, layer: Layer) -> tuple[str, str, str]:
        names = re.split(",|->", layer.equation.replace(" ", ""))
        inputs, kernel, outputs = (one.replace("...", "") for one in names)
        return inputs, kernel, outputs

    def _places(self, layer: Layer, letters: str, rank: int) -> dict[str, int]:
        """The axis of each letter; the others are those of an ellipsis."""
        left = layer.equation.strip().startswith("...")
        first = rank - len(letters) if left else 0
        return {letter: first + i for i, letter in enumerate(letters)}

    def _along(
        self, layer: Layer, values: np.ndarray, places: dict[str, int], kernel: str
    ) -> np.ndarray:
        """`values`, of a tensor's layout, in the layout of the kernel."""
        given = [letter for letter in places if letter in kernel]
        kept = [letter for letter in kernel if letter in places]
        others = {*range(values.ndim)} - {places[letter] for letter in given}
        values = _without(values, others, layer)
        values = values.transpose([given.index(letter) for letter in kept])
        missing = [i for i, letter in enumerate(kernel) if letter not in places]
        return np.expand_dims(values, missing)

    def read(self, layer: Layer, outputs: Shape) -> Weights:
        rank = len(outputs)
        bias = np.zeros(()) if layer.bias is None else float64(layer.bias)
        bias = bias.reshape((1,) * (rank - bias.ndim) + bias.shape)
        return Weights({"kernel": float64(layer.kernel)}, bias)

    def after(
        self, layer: Layer, w: Weights, affine: Affine, outputs: Shape
    ) -> Weights:
        _, kernel, letters = self._letters(layer)
        places = self._places(layer, letters, len(outputs))
        scale, offset = (values[np.newaxis] for values in affine)
        factor = self._along(layer, scale, places, kernel)
        self._along(layer, offset, places, kernel)
        return w.times("kernel", factor, w.bias * scale + offset)

    def before(
        self, layer: Layer, w: Weights, affine: Affine, inputs: Shape
    ) -> Weights:
        letters, kernel, outputs = self._letters(layer)
        places = self._places(layer, letters, len(inputs))
        scale, offset = (values[np.newaxis] for values in affine)
        factor = self._along(layer, scale, places, kernel)
        bias = w.bias
        if np.any(offset):
            if set(letters) - set(outputs) - set(kernel):
                raise Inexact(
                    f"'{layer.name}' adds up inputs that no weight multiplies"
                )
            shifted = w.kernels["kernel"] * self._along(layer, offset, places, kernel)
            left = "".join(letter for letter in outputs if letter in kernel)
            total = np.einsum(f"{kernel}->{left}", shifted)
            places = self._places(layer, outputs, bias.ndim)
            others = {*range(bias.ndim)} - {places[letter] for letter in left}
            bias = bias + np.expand_dims(total, (*others,))
        return w.times("kernel", factor, bias)

    def config(self, layer: Layer) -> dict[str, Any]:
        _, kernel, letters = self._letters(layer)
        # A letter of the batch has no size of its own, and no kernel has it.
        axes = {*kernel, *(layer.bias_axes or "")}
        return {"bias_axes": "".join(one for one in letters if one in axes)}

    def fill(self, new: Layer, w: Weights) -> None:
        new.kernel.assign(w.kernels["kernel"])
        shape = new.bias.shape
        bias = w.bias.reshape(w.bias.shape[w.bias.ndim - len(shape) :])
        new.bias.assign(np.broadcast_to(bias, shape))


_LAYERS = keras.layers
TAKERS: dict[type, Taker] = {
    **dict.fromkeys(FAMILIES, _Linear()),
    _LAYERS.EinsumDense: _Einsum(),
    _LAYERS.Embedding: _Embedding(),
    _LAYERS.LayerNormalization: _Normalizing(),
    _LAYERS.GroupNormalization: _Normalizing(),
    _LAYERS.BatchNormalization: _Normalizing(),
    BatchNormalization: _Normalizing(),
}
"""By class. A batch norm takes another in only where it has to stay itself."""


def is_taker(layer: Layer) -> bool:
    """Whether a batch norm after `layer` can go into its weights."""
    return type(layer) in TAKERS


def taker(layer: Layer) -> Taker:
    """How `layer` takes an affine in."""
    return TAKERS[type(layer)]
