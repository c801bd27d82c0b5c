"""The one place that knows which framework Keras runs on.

`kernels()` gives the arithmetic for it, `describe()` says which kernel serves what.
"""

from typing import NamedTuple, cast

import keras
import numpy as np

from keras_bn.backend import reference
from keras_bn.backend.interface import Kernels

__all__ = ["Service", "describe", "kernels", "represents", "require_represented"]


class Service(NamedTuple):
    """One row of `describe()`.

    Attributes:
        case: What is asked for: which call, on which inputs.
        kernel: The kernel file that serves it.
        how: In a few words, what it does.
    """

    case: str
    kernel: str
    how: str


def kernels() -> Kernels:
    """The kernels for the backend that Keras runs on."""
    return cast(Kernels, reference)


def describe() -> list[Service]:
    """Which kernel serves which case on this machine, most specific case first.

    Example:

    >>> import keras_bn
    >>> [service.kernel for service in keras_bn.backend.describe()]
    ['reference', 'reference']
    """
    how = f"keras.ops on {keras.backend.backend()}"
    return [
        Service("training, every input", "reference", f"{how}, framework's autodiff"),
        Service("inference, every input", "reference", how),
    ]


def represents(dtype: str) -> bool:
    """Whether the backend computes in `dtype` as it is set up now.

    False for float64 on JAX unless `jax_enable_x64` is on: JAX would turn it into
    float32 without a word.
    """
    tensor = keras.ops.convert_to_tensor(np.zeros((), dtype))
    return bool(keras.backend.standardize_dtype(tensor.dtype) == dtype)


def require_represented(dtype: str) -> None:
    """Raises where the backend would compute float64 in less than float64.

    Raises:
        ValueError: `dtype` is float64 and the backend is not set up for it.
    """
    if dtype == "float64" and not represents("float64"):
        raise ValueError(
            "dtype float64 is not available: the backend is set up to compute it in "
            "float32. On JAX, set `jax.config.update('jax_enable_x64', True)` before "
            "any computation, or use float32. Received: dtype float64 on backend "
            f"{keras.backend.backend()}"
        )
