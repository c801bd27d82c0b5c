"""Batch norm layers of others, each made to train on one batch as `peers.py` asks.

What differs between libraries is here: names of arguments, where the channels are, and
where the moving statistics lie. Inputs and outputs are NumPy, channels last.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import keras
import numpy as np

import keras_bn


class Trained(NamedTuple):
    """What one batch in training mode gave: the output, and the averages after it."""

    y: np.ndarray
    mean: np.ndarray
    variance: np.ndarray


class Start(NamedTuple):
    """How a layer begins.

    Attributes:
        momentum: The share of an average that is kept.
        mean: The initial average of the mean.
        variance: That of the variance.
        dtype: Of inputs, parameters and averages.
    """

    momentum: float = 0.99
    mean: float = 0.0
    variance: float = 1.0
    dtype: str = "float32"


class Peer(NamedTuple):
    """A layer of some library.

    Attributes:
        library: The column of the table; "others" for what the tests do not install.
        name: As users know it, or which of several in this column it is.
        package: What has to be installed, as it is imported.
        backends: The backends of Keras that it is shown on: its own framework's.
        new: `new(start)` of a `Start` gives `train(x, mask=None)`, which returns
            `Trained`. None where averages have no initial values.
        layer: The class, where it is a Keras layer.
        debiased: As `new`, of averages that have no initial values in them.
    """

    library: str
    name: str
    package: str
    backends: tuple[str, ...]
    new: Callable | None
    layer: type | None = None
    debiased: Callable | None = None


def array(value: Any) -> np.ndarray:
    """As NumPy, half precision as float32."""
    if keras.backend.standardize_dtype(value.dtype) in ("bfloat16", "float16"):
        value = keras.ops.cast(value, "float32")
    return np.array(keras.ops.convert_to_numpy(value))


def of_keras(layer_class: type) -> Callable:
    """`new` for a class with the arguments of Keras's layer."""

    def new(start: Start) -> Callable:
        momentum, mean, variance, dtype = start
        constant = keras.initializers.Constant
        layer = layer_class(
            momentum=momentum,
            moving_mean_initializer=constant(mean),
            moving_variance_initializer=constant(variance),
            dtype=dtype,
        )

        def train(x: np.ndarray, mask: np.ndarray | None = None) -> Trained:
            x = keras.ops.convert_to_tensor(x, dtype=dtype)
            y = layer(x, training=True, mask=mask)
            return Trained(*map(array, (y, layer.moving_mean, layer.moving_variance)))

        return train

    return new


def new_torch(start: Start) -> Callable:
    """`torch.nn.BatchNorm1d` and `2d`; images are in `torch.channels_last`."""
    momentum, mean, variance, dtype = start
    import torch

    norms: list[Any] = []

    def train(x: np.ndarray, mask: np.ndarray | None = None) -> Trained:
        if mask is not None:
            raise NotImplementedError
        if not norms:
            kind = torch.nn.BatchNorm1d if x.ndim == 2 else torch.nn.BatchNorm2d
            norm = kind(x.shape[-1], momentum=1 - momentum).to(getattr(torch, dtype))
            norm.running_mean.fill_(mean)
            norm.running_var.fill_(variance)
            norms.append(norm)
        (norm,) = norms
        inputs = torch.from_numpy(np.moveaxis(x, -1, 1)).to(getattr(torch, dtype))
        outputs = norm(inputs).detach()
        values = (outputs.movedim(1, -1), norm.running_mean, norm.running_var)
        return Trained(*(value.float().numpy().copy() for value in values))

    return train


def new_linen(start: Start) -> Callable:
    """`flax.linen.BatchNorm`."""
    momentum, mean, variance, dtype = start
    import flax.linen as nn
    import jax.numpy as jnp

    norm = nn.BatchNorm(use_running_average=False, momentum=momentum, dtype=dtype)
    state: dict[str, Any] = {}

    def train(x: np.ndarray, mask: np.ndarray | None = None) -> Trained:
        x = jnp.asarray(x, dtype)
        size = x.shape[-1]
        state.setdefault("params", {"scale": jnp.ones(size), "bias": jnp.zeros(size)})
        averages = {"mean": jnp.full(size, mean), "var": jnp.full(size, variance)}
        state.setdefault("batch_stats", averages)
        mask = None if mask is None else jnp.asarray(mask)[..., None]
        y, moved = norm.apply(state, x, mask=mask, mutable=["batch_stats"])
        state.update(moved)
        averages = state["batch_stats"]
        return Trained(*map(array, (y, averages["mean"], averages["var"])))

    return train


