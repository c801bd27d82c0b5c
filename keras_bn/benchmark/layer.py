"""One layer on one input: training and inference steps of all contenders."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_bn.backend import timing
from keras_bn.backend.peer import Peer, Step
from keras_bn.benchmark.measure import interleaved
from keras_bn.layers import BatchNormalization

OURS, KERAS, EMPTY = "keras_bn", "keras", "empty layer"
MOMENTUM, EPSILON = 0.99, 1e-3
# Passes over the tensor that the arithmetic needs: x for the mean, x for the variance,
# x to y; dy and x for the sums, dy and x to dx, less one of the reads that a machine
# with a large cache saves. Inference: x to y.
PASSES = {"training": 8, "inference": 2}


class Case(NamedTuple):
    """An input to time the layer on.

    Attributes:
        name: What the report calls it.
        shape: Its shape.
        axis: The feature axis.
        dtype: Its dtype; of half precision, the layers run under a mixed policy.
    """

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
        way: How it ran: on JAX "jit", on PyTorch "eager", "compiled" or,
            on a GPU, "graph", on TensorFlow "graph" or "xla".
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
        rounds: How many rounds `median_ms`, `ratio` and `added_ms` are medians of. In
            each, all contenders run in turns, and only then is a ratio or a difference
            taken: they are paired.
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
    rounds: int


class Missing(NamedTuple):
    """A contender that has no row, and why. The names are those of `Row`."""

    case: str
    shape: str
    dtype: str
    mode: str
    way: str
    contender: str
    reason: str


class Result(NamedTuple):
    """What was timed, and what could not be.

    Attributes:
        rows: One for each contender that ran.
        missing: One for each that did not.
    """

    rows: list[Row]
    missing: list[Missing]


class Empty(keras.layers.Layer):  # type: ignore[misc]
    """Does nothing, for what the call of a Keras layer takes by itself."""

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """`inputs`."""
        return inputs


def run_case(
    case: Case, mode: str, way: str, rounds: int, tick: Callable[[], object]
) -> Result:
    """Times all contenders on a case, in turns, and a copy of the input with them.

    Args:
        case: The input.
        mode: `"training"` or `"inference"`.
        way: How steps run: on JAX "jit", on PyTorch "eager", "compiled" or,
            on a GPU, "graph", on TensorFlow "graph" or "xla".
        rounds: How often each contender runs.
        tick: Called after each round.

    Returns:
        A `Row` per contender, or why there is none.
    """
    framework = timing()
    x, dy = (_random(case, seed) for seed in (0, 1))
    steps: dict[str, Step] = {}
    saved: dict[str, float | None] = {}
    missing: list[Missing] = []
    shape = "x".join(map(str, case.shape))
    place = (case.name, shape, case.dtype, mode, way)
    for peer in _peers(case, mode, way, x, dy):
        try:
            make = peer.training if mode == "training" else peer.inference
            steps[peer.name] = make()
        except NotImplementedError as error:
            missing.append(Missing(*place, peer.name, str(error)))
            continue
        if mode == "training":
            kept = peer.saved()
            saved[peer.name] = None if kept is None else kept / _bytes(case)
    if OURS not in steps:  # There is nothing to compare with.
        return Result([], missing)
    yardsticks = {"copy": framework.copy(x)}
    if mode == "training":
        yardsticks["least"] = framework.least(x, dy)
    timings = interleaved(
        {**steps, **yardsticks},
        rounds,
        tick,
        wait=framework.wait,
        flush=framework.flush(),
    )
    limit = timings.pop("copy").median / 2 * PASSES[mode]
    floor = timings.pop("least").median if mode == "training" else None
    rows = [
        Row(
            *place,
            name,
            *times[:4],
            added_ms=None,
            limit_ms=limit,
            floor_ms=floor,
            saved=saved.get(name),
            rounds=rounds,
        )
        for name, times in timings.items()
    ]
    return Result(rows, missing)


def _peers(case: Case, mode: str, way: str, x: Any, dy: Any) -> Iterator[Peer]:
    """All contenders, ours first."""
    framework = timing()
    for name, layer in _layers(case, mode, way):
        yield Peer(
            name,
            partial(framework.training, layer, x, dy, way),
            partial(framework.inference, layer, x, way),
            partial(framework.saved_bytes, layer, x),
        )
    yield from framework.native(x, dy, case.axis, MOMENTUM, EPSILON, way)


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
