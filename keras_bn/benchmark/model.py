"""ResNet-20 with and without normalization: training steps, and inference folded."""

from collections.abc import Callable

import keras
import numpy as np

from keras_bn.benchmark.layer import KERAS, OURS, Row
from keras_bn.benchmark.measure import Timing, interleaved
from keras_bn.layers import BatchNormalization
from keras_bn.models import resnet
from keras_bn.tools import fold

Norm = Callable[..., keras.Layer]

NORMS: dict[str, Norm | None] = {
    OURS: BatchNormalization,
    KERAS: keras.layers.BatchNormalization,
    "no norm": None,
}
FOLDED = "folded"


def run_model(batch: int, rounds: int, tick: Callable[[], object]) -> list[Row]:
    """Times `train_on_batch` of ResNet-20 with our layer, Keras's and none, in turns.

    Keras compiles the step as it does by default on the running backend.
    """
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batch, 32, 32, 3)).astype("float32")
    labels = rng.integers(0, 10, batch)
    steps = {}
    for name, norm in NORMS.items():
        model = resnet(depth=20, norm=norm, classifier_activation=None)
        model.compile(
            keras.optimizers.SGD(1e-3, momentum=0.9),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        steps[name] = lambda model=model: model.train_on_batch(x, labels)
    shape = "x".join(map(str, x.shape))
    return [
        _row(shape, "step", name, times)
        for name, times in interleaved(steps, rounds, tick).items()
    ]


def _row(shape: str, mode: str, name: str, times: Timing) -> Row:
    added_ms = times.added if mode == "step" else None
    row = ("resnet20", shape, "float32", mode, "default", name, *times[:4], added_ms)
    return Row(*row, limit_ms=None, floor_ms=None, saved=None)


def run_folded(batch: int, rounds: int, tick: Callable[[], object]) -> list[Row]:
    """Times `predict_on_batch` of ResNet-20 folded, built without norm, and with it.

    `ratio` is the time over the folded model's, so that 1 for "no norm" says that
    folding leaves nothing of the norm.
    """
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batch, 32, 32, 3)).astype("float32")
    models = {
        name: resnet(depth=20, norm=norm, classifier_activation=None)
        for name, norm in NORMS.items()
    }
    models = {
        FOLDED: fold(models[OURS]),
        "no norm": models["no norm"],
        OURS: models[OURS],
        KERAS: models[KERAS],
    }
    steps = {
        name: lambda model=model: model.predict_on_batch(x)
        for name, model in models.items()
    }
    shape = "x".join(map(str, x.shape))
    return [
        _row(shape, "predict", name, times)
        for name, times in interleaved(steps, rounds, tick).items()
    ]


def speed_of_folded(rows: list[Row]) -> float:
    """How fast the folded model is, over the speed of the one built without norm."""
    return next(row.ratio for row in rows if row.contender == "no norm")


def added(rows: list[Row]) -> list[float | None]:
    """Milliseconds that our layer, and Keras's, add to the step without norm."""
    return [
        next(row.added_ms for row in rows if row.contender == name)
        for name in (OURS, KERAS)
    ]
