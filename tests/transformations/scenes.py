"""What is transformed: one call of batch normalization, in its several settings.

A call is a function of a *point*, the tensors that it is differentiated for: the input,
gamma and beta, and for the pure function of inference mean and variance, for that of
training, in one of the scenes, weights and a residual. Along a line
through the point every derivative that a transformation gives is one of a few
quantities: see `expected.Expected`.
"""

from typing import NamedTuple

import numpy as np


class Scene(NamedTuple):
    """One setting of the call."""

    shape: tuple
    axis: int = -1
    training: bool = True
    activation: str | None = None
    mask: bool = False
    renorm: bool = False
    by: str = "layer"  # a name in `call.CALLS`


SCENES = {
    "training": Scene((6, 4)),
    "first_tanh": Scene((4, 3, 5), axis=1, activation="tanh"),
    "mask_relu": Scene((5, 7, 4), mask=True, activation="relu"),
    "renorm": Scene((6, 4), renorm=True),
    # Above what any kernel takes for small.
    "large": Scene((9, 8, 8, 32)),
    "large_first_tanh": Scene((9, 32, 8, 8), axis=1, activation="tanh"),
    "large_mask": Scene((9, 8, 8, 32), mask=True),
    "large_renorm_relu": Scene((9, 8, 8, 32), renorm=True, activation="relu"),
    "inference": Scene((6, 4), training=False),
    "inference_first_tanh": Scene((4, 3, 5), axis=1, training=False, activation="tanh"),
    "inference_large_relu": Scene((9, 16, 16, 64), training=False, activation="relu"),
    "inference_large_first_tanh": Scene(
        (9, 64, 16, 16), axis=1, training=False, activation="tanh"
    ),
    "function": Scene((6, 4), by="function"),
    "function_large": Scene((9, 32, 8, 8), axis=1, by="function"),
    "function_inference": Scene((6, 4), training=False, by="function"),
    "function_inference_large": Scene((9, 16, 16, 64), training=False, by="function"),
    "along": Scene((5, 7, 4), activation="tanh", by="along"),
    "no_update": Scene((6, 4), by="no_update"),
    "no_update_large": Scene((9, 8, 8, 32), by="no_update"),
}

EPSILON = 1e-3
MOMENTUM = 0.9


class Numbers:
    """The random arrays of a scene; other inputs, or parameters, by other seeds."""

    def __init__(self, scene, batch=None, input_seed=1, parameter_seed=1):
        channels = scene.shape[scene.axis]
        shape = (batch or scene.shape[0], *scene.shape[1:])
        rng = np.random.default_rng(0)
        self.statistics = {
            "moving_mean": _normal(rng, channels),
            "moving_variance": _positive(rng, channels),
            "renorm_mean": _normal(rng, channels),
            "renorm_stddev": _positive(rng, channels),
        }
        self.mask = rng.random(scene.shape[:-1]) < 0.7 if scene.mask else None
        self.upstream = _normal(rng, shape)
        self.x = 3 + 2 * _normal(np.random.default_rng(input_seed), shape)
        rng = np.random.default_rng(parameter_seed)
        self.parameters = [_positive(rng, channels), _normal(rng, channels)]
        self.all = [self.x, *self.parameters, *self.statistics.values()]
        self.point = self.all[: _DIFFERENTIATED[scene.by, scene.training]]
        if scene.by == "along":
            along = np.random.default_rng(2)
            self.point += [_positive(along, shape[:-1]), _normal(along, shape)]
        # Short steps: the variance of a few values must not come near 0 on the line.
        self.tangent = [_normal(rng, one.shape) / 2 for one in self.point]


def _positive(rng, shape):
    return rng.uniform(0.5, 2.0, shape).astype("float32")


def _normal(rng, shape):
    return rng.normal(size=shape).astype("float32")


# How many of x, gamma, beta, mean and variance. Weights and a residual come after.
_DIFFERENTIATED = {
    ("along", True): 3,
    ("layer", True): 3,
    ("layer", False): 3,
    ("function", True): 3,
    ("function", False): 5,
    ("no_update", True): 1,
}
