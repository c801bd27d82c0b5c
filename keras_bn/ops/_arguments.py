"""Checks of tensors and shapes. Each raises at once, as those of `_settings`."""

from collections.abc import Mapping, Sequence
from typing import Any

from keras import backend, ops

from keras_bn.backend import require_represented as require_represented
from keras_bn.backend.interface import Axes, Tensor, as_tensor
from keras_bn.ops._settings import integer_axis


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
