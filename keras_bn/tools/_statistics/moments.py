"""Moments of more data than fits in one batch, in float64 NumPy."""

from typing import Any

import numpy as np

from keras_bn.tools._copies.converted import set_renorm_statistics
from keras_bn.tools._graphs.walk import Layer, float64
from keras_bn.tools._statistics.averaging import made_of_data, momentum_now


class RunningMoments:
    """Count, mean and sum of squared deviations per channel, merged batch by batch.

    With n values of mean m and sum of squared deviations M, and d = m_b - m_a:

        n = n_a + n_b
        m = m_a + d * n_b / n
        M = M_a + M_b + d² * n_a * n_b / n

    which is exact for any split of the data, where averages of batch variances lose
    the spread between the batches.

    Reference:
        Chan, Golub and LeVeque, 1979, "Updating formulae and a pairwise algorithm for
        computing sample variances".

    Example:

    >>> import numpy as np
    >>> from keras_bn.tools._statistics.moments import RunningMoments
    >>> moments = RunningMoments()
    >>> moments.add(2, np.array([1.0]), np.array([0.0]))
    >>> moments.add(2, np.array([3.0]), np.array([0.0]))
    >>> moments.mean.item(), moments.variance.item()
    (2.0, 1.0)
    """

    weight = 1.0

    def __init__(self) -> None:
        self.count: Any = 0.0
        self.mean: Any = 0.0
        self._deviations: Any = 0.0

    def add(self, count: Any, mean: np.ndarray, variance: np.ndarray) -> None:
        """Takes in `count` values (one number, or one a channel) of these moments."""
        total = self.count + count
        share = count / np.maximum(total, 1e-300)
        difference = mean - self.mean
        self._deviations = (
            self._deviations + variance * count + difference**2 * self.count * share
        )
        self.mean = self.mean + difference * share
        self.count = total

    @property
    def total(self) -> Any:
        """How many values are in the moments."""
        return self.count

    @property
    def variance(self) -> np.ndarray:
        """The biased (population) variance; 0 where nothing was counted."""
        return self._deviations / np.maximum(self.count, 1e-300)  # type: ignore[no-any-return]


class RunningAverage:
    """The moving average, in float64, moved by each batch.

    average = average * momentum + batch * (1 - momentum)

    A schedule's momentum is that of the layer's present step for all of them; with
    `zero_debias` the share that is kept is as the layer says, and with `momentum=None`
    all batches are merged.

    Attributes:
        count: How many values were taken in here.
        mean: The average of their means.
        variance: That of their variances.
        total: How many values are in the average, where it counts them.
        weight: The sum of the weights that batches have in it; 1 where nobody asks.
    """

    def __init__(self, layer: Layer) -> None:
        self._momentum = momentum_now(layer)
        self.weight: Any = 1.0
        if getattr(layer, "moving_weight", None) is not None:
            self.weight = float64(layer.moving_weight)
        self.count: Any = 0.0
        self.mean, self.variance = statistics_of(layer)
        self._merged = RunningMoments()
        if self._momentum is None:
            self._merged.add(float64(layer.moving_count), self.mean, self.variance)

    @property
    def total(self) -> Any:
        """See the class."""
        return self._merged.count

    def add(self, count: Any, mean: np.ndarray, variance: np.ndarray) -> None:
        """Takes in one batch; its channels without a value change nothing."""
        self.count = self.count + count
        if self._momentum is None:
            self._merged.add(count, mean, variance)
            self.mean, self.variance = self._merged.mean, self._merged.variance
            return
        taken = np.where(count > 0, 1 - self._momentum, 0.0)
        self.weight = self.weight + (1 - self.weight) * taken
        share = taken / np.where(self.weight > 0, self.weight, 1)
        self.mean = self.mean + (mean - self.mean) * share
        self.variance = self.variance + (variance - self.variance) * share


def distance(
    mean: np.ndarray,
    variance: np.ndarray,
    moving_mean: np.ndarray,
    moving_variance: np.ndarray,
    epsilon: float,
) -> float:
    """How far batch statistics are from moving ones, in moving standard deviations.

    All are in float64.

    With s = sqrt(variance + epsilon), averaged over the channels:

        distance² = mean(((m_batch - m_moving)² + (s_batch - s_moving)²) / s_moving²)

    This is the 2-Wasserstein distance of two normal distributions, in units of the
    moving one. It is also the root mean square change of the layer's normalized output
    (before gamma and beta) when it goes from training to inference mode: 0 is none,
    1 is as large as the output itself.

    Reference:
        [Dowson and Landau, 1982](https://doi.org/10.1016/0047-259X(82)90077-X).

    Example:

    >>> import numpy as np
    >>> from keras_bn.tools._statistics.moments import distance
    >>> one = np.ones(1)
    >>> distance(2 * one, one, 0 * one, one, epsilon=1e-3) < 2
    True
    """
    batch, moving = (
        np.sqrt(np.maximum(one, 0) + epsilon) for one in (variance, moving_variance)
    )
    shift = mean - moving_mean
    squares = shift**2 + (batch - moving) ** 2
    with np.errstate(divide="ignore"):  # by an epsilon of 0, and what never varied
        np.divide(squares, moving**2, out=squares, where=squares != 0)
    return float(np.sqrt(np.mean(squares)))


def statistics_of(layer: Layer) -> tuple[np.ndarray, np.ndarray]:
    """The moving mean and variance of `layer`."""
    return float64(layer.moving_mean), float64(layer.moving_variance)


def distance_from(layer: Layer, mean: np.ndarray, variance: np.ndarray) -> float:
    """`distance` of these statistics from the moving ones of `layer`."""
    return distance(mean, variance, *statistics_of(layer), layer.epsilon)


def set_statistics(layer: Layer, found: RunningMoments | RunningAverage) -> None:
    """Writes moving statistics, those of renorm to match, and what they are made of."""
    layer.moving_mean.assign(found.mean)
    layer.moving_variance.assign(found.variance)
    if getattr(layer, "moving_stddev", None) is not None:
        set_renorm_statistics(layer)
    made_of_data(layer, found.total, found.weight)
