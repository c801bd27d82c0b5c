"""The Inception network of the batch-normalization paper."""

from functools import partial
from typing import Any, NamedTuple

import keras
from keras import layers

from keras_bn.layers import BatchNormalization
from keras_bn.models import _arguments
from keras_bn.models._blocks import (
    Blocks,
    Norm,
    channel_axis,
    classifier,
    max_pool,
    square_image,
)


class Module(NamedTuple):
    """A row of the paper's figure 5: the filters of each branch.

    `single` is 1x1; `reduce3` and `conv3` are the 1x1 and the 3x3 of the second branch,
    `reduce_double` and `double3` the 1x1 and the two 3x3 of the third. `pool` is the
    fourth one's pooling and `projection` the 1x1 after it. A module with no `single`
    has stride 2, and passes its pooled input through.
    """

    single: int
    reduce3: int
    conv3: int
    reduce_double: int
    double3: int
    pool: str
    projection: int


MODULES = {
    "3a": Module(64, 64, 64, 64, 96, "average", 32),
    "3b": Module(64, 64, 96, 64, 96, "average", 64),
    "3c": Module(0, 128, 160, 64, 96, "max", 0),
    "4a": Module(224, 64, 96, 96, 128, "average", 128),
    "4b": Module(192, 96, 128, 96, 128, "average", 128),
    "4c": Module(160, 128, 160, 128, 160, "average", 96),
    "4d": Module(96, 128, 192, 160, 192, "average", 96),
    "4e": Module(0, 128, 192, 192, 256, "max", 0),
    "5a": Module(352, 192, 320, 160, 224, "average", 128),
    "5b": Module(352, 192, 320, 192, 224, "max", 128),
}


def inception_bn(
    *,
    input_shape: tuple[int | None, ...] | None = None,
    classes: int = 1000,
    norm: Norm | None = BatchNormalization,
    placement: str = "before",
    classifier_activation: Any = "softmax",
) -> keras.Model:
    """Builds BN-Inception: Ioffe and Szegedy, 2015, section 4.2.1 and figure 5.

    The table of figure 5, row by row: the first convolution is separable with a depth
    multiplier of 8, as the figure's caption has it; modules 3c and 4e have stride 2.
    The side classifiers of the training, which the table leaves out, are left out.

    It has 11,188,288 trainable parameters for 1,000 classes: those of the table's
    convolutions without biases, gamma and beta of each, and the classifier's 1,025,000.
    The widely used port to Caffe differs from the table (a plain first convolution;
    module 4c is 608 wide, not 576).

    Args:
        input_shape: Height, width (at least 32; None where unknown) and channels, in
            the order of `keras.config.image_data_format()`; by default the paper's
            224x224 in colour.
        classes: Number of outputs, at least 1.
        norm: None, or what makes a norm layer from the keywords `axis` and `name`: a
            layer's class, or `functools.partial` of one.
        placement: Whether the norm stands "before" or "after" the activation.
        classifier_activation: Of the outputs; None for logits.

    Returns:
        A `keras.Model`: `(batch, *input_shape)` to `(batch, classes)`.

    Raises:
        ValueError: An argument outside of what is said above.

    Reference:
        [Ioffe and Szegedy, 2015](https://arxiv.org/abs/1502.03167).

    Example:

    >>> import keras_bn
    >>> model = keras_bn.models.inception_bn(input_shape=(64, 64, 3), classes=10)
    >>> model.get_layer("inception_5b").output.shape
    (None, 2, 2, 1024)
    """
    shape = _arguments.image_shape(
        square_image(224, 3) if input_shape is None else input_shape, smallest=32
    )
    _arguments.at_least("classes", classes, 1)
    blocks = Blocks(norm, placement)

    inputs = keras.Input(shape)
    x = _separable(blocks, inputs, 64, name="conv1")
    x = max_pool(x, name="pool1")
    x = blocks.conv(x, 64, 1, name="conv2_reduce")
    x = blocks.conv(x, 192, 3, name="conv2")
    x = max_pool(x, name="pool2")
    for number, module in MODULES.items():
        x = _inception(blocks, x, module, name=f"inception_{number}")
    x = layers.GlobalAveragePooling2D(name="average")(x)
    outputs = classifier(x, classes, classifier_activation)
    return keras.Model(inputs, outputs, name="inception_bn")


def _separable(blocks: Blocks, x: Any, filters: int, *, name: str) -> Any:
    """The first convolution: 7x7 with stride 2, separable with a multiplier of 8."""
    make = partial(
        layers.SeparableConv2D,
        filters,
        7,
        2,
        depth_multiplier=8,
        depthwise_initializer="he_normal",
        pointwise_initializer="he_normal",
    )
    x = layers.ZeroPadding2D(3, name=f"{name}_pad")(x)
    return blocks.unit(x, make, name=name)


def _inception(blocks: Blocks, x: Any, module: Module, *, name: str) -> Any:
    strides = 1 if module.single else 2
    branches = []
    if module.single:
        branches.append(blocks.conv(x, module.single, 1, name=f"{name}_single"))

    y = blocks.conv(x, module.reduce3, 1, name=f"{name}_reduce3")
    branches.append(blocks.conv(y, module.conv3, 3, strides, name=f"{name}_conv3"))

    y = blocks.conv(x, module.reduce_double, 1, name=f"{name}_reduce_double")
    y = blocks.conv(y, module.double3, 3, name=f"{name}_double1")
    y = blocks.conv(y, module.double3, 3, strides, name=f"{name}_double2")
    branches.append(y)

    if module.projection:
        y = _pool(x, module.pool, name=f"{name}_pool")
        y = blocks.conv(y, module.projection, 1, name=f"{name}_projection")
    else:
        y = max_pool(x, name=f"{name}_pool")
    branches.append(y)
    return layers.Concatenate(channel_axis(), name=name)(branches)


def _pool(x: Any, kind: str, *, name: str) -> Any:
    pooling = layers.MaxPooling2D if kind == "max" else layers.AveragePooling2D
    return pooling(3, 1, padding="same", name=name)(x)
