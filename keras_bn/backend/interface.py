"""What a kernel file offers: the `Kernels` protocol and the two types it speaks in.

A kernel answers "how fast?", nothing else. What to compute, in which dtypes and
with which checks is settled in `keras_bn.ops` before a kernel is asked.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
from keras import backend, ops

Tensor = Any
"""A tensor of the running backend: `tf.Tensor`, `jax.Array` or `torch.Tensor`."""


def statistics_dtype(dtype: Any) -> str:
    """The dtype of the statistics of `dtype` inputs: float64 of float64, else float32.

    Not `keras.backend.result_type(dtype, "float32")`: that is float32 for float64.
    """
    return "float64" if backend.standardize_dtype(dtype) == "float64" else "float32"


def as_tensor(x: Any, dtype: str | None = None) -> Tensor:
    """`x` as a tensor, of `dtype` if given.

    `keras.ops` takes some microseconds to find that there is nothing to do, which for
    a small layer is most of its time.
    """
    if not ops.is_tensor(x):
        x = ops.convert_to_tensor(x)
    if dtype is None or backend.standardize_dtype(x.dtype) == dtype:
        return x
    return ops.cast(x, dtype)


class Axes(NamedTuple):
    """Which axes of an input keep their statistics, and which are averaged over.

    Attributes:
        features: The feature axes, ascending and non-negative.
        reduction: All other axes, ascending: the statistics are taken over these.
        jointly: Whether whoever runs the sums splits one over all of these by itself,
            and adds up the parts. Otherwise one axis is summed after the other.
    """

    features: tuple[int, ...]
    reduction: tuple[int, ...]
    jointly: bool = False

    @property
    def ndim(self) -> int:
        """The rank of the input."""
        return len(self.features) + len(self.reduction)

    def parameter_shape(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """The shape of gamma, beta and the statistics for an input of this shape.

        `(channels,)` for one feature axis. For several, the input's shape with
        every averaged axis set to 1, as in tf-keras 2.
        """
        if len(self.features) == 1:
            return (shape[self.features[0]],)
        return tuple(n if i in self.features else 1 for i, n in enumerate(shape))

    def broadcast(self, parameter: Tensor) -> Tensor:
        """`parameter`, of the input's rank, so that it broadcasts against it.

        Also where the feature axis is the last and every framework would: JAX can be
        set up to take that for a mistake.
        """
        if len(self.features) > 1 or self.ndim == 1:
            return parameter
        shape = [1] * self.ndim
        shape[self.features[0]] = -1
        return ops.reshape(parameter, shape)

    def samples(self, shape: tuple[int | None, ...]) -> int | None:
        """How many values each statistic is taken over; None where not yet known."""
        sizes = [shape[axis] for axis in self.reduction]
        return None if None in sizes else math.prod(sizes)  # type: ignore[arg-type]


class Moments(NamedTuple):
    """Per-channel moments of one batch, as the public functions return them.

    No gradient flows through them. They are for bookkeeping; the gradient of the
    normalized output takes its dependence on the statistics into account by itself.

    Attributes:
        count: Number of values behind each statistic, or the sum of their weights:
            float. A scalar, or of the parameter shape where a mask or weights make it
            differ from channel to channel.
        mean: The mean; 0 where `count` is 0.
        variance: The biased (population) variance; 0 where `count` is 0.
    """

    count: Tensor
    mean: Tensor
    variance: Tensor


Correction = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""`(r, d)` from the batch's mean and variance, for batch renormalization."""


def corrected(
    scale: Tensor, offset: Tensor, moments: Moments, correction: Correction | None
) -> tuple[Tensor, Tensor]:
    """Scale and offset with `(r, d)` taken in, as constants to the gradient.

    `(n * r + d) * scale + offset = n * (scale * r) + (scale * d + offset)`
    """
    if correction is None:
        return scale, offset
    r, d = map(ops.stop_gradient, correction(moments.mean, moments.variance))
    return scale * r, scale * d + offset


