"""One layer on one input: training and inference steps of all contenders."""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_bn.backend import timing
from keras_bn.benchmark.measure import Step, interleaved
from keras_bn.layers import BatchNormalization

OURS, KERAS, EMPTY = "keras_bn", "keras", "empty layer"
MOMENTUM, EPSILON = 0.99, 1e-3
# Passes over the tensor that the arithmetic needs: x for the mean, x for the variance,
# x to y; dy and x for the sums, dy and x to dx, less one of the reads that a machine
# with a large cache saves. Inference: x to y.
PASSES = {"training": 8, "inference": 2}


class Case(NamedTuple):
    """An input to time the layer on."""

    name: str
    shape: tuple[int, ...]
    axis: int = -1
    dtype: str = "float32"


CASES = (
    Case("image 56", (32, 56, 56, 64)),
    Case("image 14", (64, 14, 14, 256)),
    Case("image 112", (32, 112, 112, 32)),
    Case("dense", (256, 1024)),
    Case("small dense", (32, 64)),
    Case("batch of one", (1, 14, 14, 64)),
    Case("sequence", (16, 128, 256)),
    Case("channels first", (32, 64, 56, 56), 1),
    Case("bfloat16", (32, 56, 56, 64), -1, "bfloat16"),
    Case("float16", (32, 56, 56, 64), -1, "float16"),
)


class Row(NamedTuple):
    """One line of the result: one contender on one case.

    Attributes:
        case: The input's name.
        shape: Its shape, 32x56x56x64.
        dtype: Its dtype.
        mode: `"training"`, `"inference"`, or of a model `"step"`, `"predict"`.
        way: How it ran: one of `keras_bn.backend.timing().WAYS`.
        contender: Whose layer.
        median_ms: Milliseconds, median over the rounds; `low_ms` and `high_ms` are the
            quartiles.
        low_ms: See `median_ms`.
        high_ms: See `median_ms`.
        ratio: Its time over ours, median over the rounds.
        added_ms: Of a model: its time less that without norm, median over the rounds.
        limit_ms: The time of as many passes as `PASSES` says at a copy's speed.
        floor_ms: In training, the time of the least passes, as plain operators.
        saved: What is kept for the backward pass, in inputs.
    """

    case: str
    shape: str
    dtype: str
    mode: str
    way: str
    contender: str
    median_ms: float
    low_ms: float
    high_ms: float
    ratio: float
    added_ms: float | None
    limit_ms: float | None
    floor_ms: float | None
    saved: float | None


class Empty(keras.layers.Layer):  # type: ignore[misc]
    """Does nothing, for what the call of a Keras layer takes by itself."""

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """`inputs`."""
        return inputs


def run_case(
    case: Case, mode: str, way: str, rounds: int, tick: Callable[[], object]
) -> list[Row]:
    """Times all contenders on a case, in turns, and a copy of the input with them.

    Args:
        case: The input.
        mode: `"training"` or `"inference"`.
        way: How steps run: one of `keras_bn.backend.timing().WAYS`.
        rounds: How often each contender runs.
        tick: Called after each round.

    Returns:
        A `Row` per contender.
    """
    framework = timing()
    x, dy = (_random(case, seed) for seed in (0, 1))
    contenders: dict[str, Step] = {}
    saved: dict[str, float | None] = {}
    for name, layer in _layers(case, mode, way):
        if mode == "training":
            contenders[name] = framework.training(layer, x, dy, way)
            kept = framework.saved_bytes(layer, x)
            saved[name] = None if kept is None else kept / _bytes(case)
        else:
            contenders[name] = framework.inference(layer, x, way)
    for name, train, infer in framework.native(
        x, dy, case.axis, MOMENTUM, EPSILON, way
    ):
        contenders[name] = train if mode == "training" else infer
    copy = framework.copy(x)
    yardsticks = {"copy": copy}
    if mode == "training":
        yardsticks["least"] = framework.least(x, dy)
    timings = interleaved({**contenders, **yardsticks}, rounds, tick)
    limit = timings.pop("copy").median / 2 * PASSES[mode]
    floor = timings.pop("least").median if mode == "training" else None
    shape = "x".join(map(str, case.shape))
    return [
        Row(
            case.name,
            shape,
            case.dtype,
            mode,
            way,
            name,
            *(times.median, times.low, times.high, times.ratio, None, limit, floor),
            saved.get(name),
        )
        for name, times in timings.items()
    ]


def _layers(case: Case, mode: str, way: str) -> list[tuple[str, keras.Layer]]:
    policy = None if case.dtype == "float32" else f"mixed_{case.dtype}"
    options: dict[str, Any] = {
        "axis": case.axis,
        "momentum": MOMENTUM,
        "epsilon": EPSILON,
        "dtype": policy,
    }
    layers = [
        (OURS, BatchNormalization(**options)),
        (KERAS, keras.layers.BatchNormalization(**options)),
    ]
    if mode == "inference" and way == "eager":  # compiled, there is no call to time
        layers.append((EMPTY, Empty(dtype=policy)))
    if mode == "training":
        layers += [
            (f"{OURS} + relu", BatchNormalization(**options, activation="relu")),
            (
                f"{KERAS} + relu",
                keras.Sequential(
                    [
                        keras.layers.BatchNormalization(**options),
                        keras.layers.ReLU(dtype=policy),
                    ]
                ),
            ),
        ]
    for _, layer in layers:
        layer.build(case.shape)
    return layers


def _random(case: Case, seed: int) -> Any:
    values = np.random.default_rng(seed).normal(size=case.shape).astype("float32")
    return keras.ops.cast(keras.ops.convert_to_tensor(values), case.dtype)


def _bytes(case: Case) -> int:
    width = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}[case.dtype]
    return int(np.prod(case.shape)) * width
