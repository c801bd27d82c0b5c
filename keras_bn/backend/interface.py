"""What a kernel file offers: the `Kernels` protocol and the two types it speaks in.

A kernel answers "how fast?", nothing else. What to compute, in which dtypes and
with which checks is settled in `keras_bn.ops` before a kernel is asked.
"""

import math
from typing import Any, NamedTuple, Protocol

from keras import ops

Tensor = Any
"""A tensor of the running backend: `tf.Tensor`, `jax.Array` or `torch.Tensor`."""


class Axes(NamedTuple):
    """Which axes of an input keep their statistics, and which are averaged over.

    Attributes:
        features: The feature axes, ascending and non-negative.
        reduction: All other axes, ascending: the statistics are taken over these.
    """

    features: tuple[int, ...]
    reduction: tuple[int, ...]

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
        """`parameter`, reshaped so that it broadcasts against the input."""
        if len(self.features) > 1 or self.features[0] == self.ndim - 1:
            return parameter
        shape = [1] * self.ndim
        shape[self.features[0]] = -1
        return ops.reshape(parameter, shape)

    def samples(self, shape: tuple[int | None, ...]) -> int | None:
        """How many values each statistic is taken over; None where not yet known."""
        sizes = [shape[axis] for axis in self.reduction]
        return None if None in sizes else math.prod(sizes)  # type: ignore[arg-type]


class CentredMoments(NamedTuple):
    """Per-channel moments about a centre near the mean.

    `mean = centre + residual` in exact arithmetic. Keeping the two apart keeps what
    the rounding of the mean would lose: at mean 1e4 a float32 mean is known to
    5e-4 only, while `x - centre` is exact and `residual` is small.

    Attributes:
        count: Number of values behind each statistic. A scalar, or of the parameter
            shape where a mask makes it differ from channel to channel.
        centre: A point within a few roundings of the mean.
        residual: `mean(x - centre)`.
        variance: `mean((x - mean)²)`, the biased (population) variance, never negative.
    """

    count: Tensor
    centre: Tensor
    residual: Tensor
    variance: Tensor


class Moments(NamedTuple):
    """Per-channel moments of one batch, as the public functions return them.

    No gradient flows through them. They are for bookkeeping; the gradient of the
    normalized output takes its dependence on the statistics into account by itself.

    Attributes:
        count: Number of values behind each statistic, float. A scalar, or of the
            parameter shape where a mask makes it differ from channel to channel.
        mean: The mean; 0 where `count` is 0.
        variance: The biased (population) variance; 0 where `count` is 0.
    """

    count: Tensor
    mean: Tensor
    variance: Tensor


class Kernels(Protocol):
    """The arithmetic of batch normalization on one framework.

    In all functions `x` has any rank and dtype float16, bfloat16, float32 or float64;
    the per-channel tensors have the parameter shape (`Axes.parameter_shape`) and the
    statistics' dtype: float64 for float64 `x`, else float32. Outputs have `x`'s dtype.
    """

    def moments(self, x: Tensor, axes: Axes, mask: Tensor | None) -> CentredMoments:
        """The moments of `x` over `axes.reduction`, where `mask` (bool) is True.

        `mask` has the rank of `x` and broadcasts to it.
        """

    def normalize(
        self,
        x: Tensor,
        moments: CentredMoments,
        scale: Tensor,
        offset: Tensor,
        axes: Axes,
        epsilon: float,
        mask: Tensor | None,
    ) -> Tensor:
        """`(x - mean) / sqrt(variance + epsilon) * scale + offset`.

        `moments` come from `moments(x, axes, mask)`. The gradient for `x` is the
        total one: it includes the way through the mean and the variance, whether
        autodiff follows it through `moments` or the kernel writes it out.
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
    ) -> Tensor:
        """`(x - mean) / sqrt(variance + epsilon) * scale + offset`, mean given."""
