"""The residual networks, for ImageNet and for small images, in both versions."""

from collections.abc import Callable
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


class Convolution(NamedTuple):
    """One convolution of a block."""

    filters: int
    size: int
    strides: int


Branch = tuple[Convolution, ...]
Conv = Callable[..., Any]
Shorten = Callable[[Conv, Any, Branch, str], Any]


def basic(filters: int, strides: int) -> Branch:
    """Figure 5, left."""
    return Convolution(filters, 3, strides), Convolution(filters, 3, 1)


def bottleneck(filters: int, strides: int) -> Branch:
    """Figure 5, right; the stride at the 3x3 convolution, as is usual today."""
    return (
        Convolution(filters, 1, 1),
        Convolution(filters, 3, strides),
        Convolution(4 * filters, 1, 1),
    )


# Table 1 of He et al., 2016, for ImageNet: the blocks of each stage.
IMAGENET = {
    18: (basic, (2, 2, 2, 2)),
    34: (basic, (3, 4, 6, 3)),
    50: (bottleneck, (3, 4, 6, 3)),
    101: (bottleneck, (3, 4, 23, 3)),
    152: (bottleneck, (3, 8, 36, 3)),
}
# Section 4.2 for small images: 6n + 2 layers are three stages of n blocks.
SMALL = {depth: (basic, ((depth - 2) // 6,) * 3) for depth in (20, 32, 44, 56, 110)}


def resnet(
    *,
    depth: int = 50,
    input_shape: tuple[int | None, ...] | None = None,
    classes: int | None = None,
    preactivation: bool = False,
    projection: bool | None = None,
    norm: Norm | None = BatchNormalization,
    fused_sum: bool = False,
    classifier_activation: Any = "softmax",
) -> keras.Model:
    """Builds a residual network; the depth chooses the form.

        version 1:                 x_{l+1} = relu(shortcut(x_l) + F(x_l))
        version 2, preactivation:  x_{l+1} = shortcut(x_l) + F(relu(norm(x_l)))

    ImageNet (He et al., 2016, table 1): depth 18, 34, and 50, 101, 152 of bottleneck
    blocks; a shortcut that changes shape is a 1x1 convolution. The stride of a
    bottleneck is at its 3x3 convolution, as in most implementations today.
    Small images (section 4.2): depth 20, 32, 44, 56, 110; a shortcut that changes shape
    takes every second pixel and pads the channels with zeros, and has no weights.
    `projection` makes it the one or the other.

    Trainable parameters with the default norm:

    | depth | classes | version 1 | version 2 |
    |---|---|---|---|
    | 18 | 1,000 | 11,689,512 | 11,687,720 |
    | 34 | 1,000 | 21,797,672 | 21,795,880 |
    | 50 | 1,000 | 25,557,032 | 25,549,352 |
    | 101 | 1,000 | 44,549,160 | 44,541,480 |
    | 152 | 1,000 | 60,192,808 | 60,185,128 |
    | 20 | 10 | 269,722 | 269,722 |
    | 56 | 10 | 853,018 | 853,018 |
    | 110 | 10 | 1,727,962 | 1,727,962 |

    Args:
        depth: One of those above: the layers with weights.
        input_shape: Height, width (at least 32, or 4 for the small form; None where
            unknown) and channels, in the order of `keras.config.image_data_format()`;
            by default 224x224, or 32x32 for the small form, in colour.
        classes: Number of outputs, at least 1; by default 1,000, or 10 for the small
            form.
        preactivation: Whether norm and ReLU come before the convolutions: version 2.
        projection: Whether a shortcut that changes shape is a 1x1 convolution (option B
            of section 3.3) rather than padded (option A); by default as said above.
        norm: None, or what makes a norm layer from the keywords `axis` and `name`: a
            layer's class, or `functools.partial` of one. Which side of the ReLU it
            stands on is `preactivation`'s to say.
        fused_sum: Whether the last norm of a block also adds the shortcut and applies
            the ReLU, `norm(x, residual=shortcut)`, rather than layers of their own. The
            numbers are the same. It is quicker on JAX, and not on TensorFlow and
            PyTorch: docs/training.md. Version 1 with `keras_bn.BatchNormalization`.
        classifier_activation: Of the outputs; None for logits.

    Returns:
        A `keras.Model`: `(batch, *input_shape)` to `(batch, classes)`.

    Raises:
        ValueError: An argument outside of what is said above.

    Reference:
        [He et al., 2016](https://arxiv.org/abs/1512.03385); version 2:
        [He et al., 2016b](https://arxiv.org/abs/1603.05027).

    Example:

    >>> import keras_bn
    >>> keras_bn.models.resnet(depth=20, preactivation=True).output_shape
    (None, 10)
    """
    _arguments.one_of("depth", depth, sorted({*SMALL, *IMAGENET}))
    small = depth in SMALL
    shape = _arguments.image_shape(
        square_image(32 if small else 224, 3) if input_shape is None else input_shape,
        smallest=4 if small else 32,
    )
    classes = (10 if small else 1000) if classes is None else classes
    _arguments.at_least("classes", classes, 1)
    blocks = Blocks(norm)
    residual = _version2 if preactivation else _version1
    if fused_sum:
        if preactivation or not blocks.adds:
            raise ValueError(
                "Argument `fused_sum` must be False with `preactivation`, and with a "
                "norm that takes no `residual` when it is called. Received: "
                f"{fused_sum=}, {preactivation=}, {norm=}"
            )
        residual = _version1_fused
    branch, stages = SMALL[depth] if small else IMAGENET[depth]
    projected = not small if projection is None else projection
    shorten = _projected if projected else _padded

    inputs = keras.Input(shape)
    x = _small_stem(blocks, inputs) if small else _imagenet_stem(blocks, inputs)
    filters = 16 if small else 64
    for stage, count in enumerate(stages, 1):
        for i in range(1, count + 1):
            strides = 2 if stage > 1 and i == 1 else 1
            name = f"stage{stage}_block{i}"
            x = residual(blocks, x, branch(filters, strides), shorten, name)
        filters *= 2
    if preactivation:
        x = blocks.norm_and_activation(x, name="final")
    x = layers.GlobalAveragePooling2D(name="average")(x)
    outputs = classifier(x, classes, classifier_activation)
    version = "v2" if preactivation else ""
    return keras.Model(inputs, outputs, name=f"resnet{depth}{version}")


def _small_stem(blocks: Blocks, x: Any) -> Any:
    return blocks.conv(x, 16, 3, name="stem_conv")


def _imagenet_stem(blocks: Blocks, x: Any) -> Any:
    x = blocks.conv(x, 64, 7, 2, name="stem_conv")
    return max_pool(x, name="stem_pool")


def _version1(
    blocks: Blocks, x: Any, branch: Branch, shorten: Shorten, name: str
) -> Any:
    """Norm after each convolution, the last ReLU after the sum."""
    x, shortcut = _until_last(blocks, x, branch, shorten, name)
    x = blocks.normed_conv(x, *branch[-1], name=f"{name}_conv{len(branch)}")
    x = layers.Add(name=f"{name}_add")([x, shortcut])
    return layers.ReLU(name=f"{name}_out")(x)


def _version1_fused(
    blocks: Blocks, x: Any, branch: Branch, shorten: Shorten, name: str
) -> Any:
    """The same, the sum and the ReLU within the last norm."""
    x, shortcut = _until_last(blocks, x, branch, shorten, name)
    name = f"{name}_conv{len(branch)}"
    x = blocks.bare_conv(x, *branch[-1], name=name)
    return blocks.norm_and_activation(x, name=name, residual=shortcut)


def _until_last(
    blocks: Blocks, x: Any, branch: Branch, shorten: Shorten, name: str
) -> tuple[Any, Any]:
    """What the last convolution of a block of version 1 gets, and the shortcut."""
    shortcut = x
    if _changes_shape(x, branch):
        shortcut = shorten(blocks.normed_conv, x, branch, f"{name}_shortcut")
    for i, convolution in enumerate(branch[:-1], 1):
        x = blocks.conv(x, *convolution, name=f"{name}_conv{i}")
    return x, shortcut


def _version2(
    blocks: Blocks, x: Any, branch: Branch, shorten: Shorten, name: str
) -> Any:
    """Norm and ReLU before each convolution, nothing after the sum."""
    shortcut = x
    # The stem ends with norm and ReLU, so the first block needs none of its own.
    if name != "stage1_block1":
        x = blocks.norm_and_activation(x, name=f"{name}_pre")
    if _changes_shape(x, branch):
        shortcut = shorten(blocks.bare_conv, x, branch, f"{name}_shortcut")
    *hidden, last = branch
    for i, convolution in enumerate(hidden, 1):
        # The norm and ReLU that follow this convolution are those before the next.
        x = blocks.conv(x, *convolution, name=f"{name}_conv{i}")
    x = blocks.bare_conv(x, *last, name=f"{name}_conv{len(branch)}")
    return layers.Add(name=f"{name}_add")([x, shortcut])


def _changes_shape(x: Any, branch: Branch) -> bool:
    # A branch that halves the image has twice the filters.
    return bool(x.shape[channel_axis()] != branch[-1].filters)


def _strides(branch: Branch) -> int:
    return max(convolution.strides for convolution in branch)


def _projected(conv: Conv, x: Any, branch: Branch, name: str) -> Any:
    """Option B of section 3.3: a 1x1 convolution."""
    return conv(x, branch[-1].filters, 1, _strides(branch), name=name)


def _padded(conv: Conv, x: Any, branch: Branch, name: str) -> Any:
    """Option A of section 3.3: every second pixel, and zeros as the new channels."""
    x = layers.MaxPooling2D(1, _strides(branch), name=name)(x)
    padding = [(0, 0)] * 4
    padding[channel_axis()] = (0, branch[-1].filters - x.shape[channel_axis()])
    return keras.ops.pad(x, padding)
