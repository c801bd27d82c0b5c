"""The networks of `keras_bn.models`, and what their references say of them."""

from collections.abc import Callable
from typing import NamedTuple

import keras_bn
from keras_bn import models


class Case(NamedTuple):
    """A network small enough to train a step, on images that are not square.

    `last` is a layer's name and the shape that it gives, without the batch.
    """

    build: Callable
    shape: tuple
    arguments: dict
    last: tuple

    def model(self, **arguments):
        """The network with three classes, built with further arguments."""
        settings = {"input_shape": self.shape, "classes": 3, **self.arguments}
        return self.build(**settings, **arguments)


NETWORKS = {
    "mlp": Case(models.mlp, (5, 4, 2), {"width": 8}, ("hidden3_norm", (8,))),
    "lenet5": Case(models.lenet5, (20, 28, 1), {}, ("s4", (2, 4, 16))),
    "plain_cnn": Case(
        models.plain_cnn,
        (9, 6, 2),
        {"depth": 5, "filters": (4, 8)},
        ("stage2_conv2_norm", (5, 3, 8)),
    ),
    "vgg11": Case(
        models.vgg,
        (32, 64, 3),
        {"depth": 11, "head": "small"},
        ("block5_pool", (1, 2, 512)),
    ),
    "resnet20": Case(
        models.resnet, (9, 6, 3), {"depth": 20}, ("stage3_block3_out", (3, 2, 64))
    ),
    "resnet20_projected": Case(
        models.resnet,
        (9, 6, 3),
        {"depth": 20, "projection": True},
        ("stage2_block1_shortcut", (5, 3, 32)),
    ),
    "resnet20_v2": Case(
        models.resnet,
        (8, 12, 3),
        {"depth": 20, "preactivation": True},
        ("final_norm", (2, 3, 64)),
    ),
    "resnet18": Case(
        models.resnet, (33, 64, 3), {"depth": 18}, ("stage4_block2_out", (2, 2, 512))
    ),
    "resnet50_v2": Case(
        models.resnet,
        (64, 32, 3),
        {"depth": 50, "preactivation": True},
        ("final_norm", (2, 1, 2048)),
    ),
    "inception_bn": Case(
        models.inception_bn, (64, 32, 3), {}, ("inception_5b", (2, 1, 1024))
    ),
}

PLACED = ("mlp", "lenet5", "plain_cnn", "vgg11", "inception_bn")
"""Those whose norm may stand on either side of the activation."""


class Count(NamedTuple):
    """A network's trainable parameters, and where the number comes from."""

    build: Callable
    arguments: dict
    expected: int
    source: str


def _torchvision(depth, expected):
    return Count(models.resnet, {"depth": depth}, expected, "torchvision")


def _torchvision_less_biases(depth, expected):
    # vgg*_bn, less a bias for each filter of its convolutions.
    return Count(models.vgg, {"depth": depth}, expected, "torchvision less biases")


def _sum(build, expected, source, **arguments):
    return Count(build, arguments, expected, source)


COUNTS = {
    "resnet18": _torchvision(18, 11_689_512),
    "resnet34": _torchvision(34, 21_797_672),
    "resnet50": _torchvision(50, 25_557_032),
    "resnet101": _torchvision(101, 44_549_160),
    "resnet152": _torchvision(152, 60_192_808),
    "vgg11": _torchvision_less_biases(11, 132_868_840 - 2_752),
    "vgg13": _torchvision_less_biases(13, 133_053_736 - 2_944),
    "vgg16": _torchvision_less_biases(16, 138_365_992 - 4_224),
    "vgg19": _torchvision_less_biases(19, 143_678_248 - 5_504),
    "resnet20": _sum(models.resnet, 269_722, "0.27 M in table 6", depth=20),
    "resnet56": _sum(models.resnet, 853_018, "0.85 M in table 6", depth=56),
    "resnet110": _sum(models.resnet, 1_727_962, "1.7 M in table 6", depth=110),
    "lenet5_no_norm": _sum(models.lenet5, 61_706, "layer by layer", norm=None),
    "mlp_no_norm": _sum(
        models.mlp, 784 * 100 + 2 * 100 * 100 + 300 + 1_010, "by hand", norm=None
    ),
}

# He et al., 2016, table 6, in millions.
MILLIONS = {20: 0.27, 32: 0.46, 44: 0.66, 56: 0.85, 110: 1.7}

# Ioffe and Szegedy, 2015, figure 5, in the paper's order: the width that comes in, then
# 1x1, 3x3 reduce, 3x3, double 3x3 reduce, double 3x3 and pool projection.
FIGURE_5 = {
    "3a": (192, 64, 64, 64, 64, 96, 32),
    "3b": (256, 64, 64, 96, 64, 96, 64),
    "3c": (320, 0, 128, 160, 64, 96, 0),
    "4a": (576, 224, 64, 96, 96, 128, 128),
    "4b": (576, 192, 96, 128, 96, 128, 128),
    "4c": (576, 160, 128, 160, 128, 160, 96),
    "4d": (576, 96, 128, 192, 160, 192, 96),
    "4e": (576, 0, 128, 192, 192, 256, 0),
    "5a": (1024, 352, 192, 320, 160, 224, 128),
    "5b": (1024, 352, 192, 320, 192, 224, 128),
}


