"""The parts of a training pass on CUDA as PyTorch operators, on Triton's kernels.

Importing this file registers `torch.ops.keras_bn`, with rules for abstract tensors and
`torch.vmap`; it fails where there is no Triton. None has a gradient: see `torch_cuda`.

Tensors may lie in memory in any order. One that has gaps is copied first.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from keras_bn.backend import torch_triton as kernels
from keras_bn.backend import torch_triton_statistics as statistics
from keras_bn.backend.torch_triton_tiles import Tile

# Values of a tile: 16 loads of 16 bytes, or 8 of half precision, in flight per thread.
_TILE = 4096
# Programs that sum up parts: about four to each multiprocessor of the largest devices.
# A constant, so that sums are the same on all devices.
_PROGRAMS = 512
# Tiles of a part at most. The centre is the mean of one of them, so that a variance
# loses no more than this many roundings, whatever the values are.
_SHARE = 64
# Values from which on offsets need 64 bits.
_WIDE = 2**31
_BLOCK = 1024


class _Launch(NamedTuple):
    """How to cut up a tensor: see `torch_triton_tiles`."""

    sizes: tuple[int, int, int]  # rows, channels, units
    columns: int
    tiles: int
    share: int
    parts: int
    tile: Tile

    @classmethod
    def of(cls, x: torch.Tensor, channel: int) -> "_Launch":
        channels = x.shape[channel]
        # Where memory has no gaps, a stride is the number of values that come between.
        length = x.stride(channel) if channels > 1 else x.numel()
        return cls._of(x.numel() // (channels * length), channels, length)

    @classmethod
    @functools.lru_cache(maxsize=4096)
    def _of(cls, rows: int, channels: int, length: int) -> "_Launch":
        wide = rows * channels * length >= _WIDE
        if length == 1:
            length, last = channels, True
            width = min(_power(channels), 64)
            height = _TILE // width
            columns, abreast = -(-channels // width), 1
        else:
            last = False
            # Pieces of 256 values of as many rows as there are, and wider ones if few.
            height = min(_TILE // min(_power(length), 256), _power(rows))
            width = min(_TILE // height, _power(length))
            columns, abreast = channels, -(-length // width)
        unit = math.gcd(length, 16)
        tiles = -(-rows // height) * abreast
        parts = min(tiles, max(1, _PROGRAMS // columns))
        share = min(-(-tiles // parts), _SHARE)
        tile = Tile(height, width, last, unit, wide)
        parts = -(-tiles // share)
        sizes = rows, channels, length // unit
        return cls(sizes, columns, tiles, share, parts, tile)


def _power(size: int) -> int:
    """The smallest power of two that is not less than `size`."""
    return 1 << (size - 1).bit_length()


def _run(kernel: Any, programs: int, *arguments: Any, **constants: Any) -> None:
    # Products may be added without a rounding between: Triton warns if nobody says so.
    kernel[(programs,)](*arguments, **constants, enable_fp_fusion=True)


def _run_merge(kernel: Any, parts: int, channels: int, *arguments: Any) -> None:
    """Runs a kernel that merges rows, all at once if they are no more than 512."""
    rows, warps = (32, 4) if parts <= 32 else (512, 16)
    constants = {"BP": rows, "BC": 8, "num_warps": warps}
    _run(kernel, -(-channels // 8), *arguments, parts, channels, **constants)


def _dense(x: torch.Tensor) -> torch.Tensor:
    """`x`, or a copy where its memory has gaps or is used twice."""
    if x.is_contiguous():
        return x
    # Axes of size 1 have strides that mean nothing; any order that packs will do.
    order = sorted(range(x.ndim), key=x.stride().__getitem__, reverse=True)
    return x if x.permute(order).is_contiguous() else torch.empty_like(x).copy_(x)


def like(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """`values`, or a copy where they do not lie in memory as dense `x` does."""
    for size, one, other in zip(x.shape, values.stride(), x.stride(), strict=True):
        if size > 1 and one != other:
            return torch.empty_like(x).copy_(values)
    return values


def _operator(abstract: Callable[..., torch.Tensor]) -> Callable[[Any], Any]:
    """Makes an operator of a function, whose result looks like that of `abstract`."""

    def register(function: Any) -> Any:
        name = f"keras_bn::{function.__name__}"

        @functools.wraps(function)
        def on_its_device(x: torch.Tensor, *arguments: Any) -> torch.Tensor:
            with torch.cuda.device_of(x):
                return function(x, *arguments)

        # Not torch.library.custom_op: what that adds, for gradients, takes longer than
        # some of these kernels.
        schema = torch.library.infer_schema(function, mutates_args=())
        torch.library.define(name, schema, tags=torch.Tag.pt2_compliant_tag)
        torch.library.impl(name, "default", on_its_device)
        torch.library.register_fake(name, abstract)
        operator = getattr(torch.ops.keras_bn, function.__name__).default

        def one_by_one(info: Any, batched: Any, *arguments: Any) -> Any:
            results = [
                operator(
                    *(
                        argument if axis is None else argument.select(axis, number)
                        for argument, axis in zip(arguments, batched, strict=True)
                    )
                )
                for number in range(info.batch_size)
            ]
            return torch.stack(results), 0

        torch.library.register_vmap(name, one_by_one)
        return operator

    return register


@_operator(
    lambda x, channel: x.new_empty(1 + 3 * x.shape[channel], dtype=torch.float32)
)
def moments(x: torch.Tensor, channel: int) -> torch.Tensor:
    """A row of moments (see `torch_triton`) of x, whose feature axis is `channel`."""
    row = 1 + 3 * x.shape[channel]
    if x.numel() == 0:
        return torch.zeros(row, dtype=torch.float32, device=x.device)
    x = _dense(x)
    launch = _Launch.of(x, channel)
    rows = torch.empty(launch.parts, row, dtype=torch.float32, device=x.device)
    _run(
        *(kernels.moments, launch.columns * launch.parts, x, rows, *launch.sizes),
        *(launch.share, launch.tile),
    )
    return _merged(rows)


def _merged(rows: torch.Tensor) -> torch.Tensor:
    parts, size = rows.shape
    found = rows.new_empty(size)
    _run_merge(kernels.merge, parts, (size - 1) // 3, rows, found)
    return found


@_operator(lambda rows: rows.new_empty(rows.shape[1]))
def merged(rows: torch.Tensor) -> torch.Tensor:
    """All rows of moments in one."""
    return _merged(rows.contiguous())


@_operator(lambda x, *_: torch.empty_like(x))
def normalize(
    x: torch.Tensor,
    scale: torch.Tensor,
    offset: torch.Tensor,
    centre: torch.Tensor,
    residual: torch.Tensor,
    variance: torch.Tensor,
    channel: int,
    epsilon: float,
    activation: str | None,
) -> torch.Tensor:
    """See `formulas.normalize`, with the activation; y lies in memory as x does."""
    y = torch.empty_like(x)
    if x.numel() == 0:
        return y
    x = _dense(x)
    launch = _Launch.of(x, channel)
    vectors = _packed(scale, offset, centre, residual, variance)
    _run(
        *(kernels.normalize, launch.columns * launch.tiles, x, y, *vectors, epsilon),
        *(*launch.sizes, activation, launch.tile),
    )
    return y


@_operator(lambda x, dy, scale, *_: scale.new_empty((2, *scale.shape)))
def slopes(
    x: torch.Tensor,
    dy: torch.Tensor,
    scale: torch.Tensor,
    offset: torch.Tensor,
    centre: torch.Tensor,
    residual: torch.Tensor,
    variance: torch.Tensor,
    channel: int,
    epsilon: float,
    activation: str | None,
) -> torch.Tensor:
    """The gradients for scale and offset: see `derivatives.gradients`."""
    if x.numel() == 0:
        return scale.new_zeros((2, *scale.shape))
    x = _dense(x)
    dy = like(dy, x)
    launch = _Launch.of(x, channel)
    vectors = _packed(scale, offset, centre, residual, variance)
    partial = scale.new_empty((launch.parts, 2, *scale.shape))
    sums = scale.new_empty((2, *scale.shape))
    _run(
        *(kernels.slopes, launch.columns * launch.parts, x, dy, partial, *vectors),
        *(epsilon, *launch.sizes, launch.share, activation, launch.tile),
    )
    _run_merge(
        *(kernels.merge_slopes, launch.parts, x.shape[channel]),
        *(partial, sums, *vectors[-2:], epsilon),
    )
    return sums


@_operator(lambda x, *_: torch.empty_like(x))
def input_gradient(
    x: torch.Tensor,
    dy: torch.Tensor,
    sums: torch.Tensor,
    count: torch.Tensor,
    scale: torch.Tensor,
    offset: torch.Tensor,
    centre: torch.Tensor,
    residual: torch.Tensor,
    variance: torch.Tensor,
    channel: int,
    epsilon: float,
    activation: str | None,
) -> torch.Tensor:
    """The gradient for x, given what `slopes` found, summed over all replicas."""
    dx = torch.empty_like(x)
    if x.numel() == 0:
        return dx
    x = _dense(x)
    dy = like(dy, x)
    launch = _Launch.of(x, channel)
    vectors = _packed(sums, count, scale, offset, centre, residual, variance)
    _run(
        *(kernels.input_gradient, launch.columns * launch.tiles, x, dy, dx, *vectors),
        *(epsilon, *launch.sizes, activation, launch.tile),
    )
    return dx


def _packed(*vectors: torch.Tensor) -> list[torch.Tensor]:
    return [vector.contiguous() for vector in vectors]


@_operator(lambda mean, *_: torch.empty_like(mean, dtype=torch.bool))
def usable(
    mean: torch.Tensor, variance: torch.Tensor, count: torch.Tensor
) -> torch.Tensor:
    """See `Kernels.usable`."""
    mean, variance, count = _packed(mean, variance, count)
    found = torch.empty_like(mean, dtype=torch.bool)
    size = mean.numel()
    arguments = (count, mean, variance, found, int(count.numel() > 1), size, _BLOCK)
    _run(statistics.usable, -(-size // _BLOCK), *arguments)
    return found


@_operator(lambda average, *_: torch.empty_like(average))
def moving_average(
    average: torch.Tensor,
    value: torch.Tensor,
    momentum: float,
    where: torch.Tensor | None,
) -> torch.Tensor:
    """See `keras_bn.ops.moving_average`."""
    average, value = _packed(average, value)
    moved = torch.empty_like(average)
    size = average.numel()
    guard = average if where is None else where.contiguous()
    stride = int(guard.numel() > 1)
    _run(
        *(statistics.moving_average, -(-size // _BLOCK), average, value, guard, moved),
        *(momentum, 1.0 - momentum, stride, size, _BLOCK, where is not None),
    )
    return moved
