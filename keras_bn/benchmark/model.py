"""Networks with and without normalization: training steps, and inference folded."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_bn.backend import timing
from keras_bn.backend.peer import Step
from keras_bn.benchmark.layer import KERAS, OURS, Missing, Result, Row
from keras_bn.benchmark.measure import Timing, interleaved
from keras_bn.layers import BatchNormalization
from keras_bn.models import resnet
from keras_bn.tools import fold

Norm = Callable[..., keras.Layer]

NONE, FOLDED = "no norm", "folded"
NORMS: dict[str, Norm | None] = {
    OURS: BatchNormalization,
    KERAS: keras.layers.BatchNormalization,
    NONE: None,
}
DEFAULT = "default"
"""The way of a step that Keras's trainer runs, compiled as it does by default."""


class Network(NamedTuple):
    """A network to time.

    Attributes:
        build: Makes it from the keywords `norm` and `input_shape`.
        side: Of its square images, in pixels.
        classes: How many classes it tells apart.
    """

    build: Callable[..., keras.Model]
    side: int
    classes: int


def _apart(norm: Norm | None, **arguments: Any) -> keras.Model:
    """ResNet-20 as many write it: 1x1 convolutions as shortcuts, ReLU layers apart."""

    def without_activation(axis: int, name: str) -> keras.Layer:
        assert norm is not None
        return norm(axis=axis, name=name)

    given = None if norm is None else without_activation
    return resnet(depth=20, projection=True, norm=given, **arguments)


NETWORKS = {
    "resnet20": Network(partial(resnet, depth=20), 32, 10),
    "resnet20-projected": Network(_apart, 32, 10),
    "resnet50": Network(partial(resnet, depth=50), 224, 1000),
}


class Run(NamedTuple):
    """What to time a network on.

    Attributes:
        network: One of `NETWORKS`.
        batch: Images a step.
        rounds: How often each contender runs.
        side: Of the images; the network's own if None.
    """

    network: str
    batch: int
    rounds: int
    side: int | None = None

    def model(self, norm: Norm | None) -> keras.Model:
        """The network with this norm; logits."""
        build = NETWORKS[self.network].build
        return build(
            norm=norm, input_shape=self.image_shape(), classifier_activation=None
        )

    def image_shape(self) -> tuple[int, int, int]:
        """The shape of an image, channels last."""
        side = self.side or NETWORKS[self.network].side
        return side, side, 3

    def data(self) -> tuple[Any, Any]:
        """Images and labels, on the device."""
        rng = np.random.default_rng(0)
        images = rng.normal(size=(self.batch, *self.image_shape())).astype("float32")
        labels = rng.integers(0, NETWORKS[self.network].classes, self.batch)
        tensor = keras.ops.convert_to_tensor
        return tensor(images), tensor(labels.astype("int32"))


def run_model(run: Run, way: str, tick: Callable[[], object]) -> Result:
    """Times training steps with our layer, Keras's and none, in turns.

    Args:
        run: What to time.
        way: `DEFAULT` for Keras's `train_on_batch`, or one of
            `keras_bn.backend.timing().WAYS`, for the gradients of the loss.
        tick: Called after each round.

    Returns:
        A `Row` per contender, or why there is none.
    """
    framework = timing()
    x, labels = run.data()
    steps: dict[str, Step] = {}
    saved: dict[str, float] = {}
    missing: list[Missing] = []
    for name, norm in NORMS.items():
        model = run.model(norm)
        try:
            steps[name] = (
                _fit(model, x, labels)
                if way == DEFAULT
                else framework.model_training(model, x, labels, way)
            )
        except NotImplementedError as error:
            place = (run.network, _shape(run), "float32", "step", way)
            missing.append(Missing(*place, name, str(error)))
            continue
        kept = None if way == DEFAULT else framework.saved_bytes(model, x)
        if kept is not None:
            saved[name] = kept / (4 * math.prod(x.shape))
    if OURS not in steps or NONE not in steps:  # Nothing to compare with.
        return Result([], missing)
    timings = interleaved(steps, run.rounds, tick, wait=framework.wait)
    rows = [
        _row(run, "step", way, name, times)._replace(saved=saved.get(name))
        for name, times in timings.items()
    ]
    return Result(rows, missing)


def _fit(model: keras.Model, x: Any, labels: Any) -> Step:
    model.compile(
        keras.optimizers.SGD(1e-3, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return lambda: model.train_on_batch(x, labels)


def _shape(run: Run) -> str:
    return "x".join(map(str, (run.batch, *run.image_shape())))


def _row(run: Run, mode: str, way: str, name: str, times: Timing) -> Row:
    added_ms = times.added if mode == "step" else None
    row = (run.network, _shape(run), "float32", mode, way, name, *times[:4], added_ms)
    return Row(*row, limit_ms=None, floor_ms=None, saved=None, rounds=run.rounds)


def run_folded(run: Run, tick: Callable[[], object]) -> Result:
    """Times `predict_on_batch` folded, built without norm, and with it.

    `ratio` is the time over the folded model's, so that 1 for "no norm" says that
    folding leaves nothing of the norm.
    """
    x, _ = run.data()
    models = {name: run.model(norm) for name, norm in NORMS.items()}
    models = {
        FOLDED: fold(models[OURS]),
        NONE: models[NONE],
        OURS: models[OURS],
        KERAS: models[KERAS],
    }
    steps = {
        name: lambda model=model: model.predict_on_batch(x)
        for name, model in models.items()
    }
    timings = interleaved(steps, run.rounds, tick)
    rows = [
        _row(run, "predict", DEFAULT, name, times) for name, times in timings.items()
    ]
    return Result(rows, [])


def speed_of_folded(rows: list[Row]) -> float:
    """How fast the folded model is, over the speed of the one built without norm."""
    return next(row.ratio for row in rows if row.contender == NONE)


def added(rows: list[Row]) -> dict[str, float]:
    """Milliseconds that our layer, and Keras's if it ran, add to the step without norm.

    Each a median over paired rounds: the difference is taken in each round.
    """
    return {
        row.contender: row.added_ms
        for row in rows
        if row.contender in (OURS, KERAS) and row.added_ms is not None
    }
