"""The VGG networks."""

from typing import Any

import keras
from keras import layers

from keras_bn.layers import BatchNormalization
from keras_bn.models import _arguments
from keras_bn.models._blocks import Blocks, Norm, classifier, square_image

FILTERS = (64, 128, 256, 512, 512)
# Table 1 of the paper, columns A, B, D and E: convolutions between two poolings.
CONVOLUTIONS = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
HEADS = ("imagenet", "small")


def vgg(
    *,
    depth: int = 16,
    input_shape: tuple[int | None, ...] | None = None,
    classes: int | None = None,
    head: str = "imagenet",
    dropout: float = 0.5,
    norm: Norm | None = BatchNormalization,
    placement: str = "before",
    classifier_activation: Any = "softmax",
) -> keras.Model:
    """Builds VGG-11, 13, 16 or 19: Simonyan and Zisserman, 2015, table 1.

    Five groups of 3x3 convolutions, each followed by a 2x2 maximum pooling; the norm is
    at the convolutions, as in the common `vgg*_bn`. The "imagenet" head is the paper's:
    two fully connected layers of 4,096 with dropout. The "small" head, for 32x32
    images, classifies the mean over the last maps.

    Trainable parameters with the default norm and 1,000 classes:

    | depth | head "imagenet", 224x224 | head "small" |
    |---|---|---|
    | 11 | 132,866,088 | 9,736,232 |
    | 13 | 133,050,792 | 9,920,936 |
    | 16 | 138,361,768 | 15,231,912 |
    | 19 | 143,672,744 | 20,542,888 |

    Args:
        depth: 11, 13, 16 or 19: the layers with weights in the paper's form.
        input_shape: Height, width (at least 32; None where unknown, under the small
            head) and channels, in the order of `keras.config.image_data_format()`; by
            default 224x224, or 32x32 for the small head, in colour.
        classes: Number of outputs, at least 1; by default 1,000, or 10 for the small
            head.
        head: "imagenet" or "small".
        dropout: Share of the units that each dropout layer of the head switches off.
        norm: None, or what makes a norm layer from the keywords `axis` and `name`: a
            layer's class, or `functools.partial` of one.
        placement: Whether the norm stands "before" or "after" the activation.
        classifier_activation: Of the outputs; None for logits.

    Returns:
        A `keras.Model`: `(batch, *input_shape)` to `(batch, classes)`.

    Raises:
        ValueError: An argument outside of what is said above.

    Reference:
        [Simonyan and Zisserman, 2015](https://arxiv.org/abs/1409.1556).

    Example:

    >>> import keras_bn
    >>> model = keras_bn.models.vgg(depth=11, head="small")
    >>> model.input_shape, model.output_shape
    ((None, 32, 32, 3), (None, 10))
    """
    _arguments.one_of("depth", depth, CONVOLUTIONS)
    small = _arguments.one_of("head", head, HEADS) == "small"
    shape = _arguments.image_shape(
        square_image(32 if small else 224, 3) if input_shape is None else input_shape,
        smallest=32,
        flattens=not small,
    )
    classes = (10 if small else 1000) if classes is None else classes
    _arguments.at_least("classes", classes, 1)
    block = Blocks(norm, placement)

    inputs = x = keras.Input(shape)
    for group, (filters, count) in enumerate(
        zip(FILTERS, CONVOLUTIONS[depth], strict=True), 1
    ):
        for i in range(1, count + 1):
            x = block.conv(x, filters, 3, name=f"block{group}_conv{i}")
        x = layers.MaxPooling2D(2, name=f"block{group}_pool")(x)
    if small:
        x = layers.GlobalAveragePooling2D(name="average")(x)
    else:
        x = layers.Flatten(name="flatten")(x)
        for i in (1, 2):
            x = layers.Dense(
                4096, "relu", kernel_initializer="he_normal", name=f"fc{i}"
            )(x)
            x = layers.Dropout(dropout, name=f"dropout{i}")(x)
    outputs = classifier(x, classes, classifier_activation)
    return keras.Model(inputs, outputs, name=f"vgg{depth}")