def new_nnx(start: Start) -> Callable:
    """`flax.nnx.BatchNorm`."""
    momentum, mean, variance, dtype = start
    import jax.numpy as jnp
    from flax import nnx

    norms: list[Any] = []

    def train(x: np.ndarray, mask: np.ndarray | None = None) -> Trained:
        if not norms:
            size = x.shape[-1]
            norms.append(
                nnx.BatchNorm(size, momentum=momentum, dtype=dtype, rngs=nnx.Rngs(0))
            )
            norms[0].mean[...] = jnp.full(size, mean)
            norms[0].var[...] = jnp.full(size, variance)
        (norm,) = norms
        mask = None if mask is None else jnp.asarray(mask)[..., None]
        y = norm(jnp.asarray(x, dtype), mask=mask)
        return Trained(*map(array, (y, norm.mean[...], norm.var[...])))

    return train


def debiased_haiku(start: Start) -> Callable:
    """`hk.BatchNorm`."""
    momentum, _, _, dtype = start
    import haiku as hk
    import jax
    import jax.numpy as jnp

    norm = hk.without_apply_rng(
        hk.transform_with_state(
            lambda x: hk.BatchNorm(True, True, momentum, name="norm")(x, True)
        )
    )
    kept: list[Any] = []

    def train(x: np.ndarray, mask: np.ndarray | None = None) -> Trained:
        if mask is not None:
            raise NotImplementedError
        x = jnp.asarray(x, dtype)
        if not kept:
            kept.extend(norm.init(jax.random.key(0), x))
        y, kept[1] = norm.apply(*kept, x)
        averages = (
            kept[1][f"norm/~/{name}_ema"]["average"] for name in ("mean", "var")
        )
        return Trained(array(y), *(array(one).ravel() for one in averages))

    return train


def debiased_equinox(start: Start) -> Callable:
    """`equinox.nn.BatchNorm(mode="batch")`; averages as its inference divides them."""
    momentum, _, _, dtype = start
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    kept: list[Any] = []

    def train(x: np.ndarray, mask: np.ndarray | None = None) -> Trained:
        if mask is not None:
            raise NotImplementedError
        x = jnp.moveaxis(jnp.asarray(x, dtype), -1, 1)
        if not kept:
            make = eqx.nn.make_with_state(eqx.nn.BatchNorm)
            kept.extend(
                make(x.shape[1], "batch", momentum=momentum, dtype=dtype, mode="batch")
            )
        batch = jax.vmap(
            kept[0], in_axes=(0, None), out_axes=(0, None), axis_name="batch"
        )
        y, kept[1] = batch(x, kept[1])
        share = 1 - momentum ** kept[1].get(kept[0].batch_counter)
        averages = (one / share for one in kept[1].get(kept[0].batch_state_index))
        return Trained(array(jnp.moveaxis(y, 1, -1)), *map(array, averages))

    return train


def new_tf_keras(start: Start) -> Callable:
    """The layer of Keras 2."""
    momentum, mean, variance, dtype = start
    import tensorflow as tf
    import tf_keras

    constant = tf_keras.initializers.Constant
    layer = tf_keras.layers.BatchNormalization(
        momentum=momentum,
        moving_mean_initializer=constant(mean),
        moving_variance_initializer=constant(variance),
        dtype=dtype,
    )

    def train(x: np.ndarray, mask: np.ndarray | None = None) -> Trained:
        y = layer(tf.constant(x, dtype), training=True, mask=mask)
        return Trained(*map(array, (y, layer.moving_mean, layer.moving_variance)))

    return train


EVERYWHERE = ("tensorflow", "jax", "torch")
OURS = Peer(
    "keras_bn",
    "keras_bn.BatchNormalization",
    "keras_bn",
    EVERYWHERE,
    of_keras(keras_bn.BatchNormalization),
    keras_bn.BatchNormalization,
    of_keras(partial(keras_bn.BatchNormalization, zero_debias=True)),
)
THEIRS = keras.layers.BatchNormalization
JAX = ("jax",)
PEERS = (
    Peer("Keras", "BatchNormalization", "keras", EVERYWHERE, of_keras(THEIRS), THEIRS),
    Peer("PyTorch", "torch.nn.BatchNorm", "torch", ("torch",), new_torch),
    Peer("Flax", "linen", "flax", JAX, new_linen),
    Peer("Flax", "nnx", "flax", JAX, new_nnx),
    Peer("others", "Haiku", "haiku", JAX, None, None, debiased_haiku),
    Peer("others", "Equinox", "equinox", JAX, None, None, debiased_equinox),
    Peer("others", "tf-keras", "tf_keras", ("tensorflow",), new_tf_keras),
)
