"""Counts a training step on JAX as XLA compiles it for an H100, without one.

    python docs/gpu/count_jax.py --json docs/measurements/passes-jax.json

Needs NVIDIA's plugin of JAX on PYTHONPATH: see docs/gpu/passes.py.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "jax"
# There is no GPU to run on; it is compiled for only.
os.environ["JAX_PLATFORMS"] = "cpu"

import hlo
import jax
import jax.numpy as jnp
import keras
from counted import SHAPE, row, unit, write
from xla_h100 import compiled

import keras_bn

EPSILON, MOMENTUM = 1e-3, 0.99
DTYPES = ("float32", "bfloat16")
NET = "net of three, "
Function = Callable[[Any, Any], tuple[Any, Any]]


def contenders(dtype: str) -> Iterator[tuple[str, Function, Any]]:
    """Name, function of weights and x that gives y and the new state, weights."""
    policy = None if dtype == "float32" else f"mixed_{dtype}"
    options = {"epsilon": EPSILON, "momentum": MOMENTUM, "dtype": policy}
    relu = keras.layers.ReLU(dtype=policy)
    ours = keras_bn.BatchNormalization
    theirs = keras.layers.BatchNormalization
    yield "keras_bn", *_keras([ours(**options)])
    yield "keras", *_keras([theirs(**options)])
    yield "flax.linen.BatchNorm", *_flax(dtype)
    yield "keras_bn + relu", *_keras([ours(**options, activation="relu")])
    yield "keras + relu", *_keras([theirs(**options), relu])
    norms = {
        "keras_bn": lambda: [ours(**options, activation="relu")],
        "keras": lambda: [theirs(**options), keras.layers.ReLU(dtype=policy)],
    }
    for name, norm in norms.items():
        yield f"{NET}{name}", *_keras(_net(norm, policy))


def _net(
    norm: Callable[[], list[keras.Layer]], policy: str | None
) -> list[keras.Layer]:
    """Three times a convolution, its norm and its ReLU."""
    options = {"padding": "same", "use_bias": False, "dtype": policy}
    return [
        layer
        for _ in range(3)
        for layer in (keras.layers.Conv2D(SHAPE[-1], 3, **options), *norm())
    ]


def _keras(layers: list[keras.Layer]) -> tuple[Function, Any]:
    """A network of these layers, in training."""
    model = keras.Sequential([keras.Input(SHAPE[1:], batch_size=SHAPE[0]), *layers])
    state = [variable.value for variable in model.non_trainable_variables]

    def call(weights: Any, x: Any) -> tuple[Any, Any]:
        return model.stateless_call(weights, state, x, training=True)

    return call, [variable.value for variable in model.trainable_variables]


def _flax(dtype: str) -> tuple[Function, Any]:
    from flax import linen

    layer = linen.BatchNorm(
        use_running_average=False,
        momentum=MOMENTUM,
        epsilon=EPSILON,
        dtype=jnp.dtype(dtype),
    )
    variables = layer.init(jax.random.key(0), jnp.zeros((2, SHAPE[-1])))
    state = variables["batch_stats"]

    def call(weights: Any, x: Any) -> tuple[Any, Any]:
        variables = {"params": weights, "batch_stats": state}
        return layer.apply(variables, x, mutable=["batch_stats"])

    return call, variables["params"]


def count(name: str, dtype: str, function: Function, weights: Any) -> dict[str, Any]:
    """What one step launches and moves, holds for a while, and keeps."""
    x = jax.ShapeDtypeStruct(SHAPE, dtype)

    def alone(weights: Any, x: Any, dy: Any) -> Any:
        y, pull_back, state = jax.vjp(function, weights, x, has_aux=True)
        return y, pull_back(dy), state

    def in_training(weights: Any, x: Any) -> Any:
        """The gradients of a loss for the weights: x is data."""

        def loss(weights: Any) -> tuple[Any, Any]:
            y, state = function(weights, x)
            return jnp.sum(y * y), state

        return jax.grad(loss, has_aux=True)(weights)

    def forward(weights: Any, x: Any) -> Any:
        return jax.vjp(function, weights, x, has_aux=True)[1]

    if name.startswith(NET):
        program = compiled(in_training, weights, x)
    else:
        program = compiled(alone, weights, x, x)
    found = hlo.counts(program.as_text())
    kept = jax.tree.leaves(jax.eval_shape(forward, weights, x))
    size = unit(dtype)
    return row(
        "XLA",
        name,
        dtype,
        kernels=found.kernels,
        passes=found.passes(size),
        saved=sum(math.prod(a.shape) * a.dtype.itemsize for a in kept) / size,
        temporary=program.memory_analysis().temp_size_in_bytes / size,
        uploads=0,
        waits=0,
    )


def main() -> int:
    """Counts all rows, and prints or writes them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the rows there")
    path = parser.parse_args().json
    rows = []
    for dtype in DTYPES:
        for name, function, weights in contenders(dtype):
            rows.append(count(name, dtype, function, weights))
            print(json.dumps(rows[-1]), file=sys.stderr)
    write(rows, {"jax": jax.__version__, "keras": keras.__version__}, path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
