"""How PyTorch's native operators, which know two memory layouts, see any tensor."""

from typing import NamedTuple

import torch

from keras_bn.backend.interface import Axes, Tensor


class Layout(NamedTuple):
    """How to see a tensor of any rank as one that the native operators are fast on.

    They know two memory layouts: `(samples, channels, size)` in one piece, and
    channels last, as `(1, channels, samples, 1)` in that memory format. Any single
    feature axis in any memory order becomes one of them by a view, or by one copy.
    """

    permutation: tuple[int, ...] | None  # brings the axes into memory's order, if any
    shape: torch.Size  # in that order
    channel: int  # where the feature axis then is

    @classmethod
    def of(cls, x: Tensor, axes: Axes) -> "Layout":
        """That of x, by its strides."""
        channel = axes.features[0]
        if x.is_contiguous():
            return cls(None, x.shape, channel)
        # Axes of size 1 have strides that mean nothing; any order that packs will do.
        stride = x.stride()
        order = tuple(sorted(range(x.ndim), key=lambda axis: -stride[axis]))
        ordered = x.permute(order)
        if not ordered.is_contiguous():
            return cls(None, x.shape, channel)
        return cls(order, ordered.shape, order.index(channel))

    def to_native(self, x: Tensor) -> Tensor:
        """A tensor of this layout, for the operators; a view if it is in one piece."""
        channels = self.shape[self.channel]
        packed = x if self.permutation is None else x.permute(self.permutation)
        packed = packed.contiguous()
        if self.shape[self.channel + 1 :].numel() == 1:
            return as_channels_last(packed, channels)
        return packed.view(self.shape[: self.channel].numel(), channels, -1)

    def from_native(self, y: Tensor) -> Tensor:
        """A view of their result, with the axes that the input had."""
        if y.ndim == 4:
            y = y.permute(0, 2, 3, 1)
        y = y.reshape(self.shape)
        if self.permutation is None:
            return y
        order = self.permutation
        return y.permute(sorted(range(len(order)), key=order.__getitem__))


class Joined(NamedTuple):
    """How to see several feature axes as one, at the place of the last of them.

    One copy, or none where they follow each other; still quicker than plain operators.
    """

    order: tuple[int, ...]
    axes: Axes

    @classmethod
    def of(cls, axes: Axes) -> "Joined":
        """That of an input with these axes."""
        last = axes.features[-1]
        before = tuple(one for one in axes.reduction if one < last)
        after = tuple(one for one in axes.reduction if one > last)
        joined = len(before)
        ndim = len(axes.reduction) + 1
        reduction = tuple(one for one in range(ndim) if one != joined)
        return cls((*before, *axes.features, *after), Axes((joined,), reduction))

    def join(self, x: Tensor) -> Tensor:
        """X with one feature axis."""
        permuted = x.permute(self.order)
        start = self.axes.features[0]
        return permuted.flatten(start, start + x.ndim - len(self.axes.reduction) - 1)

    def split(self, y: Tensor, like: Tensor) -> Tensor:
        """Y with the axes of `like`, of which it was made."""
        shape = [like.shape[axis] for axis in self.order]
        order = sorted(range(like.ndim), key=self.order.__getitem__)
        return y.reshape(shape).permute(order).contiguous()


def as_channels_last(packed: Tensor, channels: int) -> Tensor:
    """`(..., channels)` in one piece as `(1, channels, samples, 1)`: a view."""
    samples = packed.numel() // channels
    strides = (packed.numel(), 1, channels, channels)
    return packed.as_strided((1, channels, samples, 1), strides)


def per_channel(parameter: Tensor, x: Tensor) -> Tensor:
    """`parameter`, in a shape that broadcasts against x in a native layout."""
    return parameter.view(1, -1, *[1] * (x.ndim - 2))


def spread(parameter: Tensor, axes: Axes) -> Tensor:
    """`parameter` of one feature axis, in a shape that broadcasts against the input."""
    after = axes.ndim - 1 - axes.features[0]
    return parameter.view(-1, *[1] * after) if after else parameter
