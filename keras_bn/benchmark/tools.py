"""The tools on a model of 1,000 layers: seconds, and memory in copies of it."""

import ctypes
import gc
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_bn.benchmark.measure import interleaved
from keras_bn.tools import convert, fold, inspect

UNITS = 512
_BLOCKS, _TRIPLES = 10, 33
_STATUS, _REFERENCES = Path("/proc/self/status"), Path("/proc/self/clear_refs")

TOOLS: dict[str, Callable[[Any], Any]] = {
    "inspect": inspect,
    "inspect, with data": lambda model: inspect(model, _data(model)),
    "fold": partial(fold, explain=True),
    "convert": convert,
}


class ToolRow(NamedTuple):
    """What one tool took.

    Attributes:
        tool: Which one.
        layers: How many layers the model has.
        megabytes: The size of its weights.
        seconds: Median over the rounds.
        low: First quartile.
        high: Third quartile.
        copies: Memory at its highest in sizes of the model, weights and objects, the
            model itself included; None where the system does not tell.
    """

    tool: str
    layers: int
    megabytes: float
    seconds: float
    low: float
    high: float
    copies: float | None


def deep_model(units: int) -> keras.Model:
    """1,000 layers, a third of them batch norms of Keras's, in blocks.

    As one chain of 1,000 layers, Keras itself recurses too deeply to build it.
    """
    layers = keras.layers
    mean = keras.initializers.Constant(1 / units)  # finite after any number of layers
    x = inputs = keras.Input((units,))
    for block in range(_BLOCKS):
        y = start = keras.Input((units,))
        for _ in range(_TRIPLES):
            y = layers.Dense(units, kernel_initializer=mean)(y)
            y = layers.ReLU()(layers.BatchNormalization()(y))
        x = keras.Model(start, y, name=f"block{block}")(x)
    return keras.Model(inputs, layers.Dense(units, name="last")(x), name="deep")


def run_tools(rounds: int, tick: Callable[[], object]) -> list[ToolRow]:
    """Looks at each tool's memory on `deep_model`, then times them in turns.

    Args:
        rounds: How often each tool runs.
        tick: Called after each round.
    """
    # What is imported and allocated once is not the model's: Keras, for one, imports
    # TensorFlow when it reads a config, on any backend.
    for tool in TOOLS.values():
        tool(keras.Sequential([keras.Input((2,)), keras.layers.BatchNormalization()]))
    before = _resident()
    model = deep_model(UNITS)
    after = _resident()
    size = sum(int(np.prod(v.shape)) * 4 for v in model.weights)
    copies = {
        name: _copies(_highest(tool, model), before, after)
        for name, tool in TOOLS.items()
    }
    layers = _count(model)
    steps = {name: lambda tool=tool: tool(model) for name, tool in TOOLS.items()}
    rows = []
    for name, times in interleaved(steps, rounds, tick, warm_up=0).items():
        median, low, high = (one / 1e3 for one in times[:3])
        rows.append(ToolRow(name, layers, size / 1e6, median, low, high, copies[name]))
    return rows


def _data(model: Any) -> np.ndarray:
    shape = (32, model.input_shape[-1])
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def _count(model: Any) -> int:
    inside = (layer for layer in model.layers if hasattr(layer, "layers"))
    return len(model.layers) + sum(map(_count, inside))


def _highest(tool: Callable[[Any], Any], model: Any) -> int | None:
    """The most kilobytes that the process holds while `tool` runs."""
    _give_back()
    if os.access(_REFERENCES, os.W_OK):
        _REFERENCES.write_text("5")  # the highest mark starts anew
    tool(model)
    return _kilobytes("VmHWM")


def _resident() -> int | None:
    """The kilobytes that the process holds and needs."""
    _give_back()
    return _kilobytes("VmRSS")


def _give_back() -> None:
    """Hands what has been freed back to the system, as far as glibc does it."""
    gc.collect()
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


def _copies(highest: int | None, before: int | None, after: int | None) -> float | None:
    """How many models that much is; one was built between `before` and `after`."""
    if highest is None or before is None or after is None:
        return None
    return (highest - before) / (after - before)


def _kilobytes(name: str) -> int | None:
    """A line of Linux's report on the process; None on other systems."""
    if not os.access(_REFERENCES, os.W_OK):
        return None
    lines = _STATUS.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))
