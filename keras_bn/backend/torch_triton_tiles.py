"""What the Triton kernels share: where a tile lies, and the activations.

A kernel sees memory as rows of `units * tile.unit` values that lie side by side:

    tile.last       (rows, channels): a tile is `height` rows by `width` channels, and a
                    column of tiles serves `width` channels
    not tile.last   (rows, channels, values): a tile is `height` rows by `width` values
                    of the one channel that a column serves

The tiles of a column are numbered row by row, several abreast where not `tile.last`.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from keras_bn.backend import activations

_LEAKY_RELU_SLOPE = tl.constexpr(activations.LEAKY_RELU_SLOPE)
_SELU_ALPHA = tl.constexpr(activations.SELU_ALPHA)
_SELU_SCALE = tl.constexpr(activations.SELU_SCALE)


class Tile(NamedTuple):
    """What a kernel is compiled for.

    `unit` is the power of two, up to 16, that the length of a row is a multiple of: so
    Triton knows that it may load 16 bytes at once. `wide`: offsets need 64 bits.
    """

    height: int
    width: int
    last: bool
    unit: int
    wide: bool


@triton.jit
def program(channels, tile: tl.constexpr):
    """Which part, or tile, and which column this program is for."""
    number = tl.program_id(0)
    if tile.wide:
        number = number.to(tl.int64)
    columns = tl.cdiv(channels, tile.width) if tile.last else channels
    return number // columns, (number % columns).to(tl.int32)


@triton.jit
def channels_of(column, channels, tile: tl.constexpr):
    """The channels of a column, and which of them there are."""
    if tile.last:
        channel = column * tile.width + tl.arange(0, tile.width)
    else:
        channel = column + tl.arange(0, 1)
    return channel, channel < channels


@triton.jit
def abreast(units, tile: tl.constexpr):
    """How many tiles lie side by side in a row."""
    return 1 if tile.last else tl.cdiv(units * tile.unit, tile.width)


@triton.jit
def place(number, column, rows, channels, units, tile: tl.constexpr):
    """The offsets of a tile's values, and which of them there are."""
    length = units * tile.unit
    across = abreast(units, tile)
    row = number // across * tile.height + tl.arange(0, tile.height)
    if tile.last:
        within = column * tile.width + tl.arange(0, tile.width)
        start = row * length
    else:
        within = number % across * tile.width + tl.arange(0, tile.width)
        start = (row * channels + column) * length
    inside = (row < rows)[:, None] & (within < length)[None, :]
    return start[:, None] + within[None, :], inside


@triton.jit
def values_before(number, rows, units, tile: tl.constexpr):
    """How many values of a channel there are in all tiles before this one."""
    length = 1 if tile.last else units * tile.unit
    across = abreast(units, tile)
    above = tl.minimum(number // across * tile.height, rows)
    beside = tl.minimum(above + tile.height, rows) - above
    return above * length + beside * tl.minimum(number % across * tile.width, length)


@triton.jit
def wide(pointer, offsets, inside):
    """The values of a tile, in float32."""
    return tl.load(pointer + offsets, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def vector(pointer, channel, there):
    """A number per channel, in a shape that broadcasts against a tile."""
    return tl.load(pointer + channel, mask=there, other=0.0)[None, :]


@triton.jit
def total(values, tile: tl.constexpr):
    """The sum per channel of a tile."""
    if not tile.last:
        values = tl.sum(values, 1)[:, None]
    return tl.sum(values, 0)


@triton.jit
def activated(z, ACTIVATION: tl.constexpr):
    """The activation of z. Compared such that a NaN stays one."""
    if ACTIVATION == "relu":
        z = tl.where(z <= 0, 0.0, z)
    elif ACTIVATION == "relu6":
        z = tl.where(z <= 0, 0.0, tl.where(z >= 6, 6.0, z))
    elif ACTIVATION == "leaky_relu":
        z = tl.where(z > 0, z, z * _LEAKY_RELU_SLOPE)
    elif ACTIVATION == "elu":
        z = tl.where(z > 0, z, tl.exp(z) - 1)
    elif ACTIVATION == "selu":
        z = _SELU_SCALE * tl.where(z > 0, z, _SELU_ALPHA * (tl.exp(z) - 1))
    elif ACTIVATION == "sigmoid":
        z = 1 / (1 + tl.exp(-z))
    elif ACTIVATION == "tanh":
        z = 2 / (1 + tl.exp(-2 * z)) - 1
    else:
        tl.static_assert(ACTIVATION is None)
    return z


@triton.jit
def gradient(dy, z, ACTIVATION: tl.constexpr):
    """The gradient for z of `sum(dy * activation(z))`."""
    if ACTIVATION == "relu":
        dy = tl.where(z > 0, dy, 0.0)
    elif ACTIVATION == "relu6":
        dy = tl.where((z > 0) & (z < 6), dy, 0.0)
    elif ACTIVATION == "leaky_relu":
        dy = tl.where(z > 0, dy, dy * _LEAKY_RELU_SLOPE)
    elif ACTIVATION == "elu":
        dy = tl.where(z > 0, dy, dy * tl.exp(z))
    elif ACTIVATION == "selu":
        dy = _SELU_SCALE * tl.where(z > 0, dy, dy * _SELU_ALPHA * tl.exp(z))
    elif ACTIVATION == "sigmoid":
        y = activated(z, ACTIVATION)
        dy = dy * y * (1 - y)
    elif ACTIVATION == "tanh":
        y = activated(z, ACTIVATION)
        dy = dy * (1 - y * y)
    else:
        tl.static_assert(ACTIVATION is None)
    return dy
