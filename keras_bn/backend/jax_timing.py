"""What the benchmark runs on JAX: steps of a layer, and the peers to compare with."""

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import keras

Step = Callable[[], object]

NATIVE = "flax.linen.BatchNorm" if importlib.util.find_spec("flax") else None
WAYS = ("jit",)
"""How a step can run: JAX has one way worth timing."""


def versions() -> dict[str, str]:
    """The backend's name and version."""
    return {"backend": "jax", "jax": jax.__version__}


def copy(x: Any) -> Step:
    """Reads x and writes as much: two passes over the tensor."""
    step = jax.jit(lambda x: x + 1)
    return lambda: jax.block_until_ready(step(x))


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
    return lambda: jax.block_until_ready([one(x, dy) for one in passes])


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

    return lambda: jax.block_until_ready(step(trainable, state, x, dy))


def inference(layer: Any, x: Any, way: str) -> Step:
    """The layer's output by its moving statistics."""
    del way
    trainable, state = _values(layer)
    step = jax.jit(lambda t, s, x: layer.stateless_call(t, s, x, training=False)[0])
    return lambda: jax.block_until_ready(step(trainable, state, x))


def native(
    x: Any, dy: Any, axis: int, momentum: float, epsilon: float, way: str
) -> Iterator[tuple[str, Step, Step]]:
    """The framework's own layer: its name, a training step, an inference step.

    And, beside it, the bare passes that XLA makes of batch normalization.
    """
    del way
    yield "bare passes", *_bare_passes(x, dy, axis)
    if NATIVE is None:
        return
    from flax import linen

    options = {"axis": axis, "momentum": momentum, "epsilon": epsilon, "dtype": x.dtype}
    layer = linen.BatchNorm(use_running_average=False, **options)
    fixed = linen.BatchNorm(use_running_average=True, **options)
    variables = layer.init(jax.random.key(0), x)
    weights, state = variables["params"], variables["batch_stats"]

    @jax.jit
    def train(weights: Any, state: Any, x: Any, dy: Any) -> Any:
        y, pull_back, state = jax.vjp(
            lambda weights, x: layer.apply(
                {"params": weights, "batch_stats": state}, x, mutable=["batch_stats"]
            ),
            *(weights, x),
            has_aux=True,
        )
        return y, pull_back(dy), state

    infer = jax.jit(fixed.apply)
    yield (
        NATIVE,
        lambda: jax.block_until_ready(train(weights, state, x, dy)),
        lambda: jax.block_until_ready(infer(variables, x)),
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
    return (
        lambda: jax.block_until_ready(train(x, dy, factor, level)),
        lambda: jax.block_until_ready(infer(x, factor, level)),
    )


def saved_bytes(layer: Any, x: Any) -> int | None:
    """The bytes that the forward pass keeps for the backward pass."""
    trainable, state = _values(layer)

    def call(trainable: Any, x: Any) -> Any:
        return layer.stateless_call(trainable, state, x, training=True)[0]

    _, pull_back = jax.jit(lambda *inputs: jax.vjp(call, *inputs))(trainable, x)
    kept = {id(leaf): leaf.nbytes for leaf in jax.tree.leaves(pull_back)}
    return sum(kept.values())


def _values(layer: keras.Layer) -> tuple[list[Any], list[Any]]:
    return (
        [variable.value for variable in layer.trainable_variables],
        [variable.value for variable in layer.non_trainable_variables],
    )
