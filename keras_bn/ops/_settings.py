"""Checks of settings: axes, numbers, booleans.

Each raises at once, and says which argument, what was expected, and what came.
"""

import math
from collections.abc import Mapping, Sequence
from numbers import Integral
from operator import index
from typing import Any

import numpy as np

RENORM_CLIPPING_KEYS = ("rmax", "rmin", "dmax")


def integer_axis(axis: Any) -> int | tuple[int, ...]:
    """`axis` as an int or a tuple of ints, whatever integer types came."""
    try:
        if isinstance(axis, Sequence) and not isinstance(axis, str):
            axis = tuple(_index(one) for one in axis)
        else:
            axis = _index(axis)
    except TypeError:
        raise TypeError(
            "Argument `axis` must be an integer or a list or tuple of integers. "
            f"Received: axis={axis!r}"
        ) from None
    if axis == ():
        raise ValueError(
            "Argument `axis` must name at least one axis. Received: axis=()"
        )
    if isinstance(axis, tuple) and len(set(axis)) < len(axis):
        raise ValueError(
            f"Argument `axis` must not name an axis twice. Received: axis={axis}"
        )
    return axis  # type: ignore[no-any-return]


def _index(value: Any) -> int:
    if isinstance(value, bool):  # True would count as 1
        raise TypeError
    return index(value)


def shown(value: Any) -> str:
    """`value` for a message: of an array its shape, not what is in it."""
    if not getattr(value, "shape", ()):
        return repr(value)
    return f"an array of shape {tuple(value.shape)}"


def _number(name: str, value: Any, expected: str) -> float:
    try:
        # NumPy scalars and 0-d arrays convert; strings and booleans would, silently.
        if isinstance(value, (str, bytes, bool, np.bool_)):
            raise TypeError
        return float(value)
    except TypeError:
        raise TypeError(
            f"Argument `{name}` must be {expected}. Received: {name}={shown(value)}"
        ) from None


def momentum_in_range(name: str, value: Any, share: str = "kept") -> float:
    """`value` as a float in [0, 1]."""
    expected = f"a number in [0, 1], the share of the old average that is {share}"
    number = _number(name, value, expected)
    if not 0.0 <= number <= 1.0:
        raise ValueError(
            f"Argument `{name}` must be {expected}. Received: {name}={value!r}"
        )
    return number


def positive_epsilon(value: Any) -> float:
    """`value` as a float above 0."""
    return _epsilon(value, "greater than 0", math.nextafter(0.0, 1.0))


def epsilon_of_others(value: Any) -> float:
    """`value` as a float of at least 0, which Keras's layer and PyTorch's take."""
    return _epsilon(value, "of at least 0", 0.0)


def _epsilon(value: Any, size: str, least: float) -> float:
    expected = f"a finite number {size}"
    number = _number("epsilon", value, expected)
    if not (math.isfinite(number) and number >= least):
        raise ValueError(
            f"Argument `epsilon` must be {expected}. Received: epsilon={value!r}"
        )
    return number


def positive_number(name: str, value: Any) -> float:
    """`value` as a float above 0."""
    number = _number(name, value, "a number above 0")
    if not number > 0:
        raise ValueError(
            f"Argument `{name}` must be a number above 0. Received: {name}={value!r}"
        )
    return number


def positive_integer(name: str, value: Any) -> int:
    """`value` as an integer above 0."""
    message = (
        f"Argument `{name}` must be an integer above 0. Received: {name}={value!r}"
    )
    try:
        number = _index(value)
    except TypeError:
        raise TypeError(message) from None
    if number < 1:
        raise ValueError(message)
    return number


def boolean(name: str, value: Any) -> bool:
    """`value`, which must be a boolean: "no" would count as True."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(
            f"Argument `{name}` must be True or False. Received: {name}={shown(value)}"
        )
    return bool(value)


def boolean_or_number(name: str, value: Any) -> bool:
    """`value` as a boolean, which Keras takes by its truth: None, 0 and 1 as well."""
    if value is None or (isinstance(value, Integral) and value in (0, 1)):
        return bool(value)
    return boolean(name, value)


def boolean_training(value: Any) -> bool:
    """`training` as a boolean; None is False."""
    if isinstance(value, str):
        raise TypeError(
            "Argument `training` must be a Python boolean or None. "
            f"Received: training={value!r}"
        )
    try:
        return bool(value)
    except Exception as error:
        raise ValueError(
            "Argument `training` must be a Python boolean or None. Received: a tensor "
            "that is traced and has no value yet (`keras.remat` around a whole model "
            "can make one of it: use `keras.RematScope` around single layers)"
        ) from error


def renorm_limits(clipping: Any) -> dict[str, float]:
    """`clipping` as a dict with keys out of rmax, rmin and dmax, in order."""
    clipping = {} if clipping is None else clipping
    if not isinstance(clipping, Mapping):
        raise TypeError(
            "Argument `renorm_clipping` must be a dictionary with keys out of "
            f"{list(RENORM_CLIPPING_KEYS)}. Received: renorm_clipping={clipping!r}"
        )
    if set(clipping) - set(RENORM_CLIPPING_KEYS):
        raise ValueError(
            "Received invalid keys for `renorm_clipping` argument: "
            f"{dict(clipping)}. Supported keys: {list(RENORM_CLIPPING_KEYS)}."
        )
    limits = {
        key: _number(f"renorm_clipping[{key!r}]", value, "a number")
        for key, value in clipping.items()
        if value is not None
    }
    rmax, rmin, dmax = (limits.get(key) for key in RENORM_CLIPPING_KEYS)
    if any(math.isnan(limit) for limit in limits.values()):
        raise ValueError(
            "Argument `renorm_clipping` must hold numbers, not NaN. "
            f"Received: renorm_clipping={dict(clipping)}"
        )
    if rmax is not None and rmin is not None and rmax < rmin:
        raise ValueError(
            "rmax should be greater than or equal to rmin in the `renorm_clipping` "
            f"argument. Received: rmax={rmax}, rmin={rmin}."
        )
    if dmax is not None and dmax < 0:
        raise ValueError(
            "dmax should be non-negative in the `renorm_clipping` argument. "
            f"Received: dmax={dmax}."
        )
    return limits
