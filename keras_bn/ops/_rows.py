"""Rows of a table by number, where the number may be known only when a graph runs.

A table has one row a domain, or a class: a tensor of shape `(rows, ...)`. A number that
is out of range is an error wherever it can be looked at. Where it cannot (in a graph,
or on an accelerator, which would have to be waited for), its row is NaN: left to
themselves, frameworks wrap such a number, clip it, read zeros or stop, as each likes.
"""

from operator import index
from typing import Any

import numpy as np
from keras import backend, initializers, ops

from keras_bn.backend import readable
from keras_bn.backend.interface import Tensor


def row_number(name: str, value: Any, rows: int) -> int | Tensor:
    """`value` as an integer or a tensor of integers, in [0, rows) as far as is seen.

    Raises:
        TypeError: It is not an integer, nor a tensor or array of integers.
        ValueError: It, or one of them, is out of range.
    """
    if not ops.is_tensor(value):
        if not getattr(value, "shape", ()):
            return single_number(name, value, rows)
        # Before it becomes a tensor, where 2 ** 32 may be 0.
        integer_dtype(name, value)
        _require_in_range(name, value, rows)
    value = ops.convert_to_tensor(value)
    dtype = integer_dtype(name, value)
    if readable(value):
        _require_in_range(name, ops.convert_to_numpy(value), rows)
    return ops.cast(value, "int64" if dtype in ("int64", "uint64") else "int32")


def several(rows: Any) -> Any:
    """A function of a shape that makes each row of a table by the initializer `rows`.

    All rows alike, also where it draws numbers.
    """
    make = initializers.get(rows)

    def initializer(shape: tuple[int, ...], dtype: str | None = None) -> Tensor:
        return ops.stack([make(shape[1:], dtype=dtype)] * shape[0])

    return initializer


def single_number(name: str, value: Any, rows: int) -> int:
    """`value` as one integer in [0, rows).

    Raises:
        TypeError: It is not an integer.
        ValueError: It is out of range.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        number = index(value)
    except TypeError:
        raise TypeError(
            f"Argument `{name}` must be an integer, or a tensor of integers. "
            f"Received: {name}={value!r}"
        ) from None
    _require_in_range(name, np.asarray(number), rows)
    return number


def integer_dtype(name: str, value: Any) -> str:
    """The dtype of `value`, which holds integers."""
    dtype = str(backend.standardize_dtype(value.dtype))
    if not dtype.startswith(("int", "uint")):
        raise TypeError(
            f"Argument `{name}` must hold integers (of a "
            f'`keras.Input(..., dtype="int32")`, say). Received: {name} of dtype '
            f"{dtype}"
        )
    return dtype


def _require_in_range(name: str, numbers: np.ndarray, rows: int) -> None:
    outside = numbers[(numbers < 0) | (numbers >= rows)]
    if outside.size:
        raise ValueError(
            f"Argument `{name}` must be in the range [0, {rows - 1}]. "
            f"Received: {name}={outside.flat[0]}"
        )


def take_rows(table: Tensor, number: int | Tensor) -> Tensor:
    """The row of that number, or a row for each of several; NaN where out of range.

    Whole numbers, which have no NaN, are 0 there.
    """
    # Of a weight itself TensorFlow's gradient would be a list of rows, not a tensor,
    # which training loops written by hand do not expect.
    table = table * 1
    if isinstance(number, int):
        return ops.take(table, number, axis=0)
    known = (number >= 0) & (number < table.shape[0])
    rows = ops.take(table, ops.where(known, number, 0), axis=0)
    for _ in table.shape[1:]:
        known = ops.expand_dims(known, -1)
    whole = not backend.is_float_dtype(backend.standardize_dtype(table.dtype))
    return ops.where(known, rows, ops.full_like(rows, 0 if whole else float("nan")))


def with_row(table: Tensor, number: int | Tensor, row: Tensor) -> Tensor:
    """`table` with `row` in the place of that number; itself where out of range."""
    chosen = ops.equal(ops.arange(table.shape[0]), number)
    for _ in table.shape[1:]:
        chosen = ops.expand_dims(chosen, -1)
    return ops.where(chosen, row, table)
