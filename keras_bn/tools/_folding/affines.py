"""Per-channel scale and offset, and how they pass layers that only move data."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_bn.tools._graphs.walk import Layer, float64, infers_by_batch

Shape = tuple[int | None, ...]


class Inexact(ValueError):
    """A batch norm cannot be moved to where it was asked to go; the text says why."""


class Affine(NamedTuple):
    """`y = scale * x + offset`, for one sample: the batch axis is left out.

    Both arrays are float64, have the rank of a sample, and size 1 along each axis on
    which they do not depend.
    """

    scale: np.ndarray
    offset: np.ndarray

    def apply(self, change: Callable[[np.ndarray], np.ndarray]) -> "Affine":
        """Both arrays through the same change of layout."""
        return Affine(change(self.scale), change(self.offset))


def affine_of(layer: Layer, rank: int) -> Affine:
    """What a batch norm layer does in inference to a sample with `rank` axes.

        scale  = gamma / sqrt(moving_variance + epsilon)
        offset = beta - moving_mean * scale

    Raises:
        Inexact: Its statistics are not finite, or differ from sample to sample, or are
            those of the batch.
    """
    if infers_by_batch(layer):
        raise Inexact(
            'it infers by inference_statistics="batch": no scale and offset are fixed'
        )
    variance = float64(layer.moving_variance)
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = 1.0 / np.sqrt(variance + layer.epsilon)
        if layer.gamma is not None:
            scale = scale * float64(layer.gamma)
        offset = -float64(layer.moving_mean) * scale
        if layer.beta is not None:
            offset = offset + float64(layer.beta)
    if not np.isfinite(offset).all():  # nor is it where the scale is not
        raise Inexact("its weights or statistics are not finite")
    return Affine(*(laid_out(one, layer.axis, rank) for one in (scale, offset)))


def laid_out(values: Any, axis: Any, rank: int) -> Any:
    """Weights of a layer, one value per channel, in the layout of a sample."""
    axes = [axis] if isinstance(axis, int) else axis
    if 0 in (one % (rank + 1) for one in axes):
        raise Inexact("it normalizes each sample of the batch by itself")
    if values.ndim == rank + 1:  # several feature axes: the input's rank, batch of 1
        return values[0]
    shape = [1] * (rank + 1)
    shape[axes[0]] = values.size
    return values.reshape(shape)[0]


def channel_vector(values: np.ndarray, axis: int, size: int) -> np.ndarray:
    """`values` as one number per channel; `axis` counts without the batch.

    Raises:
        Inexact: They also differ along another axis.
    """
    rows = np.moveaxis(values, axis, -1)
    first = rows[(0,) * (rows.ndim - 1)]
    if np.any(rows != first):
        raise Inexact("it scales positions of one channel differently")
    return np.broadcast_to(first, (size,)).copy()


def before(affine: Affine, layer: Layer, inputs: Shape, outputs: Shape) -> Affine:
    """The affine that does before `layer` what `affine` does after it.

    Shapes are of the layer's input and output, batch included.

    Raises:
        Inexact: There is none.
    """
    result: Affine = _rule(layer)(affine, layer, inputs[1:], outputs[1:], True)
    return result


def after(affine: Affine, layer: Layer, inputs: Shape, outputs: Shape) -> Affine:
    """The affine that does after `layer` what `affine` does before it, or `Inexact`."""
    result: Affine = _rule(layer)(affine, layer, inputs[1:], outputs[1:], False)
    return result


def is_passable(layer: Layer) -> bool:
    """Whether an affine may pass through layers of this class at all."""
    if type(layer) is keras.layers.Activation:
        return layer.activation is keras.activations.linear
    return type(layer) in _RULES


def _rule(layer: Layer) -> Any:
    # A batch norm, which a chain may have between others, moves nothing.
    return _RULES.get(type(layer), _elementwise)


def _elementwise(
    affine: Affine, layer: Layer, inputs: Shape, outputs: Shape, back: bool
) -> Affine:
    """The layer hands its input on in inference."""
    return affine


def uniform(affine: Affine, layer: Layer) -> Affine:
    """`affine`, if it is the same at every position of a channel."""
    axis = 0 if getattr(layer, "data_format", None) == "channels_first" else -1
    for values in affine:
        if math.prod(values.shape) != values.shape[axis]:
            raise Inexact(
                f"'{layer.name}' moves positions, which it scales differently"
            )
    return affine


def _moved(
    affine: Affine, layer: Layer, inputs: Shape, outputs: Shape, back: bool
) -> Affine:
    """The layer drops, repeats or averages positions of a channel.

    What it averages has weights that add up to 1 at the borders too: average pooling
    leaves padding out of the count or repeats the border, and so does interpolation.
    """
    return uniform(affine, layer)


def _rescaled(
    affine: Affine, layer: Layer, inputs: Shape, outputs: Shape, back: bool
) -> Affine:
    factor, shift = (constant(one, len(inputs)) for one in (layer.scale, layer.offset))
    if factor.size > 1 and keras.config.image_data_format() == "channels_first":
        raise Inexact(f"'{layer.name}' has a scale of channels, which come first")
    return across_line(affine, factor, shift, back, layer.name)


def constant(value: Any, rank: int) -> np.ndarray:
    """A factor or summand of a whole batch, as one of a sample with `rank` axes."""
    values = float64(value)
    if values.ndim > rank:
        if values.shape[0] > 1:
            raise Inexact("an operation differs from sample to sample of the batch")
        values = values[0]
    return values


def across_line(
    affine: Affine, factor: Any, shift: Any, back: bool, name: str
) -> Affine:
    """`affine` on the other side of `factor * x + shift`.

    factor * (a x + b) + shift = scale * (factor * x + shift) + offset, with `a` and `b`
    before it, `scale` and `offset` after it.
    """
    scale, offset = affine
    if not back:
        return Affine(scale, factor * offset + shift - scale * shift)
    if not np.all(factor):
        raise Inexact(f"'{name}' multiplies by zero")
    return Affine(scale, (scale * shift + offset - shift) / factor)


def _padded(
    affine: Affine, layer: Layer, inputs: Shape, outputs: Shape, back: bool
) -> Affine:
    if np.any(affine.offset):
        raise Inexact(f"'{layer.name}' pads with zeros, which it would shift")
    return uniform(affine, layer)


def _maximum(
    affine: Affine, layer: Layer, inputs: Shape, outputs: Shape, back: bool
) -> Affine:
    if np.any(affine.scale < 0):
        raise Inexact(f"'{layer.name}' takes maxima, and a scale is negative")
    return uniform(affine, layer)


def _globally(rule: Any) -> Any:
    """`rule`, for a pooling that leaves one value per channel."""

    def moved(
        affine: Affine, layer: Layer, inputs: Shape, outputs: Shape, back: bool
    ) -> Affine:
        first = layer.data_format == "channels_first"
        spatial = tuple(range(1, len(inputs)) if first else range(len(inputs) - 1))
        if back and not layer.keepdims:
            affine = affine.apply(lambda one: np.expand_dims(one, spatial))
        affine = rule(affine, layer, inputs, outputs, back)
        if not back and not layer.keepdims:
            affine = affine.apply(lambda one: np.squeeze(one, spatial))
        return affine

    return moved


def _permuted(
    affine: Affine, layer: Layer, inputs: Shape, outputs: Shape, back: bool
) -> Affine:
    order = [dim - 1 for dim in layer.dims]
    return affine.apply(lambda one: one.transpose(np.argsort(order) if back else order))


def _reshaped(
    affine: Affine, layer: Layer, inputs: Shape, outputs: Shape, back: bool
) -> Affine:
    flattens = type(layer) is keras.layers.Flatten and len(inputs) > 1
    # Flatten puts the channels last before it flattens.
    turned = flattens and layer.data_format == "channels_first"
    source = (*inputs[1:], inputs[0]) if turned else inputs
    if back:
        affine = reshaped(affine, outputs, source, layer.name)
        return affine.apply(lambda one: np.moveaxis(one, -1, 0)) if turned else affine
    if turned:
        affine = affine.apply(lambda one: np.moveaxis(one, 0, -1))
    return reshaped(affine, source, outputs, layer.name)


def reshaped(affine: Affine, old: Any, new: Any, name: str) -> Affine:
    """`affine` of samples of the shape `old`, once they are reshaped to `new`."""

    def change(one: np.ndarray) -> np.ndarray:
        if one.size == 1:
            return one.reshape((1,) * len(new))
        # Of channels that stay last no other size counts, not that of the batch either.
        if one.size == one.shape[-1] and new[-1:] == old[-1:]:
            return one.reshape((1,) * (len(new) - 1) + one.shape[-1:])
        if None in (*old, *new) or math.prod(old) != math.prod(new):
            raise Inexact(f"'{name}' reshapes axes of unknown size")
        return np.broadcast_to(one, old).reshape(new)

    return affine.apply(change)


_LAYERS = keras.layers
_RULES: dict[type, Any] = {
    **dict.fromkeys(
        (
            *(_LAYERS.Activation, _LAYERS.ActivityRegularization, _LAYERS.Identity),
            *(_LAYERS.AlphaDropout, _LAYERS.Dropout, _LAYERS.GaussianDropout),
            *(_LAYERS.GaussianNoise, _LAYERS.SpatialDropout1D),
            *(_LAYERS.SpatialDropout2D, _LAYERS.SpatialDropout3D),
        ),
        _elementwise,
    ),
    **dict.fromkeys(
        (
            *(_LAYERS.AveragePooling1D, _LAYERS.AveragePooling2D),
            *(_LAYERS.AveragePooling3D, _LAYERS.Cropping1D, _LAYERS.Cropping2D),
            *(_LAYERS.Cropping3D, _LAYERS.UpSampling1D, _LAYERS.UpSampling2D),
            _LAYERS.UpSampling3D,
        ),
        _moved,
    ),
    **dict.fromkeys(
        (_LAYERS.ZeroPadding1D, _LAYERS.ZeroPadding2D, _LAYERS.ZeroPadding3D), _padded
    ),
    **dict.fromkeys(
        (_LAYERS.MaxPooling1D, _LAYERS.MaxPooling2D, _LAYERS.MaxPooling3D), _maximum
    ),
    **dict.fromkeys(
        (
            _LAYERS.GlobalAveragePooling1D,
            _LAYERS.GlobalAveragePooling2D,
            _LAYERS.GlobalAveragePooling3D,
        ),
        _globally(_moved),
    ),
    **dict.fromkeys(
        (
            _LAYERS.GlobalMaxPooling1D,
            _LAYERS.GlobalMaxPooling2D,
            _LAYERS.GlobalMaxPooling3D,
        ),
        _globally(_maximum),
    ),
    _LAYERS.Permute: _permuted,
    _LAYERS.Rescaling: _rescaled,
    _LAYERS.Flatten: _reshaped,
    _LAYERS.Reshape: _reshaped,
}
"""How each class of layer lets an affine pass. A layer not here stops it."""
