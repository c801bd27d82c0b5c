"""Triton kernels of batch normalization; `torch_cuda_operators` launches them.

The tiles of a column (see `torch_triton_tiles`) are cut into parts, of `share` tiles. A
program sums up a part, and one kernel more merges all parts: without atomics, so that
equal inputs give equal bits.

Moments are in a row of 1 + 3 * channels numbers: the count, then centre, residual and
variance of each channel, as in `formulas.CentredMoments`. The rows of the replicas are
merged like those of the parts, and are what `formulas.over_replicas` gathers.
"""

import triton
import triton.language as tl

from keras_bn.backend.torch_triton_tiles import (
    abreast,
    activated,
    channels_of,
    gradient,
    place,
    program,
    total,
    values_before,
    vector,
    wide,
)

# Compiled once for a layout, a dtype and an activation: not anew for other sizes or
# constants, nor for another alignment of vectors that are cut out of one buffer.
_kernel = triton.jit(
    do_not_specialize=("rows", "channels", "units", "share", "parts", "epsilon"),
    do_not_specialize_on_alignment=(
        *("scale", "offset", "count", "centre", "residual", "variance"),
        *("partial", "found", "sums"),
    ),
)


@_kernel
def moments(x, partial, rows, channels, units, share, tile: tl.constexpr):
    """A row of moments of each part, about a centre of its own: the mean of a tile.

    See `formulas.centred_moments`, with `about`.
    """
    part, column = program(channels, tile)
    across = abreast(units, tile)
    start = part * share
    end = tl.minimum(start + share, tl.cdiv(rows, tile.height) * across)
    # Not the last of several tiles abreast, where the next one will do: it may hold a
    # few values only, and the fewer they are, the worse a centre for the others.
    narrow = (across > 1) & (start % across == across - 1) & (start + 1 < end)
    first = start + narrow.to(tl.int32)
    few = values_before(first + 1, rows, units, tile)
    few = (few - values_before(first, rows, units, tile)).to(tl.float32)
    count = values_before(end, rows, units, tile)
    count = (count - values_before(start, rows, units, tile)).to(tl.float32)

    offsets, inside = place(first, column, rows, channels, units, tile)
    values = wide(x, offsets, inside)
    centre = total(values, tile) / few
    deviation = tl.where(inside, values - centre[None, :], 0.0)
    sum_1 = deviation
    sum_2 = deviation * deviation
    for number in range(start + 1, end):
        number = tl.where(number == first, start, number)
        offsets, inside = place(number, column, rows, channels, units, tile)
        values = wide(x, offsets, inside)
        deviation = tl.where(inside, values - centre[None, :], 0.0)
        sum_1 += deviation
        sum_2 += deviation * deviation
    residual = total(sum_1, tile) / count
    variance = total(sum_2, tile) / count - residual * residual
    variance = tl.where(variance < 0, 0.0, variance)

    channel, there = channels_of(column, channels, tile)
    row = partial + part * (1 + 3 * channels)
    tl.store(row, count, mask=column == 0)
    row += 1 + channel
    tl.store(row, centre, mask=there)
    tl.store(row + channels, residual, mask=there)
    tl.store(row + 2 * channels, variance, mask=there)


@_kernel
def merge(partial, found, parts, channels, BP: tl.constexpr, BC: tl.constexpr):
    """All rows of moments in one: see `formulas.over_replicas`."""
    channel = tl.program_id(0) * BC + tl.arange(0, BC)
    there = channel < channels
    count = 0.0
    centre = tl.zeros((BC,), tl.float32)
    residual = tl.zeros((BC,), tl.float32)
    variance = tl.zeros((BC,), tl.float32)
    for start in range(0, parts, BP):
        part = start + tl.arange(0, BP)
        row = partial + part.to(tl.int64) * (1 + 3 * channels)
        n = tl.load(row, mask=part < parts, other=0.0)
        row = row[:, None] + (1 + channel)[None, :]
        full = (n > 0)[:, None] & there[None, :]
        c = tl.load(row, mask=full, other=0.0)
        r = tl.load(row + channels, mask=full, other=0.0)
        v = tl.load(row + 2 * channels, mask=full, other=0.0)
        here = tl.sum(n, 0)
        weight = (n / tl.maximum(here, 1.0))[:, None]
        middle = tl.sum(weight * c, 0)
        apart = tl.where(full, (c - middle[None, :]) + r, 0.0)
        mean = tl.sum(weight * apart, 0)
        spread = apart - mean[None, :]
        spread = tl.sum(weight * (v + spread * spread), 0)

        # These rows together with all rows before them, where each have any values.
        before = count
        count += here
        weight = here / tl.maximum(count, 1.0)
        common = centre + weight * (middle - centre)
        old = tl.where(before > 0, (centre - common) + residual, 0.0)
        new = tl.where(here > 0, (middle - common) + mean, 0.0)
        centre = common
        residual = (1 - weight) * old + weight * new
        old -= residual
        new -= residual
        variance = (1 - weight) * (variance + old * old)
        variance += weight * (spread + new * new)
    tl.store(found, count, mask=tl.program_id(0) == 0)
    row = found + 1 + channel
    tl.store(row, centre, mask=there)
    tl.store(row + channels, residual, mask=there)
    tl.store(row + 2 * channels, variance, mask=there)


