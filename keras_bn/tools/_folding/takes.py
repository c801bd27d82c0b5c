"""What a layer is to take into its weights, and the weights that come of it."""

from typing import Any, NamedTuple

import keras
import numpy as np

from keras_bn.tools._folding.affines import Affine, Inexact
from keras_bn.tools._folding.linear_layers import Weights
from keras_bn.tools._folding.takers import taker
from keras_bn.tools._graphs.walk import Layer

Shape = tuple[int | None, ...]


class Take(NamedTuple):
    """What one layer is to take in.

    Attributes:
        node: The call.
        layer: The layer, which a wrapper may call.
        after: Whether it is to do `affine` to its output; otherwise to its input.
        affine: Scale and offset.
        inputs: The shape that the layer is called on.
        outputs: The shape that it gives.
    """

    node: Any
    layer: Layer
    after: bool
    affine: Affine
    inputs: Shape
    outputs: Shape


def check_fits(layer: Layer, weights: Weights) -> None:
    """Raises `Inexact` where the dtype of the layer's weights cannot hold these."""
    with np.errstate(over="ignore"):
        for one in (*weights.kernels.values(), weights.bias):
            cast = keras.ops.cast(one, layer.variable_dtype)
            if not np.isfinite(keras.ops.convert_to_numpy(cast).astype("f4")).all():
                raise Inexact(f"its weights do not fit {layer.variable_dtype}")


def folded_weights(layer: Layer, steps: list[Take]) -> Weights:
    """The weights of a layer after these steps of a plan."""
    how = taker(layer)
    weights = how.read(layer, steps[0].outputs)
    for take in steps:
        if take.after:
            weights = how.after(layer, weights, take.affine, take.outputs)
        else:
            weights = how.before(layer, weights, take.affine, take.inputs)
    return weights
