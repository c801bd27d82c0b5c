"""A stack of convolutions without shortcuts, as deep as asked for."""

from typing import Any

import keras
from keras import layers

from keras_bn.layers import BatchNormalization
from keras_bn.models import _arguments
from keras_bn.models._blocks import Blocks, Norm, classifier, square_image


def plain_cnn(
    *,
    input_shape: tuple[int | None, ...] | None = None,
    classes: int = 10,
    depth: int = 20,
    filters: int | tuple[int, ...] = (16, 32, 64),
    activation: Any = "relu",
    norm: Norm | None = BatchNormalization,
    placement: str = "before",
    kernel_initializer: Any = "he_normal",
    classifier_activation: Any = "softmax",
) -> keras.Model:
    """Builds a plain network: convolutions one after the other, with no shortcut.

        x_i = activation(norm(conv3x3(x_{i-1})))       i = 1 ... depth
        y   = classifier_activation(W mean(x_depth) + b)

    It is the plain network that He et al., 2016, compare residual networks with
    (section 4.2 and figure 6): stages of equally many convolutions; each stage after
    the first halves the image by a stride of 2. By default it has 20 convolutions and
    279,002 trainable parameters.

    Args:
        input_shape: Height, width (at least 1, 2, 4, ... for 1, 2, 3, ... stages; None
            where unknown) and channels, in the order of
            `keras.config.image_data_format()`; by default 32x32 in colour.
        classes: Number of outputs, at least 1.
        depth: Number of convolutions, at least one a stage. Where the stages cannot be
            equally long, the first ones are one longer.
        filters: Filters of each stage; one number makes one stage.
        activation: Of the convolutions: a name or a function, as in Keras.
        norm: None, or what makes a norm layer from the keywords `axis` and `name`: a
            layer's class, or `functools.partial` of one.
        placement: Whether the norm stands "before" or "after" the activation.
        kernel_initializer: Of the convolutions.
        classifier_activation: Of the outputs; None for logits.

    Returns:
        A `keras.Model`: `(batch, *input_shape)` to `(batch, classes)`.

    Raises:
        ValueError: An argument outside of what is said above.

    Reference:
        [He et al., 2016](https://arxiv.org/abs/1512.03385).

    Example:

    >>> import keras_bn
    >>> model = keras_bn.models.plain_cnn(depth=8, filters=(8, 16))
    >>> model.get_layer("stage2_conv4_norm").output.shape
    (None, 16, 16, 16)
    """
    stages = filters if isinstance(filters, tuple) else (filters,)
    if not stages:
        raise ValueError(
            "Argument `filters` must be a number, or a tuple of one or more. "
            f"Received: filters={filters!r}"
        )
    for count in stages:
        _arguments.at_least("filters", count, 1)
    _arguments.at_least("classes", classes, 1)
    _arguments.at_least("depth", depth, len(stages))
    shape = _arguments.image_shape(
        square_image(32, 3) if input_shape is None else input_shape,
        smallest=2 ** (len(stages) - 1),
    )
    block = Blocks(norm, placement, activation, kernel_initializer)

    inputs = x = keras.Input(shape)
    for stage, count in enumerate(stages, 1):
        length = (depth + len(stages) - stage) // len(stages)
        for i in range(1, length + 1):
            strides = 2 if stage > 1 and i == 1 else 1
            x = block.conv(x, count, 3, strides, name=f"stage{stage}_conv{i}")
    x = layers.GlobalAveragePooling2D(name="average")(x)
    outputs = classifier(x, classes, classifier_activation)
    return keras.Model(inputs, outputs, name=f"plain_cnn{depth}")
