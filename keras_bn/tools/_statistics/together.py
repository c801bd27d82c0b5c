"""What processes that go through parts of the data find together."""

import math
from typing import Any

import numpy as np

from keras_bn.ops.processes import Processes
from keras_bn.tools._graphs.walk import Layer
from keras_bn.tools._statistics.moments import RunningMoments


class Found:
    """What a pass over the data found: of one process, or of all together.

    Attributes:
        moments: Of each layer, by path.
        reached: The paths of the layers that were called.
        batches: How many batches were seen.
        samples: How many samples.
    """

    def __init__(self, layers: dict[str, Layer], moments: dict[str, Any]) -> None:
        self._layers = layers
        self.moments = moments
        self.reached: dict[str, None] = {}
        self.batches = 0
        self.samples = 0

    def see(self, path: str, count: Any, mean: Any, variance: Any) -> None:
        """Takes in the moments of a batch that the layer of this path was called on."""
        self.reached.setdefault(path)
        self.moments[path].add(count, mean, variance)

    def together(self, processes: Processes, error: Exception | None) -> "Found":
        """What all processes found, merged in their order: one gather.

        A process that failed takes part, so that the others do not wait for it.

        Raises:
            ValueError: Another process failed, and this one did not.
        """
        rows = processes.gather(self._row(error))
        require_all(rows[:, 0], error)
        found = Found(self._layers, {path: RunningMoments() for path in self._layers})
        for row in rows:
            found._add(row)
        return found

    def _row(self, error: Exception | None) -> np.ndarray:
        """One process's findings as a vector, of the same size in all of them."""
        parts: list[Any] = [[error is not None, self.batches, self.samples]]
        for path, layer in self._layers.items():
            one, shape = self.moments[path], layer.moving_mean.shape
            parts.append([path in self.reached])
            parts += [
                np.broadcast_to(part, shape).ravel()
                for part in (one.count, one.mean, one.variance)
            ]
        return np.concatenate(parts).astype("float64")

    def _add(self, row: np.ndarray) -> None:
        batches, samples = map(int, row[1:3])
        self.batches += batches
        self.samples += samples
        start = 3
        for path, layer in self._layers.items():
            shape = layer.moving_mean.shape
            size = math.prod(shape)
            if row[start]:
                parts = row[start + 1 : start + 1 + 3 * size].reshape(3, *shape)
                self.see(path, *parts)
            start += 1 + 3 * size


def require_all(failures: np.ndarray, error: Exception | None) -> None:
    """Raises `error`, or that another process failed, if one did."""
    if error is not None:
        raise error
    failed = np.flatnonzero(failures).tolist()
    if failed:
        raise ValueError(
            "All processes must come through their data. Received: an error in "
            f"process {', '.join(map(str, failed))} of {len(failures)}"
        )


def agreed_order(
    processes: Processes, layers: dict[str, Layer], order: list[str], error: Any
) -> list[str]:
    """The order in which layers run, as the first process that has data found it."""
    # When each comes to be called; 0 where it does not.
    times = [1.0 + order.index(path) if path in order else 0.0 for path in layers]
    rows = processes.gather(np.array([error is not None, *times], "float64"))
    require_all(rows[:, 0], error)
    found = next((one[1:] for one in rows if one[1:].any()), rows[0, 1:])
    return [path for time, path in sorted(zip(found, layers, strict=True)) if time]