def figure_5_parameters():
    """The weights of figure 5's convolutions, gamma and beta of each, and the head."""
    convolutions = [(64, 1, 64), (64, 9, 192)]  # Width in, window, width out.
    for (
        width,
        single,
        reduce3,
        conv3,
        reduce_double,
        double3,
        pool,
    ) in FIGURE_5.values():
        convolutions += [
            (width, 1, single),
            (width, 1, reduce3),
            (reduce3, 9, conv3),
            (width, 1, reduce_double),
            (reduce_double, 9, double3),
            (double3, 9, double3),
            (width, 1, pool),
        ]
    first = 7 * 7 * 3 * 8 + 3 * 8 * 64 + 2 * 64
    head = 1024 * 1000 + 1000
    return first + head + sum((i * window + 2) * out for i, window, out in convolutions)


def _apart(axis, name):
    return keras_bn.BatchNormalization(axis=axis, name=name)


BAD_ARGUMENTS = {
    "resnet_depth": (models.resnet, {"depth": 19}, "`depth` .* 18, 20, .*=19"),
    "resnet_no_depth": (models.resnet, {"depth": "50"}, "Received: depth='50'"),
    "resnet_sum_v2": (
        models.resnet,
        {"fused_sum": True, "preactivation": True},
        "`fused_sum` must be False with `preactivation`",
    ),
    "resnet_sum_no_norm": (
        models.resnet,
        {"fused_sum": True, "norm": None},
        "Received: fused_sum=True, preactivation=False, norm=None",
    ),
    "resnet_sum_apart": (
        models.resnet,
        {"fused_sum": True, "norm": _apart},
        "`fused_sum` must be .* a norm that takes no `residual`",
    ),
    "vgg_depth": (models.vgg, {"depth": 12}, "one of 11, 13, 16, 19. Received: dep"),
    "vgg_head": (models.vgg, {"head": "big"}, "`head` must be one of 'imagenet', 'sm"),
    "mlp_depth": (models.mlp, {"depth": 0}, "`depth` .* at least 1. Received: depth=0"),
    "mlp_width": (models.mlp, {"width": 1.5}, "`width` .* of at least 1. Received"),
    "mlp_unknown": (models.mlp, {"input_shape": (None, 3)}, "`input_shape` .*None, 3"),
    "mlp_negative": (models.mlp, {"input_shape": (-1, 3)}, "sizes of at least 1, wi"),
    "mlp_nothing": (models.mlp, {"input_shape": ()}, r"`input_shape` must be .*=\(\)"),
    "mlp_number": (models.mlp, {"input_shape": 28}, "`input_shape` must be .*=28"),
    "plain_depth": (models.plain_cnn, {"depth": 2}, "`depth` .* at least 3"),
    "plain_filters": (models.plain_cnn, {"filters": ()}, "`filters` .* a tuple of one"),
    "plain_no_filters": (models.plain_cnn, {"filters": (8, 0)}, "`filters` .* 1. .*=0"),
    "plain_small": (
        models.plain_cnn,
        {"input_shape": (7, 32, 3), "filters": (1, 2, 3, 4)},
        r"\(height, width, channels\), .* at least 8 .* Received: .*\(7, 32, 3\)",
    ),
    "lenet5_small": (models.lenet5, {"input_shape": (32, 15, 1)}, "at least 16"),
    "lenet5_unknown": (models.lenet5, {"input_shape": (None, 32, 1)}, "at least 16"),
    "vgg_small": (models.vgg, {"input_shape": (31, 224, 3)}, "at least 32"),
    "vgg_unknown": (models.vgg, {"input_shape": (None, None, 3)}, r"poolings\. Rec"),
    "resnet_small": (
        models.resnet,
        {"input_shape": (31, 32, 3)},
        "at least 32 for this network's poolings, or None for an unknown height or wi",
    ),
    "resnet_part": (models.resnet, {"input_shape": (64, 64.5, 3)}, "`input_shape` .*5"),
    "resnet20_small": (
        models.resnet,
        {"depth": 20, "input_shape": (3, 32, 3)},
        "at least 4 ",
    ),
    "inception_small": (
        models.inception_bn,
        {"input_shape": (32, 31, 3)},
        "at least 32",
    ),
    "rank": (models.resnet, {"input_shape": (224, 224)}, r"Received: .*\(224, 224\)"),
    "not_a_shape": (models.vgg, {"input_shape": 224}, "Received: input_shape=224"),
    "channels": (models.resnet, {"input_shape": (64, 64, None)}, "known number of ch"),
    "no_channels": (models.resnet, {"input_shape": (64, 64, -1)}, "known number of ch"),
}
