"""The fully connected network of the batch-normalization paper."""

from typing import Any

import keras
from keras import layers

from keras_bn.layers import BatchNormalization
from keras_bn.models import _arguments
from keras_bn.models._blocks import Blocks, Norm, classifier, square_image


def mlp(
    *,
    input_shape: tuple[int, ...] | None = None,
    classes: int = 10,
    depth: int = 3,
    width: int = 100,
    activation: Any = "sigmoid",
    norm: Norm | None = BatchNormalization,
    placement: str = "before",
    kernel_initializer: Any = "glorot_uniform",
    classifier_activation: Any = "softmax",
) -> keras.Model:
    """Builds a network of fully connected hidden layers.

        x_0 = flattened input
        x_i = activation(norm(W_i x_{i-1}))            i = 1 ... depth
        y   = classifier_activation(W x_depth + b)

    By default it is the network of Ioffe and Szegedy, 2015, section 4.1 and figure 1:
    28x28 inputs, three hidden layers of 100 sigmoid units, ten classes. It has 100,010
    trainable parameters, and 99,710 with `norm=None`.

    Args:
        input_shape: Sizes of one sample, of any rank; by default a grey image of 28x28.
        classes: Number of outputs, at least 1.
        depth: Number of hidden layers, at least 1.
        width: Units of each hidden layer, at least 1.
        activation: Of the hidden layers: a name or a function, as in Keras.
        norm: None, or what makes a norm layer from the keywords `axis` and `name`: a
            layer's class, or `functools.partial` of one.
        placement: Whether the norm stands "before" or "after" the activation.
        kernel_initializer: Of the hidden layers.
        classifier_activation: Of the outputs; None for logits.

    Returns:
        A `keras.Model`: `(batch, *input_shape)` to `(batch, classes)`.

    Raises:
        ValueError: An argument outside of what is said above.

    Reference:
        [Ioffe and Szegedy, 2015](https://arxiv.org/abs/1502.03167).

    Example:

    >>> import keras_bn
    >>> keras_bn.models.mlp(depth=10).output_shape
    (None, 10)
    """
    shape = _arguments.feature_shape(
        square_image(28, 1) if input_shape is None else input_shape
    )
    _arguments.at_least("classes", classes, 1)
    _arguments.at_least("depth", depth, 1)
    _arguments.at_least("width", width, 1)
    hidden = Blocks(norm, placement, activation, kernel_initializer)

    inputs = keras.Input(shape)
    x = layers.Flatten(name="flatten")(inputs)
    for i in range(1, depth + 1):
        x = hidden.dense(x, width, name=f"hidden{i}")
    return keras.Model(
        inputs, classifier(x, classes, classifier_activation), name="mlp"
    )
