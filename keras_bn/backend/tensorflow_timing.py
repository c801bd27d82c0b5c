"""What the benchmark runs on TensorFlow: steps of a layer, and the peers to compare."""

from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from keras_bn.backend.peer import Peer, Step

WAYS = ("graph", "xla")
"""How a step can run: as a graph, operator by operator, or compiled by XLA."""


_FLUSHED = 256 << 20
"""Bytes to overwrite so that nothing is left of a cache: five times an H100's."""


def _device() -> str:
    """The device that Keras makes its tensors on, as "CPU:0" or "GPU:0"."""
    return keras.ops.convert_to_tensor(0.0).device.rpartition("device:")[2]


def versions() -> dict[str, str]:
    """The backend's name and version, and the device's name where there is one."""
    found = {"backend": "tensorflow", "tensorflow": tf.__version__}
    if not _device().startswith("CPU"):
        kind, index = _device().split(":")
        device = tf.config.list_physical_devices(kind)[int(index)]
        details = tf.config.experimental.get_device_details(device)
        found["device"] = details.get("device_name", device.name)
    return found


def wait(result: Any) -> Any:
    """Waits for the devices; on CPU a call has ended when it returns."""
    tf.test.experimental.sync_devices()
    return result


def flush() -> Step | None:
    """What overwrites the device's cache; None on CPU, where the cache is the case."""
    if _device().startswith("CPU"):
        return None
    # Not of integers, which TensorFlow would leave in the host's memory.
    memory = tf.Variable(tf.zeros(_FLUSHED // 4))

    @tf.function
    def overwrite() -> None:
        memory.assign(memory + 1.0)

    return overwrite


def copy(x: Any) -> Step:
    """Reads x and writes as much: two passes over the tensor."""
    step = tf.function(lambda x: x + tf.ones((), x.dtype))
    return lambda: step(x)


def least(x: Any, dy: Any) -> Step:
    """The passes that a training step cannot do without, as plain operators.

    Read x; read it and write as much; read x and dy; read both and write as much.
    """

    @tf.function
    def passes(x: Any, dy: Any) -> Any:
        rows, rows_dy = tf.reshape(x, (1, -1)), tf.reshape(dy, (-1, 1))
        both = tf.matmul(rows, rows_dy)
        return tf.reduce_sum(x), x + tf.ones((), x.dtype), both, x + dy

    return lambda: passes(x, dy)


def training(layer: Any, x: Any, dy: Any, way: str) -> Step:
    """Forward, backward for x, gamma and beta, and the moving statistics."""
    weights = [variable.value for variable in layer.trainable_variables]
    return _training(lambda x: layer(x, training=True), weights, x, dy, way)


def inference(layer: Any, x: Any, way: str) -> Step:
    """The layer's output by its moving statistics."""
    return _inference(lambda x: layer(x, training=False), x, way)


def model_training(model: Any, x: Any, labels: Any, way: str) -> Step:
    """The gradients of the mean cross-entropy for all weights, without an update."""
    weights = [variable.value for variable in model.trainable_variables]

    @tf.function(jit_compile=way == "xla")
    def step(x: Any, labels: Any) -> Any:
        with tf.GradientTape() as tape:
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
                labels, model(x, training=True)
            )
            loss = tf.reduce_mean(losses)
        return tape.gradient(loss, weights)

    return lambda: step(x, labels)


def native(
    x: Any, dy: Any, axis: int, momentum: float, epsilon: float, way: str
) -> Iterator[Peer]:
    """The framework's fused operator."""
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

    yield Peer(
        "tf fused_batch_norm",
        lambda: _training(train, [gamma, beta], x, dy, way),
        lambda: _inference(infer, x, way),
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

    return lambda: step(x, dy)


def _inference(function: Callable[[Any], Any], x: Any, way: str) -> Step:
    step = tf.function(function, jit_compile=way == "xla")
    return lambda: step(x)
