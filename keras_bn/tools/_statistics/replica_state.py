"""The statistics of one layer in several replicas, and those that stand for all."""

import numpy as np

from keras_bn.tools._graphs.walk import COUNTS, RENORM_STATISTICS, STATISTICS, Layer

State = dict[str, np.ndarray]
"""What one replica has of one layer, by the names of its weights."""

ACCUMULATED = ("accumulated_mean", "accumulated_variance", "accumulated_count")
STEPS = ("accumulated_steps", "moving_step")
EVERY = (*STATISTICS, *RENORM_STATISTICS, *COUNTS, *ACCUMULATED, *STEPS)


def merged(path: str, layer: Layer, states: list[State], share: int) -> State:
    """The state of one layer that stands for those of all replicas."""
    stacked = {name: np.stack([one[name] for one in states]) for name in states[0]}
    count = stacked.get("moving_count", stacked.get("moving_weight"))
    mean, variance = _pooled(stacked["moving_mean"], stacked["moving_variance"], count)
    found = dict(zip(STATISTICS, (mean, variance), strict=True))
    if "moving_stddev" in stacked:
        found["moving_stddev"] = np.sqrt(variance + layer.epsilon)
        found["renorm_mean"], squares = _pooled(
            stacked["renorm_mean"],
            stacked["renorm_stddev"] ** 2,
            stacked.get("renorm_weight"),
        )
        found["renorm_stddev"] = np.sqrt(squares)
    if "accumulated_count" in stacked:
        moments = _pooled(*(stacked[name] for name in ACCUMULATED))
        found |= zip(ACCUMULATED[:2], moments, strict=True)
    for name in ("moving_count", "accumulated_count"):
        if name in stacked:
            found[name] = stacked[name].sum(0) / share
    for name in ("moving_weight", "renorm_weight"):
        if name in stacked:
            found[name] = stacked[name].mean(0)
    for name in STEPS:
        if name in stacked:
            found[name] = stacked[name].max(0)
    if np.ptp(stacked.get("accumulated_steps", np.zeros(1))):
        raise ValueError(
            "Replicas must be at the same step of their accumulation. Received: "
            f"{stacked['accumulated_steps'].tolist()} in layer '{path}'"
        )
    if not all(np.isfinite(one).all() for one in found.values()):
        raise ValueError(
            "Replicas must have finite statistics. Received: a NaN or an infinity in "
            f"layer '{path}'"
        )
    return found


def _pooled(
    means: np.ndarray, variances: np.ndarray, counts: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of all replicas' values together; the first axis is theirs."""
    counts = np.ones_like(means) if counts is None else counts
    # Where nobody has counted, all are at the same initial values.
    counts = np.where(counts.sum(0) > 0, counts, 1)
    share = counts / counts.sum(0)

    def mean(values: np.ndarray) -> np.ndarray:
        return np.where(share > 0, share * values, 0).sum(0)  # type: ignore[no-any-return]

    centre = means[0]
    offset = mean(means - centre)
    spread = mean(variances + (means - centre - offset) ** 2)
    return centre + offset, spread