@_kernel
def normalize(
    x,
    y,
    scale,
    offset,
    centre,
    residual,
    variance,
    epsilon,
    rows,
    channels,
    units,
    ACTIVATION: tl.constexpr,
    tile: tl.constexpr,
):
    """See `formulas.normalize`."""
    number, column = program(channels, tile)
    channel, there = channels_of(column, channels, tile)
    factor = tl.rsqrt(vector(variance, channel, there) + epsilon)
    factor *= vector(scale, channel, there)
    rest = vector(residual, channel, there)
    level = vector(offset, channel, there) - rest * factor
    offsets, inside = place(number, column, rows, channels, units, tile)
    deviation = wide(x, offsets, inside) - vector(centre, channel, there)
    z = deviation * factor + level
    tl.store(y + offsets, activated(z, ACTIVATION), mask=inside)


@_kernel
def slopes(
    x,
    dy,
    partial,
    scale,
    offset,
    centre,
    residual,
    variance,
    epsilon,
    rows,
    channels,
    units,
    share,
    ACTIVATION: tl.constexpr,
    tile: tl.constexpr,
):
    """Of each part and channel the sums of g and of `g * (x - centre)`.

    With g the gradient for the activation's input.
    """
    part, column = program(channels, tile)
    channel, there = channels_of(column, channels, tile)
    factor = tl.rsqrt(vector(variance, channel, there) + epsilon)
    factor *= vector(scale, channel, there)
    rest = vector(residual, channel, there)
    level = vector(offset, channel, there) - rest * factor
    middle = vector(centre, channel, there)
    # Named, because Triton 3.6 knows no field of a tile inside a tuple.
    HEIGHT: tl.constexpr = tile.height
    WIDTH: tl.constexpr = tile.width
    sum_1 = tl.zeros((HEIGHT, WIDTH), tl.float32)
    sum_2 = sum_1
    start = part * share
    tiles = tl.cdiv(rows, tile.height) * abreast(units, tile)
    for number in range(start, tl.minimum(start + share, tiles)):
        offsets, inside = place(number, column, rows, channels, units, tile)
        deviation = wide(x, offsets, inside) - middle
        z = deviation * factor + level
        g = gradient(wide(dy, offsets, inside), z, ACTIVATION)
        sum_1 += g
        sum_2 += g * deviation
    row = partial + part * (2 * channels) + channel
    tl.store(row, total(sum_1, tile), mask=there)
    tl.store(row + channels, total(sum_2, tile), mask=there)


@_kernel
def merge_slopes(
    partial,
    sums,
    residual,
    variance,
    epsilon,
    parts,
    channels,
    BP: tl.constexpr,
    BC: tl.constexpr,
):
    """The gradients for scale and offset: see `derivatives.gradients`."""
    channel = tl.program_id(0) * BC + tl.arange(0, BC)
    there = channel < channels
    doffset = tl.zeros((BC,), tl.float32)
    product = tl.zeros((BC,), tl.float32)
    for start in range(0, parts, BP):
        part = start + tl.arange(0, BP)
        row = partial + part.to(tl.int64) * (2 * channels)
        row = row[:, None] + channel[None, :]
        inside = (part < parts)[:, None] & there[None, :]
        doffset += tl.sum(tl.load(row, mask=inside, other=0.0), 0)
        product += tl.sum(tl.load(row + channels, mask=inside, other=0.0), 0)
    rstd = tl.rsqrt(tl.load(variance + channel, mask=there, other=0.0) + epsilon)
    rest = tl.load(residual + channel, mask=there, other=0.0)
    tl.store(sums + channel, (product - rest * doffset) * rstd, mask=there)
    tl.store(sums + channels + channel, doffset, mask=there)


@_kernel
def input_gradient(
    x,
    dy,
    dx,
    sums,
    count,
    scale,
    offset,
    centre,
    residual,
    variance,
    epsilon,
    rows,
    channels,
    units,
    ACTIVATION: tl.constexpr,
    tile: tl.constexpr,
):
    """The gradient for x: see `derivatives.gradients`. `sums` are of all replicas."""
    number, column = program(channels, tile)
    channel, there = channels_of(column, channels, tile)
    rstd = tl.rsqrt(vector(variance, channel, there) + epsilon)
    factor = rstd * vector(scale, channel, there)
    rest = vector(residual, channel, there)
    level = vector(offset, channel, there) - rest * factor
    # What the statistics take out of g * factor: deviation * slope + height.
    share = factor / tl.load(count)
    slope = share * rstd * vector(sums, channel, there)
    height = share * vector(sums + channels, channel, there) - rest * slope
    offsets, inside = place(number, column, rows, channels, units, tile)
    deviation = wide(x, offsets, inside) - vector(centre, channel, there)
    z = deviation * factor + level
    g = gradient(wide(dy, offsets, inside), z, ACTIVATION)
    tl.store(dx + offsets, g * factor - (deviation * slope + height), mask=inside)
