"""The exponential moving average of the batch statistics."""

from keras import backend, ops

from keras_bn.backend import kernels
from keras_bn.backend import recomputing as recomputing
from keras_bn.backend import require_own_weights as require_own_weights
from keras_bn.backend import same_device as same_device
from keras_bn.backend.interface import Moments, Tensor, as_tensor
from keras_bn.ops._settings import momentum_in_range


def moving_average(
    average: Tensor,
    value: Tensor,
    momentum: float | Tensor,
    where: Tensor | bool = True,
) -> Tensor:
    """One step of the exponential moving average.

        average * momentum + value * (1 - momentum)

    Args:
        average: The average so far, float32 or wider.
        value: The new value, of the shape of `average`.
        momentum: The share of the old average that is kept, in [0, 1]. PyTorch's
            `momentum` is the opposite: the share that is replaced. A tensor that
            broadcasts to `average` is taken as it is.
        where: Boolean tensor that broadcasts to `average`: where it is False, the old
            average is kept unchanged. See `usable`.

    Returns:
        The new average, in the dtype of `average`.

    Raises:
        TypeError: `momentum` is not a number.
        ValueError: `momentum` is outside [0, 1].

    Example:

    >>> import numpy as np
    >>> from keras_bn.ops import moving_average
    >>> float(moving_average(np.float32(10.0), np.float32(20.0), momentum=0.9))
    11.0
    """
    average = as_tensor(average)
    dtype = backend.standardize_dtype(average.dtype)
    value = as_tensor(value, dtype)
    if ops.is_tensor(momentum):
        momentum = as_tensor(momentum, dtype)
    else:
        momentum = momentum_in_range("momentum", momentum)
    return kernels().moving_average(average, value, momentum, where)


def usable(moments: Moments) -> Tensor | bool:
    """Per channel, whether a moving average may take these moments in; True for all.

    False where there was nothing to average (an empty batch, all masked) and where a
    NaN or infinity in the batch made a moment non-finite: one such batch would
    otherwise spoil the average for good.
    """
    return kernels().usable(moments)
