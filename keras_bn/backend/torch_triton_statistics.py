"""Triton kernels for the moving statistics: a number per channel, one launch each."""

import triton
import triton.language as tl

# Compiled once, not anew for other sizes, constants or alignments.
_kernel = triton.jit(
    do_not_specialize=("size", "stride", "momentum", "rest"),
    do_not_specialize_on_alignment=(
        *("count", "mean", "variance", "found"),
        *("average", "value", "where", "moved"),
    ),
)


@_kernel
def usable(count, mean, variance, found, stride, size, BLOCK: tl.constexpr):
    """See `Kernels.usable`. `stride`: 1 where each channel has a count, 0 else."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = at < size
    number = tl.load(mean + at, mask=there, other=0.0)
    number += tl.load(variance + at, mask=there, other=0.0)
    some = tl.load(count + at * stride, mask=there, other=0.0) > 0
    tl.store(found + at, some & (tl.abs(number) < float("inf")), mask=there)


@_kernel
def moving_average(
    average,
    value,
    where,
    moved,
    momentum,
    rest,
    stride,
    size,
    BLOCK: tl.constexpr,
    GUARDED: tl.constexpr,
):
    """See `keras_bn.ops.moving_average`. `stride`, of `where`, is as in `usable`."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = at < size
    old = tl.load(average + at, mask=there, other=0.0)
    new = old * momentum + tl.load(value + at, mask=there, other=0.0) * rest
    if GUARDED:
        kept = tl.load(where + at * stride, mask=there, other=0) == 0
        new = tl.where(kept, old, new)
    tl.store(moved + at, new, mask=there)
