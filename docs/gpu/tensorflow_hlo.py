"""Writes training steps on TensorFlow as HLO, one file a step, for count_tensorflow.py.

A process of its own: TensorFlow's XLA traces the steps, JAX's compiles them for a GPU.

    python docs/gpu/tensorflow_hlo.py FOLDER
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import tensorflow as tf
from counted import SHAPE

import keras_bn

EPSILON, MOMENTUM = 1e-3, 0.99
DTYPES = ("float32", "bfloat16")


def contenders(dtype: str) -> Iterator[tuple[str, Callable[[Any], Any], list[Any]]]:
    """Name, function of x, and its weights."""
    policy = None if dtype == "float32" else f"mixed_{dtype}"
    options = {"epsilon": EPSILON, "momentum": MOMENTUM, "dtype": policy}
    for name, layer, after in (
        ("keras_bn", keras_bn.BatchNormalization(**options), None),
        ("keras", keras.layers.BatchNormalization(**options), None),
        (
            "keras_bn + relu",
            keras_bn.BatchNormalization(**options, activation="relu"),
            None,
        ),
        ("keras + relu", keras.layers.BatchNormalization(**options), tf.nn.relu),
    ):
        layer.build(SHAPE)
        weights = [variable.value for variable in layer.trainable_variables]
        yield name, _call(layer, after), weights
    yield from _fused()


def _call(layer: keras.Layer, after: Callable[..., Any] | None) -> Callable[..., Any]:
    def call(x: Any) -> Any:
        y = layer(x, training=True)
        return y if after is None else after(y)

    return call


def _fused() -> Iterator[tuple[str, Callable[[Any], Any], list[Any]]]:
    gamma, beta, mean, variance = (tf.Variable(tf.ones(SHAPE[-1])) for _ in "gbmv")

    def call(x: Any) -> Any:
        y, batch_mean, batch_variance = tf.compat.v1.nn.fused_batch_norm(
            x, gamma, beta, epsilon=EPSILON
        )
        mean.assign(mean * MOMENTUM + batch_mean * (1 - MOMENTUM))
        variance.assign(variance * MOMENTUM + batch_variance * (1 - MOMENTUM))
        return y

    yield "tf fused_batch_norm", call, [gamma, beta]


def traced(
    function: Callable[[Any], Any], weights: list[Any], dtype: str, xla: bool
) -> tuple[Any, Any]:
    """A training step, and a tensor to call it with."""

    @tf.function(jit_compile=xla)
    def step(x: Any, dy: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = function(x)
        return y, *tape.gradient(y, [x, *weights], dy)

    return step, tf.zeros(SHAPE, dtype)


def hlo(step: Any, x: Any) -> str:
    """The step as XLA is given it."""
    # TensorFlow has no GPU to name here; what it traces is the same for all.
    text = step.experimental_get_compiler_ir(x, x)(stage="hlo", platform_name="CPU")
    # A variable's new value leaves in a copy, which the way into JAX's compiler does
    # not know. Any operation without an effect will do.
    return text.replace(" copy(", " reshape(")


def waits(step: Any, x: Any) -> int:
    """How often the host of a GPU must know a value there: it picks a branch.

    All branches count, but of those that `DeviceIndex` tells apart the last alone: the
    others are for the devices that it names, of which a GPU is none.
    """
    graph = step.get_concrete_function(x, x).graph.as_graph_def()
    functions = {one.signature.name: one for one in graph.library.function}
    return _waits(list(graph.node), functions)


def _waits(nodes: list[Any], functions: dict[str, Any]) -> int:
    by_name = {node.name: node for node in nodes}
    found = 0
    for node in nodes:
        called = [
            function.name
            for value in node.attr.values()
            for function in (value.func, *value.list.func)
            if function.name in functions
        ]
        if node.op.removeprefix("Stateless") in ("If", "Case", "While"):
            source = by_name.get(node.input[0].partition(":")[0])
            if source is not None and source.op == "DeviceIndex":
                called = called[-1:]
            else:
                found += 1
        for name in called:
            found += _waits(list(functions[name].node_def), functions)
    return found


def main(folder: Path) -> int:
    """Writes FOLDER/DTYPE NAME.hlo, and waits.json for the steps outside XLA."""
    found = {}
    for dtype in DTYPES:
        for name, function, weights in contenders(dtype):
            step = traced(function, weights, dtype, xla=True)
            (folder / f"{dtype} {name}.hlo").write_text(hlo(*step))
            step = traced(function, weights, dtype, xla=False)
            found[f"{dtype} {name}"] = waits(*step)
    (folder / "waits.json").write_text(json.dumps(found))
    (folder / "version").write_text(tf.__version__)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
