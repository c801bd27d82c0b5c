"""How a layer averages: its momentum now, and what its averages are made of."""

from typing import Any

import numpy as np
from keras import ops

from keras_bn.tools._graphs.walk import (
    COUNTS,
    Layer,
    array,
    assign_copy,
    at_initial_values,
    float64,
)

SAMPLED = 64
"""At how many steps a schedule is looked at, to sum it up over all of them."""


def momentum_now(layer: Layer) -> float | None:
    """The share that the next update keeps; None where all batches count alike."""
    if not callable(layer.momentum):
        return None if layer.momentum is None else float(layer.momentum)
    # A layer of several domains counts the steps of each.
    return _at(layer, float64(layer.moving_step).max())


def _at(layer: Layer, step: float) -> float:
    """The momentum at this step."""
    share = layer.momentum(ops.convert_to_tensor(step, dtype="float32"))
    return float(np.clip(array(share), 0, 1))


def remaining(layer: Layer, updates: int) -> float:
    """The share of the initial values that an average has after so many updates."""
    if layer.momentum is None or getattr(layer, "zero_debias", False):
        return 0.0
    if not callable(layer.momentum):
        return float(layer.momentum) ** updates
    steps = np.linspace(0, updates - 1, min(updates, SAMPLED)).round()
    shares = np.array([_at(layer, step) for step in steps])
    with np.errstate(divide="ignore"):
        return float(np.exp(np.log(shares).mean() * updates))


def made_of_data(layer: Layer, count: Any = 0, weight: Any = 1) -> None:
    """Notes that averages just set are of `count` values, with this sum of weights.

    With a count of 0, which is for unknown, `momentum=None` starts from the next batch.
    """
    for name, value in zip(COUNTS, (count, weight, weight), strict=True):
        kept = getattr(layer, name, None)
        if kept is not None:
            kept.assign(np.broadcast_to(value, kept.shape).astype(kept.dtype))


def carry_weights(old: Layer, new: Layer) -> None:
    """Notes in `new` how far the averages that it has from `old` are of data."""
    if _lacks(old, new, "moving_weight"):
        count = getattr(old, "moving_count", None)
        of_data = not at_initial_values(old) if count is None else float64(count) > 0
        shape = new.moving_weight.shape
        new.moving_weight.assign(np.broadcast_to(of_data, shape).astype("float32"))
    if _lacks(old, new, "renorm_weight"):
        assign_copy(new.renorm_weight, new.moving_weight)


def _lacks(old: Layer, new: Layer, name: str) -> bool:
    return getattr(new, name, None) is not None and getattr(old, name, None) is None
