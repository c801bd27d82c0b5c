"""How kernels lie in memory here and in PyTorch, whose layout all others are put in.

| layer | PyTorch | Keras |
|---|---|---|
| convolution | out, in / groups, *size | *size, in / groups, out |
| depthwise | in * multiplier, 1, *size | *size, in, multiplier |
| transposed | in, out, *size | *size, out, in |
| dense | out, in | in, out |
"""

import math
from typing import Any

import keras
import numpy as np

from keras_bn._keras import kind
from keras_bn.tools._graphs.walk import Layer, float64, graph_in, has_graph, nodes

_L = keras.layers
DEPTHWISE = (_L.DepthwiseConv1D, _L.DepthwiseConv2D)
TRANSPOSED = (_L.Conv1DTranspose, _L.Conv2DTranspose, _L.Conv3DTranspose)
LINEAR_FORWARD = (_L.Conv1D, _L.Conv2D, _L.Conv3D, *DEPTHWISE, _L.Dense)
LINEAR = (*LINEAR_FORWARD, *TRANSPOSED)
"""Layers of one kernel, and maybe a bias, that PyTorch's `weight` and `bias` serve."""


def is_linear(layer: Layer, transposed: bool = True) -> bool:
    """Whether `layer` is one whose kernel can be exchanged."""
    if getattr(layer, "lora_enabled", False):  # its kernel is a sum
        return False
    return isinstance(layer, LINEAR if transposed else LINEAR_FORWARD)


def channels_first(kernel: np.ndarray) -> np.ndarray:
    """PyTorch's layout of a kernel of shape `*size, in, out`."""
    return np.moveaxis(kernel, (-1, -2), (0, 1))


def their_shape(layer: Layer) -> tuple[int, ...]:
    """The shape of PyTorch's `weight` for `layer`."""
    *size, first, second = layer.kernel.shape
    if isinstance(layer, DEPTHWISE):
        return (first * second, 1, *size)
    return (second, first, *size)


def squeezed(size: tuple[int, ...]) -> tuple[int, ...]:
    """A shape of a weight, in which a 1x1 convolution is a dense layer."""
    while len(size) > 2 and size[-1] == 1:
        size = size[:-1]
    return size


def to_ours(layer: Layer, weight: np.ndarray) -> np.ndarray:
    """The kernel of `layer` that does what PyTorch's `weight` does."""
    *size, first, second = layer.kernel.shape
    if isinstance(layer, DEPTHWISE):
        kernel = weight.reshape(first, second, *size)
        return np.moveaxis(kernel, (0, 1), (-2, -1))
    weight = weight.reshape(second, first, *size)
    return np.moveaxis(weight, (1, 0), (-2, -1))


def to_theirs(layer: Layer) -> np.ndarray:
    """PyTorch's `weight` that does what the kernel of `layer` does; float64."""
    kernel = np.moveaxis(float64(layer.kernel), (-2, -1), (1, 0))
    if isinstance(layer, DEPTHWISE):
        kernel = np.moveaxis(kernel, 0, 1)
    return kernel.reshape(their_shape(layer))


def reordered(features: np.ndarray, spatial: tuple[int, ...], back: bool) -> np.ndarray:
    """The last axis, of a flattened image, from channels first to channels last.

    Args:
        features: An array whose last axis numbers what was flattened.
        spatial: The image's shape, channels last.
        back: Whether to go from channels last to channels first instead.
    """
    *lead, _ = features.shape
    if back:
        image = features.reshape(*lead, *spatial)
        return np.moveaxis(image, -1, len(lead)).reshape(features.shape)
    image = features.reshape(*lead, spatial[-1], *spatial[:-1])
    return np.moveaxis(image, len(lead), -1).reshape(features.shape)


MIXED: tuple[int, ...] = ()


def flattened(model: Layer) -> dict[int, tuple[int, ...]]:
    """By `id` of a layer: the image, channels last, whose flattened values it takes.

    It is read from graphs: of a subclassed model nothing is known. An image of one
    position has one order only, and is left out. `MIXED` stands for one that comes
    among other values, as after a concatenation, or where a shared layer takes others.
    """
    found: dict[int, tuple[int, ...] | None] = {}
    if has_graph(model):
        _mark(model, [], found)
    return {layer: image for layer, image in found.items() if image is not None}


def _mark(layer: Layer, images: list[Any], found: dict[int, Any]) -> list[Any]:
    """Notes which images layers take; which ones the outputs hold, flattened."""
    graph = graph_in(layer)
    pairs = zip(graph.inputs, images, strict=False)
    known = {id(tensor): image for tensor, image in pairs}
    for node in nodes(graph):
        tensors, outputs = node.arguments.keras_tensors, node.outputs
        came = [known.get(id(tensor)) for tensor in tensors]
        one = node.operation
        if has_graph(one):
            after = _mark(one, came, found)
        else:
            after = [_image_after(one, tensors, came, out) for out in outputs]
            # The first tensor is what weights are for: a norm may take a residual, too.
            if found.setdefault(id(one), came[0]) != came[0]:
                found[id(one)] = MIXED
        known |= {id(t): image for t, image in zip(outputs, after, strict=False)}
    return [known.get(id(tensor)) for tensor in graph.outputs]


def _image_after(
    layer: Layer, tensors: list[Any], came: list[Any], output: Any
) -> tuple[int, ...] | None:
    """The image that `output` holds flattened, or None."""
    image_before: tuple[int, ...] | None = came[0]
    shapes = [tensor.shape for tensor in tensors]
    flattens = isinstance(layer, _L.Flatten)
    reshapes = isinstance(layer, _L.Reshape) or kind(layer) == "ops.Reshape"
    if (flattens or reshapes) and len(output.shape) == 2:
        image = shapes[0][1:]
        if flattens and layer.data_format == "channels_first":
            image = (*image[1:], *image[:1])  # it moves channels to the end
        elif reshapes and keras.config.image_data_format() == "channels_first":
            return image_before  # it moves nothing: the order is PyTorch's
        if not image or output.shape[1:] == image[-1:]:  # of one position
            return image_before
        known = None not in image and output.shape[1] == math.prod(image)
        return image if known else MIXED
    if not any(one is not None for one in came) or isinstance(layer, LINEAR):
        return None
    # Elementwise, of nothing else: activations, dropout, norms, sums of the like.
    alike = set(shapes) == {output.shape} and len(set(came)) == 1
    return image_before if alike else MIXED
