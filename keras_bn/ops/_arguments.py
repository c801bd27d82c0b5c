"""Checks of arguments. Each raises at once: argument, what was expected, what came."""

import math
from collections.abc import Mapping, Sequence
from operator import index
from typing import Any

import numpy as np
from keras import backend, ops

from keras_bn.backend import require_represented as require_represented
from keras_bn.backend.interface import Axes, Tensor, as_tensor

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


def require_one_tensor(input_shape: Any) -> None:
    """Raises where a layer is built for several tensors, whose shapes these are."""
    if not hasattr(input_shape, "__iter__"):
        raise TypeError(
            "Argument `input_shape` must be a tuple of sizes. "
            f"Received: input_shape={input_shape!r}"
        )
    if isinstance(input_shape, Mapping) or any(
        isinstance(one, (Sequence, Mapping)) for one in input_shape
    ):
        raise TypeError(
            "Argument `inputs` must be one tensor. Received: a structure of several, "
            f"of shapes {input_shape}"
        )


def resolve_axes(axis: int | Sequence[int], shape: Sequence[int | None]) -> Axes:
    """The `Axes` that `axis` means for an input of this shape."""
    ndim = len(shape)
    if type(axis) is int and ndim > 1 and -ndim <= axis < ndim:
        feature = axis % ndim
        if shape[feature] is not None:  # nothing to complain of: be quick
            return Axes((feature,), (*range(feature), *range(feature + 1, ndim)))
    if type(axis) is not int:
        axis = integer_axis(axis)
    if ndim == 0:
        raise ValueError(
            "Argument `axis` must be one of the axes of the input, of which a scalar "
            f"has none. Received: axis={axis} with input shape ()"
        )
    named = axis if isinstance(axis, tuple) else (axis,)
    outside = [one for one in named if not -ndim <= one < ndim]
    if outside:
        raise ValueError(
            f"Argument `axis` must be in the range [{-ndim}, {ndim - 1}] for an input "
            f"of rank {ndim}. Received: axis={axis} with input shape {tuple(shape)}"
        )
    features = tuple(sorted({one % ndim for one in named}))
    if len(features) < len(named):
        raise ValueError(
            "Argument `axis` must not name an axis twice. "
            f"Received: axis={axis} with input shape {tuple(shape)}"
        )
    if len(features) == ndim:
        raise ValueError(
            "Argument `axis` must leave at least one axis to average over. "
            f"Received: axis={axis} with input shape {tuple(shape)}"
        )
    unknown = [one for one in features if shape[one] is None]
    if unknown:
        raise ValueError(
            "The size of the feature axis must be known, to create one weight per "
            f"channel. Received: axis={axis} with input shape {tuple(shape)}, where "
            f"the size of axis {unknown[0]} is None"
        )
    reduction = tuple(one for one in range(ndim) if one not in features)
    return Axes(features, reduction)


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
    if value is None or (isinstance(value, int) and value in (0, 1)):
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


def float_policy(policy: Any) -> None:
    """Refuses a dtype policy that computes in, or keeps weights in, no float dtype."""
    for dtype in (policy.compute_dtype, policy.variable_dtype):
        if not backend.is_float_dtype(dtype):
            raise ValueError(
                "Argument `dtype` must be a float dtype, or a policy of float dtypes. "
                f"Received: dtype={policy.name}"
            )
        require_represented(dtype)


def real_dtype(name: str, x: Any) -> str:
    """The dtype of `x`, which holds numbers, but not complex ones."""
    try:
        dtype = str(backend.standardize_dtype(x.dtype))
    except (ValueError, TypeError, AttributeError):
        dtype = str(getattr(x, "dtype", type(x).__name__))
    if dtype != "bool" and not dtype.startswith(("float", "bfloat", "int", "uint")):
        raise TypeError(
            f"Argument `{name}` must hold real numbers (floats, integers or booleans). "
            f"Received: {name} of dtype {dtype}"
        )
    return dtype


def numeric_dtype(name: str, x: Any) -> str:
    """The dtype of `x`, which holds real numbers, and which the backend keeps."""
    dtype = real_dtype(name, x)
    require_represented(dtype)
    return dtype


def residual_like(residual: Any, x: Tensor) -> Tensor:
    """`residual` as a tensor of the dtype and, as far as is known, the shape of `x`."""
    residual_fits(residual, tuple(x.shape))
    return as_tensor(residual, backend.standardize_dtype(x.dtype))


def residual_fits(residual: Any, shape: tuple[int | None, ...]) -> None:
    """Raises unless `residual` holds numbers, and has the shape of the input."""
    found = tuple(getattr(residual, "shape", ()))
    fits = len(found) == len(shape) and all(
        None in pair or pair[0] == pair[1] for pair in zip(found, shape, strict=True)
    )
    if not hasattr(residual, "shape") or not fits:
        what = f"of shape {found}" if found else f"of type {type(residual).__name__}"
        raise ValueError(
            "Argument `residual` must be a tensor of the shape of the input, "
            f"{shape}. Received: residual {what}"
        )
    real_dtype("residual", residual)


def with_built_channels(
    axis: int | Sequence[int], shape: Sequence[int | None], built: Sequence[int]
) -> tuple[int | None, ...]:
    """`shape` with the sizes of unknown feature axes as weights of shape `built` say.

    Left as it is where `axis` does not fit it: that is for `resolve_axes` to report.
    """
    if None not in shape:
        return tuple(shape)
    named = (axis,) if type(axis) is int else tuple(axis)  # type: ignore[arg-type]
    sizes = list(shape)
    for one in named:
        if -len(sizes) <= one < len(sizes) and sizes[one] is None:
            sizes[one] = built[0] if len(named) == 1 else built[one]
    return tuple(sizes)


def channels_as_built(shape: Sequence[int | None], axes: Axes, built: Any) -> None:
    """Raises where inputs have other channels than the weights, of shape `built`."""
    expected = tuple(built)
    if axes.parameter_shape(tuple(shape)) != expected:
        raise ValueError(
            f"Argument `inputs` must fit weights of shape {expected}, one value per "
            f"channel, which the layer was built with. Received: inputs of shape "
            f"{tuple(shape)}, feature axis {axes.features}"
        )


def broadcastable_parameter(
    name: str, value: Any, default: float, x: Tensor, axes: Axes, dtype: str
) -> Tensor:
    """`value` in `dtype`, of the parameter shape; `default` everywhere where None."""
    expected = axes.parameter_shape(tuple(x.shape))
    if value is None:
        # Not ops.full, whose number a GPU would have to be sent.
        return (ops.ones if default else ops.zeros)(expected, dtype=dtype)
    value = as_tensor(value, dtype)
    if tuple(value.shape) != expected:
        raise ValueError(
            f"Argument `{name}` must have shape {expected}, one value per channel. "
            f"Received: {name} of shape {tuple(value.shape)} for x of shape "
            f"{tuple(x.shape)}, feature axis {axes.features}"
        )
    return value