class Replicas(Protocol):
    """The devices or processes that train one model together, each on its own data.

    Or a group of them, the one that this replica is in. Both functions are collectives:
    every replica calls them, in the same order, also with an empty batch.
    """

    def gather(self, values: Tensor) -> Tensor:
        """The vectors of all replicas, `(replicas, size)`, the same on all of them.

        Those of other groups are left out, or zeros: `count` is 0 there.
        """

    def total(self, values: Tensor) -> Tensor:
        """The sum over all replicas, the same on all of them."""


class Processes(Protocol):
    """The processes that go through their own data, each by itself."""

    def gather(self, values: np.ndarray) -> np.ndarray:
        """The vectors of all, `(processes, size)`; all of them call it together."""


class Service(NamedTuple):
    """One row of `keras_bn.backend.describe()`.

    Attributes:
        case: What is asked for: which call, on which inputs.
        kernel: The kernel file that serves it.
        how: In a few words, what it does.
    """

    case: str
    kernel: str
    how: str


class Kernels(Protocol):
    """The arithmetic of batch normalization on one framework.

    In all functions `x` has any rank and dtype float16, bfloat16, float32 or float64;
    the per-channel tensors have the parameter shape (`Axes.parameter_shape`) and the
    statistics' dtype: float64 for float64 `x`, else float32.

    """

    def services(self) -> tuple[Service, ...]:
        """Which cases it serves, on the devices at hand, and how; see `describe`."""

    def train(
        self,
        x: Tensor,
        scale: Tensor,
        offset: Tensor,
        axes: Axes,
        epsilon: float,
        mask: Tensor | None,
        correction: Correction | None,
        activation: str | None,
        replicas: Replicas | None = None,
        shortcut: Tensor | None = None,
    ) -> tuple[Tensor, Moments]:
        """`(x - mean) / sqrt(variance + epsilon) * scale + offset`, and the moments.

        `shortcut`, of the shape and dtype of `x`, is added to it, and the activation, a
        name in `activations.SLOPES` or None, applied to that. Nothing but `x` is kept
        for the backward pass, and the output where the two come together.

        The moments are taken over `axes.reduction` where `mask` is True: a boolean
        tensor of the rank of `x` that broadcasts to it; or a float one, in the
        statistics' dtype, that says how often each value counts. `scale` and `offset`
        are first `corrected`. The output has the dtype of `x`.

        With `replicas`, the moments are those of all their inputs together.

        The gradient for `x` is the total one, with the way through mean and variance
        (on all replicas: of the sum of their losses); those for `scale` and `offset`
        are of this replica's output. A float `mask` has one as well, with its way
        through the statistics. The moments that are returned pass no gradient on.
        """

    def inference(
        self,
        x: Tensor,
        mean: Tensor,
        variance: Tensor,
        scale: Tensor,
        offset: Tensor,
        axes: Axes,
        epsilon: float,
        activation: str | None,
    ) -> Tensor:
        """`(x - mean) / sqrt(variance + epsilon) * scale + offset`, mean given.

        The activation is applied to it, as in `train`. The output has the dtype of
        `x`. Gradients reach all five tensors.
        """

    def ensure_shape(self, x: Tensor, shape: tuple[int | None, ...]) -> Tensor:
        """`x`, with sizes that were not known when it was traced set to those of shape.

        An input that has others is an error when it runs.
        """

    def usable(self, moments: Moments) -> Tensor | bool:
        """Per channel, whether a moving average may take these moments in.

        False where `count` is 0, and where mean or variance is not finite. A kernel
        that can afford a look at the values says True where it is so for all channels.
        """

    def moving_average(
        self,
        average: Tensor,
        value: Tensor,
        momentum: float | Tensor,
        where: Tensor | bool,
    ) -> Tensor:
        """`average * momentum + value * (1 - momentum)` where `where`, else `average`.

        Both are of one dtype, and so is a momentum that is a tensor.
        """
