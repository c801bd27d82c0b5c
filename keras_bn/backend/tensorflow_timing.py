"""What the benchmark runs on TensorFlow: steps of a layer, and the peers to compare."""

from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

Step = Callable[[], object]

WAYS = ("graph", "xla")
"""How a step can run: as a graph, operator by operator, or compiled by XLA."""


def versions() -> dict[str, str]:
    """The backend's name and version."""
    return {"backend": "tensorflow", "tensorflow": tf.__version__}


def copy(x: Any) -> Step:
    """Reads x and writes as much: two passes over the tensor."""
    step = tf.function(lambda x: x + tf.ones((), x.dtype))
    return lambda: _done(step(x))


def least(x: Any, dy: Any) -> Step:
    """The passes that a training step cannot do without, as plain operators.

    Read x; read it and write as much; read x and dy; read both and write as much.
    """

    @tf.function
    def passes(x: Any, dy: Any) -> Any:
        rows, rows_dy = tf.reshape(x, (1, -1)), tf.reshape(dy, (-1, 1))
        both = tf.matmul(rows, rows_dy)
        return tf.reduce_sum(x), x + tf.ones((), x.dtype), both, x + dy

    return lambda: _done(passes(x, dy))


def training(layer: Any, x: Any, dy: Any, way: str) -> Step:
    """Forward, backward for x, gamma and beta, and the moving statistics."""
    weights = [variable.value for variable in layer.trainable_variables]
    return _training(lambda x: layer(x, training=True), weights, x, dy, way)


def inference(layer: Any, x: Any, way: str) -> Step:
    """The layer's output by its moving statistics."""
    return _inference(lambda x: layer(x, training=False), x, way)


def native(
    x: Any, dy: Any, axis: int, momentum: float, epsilon: float, way: str
) -> Iterator[tuple[str, Step, Step]]:
    """The framework's fused operator: its name, a training step, an inference step."""
    if x.dtype == tf.float64 or axis not in (-1, len(x.shape) - 1) or way != "graph":
        return
    channels = x.shape[-1]
    gamma, beta, mean, variance = (
        tf.Variable(tf.fill((channels,), value)) for value in (1.0, 0.0, 0.0, 1.0)
    )
    image = (1, -1, 1, channels)

    def fused(x: Any, **statistics: Any) -> Any:
        return tf.compat.v1.nn.fused_batch_norm(
            tf.reshape(x, image), gamma, beta, epsilon=epsilon, **statistics
        )

    def train(x: Any) -> Any:
        y, batch_mean, batch_variance = fused(x)
        mean.assign(mean * momentum + batch_mean * (1 - momentum))
        variance.assign(variance * momentum + batch_variance * (1 - momentum))
        return tf.reshape(y, x.shape)

    def infer(x: Any) -> Any:
        y, *_ = fused(x, mean=mean, variance=variance, is_training=False)
        return tf.reshape(y, x.shape)

    yield (
        "tf fused_batch_norm",
        _training(train, [gamma, beta], x, dy, way),
        _inference(infer, x, way),
    )


def saved_bytes(layer: Any, x: Any) -> int | None:
    """None: TensorFlow has no public count of what its tape keeps."""
    del layer, x
    return None


def _training(
    function: Callable[[Any], Any], weights: list[Any], x: Any, dy: Any, way: str
) -> Step:
    @tf.function(jit_compile=way == "xla")
    def step(x: Any, dy: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = function(x)
        return y, tape.gradient(y, [x, *weights], dy)

    return lambda: _done(step(x, dy))


def _inference(function: Callable[[Any], Any], x: Any, way: str) -> Step:
    step = tf.function(function, jit_compile=way == "xla")
    return lambda: _done(step(x))


def _done(result: Any) -> Any:
    """Waits for the devices; on CPU a call has ended when it returns."""
    tf.test.experimental.sync_devices()
    return result
