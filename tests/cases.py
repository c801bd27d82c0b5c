"""The case tables that tests parametrize over."""

from typing import NamedTuple


class Case(NamedTuple):
    """An input's shape, its feature axis and, if any, the shape of a random mask."""

    shape: tuple
    axis: int | tuple = -1
    mask: tuple | None = None
    drop: int | None = None  # the axis that the mask lacks, where not the feature axes
    weighted: bool = False  # a mask of random weights, some of them 0


SHAPES = {
    "dense": Case((6, 4)),
    "dense_wide": Case((2, 300)),
    "sequence": Case((3, 5, 4)),
    "image": Case((3, 4, 5, 6)),
    "image_one_channel": Case((3, 4, 5, 1)),
    "volume": Case((2, 3, 2, 3, 4)),
    "first_dense": Case((4, 6), 0),
    "first_sequence": Case((3, 4, 5), 1),
    "first_image": Case((3, 6, 4, 5), 1),
    "first_volume": Case((2, 4, 3, 2, 3), 1),
    "negative_first": Case((3, 6, 4, 5), -3),
    "middle": Case((3, 4, 6, 5), 2),
    "list_of_one": Case((3, 4, 5), (2,)),
    "two_axes": Case((5, 3, 4), (1, 2)),
    "two_axes_apart": Case((3, 4, 2, 5), (-1, 1)),
}

MASKS = {
    "mask_dense": Case((12, 4), -1, (12,)),
    "mask_sequence": Case((5, 7, 4), -1, (5, 7)),
    "mask_image": Case((3, 4, 5, 6), -1, (3, 4, 5)),
    "mask_broadcast": Case((6, 4, 5, 6), -1, (6, 1, 5)),
    "mask_one_channel": Case((5, 7, 1), -1, (5, 7)),
    "mask_first": Case((5, 4, 7), 1, (5, 7)),
    "mask_first_equal_sizes": Case((5, 7, 7), 1, (5, 7)),
    "mask_first_image": Case((3, 6, 4, 5), 1, (3, 4, 5)),
    "mask_keras_on_first": Case((5, 4, 7), 1, (5, 4), drop=-1),
    "mask_two_axes": Case((6, 3, 8, 4), (1, 3), (6, 8)),
    "mask_keras_two_axes": Case((6, 3, 8, 4), (1, 3), (6, 3, 8), drop=-1),
}

WEIGHTS = {
    "weights_image": Case((6, 4, 5, 6), -1, (6, 1, 5), weighted=True),
    "weights_first": Case((5, 4, 7), 1, (5, 7), weighted=True),
    "weights_keras_two_axes": Case((6, 3, 8, 4), (1, 3), (6, 3, 8), -1, True),
}

ALL = SHAPES | MASKS

KINDS = {
    name: ALL[name]
    for name in (
        "dense",
        "dense_wide",
        "image",
        "first_image",
        "two_axes",
        "mask_image",
    )
}
"""One of each kind, for what need not be tried on every shape."""

LARGE = Case((32, 32, 32, 4))
"""Of more elements than any kernel takes for small."""

DTYPES = ("float32", "bfloat16", "float16", "float64")


def parametrize(table):
    """`pytest.mark.parametrize("case", ...)` over a table, with its names as ids."""
    import pytest

    return pytest.mark.parametrize("case", table.values(), ids=table)
