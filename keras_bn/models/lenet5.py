"""LeNet-5."""

from typing import Any

import keras
from keras import layers

from keras_bn.layers import BatchNormalization
from keras_bn.models import _arguments
from keras_bn.models._blocks import Blocks, Norm, classifier, square_image


def lenet5(
    *,
    input_shape: tuple[int, int, int] | None = None,
    classes: int = 10,
    activation: Any = "tanh",
    norm: Norm | None = BatchNormalization,
    placement: str = "before",
    classifier_activation: Any = "softmax",
) -> keras.Model:
    """Builds LeNet-5: LeCun et al., 1998, figure 2, with a norm at each hidden layer.

    As is common today, C3 sees all maps of S2, the subsampling layers have no weights,
    and the output layer is fully connected. It has 61,932 trainable parameters for ten
    classes, and 61,706 with `norm=None`.

    Args:
        input_shape: Height, width (at least 16) and channels, in the order of
            `keras.config.image_data_format()`; by default the paper's 32x32 in grey.
        classes: Number of outputs, at least 1.
        activation: Of the hidden layers: a name or a function, as in Keras.
        norm: None, or what makes a norm layer from the keywords `axis` and `name`: a
            layer's class, or `functools.partial` of one.
        placement: Whether the norm stands "before" or "after" the activation.
        classifier_activation: Of the outputs; None for logits.

    Returns:
        A `keras.Model`: `(batch, *input_shape)` to `(batch, classes)`.

    Raises:
        ValueError: An argument outside of what is said above.

    Reference:
        [LeCun et al., 1998](https://doi.org/10.1109/5.726791).

    Example:

    >>> import keras_bn
    >>> keras_bn.models.lenet5().get_layer("s4").output.shape
    (None, 5, 5, 16)
    """
    shape = _arguments.image_shape(
        square_image(32, 1) if input_shape is None else input_shape,
        smallest=16,
        flattens=True,
    )
    _arguments.at_least("classes", classes, 1)
    hidden = Blocks(norm, placement, activation, "glorot_uniform")

    inputs = keras.Input(shape)
    x = hidden.conv(inputs, 6, 5, padding="valid", name="c1")
    x = layers.AveragePooling2D(2, name="s2")(x)
    x = hidden.conv(x, 16, 5, padding="valid", name="c3")
    x = layers.AveragePooling2D(2, name="s4")(x)
    # C5 covers all of S4, so that it is a full connection.
    x = layers.Flatten(name="flatten")(x)
    x = hidden.dense(x, 120, name="c5")
    x = hidden.dense(x, 84, name="f6")
    outputs = classifier(x, classes, classifier_activation)
    return keras.Model(inputs, outputs, name="lenet5")
