"""Batch normalization as pure functions: check, cast, ask the kernels."""

from collections.abc import Callable, Sequence
from typing import Any

from keras import activations, backend, ops

from keras_bn.backend import kernels, replicas
from keras_bn.backend.activations import fusible
from keras_bn.backend.interface import (
    Axes,
    Correction,
    Moments,
    Tensor,
    as_tensor,
    statistics_dtype,
)
from keras_bn.ops import _arguments

Activation = str | Callable[[Tensor], Tensor] | None


def batch_norm_train(
    x: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    axis: int | Sequence[int] = -1,
    epsilon: float = 1e-3,
    mask: Tensor | None = None,
    correction: Correction | None = None,
    activation: Activation = None,
    synchronized: bool = False,
) -> tuple[Tensor, Moments]:
    """Normalizes `x` by the statistics of this very batch.

    With the mean and the biased variance taken, per channel, over all other axes:

        y = gamma * (x - mean) / sqrt(variance + epsilon) + beta

    Args:
        x: Tensor of any rank from 2 up (or anything that converts to one), of any real
            dtype. Integers and booleans are computed in float32.
        gamma: Scale, shape `(channels,)`, or 1 everywhere if None. For several feature
            axes: the shape of `x` with all other axes set to 1.
        beta: Offset, of the shape of gamma, or 0 everywhere if None.
        axis: The feature axis, or a list or tuple of them.
        epsilon: Added to the variance; greater than 0.
        mask: Boolean tensor: which positions the statistics are taken over (all of
            them are normalized). It has the shape of `x` without the feature axis, or
            without the last axis, or broadcasts to one of these at equal rank.
        correction: Batch renormalization: a function of `(mean, variance)` that gives
            `(r, d)`, both taken as constants by the gradient, for
            `y = gamma * ((x - mean) / sqrt(variance + epsilon) * r + d) + beta`. See
            `renorm_correction`.
        activation: Applied to `y`: anything that `keras.activations.get` takes. Where
            its gradient can be had from its output (relu, relu6, leaky_relu, elu, selu,
            sigmoid, tanh), no tensor is kept for it.
        synchronized: Whether the batch is that of all replicas together: the devices
            or processes that train one model under `tf.distribute`, JAX's `shard_map`
            or `pmap`, or `torch.distributed`. Each replica must make the call, also on
            an empty batch. The gradient for `x` is that of the sum of their losses;
            those for gamma and beta are of this replica's `y`, as everywhere.

    Returns:
        A tuple `(y, moments)`: `y` of the shape of `x` and its dtype (float32 for
        integers), and the `Moments` `(count, mean, variance)` in float32 (float64 for
        float64 `x`), through which no gradient flows. Where `count` is 0 (an empty
        batch, all masked) mean and variance are 0. A NaN or infinity in `x` shows in
        its channel of `y` and of the moments.

    Raises:
        TypeError: `x` does not hold real numbers, or is symbolic (in a functional
            model, use `keras_bn.BatchNormalization`); an argument of a wrong type.
        ValueError: `axis` out of range, named twice, or of unknown size; `epsilon` not
            above 0; `mask`, `gamma` or `beta` of a wrong shape; float64 where the
            backend does not compute in it; an engine that cannot synchronize.

    Reference:
        [Ioffe and Szegedy, 2015](https://arxiv.org/abs/1502.03167), algorithm 1.

    Example:

    >>> import numpy as np
    >>> x = np.array([[1.0, 10.0], [3.0, 30.0]], "float32")
    >>> y, moments = batch_norm_train(x)
    >>> np.round(keras.ops.convert_to_numpy(moments.mean), 3).tolist()
    [2.0, 20.0]
    >>> np.round(keras.ops.convert_to_numpy(y), 2).tolist()
    [[-1.0, -1.0], [1.0, 1.0]]
    """
    x, axes, dtype = _prepare(x, axis)
    epsilon = _arguments.positive_epsilon(epsilon)
    gamma = _arguments.broadcastable_parameter("gamma", gamma, 1, x, axes, dtype)
    beta = _arguments.broadcastable_parameter("beta", beta, 0, x, axes, dtype)
    if mask is not None:
        mask = _arguments.broadcast_mask(as_tensor(mask), x, axes)

    fused, rest = _split(activation)
    group = replicas() if synchronized else None
    arguments = (axes, epsilon, mask, correction, fused, group)
    y, moments = kernels().train(x, gamma, beta, *arguments)
    return rest(y), moments


