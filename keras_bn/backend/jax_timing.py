"""What the benchmark runs on JAX: steps of a layer, and the peers to compare with."""

import importlib.util
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import keras

from keras_bn.backend.peer import Peer, Step

NATIVE = "flax.linen.BatchNorm" if importlib.util.find_spec("flax") else None
WAYS = ("jit",)
"""How a step can run: JAX has one way worth timing."""


_FLUSHED = 256 << 20
"""Bytes to overwrite so that nothing is left of a cache: five times an H100's."""


def _device() -> jax.Device:
    """Where Keras makes its tensors."""
    (device,) = keras.ops.convert_to_tensor(0.0).devices()
    return device


def versions() -> dict[str, str]:
    """The backend's name and version, and the device's name where there is one."""
    found = {"backend": "jax", "jax": jax.__version__}
    device = _device()
    if device.platform != "cpu":
        found["device"] = device.device_kind
    return found


def wait(result: Any) -> Any:
    """Waits until the result is there, on CPU too; a device computes in order."""
    return jax.block_until_ready(result)


def flush() -> Step | None:
    """What overwrites the device's cache; None on CPU, where the cache is the case."""
    if _device().platform == "cpu":
        return None
    overwrite = jax.jit(lambda memory: memory + 1, donate_argnums=0)
    memory = [jnp.zeros(_FLUSHED, "int8")]

    def step() -> object:
        memory[0] = overwrite(memory[0])
        return memory[0]

    return step


def copy(x: Any) -> Step:
    """Reads x and writes as much: two passes over the tensor."""
    step = jax.jit(lambda x: x + 1)
    return lambda: step(x)


def least(x: Any, dy: Any) -> Step:
    """The passes that a training step cannot do without, as plain operators.

    Read x; read it and write as much; read x and dy; read both and write as much.
    """
    passes = [
        jax.jit(function)
        for function in (
            lambda x, dy: jnp.sum(x),
            lambda x, dy: x + 1,
            lambda x, dy: jnp.sum(x * dy),
            lambda x, dy: x + dy,
        )
    ]
    return lambda: [one(x, dy) for one in passes]


def training(layer: Any, x: Any, dy: Any, way: str) -> Step:
    """Forward, backward for x, gamma and beta, and the moving statistics."""
    del way
    trainable, state = _values(layer)

    @jax.jit
    def step(trainable: Any, state: Any, x: Any, dy: Any) -> Any:
        y, pull_back, state = jax.vjp(
            lambda weights, x: layer.stateless_call(weights, state, x, training=True),
            *(trainable, x),
            has_aux=True,
        )
        return y, pull_back(dy), state

    return lambda: step(trainable, state, x, dy)


def inference(layer: Any, x: Any, way: str) -> Step:
    """The layer's output by its moving statistics."""
    del way
    trainable, state = _values(layer)
    step = jax.jit(lambda t, s, x: layer.stateless_call(t, s, x, training=False)[0])
    return lambda: step(trainable, state, x)


def model_training(model: Any, x: Any, labels: Any, way: str) -> Step:
    """The gradients of the mean cross-entropy for all weights, without an update."""
    del way
    trainable, state = _values(model)

    def loss(trainable: Any, state: Any, x: Any) -> Any:
        logits, state = model.stateless_call(trainable, state, x, training=True)
        likelihoods = jax.nn.log_softmax(logits)
        chosen = jnp.take_along_axis(likelihoods, labels[:, None], axis=1)
        return -chosen.mean(), state

    step = jax.jit(jax.grad(loss, has_aux=True))
    return lambda: step(trainable, state, x)


def native(
    x: Any, dy: Any, axis: int, momentum: float, epsilon: float, way: str
) -> Iterator[Peer]:
    """The bare passes that XLA makes of batch normalization, and the framework's."""
    del way
    train_bare, infer_bare = _bare_passes(x, dy, axis)
    yield Peer("bare passes", lambda: train_bare, lambda: infer_bare)
    if NATIVE is None:
        return
    from flax import linen

    options = {"axis": axis, "momentum": momentum, "epsilon": epsilon, "dtype": x.dtype}
    layer = linen.BatchNorm(use_running_average=False, **options)
    fixed = linen.BatchNorm(use_running_average=True, **options)
    variables = layer.init(jax.random.key(0), x)
    weights, state = variables["params"], variables["batch_stats"]

    def call(weights: Any, x: Any) -> Any:
        variables = {"params": weights, "batch_stats": state}
        return layer.apply(variables, x, mutable=["batch_stats"])

    @jax.jit
    def train(weights: Any, x: Any, dy: Any) -> Any:
        y, pull_back, state = jax.vjp(call, weights, x, has_aux=True)
        return y, pull_back(dy), state

    infer = jax.jit(fixed.apply)
    yield Peer(
        NATIVE,
        lambda: lambda: train(weights, x, dy),
        lambda: lambda: infer(variables, x),
        lambda: _kept(lambda *inputs: call(*inputs)[0], weights, x),
    )


def _bare_passes(x: Any, dy: Any, axis: int) -> tuple[Step, Step]:
    """Sums of x, x², dy and x * dy, an output and a gradient, each from its own inputs.

    XLA on CPU takes a pass for each sum. What a layer does besides, its numbers per
    channel and the wait of one pass for another, is not in them.
    """
    feature = axis % x.ndim
    rest = tuple(i for i in range(x.ndim) if i != feature)
    factor, level = (  # arguments of the steps, as XLA would leave a constant 1 out
        jnp.expand_dims(jnp.full(x.shape[feature], value, x.dtype), rest)
        for value in (1.5, 0.5)
    )

    def total(values: Any) -> Any:
        return jnp.sum(values, rest)

    @jax.jit
    def train(x: Any, dy: Any, factor: Any, level: Any) -> Any:
        sums = total(x), total(x * x), total(dy), total(x * dy)
        return sums, x * factor + level, dy * factor - (x * level + factor)

    infer = jax.jit(lambda x, factor, level: x * factor + level)
    return lambda: train(x, dy, factor, level), lambda: infer(x, factor, level)


def saved_bytes(layer: Any, x: Any) -> int | None:
    """The bytes that the forward pass keeps for the backward pass."""
    trainable, state = _values(layer)

    def call(trainable: Any, x: Any) -> Any:
        return layer.stateless_call(trainable, state, x, training=True)[0]

    return _kept(call, trainable, x)


def _kept(function: Any, weights: Any, x: Any) -> int:
    # By shapes alone: a whole network would take minutes to compile.
    kept = jax.eval_shape(lambda *inputs: jax.vjp(function, *inputs)[1], weights, x)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))


def _values(layer: keras.Layer) -> tuple[list[Any], list[Any]]:
    return (
        [variable.value for variable in layer.trainable_variables],
        [variable.value for variable in layer.non_trainable_variables],
    )
