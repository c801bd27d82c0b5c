"""Timing of several contenders in turns."""

import math
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

Step = Callable[[], object]

_MOST_CALLS = 50
"""The most calls that a turn may have."""
_NOTHING = 1e-8
"""Seconds that stand for a step that is lost in the cache's flush."""


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
    wait: Callable[[object], object] = lambda result: None,
    flush: Step | None = None,
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
        wait: Given what a step returned, waits until the device has computed it.
        flush: A step that overwrites the device's cache, put before every call. It is a
            contender too, and its time in the same round is taken off all others. With
            it, calls queue up and the device is waited for at the end of a turn, so
            that the way there and back is not in the time; without, after every call.

    Returns:
        A `Timing` for each contender, in the same order.

    Example:

    >>> from keras_bn.benchmark import interleaved
    >>> steps = {"none": lambda: None, "some": lambda: sum(range(9**4))}
    >>> timings = interleaved(steps, rounds=5)
    >>> timings["none"].ratio, timings["some"].ratio > 1
    (1.0, True)
    """
    steps = list(contenders.values())
    if flush is not None:
        steps = [*(_after(flush, step) for step in steps), flush]
    clock = _Clock(wait, queue=flush is not None)
    quickest = min(clock.last(step, warm_up) for step in steps)
    calls = max(1, min(_MOST_CALLS, int(turn / quickest)))
    seconds = np.empty((rounds, len(steps)))
    for times in seconds:
        for i, step in enumerate(steps):
            times[i] = clock.seconds(step, calls) / calls
        tick()
    if flush is not None:
        seconds = np.maximum(seconds[:, :-1] - seconds[:, -1:], _NOTHING)
    low, median, high = np.quantile(seconds * 1e3, [0.25, 0.5, 0.75], axis=0)
    ratio = np.median(seconds / seconds[:, :1], axis=0)
    added = np.median(seconds - seconds[:, -1:], axis=0) * 1e3
    return {
        name: Timing(*map(float, values))
        for name, *values in zip(
            contenders, median, low, high, ratio, added, strict=True
        )
    }


def _after(flush: Step, step: Step) -> Step:
    def both() -> object:
        flush()
        return step()

    return both


class _Clock(NamedTuple):
    """How turns are timed: waiting after every call, or with all calls in a queue."""

    wait: Callable[[object], object]
    queue: bool

    def last(self, step: Step, calls: int) -> float:
        """The seconds of the last of these calls; endless, so to say, without any."""
        return [math.inf, *(self.seconds(step, 1) for _ in range(calls))][-1]

    def seconds(self, step: Step, calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            result = step()
            if not self.queue:
                self.wait(result)
        if self.queue:
            self.wait(result)
        return time.perf_counter() - start