def batch_norm_inference(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    axis: int | Sequence[int] = -1,
    epsilon: float = 1e-3,
    activation: Activation = None,
) -> Tensor:
    """Normalizes `x` by given statistics, so one single sample is enough.

        y = gamma * (x - mean) / sqrt(variance + epsilon) + beta

    Args:
        x: Tensor of any rank from 2 up (or anything that converts to one), of any real
            dtype. Integers and booleans are computed in float32.
        mean: Mean, shape `(channels,)`. For several feature axes: the shape of `x`
            with all other axes set to 1.
        variance: Variance, of the shape of mean.
        gamma: Scale, of the shape of mean, or 1 everywhere if None.
        beta: Offset, of the shape of mean, or 0 everywhere if None.
        axis: The feature axis, or a list or tuple of them.
        epsilon: Added to the variance; greater than 0.
        activation: Applied to `y`: anything that `keras.activations.get` takes.

    Returns:
        `y`, of the shape of `x` and its dtype (float32 for integers).

    Raises:
        TypeError: `x` does not hold real numbers, or is symbolic (in a functional
            model, use `keras_bn.BatchNormalization`); an argument of a wrong type.
        ValueError: `axis` out of range, named twice, or of unknown size; `epsilon` not
            above 0; a per-channel tensor of a wrong shape; float64 where the backend
            does not compute in it.

    Reference:
        [Ioffe and Szegedy, 2015](https://arxiv.org/abs/1502.03167), algorithm 2.

    Example:

    >>> import numpy as np
    >>> one_sample = np.array([[3.0, 30.0]], "float32")
    >>> y = batch_norm_inference(one_sample, mean=[2.0, 20.0], variance=[1.0, 100.0])
    >>> np.round(keras.ops.convert_to_numpy(y), 2).tolist()
    [[1.0, 1.0]]
    """
    x, axes, dtype = _prepare(x, axis)
    epsilon = _arguments.positive_epsilon(epsilon)
    if mean is None or variance is None:
        raise TypeError(
            "Arguments `mean` and `variance` must be tensors of one value per channel. "
            f"Received: mean={mean!r}, variance={variance!r}"
        )
    mean, variance, gamma, beta = (
        _arguments.broadcastable_parameter(name, value, default, x, axes, dtype)
        for name, value, default in (
            ("mean", mean, 0),
            ("variance", variance, 1),
            ("gamma", gamma, 1),
            ("beta", beta, 0),
        )
    )
    fused, rest = _split(activation)
    return rest(
        kernels().inference(x, mean, variance, gamma, beta, axes, epsilon, fused)
    )


def _split(activation: Activation) -> tuple[str | None, Callable[[Tensor], Tensor]]:
    """What of the activation a kernel takes on, and what is left to do after it."""
    function = activations.get(activation)
    fused = fusible(function)
    return fused, activations.linear if fused else function


def _prepare(x: Any, axis: int | Sequence[int]) -> tuple[Tensor, Axes, str]:
    """`x` as a float tensor, what `axis` means for it, and the statistics' dtype."""
    if backend.is_keras_tensor(x):
        raise TypeError(
            "Argument `x` must be a tensor with values; in a functional model use the "
            f"layer `keras_bn.BatchNormalization`. Received: x={x}"
        )
    if hasattr(x, "dtype") and not ops.is_tensor(x):
        # Before a framework fails to convert it, or turns float64 into float32.
        _arguments.numeric_dtype("x", x)
    x = as_tensor(x)
    given = _arguments.numeric_dtype("x", x)
    dtype = statistics_dtype(given)
    if not backend.is_float_dtype(given):
        x = as_tensor(x, dtype)
    return x, _arguments.resolve_axes(axis, tuple(x.shape)), dtype
