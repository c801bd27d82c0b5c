"""Batch normalization as pure functions: check, cast, ask the kernels."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from keras import activations, backend, ops

from keras_bn.backend import ensure_shape, kernels
from keras_bn.backend import replicas as replicas
from keras_bn.backend.activations import fusible
from keras_bn.backend.groups import Groups
from keras_bn.backend.interface import (
    Axes,
    Correction,
    Moments,
    Tensor,
    statistics_dtype,
)
from keras_bn.backend.interface import as_tensor as as_tensor
from keras_bn.ops import _arguments, _counts, _settings
from keras_bn.ops._replica_groups import replica_groups as checked_groups

Activation = str | Callable[[Tensor], Tensor] | None


def batch_norm_train(
    x: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    axis: int | Sequence[int] = -1,
    epsilon: float = 1e-3,
    mask: Tensor | None = None,
    weights: Tensor | None = None,
    residual: Tensor | None = None,
    correction: Correction | None = None,
    activation: Activation = None,
    synchronized: bool = False,
    replica_groups: Any = None,
) -> tuple[Tensor, Moments]:
    """Normalizes `x` by the statistics of this very batch.

    With the mean and the biased variance taken, per channel, over all other axes:

        y = activation(gamma * (x - mean) / sqrt(variance + epsilon) + beta + residual)

    With weights w, `count = sum(w)`, `mean = sum(w * x) / count` and
    `variance = sum(w * (x - mean)²) / count`.

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
            without the last axis, or broadcasts to one of these at equal rank. Floats
            other than 0 and 1 are an error: see `weights`.
        weights: How often each position counts in the statistics: finite numbers, not
            negative, of the shapes that a mask may have. A weight is a count: integers
            give what as many repeated samples would, 0 and 1 what a mask does, which
            may come along. Gradients flow to them, with their way through mean and
            variance. They are converted to the dtype of the statistics.
        residual: Added before the activation; of the shape of `x`, converted to its
            dtype. Nothing is kept for it but `y`, where there is an activation.
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
        replica_groups: Which replicas take their statistics together, with
            `synchronized=True`; all of them if None. A list of lists of replica
            indices, each replica in one of them: ranks on PyTorch,
            `replica_id_in_sync_group` on TensorFlow, positions along the manual axes
            on JAX (of several axes, the last one counts fastest). On JAX also the name
            of a manual axis, or a list of names: the replicas along these, which
            leaves out an axis that shards the channels. On PyTorch also a
            `torch.distributed.ProcessGroup`. One process without an engine does not
            read it.

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
            above 0; `mask`, `weights`, `residual`, `gamma` or `beta` of a wrong shape;
            weights that are negative, infinite or NaN; float64 where the backend does
            not compute in it; an engine that cannot synchronize;
            `replica_groups` without `synchronized`, or with a replica missing, twice
            or unknown; None of them on JAX, where there are several manual axes, or
            gamma or beta varies along the only one: it may shard the channels, whose
            statistics must not be mixed.

    In a compiled function weights have no values, and on an accelerator one would have
    to wait for them: a negative or infinite one gives channels of NaN there, in `y` and
    in the moments, as a NaN does.

    Reference:
        [Ioffe and Szegedy, 2015](https://arxiv.org/abs/1502.03167), algorithm 1.

    Example:

    >>> import keras, numpy as np
    >>> from keras_bn.ops import batch_norm_train
    >>> x = np.array([[1.0, 10.0], [3.0, 30.0]], "float32")
    >>> y, moments = batch_norm_train(x)
    >>> np.round(keras.ops.convert_to_numpy(moments.mean), 3).tolist()
    [2.0, 20.0]
    >>> np.round(keras.ops.convert_to_numpy(y), 2).tolist()
    [[-1.0, -1.0], [1.0, 1.0]]
    """
    given = prepare(x, axis)
    epsilon = _settings.positive_epsilon(epsilon)
    counts = given.counts(mask, weights)
    residual = given.residual(residual)
    gamma = given.parameter("gamma", gamma, 1)
    beta = given.parameter("beta", beta, 0)
    return train(
        *(given, gamma, beta, epsilon, counts, correction),
        *(activations.get(activation), synchronized),
        *(checked_groups(replica_groups, synchronized), residual),
    )


def batch_norm_inference(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    axis: int | Sequence[int] = -1,
    epsilon: float = 1e-3,
    residual: Tensor | None = None,
    activation: Activation = None,
) -> Tensor:
    """Normalizes `x` by given statistics, so one single sample is enough.

        y = activation(gamma * (x - mean) / sqrt(variance + epsilon) + beta + residual)

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
        residual: Added before the activation; of the shape of `x`, converted to its
            dtype.
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

    >>> import keras, numpy as np
    >>> from keras_bn.ops import batch_norm_inference
    >>> one_sample = np.array([[3.0, 30.0]], "float32")
    >>> y = batch_norm_inference(one_sample, mean=[2.0, 20.0], variance=[1.0, 100.0])
    >>> np.round(keras.ops.convert_to_numpy(y), 2).tolist()
    [[1.0, 1.0]]
    """
    given = prepare(x, axis)
    epsilon = _settings.positive_epsilon(epsilon)
    if mean is None or variance is None:
        raise TypeError(
            "Arguments `mean` and `variance` must be tensors of one value per channel. "
            f"Received: mean={mean!r}, variance={variance!r}"
        )
    return infer(
        given,
        given.parameter("mean", mean, 0),
        given.parameter("variance", variance, 1),
        given.parameter("gamma", gamma, 1),
        given.parameter("beta", beta, 0),
        epsilon,
        activations.get(activation),
        given.residual(residual),
    )


class Prepared(NamedTuple):
    """An input after its checks.

    Attributes:
        x: A tensor of a float dtype that the backend computes in.
        axes: What `axis` means for it.
        dtype: That of its statistics.
    """

    x: Tensor
    axes: Axes
    dtype: str

    def parameter(self, name: str, value: Any, default: float) -> Tensor:
        """See `_arguments.broadcastable_parameter`."""
        return _arguments.broadcastable_parameter(
            name, value, default, self.x, self.axes, self.dtype
        )

    def counts(self, mask: Any, weights: Any) -> Tensor | None:
        """See `_counts.counts`."""
        return _counts.counts(mask, weights, self.x, self.axes, self.dtype)

    def residual(self, residual: Any) -> Tensor | None:
        """See `_arguments.residual_like`."""
        return None if residual is None else _arguments.residual_like(residual, self.x)


def prepare(
    x: Any,
    axis: int | Sequence[int],
    name: str = "x",
    integers_as: str = "float32",
    built: Sequence[int] | None = None,
) -> Prepared:
    """Checks the argument `name`, which is `x`, and `axis`; makes floats of `x`.

    Feature axes whose size is not known have that of weights of the shape `built`.
    """
    if backend.is_keras_tensor(x):
        raise TypeError(
            f"Argument `{name}` must be a tensor with values; in a functional model "
            f"use the layer `keras_bn.BatchNormalization`. Received: {name}={x}"
        )
    if not ops.is_tensor(x):
        if hasattr(x, "dtype"):
            # Before a framework fails to convert it, or turns float64 into float32.
            _arguments.numeric_dtype(name, x)
        x = ops.convert_to_tensor(x)
    dtype = _arguments.numeric_dtype(name, x)
    if not backend.is_float_dtype(dtype):
        x, dtype = ops.cast(x, integers_as), integers_as
    shape = tuple(x.shape)
    if built is not None and None in shape:
        known = _arguments.with_built_channels(axis, shape, built)
        if known != shape:
            x, shape = ensure_shape(x, known), known
    axes = _arguments.resolve_axes(axis, shape)
    return Prepared(x, axes, statistics_dtype(dtype))


def train(
    given: Prepared,
    gamma: Tensor,
    beta: Tensor,
    epsilon: float,
    counts: Tensor | None,
    correction: Correction | None,
    activation: Callable[[Tensor], Tensor],
    synchronized: bool,
    groups: Groups = None,
    residual: Tensor | None = None,
) -> tuple[Tensor, Moments]:
    """`batch_norm_train` of checked arguments."""
    fused = fusible(activation)
    group = None
    if synchronized:
        batch = (given.x,) if counts is None else (given.x, counts)
        group = replicas(groups, batch, (gamma, beta))
    y, moments = kernels().train(
        *(given.x, gamma, beta, given.axes, epsilon, counts, correction, fused, group),
        shortcut=residual,
    )
    return (y if fused else activation(y)), moments


def infer(
    given: Prepared,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor,
    beta: Tensor,
    epsilon: float,
    activation: Callable[[Tensor], Tensor],
    residual: Tensor | None = None,
) -> Tensor:
    """`batch_norm_inference` of checked arguments."""
    # Exporters and runtimes know the sum, and what comes after it, as operators.
    fused = None if residual is not None else fusible(activation)
    y = kernels().inference(
        given.x, mean, variance, gamma, beta, given.axes, epsilon, fused
    )
    if residual is not None:
        y = y + residual
    return y if fused else activation(y)
