"""Timing of several contenders in turns."""

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

Step = Callable[[], object]


class Timing(NamedTuple):
    """What one contender took.

    Attributes:
        median: Milliseconds, median over the rounds.
        low: First quartile.
        high: Third quartile.
        ratio: Median over the rounds of this contender's time divided by the first
            contender's in the same round: above 1, the first one is faster.
    """

    median: float
    low: float
    high: float
    ratio: float


def interleaved(
    contenders: Mapping[str, Step],
    rounds: int,
    tick: Callable[[], object] = lambda: None,
    warm_up: int = 2,
) -> dict[str, Timing]:
    """Times the contenders in turns, one call each per round.

    Args:
        contenders: The steps by name; the first is the one that ratios refer to.
        rounds: How many rounds to time.
        tick: Called after every round.
        warm_up: How often each contender runs before.

    Returns:
        A `Timing` for each contender, in the same order.

    Example:

    >>> steps = {"none": lambda: None, "some": lambda: sum(range(9**4))}
    >>> timings = interleaved(steps, rounds=5)
    >>> timings["none"].ratio, timings["some"].ratio > 1
    (1.0, True)
    """
    for step in contenders.values():
        for _ in range(warm_up):
            step()
    seconds = np.empty((rounds, len(contenders)))
    for turn in seconds:
        for i, step in enumerate(contenders.values()):
            start = time.perf_counter()
            step()
            turn[i] = time.perf_counter() - start
        tick()
    low, median, high = np.quantile(seconds * 1e3, [0.25, 0.5, 0.75], axis=0)
    ratio = np.median(seconds / seconds[:, :1], axis=0)
    return {
        name: Timing(*map(float, values))
        for name, *values in zip(contenders, median, low, high, ratio, strict=True)
    }
