"""Timing of several contenders in turns."""

import math
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

Step = Callable[[], object]

_MOST_CALLS = 50
"""The most calls that a turn may have."""


class Timing(NamedTuple):
    """What one contender took.

    Attributes:
        median: Milliseconds, median over the rounds.
        low: First quartile.
        high: Third quartile.
        ratio: Median over the rounds of this contender's time divided by the first
            contender's in the same round: above 1, the first one is faster.
        added: Milliseconds, median over the rounds of this contender's time less the
            last contender's in the same round.
    """

    median: float
    low: float
    high: float
    ratio: float
    added: float


def interleaved(
    contenders: Mapping[str, Step],
    rounds: int,
    tick: Callable[[], object] = lambda: None,
    warm_up: int = 2,
    turn: float = 5e-3,
) -> dict[str, Timing]:
    """Times the contenders in turns, round after round.

    A turn is one call, or as many in a row as make it long enough to be told from what
    else the machine does; a contender's time is that of one call.

    Args:
        contenders: The steps by name; the first is the one that ratios refer to.
        rounds: How many rounds to time.
        tick: Called after every round.
        warm_up: How often each contender runs before; with 0, a turn is one call.
        turn: Seconds that a turn of the quickest should last, in 50 calls at most.

    Returns:
        A `Timing` for each contender, in the same order.

    Example:

    >>> steps = {"none": lambda: None, "some": lambda: sum(range(9**4))}
    >>> timings = interleaved(steps, rounds=5)
    >>> timings["none"].ratio, timings["some"].ratio > 1
    (1.0, True)
    """
    quickest = min(_last(step, warm_up) for step in contenders.values())
    calls = max(1, min(_MOST_CALLS, int(turn / quickest)))
    seconds = np.empty((rounds, len(contenders)))
    for times in seconds:
        for i, step in enumerate(contenders.values()):
            times[i] = _seconds(step, calls) / calls
        tick()
    low, median, high = np.quantile(seconds * 1e3, [0.25, 0.5, 0.75], axis=0)
    ratio = np.median(seconds / seconds[:, :1], axis=0)
    added = np.median(seconds - seconds[:, -1:], axis=0) * 1e3
    return {
        name: Timing(*map(float, values))
        for name, *values in zip(
            contenders, median, low, high, ratio, added, strict=True
        )
    }


def _last(step: Step, calls: int) -> float:
    """The seconds of the last of these calls; endless, so to say, without any."""
    return [math.inf, *(_seconds(step, 1) for _ in range(calls))][-1]


def _seconds(step: Step, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        step()
    return time.perf_counter() - start
