"""What `inspect` looks for in a batch norm layer: one function a finding."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from keras_bn.tools._graphs.walk import (
    Layer,
    at_initial_values,
    float64,
    infers_by_batch,
    normalizes_by_batch,
)
from keras_bn.tools._statistics.averaging import remaining

SEVERITIES = ("note", "warning", "error")

FAR, VERY_FAR = 0.3, 1.0
"""Distances from which statistics are said to lag, in moving standard deviations."""

DEAD_GAMMA = 1e-3
EXPLODED_VARIANCE = 1e6
REMAINING = 0.05
"""The share of the initial values in a moving average that is one too many."""


class Finding(NamedTuple):
    """One thing that `inspect` found.

    Attributes:
        layer: The path of the layer; the empty string for the whole model.
        code: What was found, in one word, such as `"lag"`.
        severity: `"note"`, `"warning"` or `"error"`.
        verdict: What is the case.
        advice: What to do about it.
    """

    layer: str
    code: str
    severity: str
    verdict: str
    advice: str


class Facts(NamedTuple):
    """What is known of one layer when it is judged."""

    path: str
    layer: Layer
    updates: int | None
    distance: float | None
    bias: str | None
    always_training: bool


def findings_of(facts: Facts) -> list[Finding]:
    """All findings on one layer, in the order of `_CHECKS`."""
    found = []
    for code, check in _CHECKS.items():
        result = check(facts)
        if result is not None:
            found.append(Finding(facts.path, code, *result))
    return found


Result = tuple[str, str, str] | None


def _not_finite(facts: Facts) -> Result:
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    weights = [(name, getattr(facts.layer, name)) for name in names]
    bad = [n for n, w in weights if w is not None and not np.isfinite(float64(w)).all()]
    if bad:
        return (
            "error",
            f"{' and '.join(bad)} not finite: so is every output",
            "restore an earlier checkpoint, lower the learning rate; if only the "
            "moving statistics are spoilt, recalibrate",
        )
    if facts.distance is not None and not np.isfinite(facts.distance):
        return (
            "error",
            "these data give the layer a NaN or an infinity",
            "look at the data, and at the weights of the layers before it",
        )
    return None


def _never_updated(facts: Facts) -> Result:
    if infers_by_batch(facts.layer) or not at_initial_values(facts.layer):
        return None
    if facts.distance is not None and facts.distance < FAR:
        return None  # the initial values happen to be right
    return (
        "error",
        "moving statistics are still the initial ones: inference does not normalize",
        "train with training=True and trainable=True, or recalibrate",
    )


def _lag(facts: Facts) -> Result:
    layer, updates = facts.layer, facts.updates
    if not updates or not normalizes_by_batch(layer) or infers_by_batch(layer):
        return None
    initial = remaining(layer, updates)
    if not REMAINING < initial < 1:
        return None
    if facts.distance is not None and facts.distance < FAR:
        return None
    scheduled = callable(layer.momentum)
    momentum = "a scheduled momentum" if scheduled else f"momentum {layer.momentum:g}"
    return (
        "warning",
        f"after {updates} steps with {momentum}, {initial:.0%} of "
        "the moving statistics are still their initial values",
        f"recalibrate, or train with momentum {REMAINING ** (1 / updates):.2g} or less",
    )


def _far(facts: Facts) -> Result:
    if facts.distance is None or not FAR <= facts.distance < np.inf:
        return None
    if infers_by_batch(facts.layer):
        return None  # nobody uses the moving ones
    if not normalizes_by_batch(facts.layer):
        return (
            "note",
            f"moving statistics are {facts.distance:.2f} standard deviations from "
            "those of the data; the layer is frozen, so training uses them as well",
            "if the data should be normalized by their own, recalibrate with "
            "include_frozen=True",
        )
    return (
        "error" if facts.distance >= VERY_FAR else "warning",
        f"moving statistics are {facts.distance:.2f} standard deviations from those of "
        "the data",
        "recalibrate on training data; if it comes back, lower the momentum, raise the "
        "batch size, or compare the preprocessing of training and inference",
    )


def _share(bad: np.ndarray) -> str:
    return f"{int(bad.sum())} of {bad.size} channels"


def _severity(bad: np.ndarray) -> str:
    return "warning" if bad.mean() > 0.1 else "note"


def _dead_gamma(facts: Facts) -> Result:
    if facts.layer.gamma is None:
        return None
    bad = np.abs(float64(facts.layer.gamma)) < DEAD_GAMMA
    if not bad.any():
        return None
    return (
        _severity(bad),
        f"gamma is below {DEAD_GAMMA:g} in {_share(bad)}: they give beta, whatever "
        "comes in",
        "prune the channels, or lower weight decay on gamma (right after a zeros "
        "initializer it is as meant)",
    )


def _negative_variance(facts: Facts) -> Result:
    variance = float64(facts.layer.moving_variance)
    bad = variance < 0
    if not bad.any():
        return None
    nan = (variance + facts.layer.epsilon <= 0).any()
    return (
        "error" if nan else "warning",
        f"variance is negative in {_share(bad)}, which no data have"
        + (": below -epsilon the output is NaN" if nan else ""),
        "recalibrate, with this layer: Keras's leaves such where means are large",
    )


def _collapsed(facts: Facts) -> Result:
    variance = float64(facts.layer.moving_variance)
    bad = (variance >= 0) & (variance < facts.layer.epsilon / 10)
    if not bad.any():
        return None
    return (
        _severity(bad),
        f"variance is below a tenth of epsilon ({facts.layer.epsilon:g}) in "
        f"{_share(bad)}: they are nearly constant, and epsilon scales them",
        "look for dead inputs (ReLU, zero kernels), or lower epsilon if the inputs are "
        "meant to be small",
    )


def _exploded(facts: Facts) -> Result:
    bad = float64(facts.layer.moving_variance) > EXPLODED_VARIANCE
    if not bad.any():
        return None
    return (
        "warning",
        f"variance is above {EXPLODED_VARIANCE:g} in {_share(bad)}",
        "scale the model's inputs; look for a layer that grows without a norm",
    )


def _bias(facts: Facts) -> Result:
    if facts.bias is None:
        return None
    return (
        "note",
        f"the bias of '{facts.bias}' does nothing: subtracting the mean removes it",
        "build that layer with use_bias=False",
    )


def _always_training(facts: Facts) -> Result:
    if not facts.always_training:
        return None
    return (
        "warning",
        "called with training=True: where the model's own mode is left out, `model(x)` "
        "depends on the rest of the batch, and changes the moving statistics",
        "leave the argument out, unless that is meant; `predict` overrides it",
    )


def _batch_inference(facts: Facts) -> Result:
    if not infers_by_batch(facts.layer):
        return None
    return (
        "note",
        'inference is by inference_statistics="batch": an output depends on the rest '
        "of its batch, and the moving statistics are not used",
        'keep batches as large and as mixed as in training, or set it to "moving"',
    )


_CHECKS: dict[str, Callable[[Facts], Result]] = {
    "not-finite": _not_finite,
    "negative-variance": _negative_variance,
    "never-updated": _never_updated,
    "lag": _lag,
    "far": _far,
    "dead-gamma": _dead_gamma,
    "collapsed": _collapsed,
    "exploded": _exploded,
    "bias": _bias,
    "always-training": _always_training,
    "batch-inference": _batch_inference,
}
