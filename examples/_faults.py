"""What `peers.py` asks of each layer: one function a case, and what is right."""

import math
import re
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import keras
import numpy as np

from _peers import EVERYWHERE, Peer, Start, array


class Case(NamedTuple):
    """A question to a layer.

    Attributes:
        title: The case and what is measured, as the table has it.
        right: The number that is right, or words that the answer begins with.
        within: How far from that number is still right.
        ask: Gives a peer's answer: a number, or words.
        keras_layers: Whether it is asked of Keras layers alone.
        backends: Where it is asked.
    """

    title: str
    right: float | str
    within: float
    ask: Callable[[Peer], Any]
    keras_layers: bool
    backends: tuple[str, ...]

    def answer(self, peer: Peer) -> float | str | None:
        """What comes out, an error too; None where the layer has no such thing."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                answer = self.ask(peer)
            except NotImplementedError:
                return None
            except Exception as error:
                return f"{type(error).__name__}: {first_sentence(str(error))}"
        return answer if isinstance(answer, str) else float(answer)

    def is_right(self, answer: float | str) -> bool:
        """Whether this answer is."""
        if isinstance(self.right, str) or isinstance(answer, str):
            return str(answer).startswith(str(self.right))
        return math.isfinite(answer) and abs(answer - self.right) <= self.within


def first_sentence(message: str) -> str:
    """What an error says, less what Keras puts around it."""
    plain = re.sub(r"\x1b\[\d*m", "", message)
    plain = re.sub(r"^Exception encountered when calling.*\n+", "", plain)
    return re.split(r"[.:]\s|\n", plain.strip())[0].rstrip(".")


CASES: dict[str, Case] = {}


def case(
    title: str,
    right: float | str = 0.0,
    within: float = 0.0,
    keras_layers: bool = False,
    backends: tuple[str, ...] = EVERYWHERE,
) -> Callable:
    """Enters a function into the table, under its name."""

    def enter(ask: Callable) -> Callable:
        CASES[ask.__name__] = Case(title, right, within, ask, keras_layers, backends)
        return ask

    return enter


def normal(shape: tuple[int, ...], mean: float = 0.0, std: float = 1.0) -> np.ndarray:
    """Random float32 numbers, the same each time."""
    return np.random.default_rng(0).normal(mean, std, shape).astype("float32")


def output_error(peer: Peer, x: np.ndarray) -> float:
    """How far the output is from the definition, in float64, on this very input."""
    exact = x.astype("float64")
    axes = tuple(range(x.ndim - 1))
    deviation = np.sqrt(exact.var(axes) + 1e-3)
    # Other epsilons than Keras's change an output of standard deviation 1 by 5e-4.
    expected = (exact - exact.mean(axes)) / deviation
    return np.abs(any_of(peer)(Start())(x).y - expected).max()


def any_of(peer: Peer) -> Callable:
    """A layer whose initial averages do not matter."""
    return peer.new or peer.debiased


def averaging(peer: Peer) -> Callable:
    """A layer whose initial averages can be chosen."""
    if peer.new is None:
        raise NotImplementedError
    return peer.new


@case("mean 1e4, standard deviation 1: error of the output", within=0.02)
def mean_1e4(peer):
    return output_error(peer, normal((32, 8, 8, 4), 1e4))


@case("65,536 values a channel, mean 1e5, deviation 10: error", within=0.02)
def many_values(peer):
    return output_error(peer, normal((64, 32, 32, 4), 1e5, 10))


@case("all bfloat16, moving mean at 8, batches of mean 10: it moves to", 8.19, 0.01)
def bfloat16_mean(peer):
    train = averaging(peer)(Start(mean=8.0, dtype="bfloat16"))
    for _ in range(10):
        trained = train(np.array([[9.0], [11.0]], "float32"))
    return trained.mean[0]


@case("all float16, deviation 1e3: moving variance over the right one", 1.0, 0.01)
def float16_variance(peer):
    x = normal((64, 3), std=1e3)
    variance = any_of(peer)(Start(momentum=0.0, dtype="float16"))(x).variance
    return (variance / x.astype("float16").astype("float64").var(0)).max()


@case("no initial values: variance after one step, over the batch's", 1.0, 1e-3)
def debiased(peer):
    if peer.debiased is None:
        raise NotImplementedError
    x = normal((64, 3))
    return (peer.debiased(Start())(x).variance / x.var(0)).max()


def change(peer: Peer, x: np.ndarray, mask: np.ndarray | None = None) -> float:
    """By how much this batch moves the average of channel 1, after one of mean 3."""
    train = any_of(peer)(Start(momentum=0.5))
    with_mask = None if mask is None else np.ones(x.shape[:-1], bool)
    before = train(normal((8, 3), 3.0), with_mask).mean[1]
    return abs(train(x, mask).mean[1] - before)


@case("a NaN in channel 1 of a batch: change of its moving mean")
def a_nan(peer):
    x = normal((8, 3), 3.0)
    x[4, 1] = np.nan
    return change(peer, x)


@case("a batch of no samples: change of the moving mean")
def empty_batch(peer):
    return change(peer, normal((0, 3)))


@case("all masked: change of the moving mean")
def all_masked(peer):
    return change(peer, normal((8, 3)), np.zeros(8, bool))


def masked_error(layer: Any, shape: tuple[int, ...], axis: int) -> float:
    """How far the moving mean is from that of what is not masked."""
    x, mask = normal(shape, 3.0), np.random.default_rng(1).random(shape[:-1]) < 0.7
    if axis == 1:  # the mask lacks axis 1, the channels
        mask = mask[:, : shape[-1]]
        expected = [x[:, channel][mask].mean() for channel in range(shape[1])]
    else:
        expected = x[mask].mean(0)
    tensors = map(keras.ops.convert_to_tensor, (x, mask))
    inputs, mask = tensors
    layer(inputs, training=True, mask=mask)
    return np.abs(array(layer.moving_mean) - expected).max()


@case("one channel and a mask: error of the moving mean", 0.0, 1e-5, keras_layers=True)
def one_channel_mask(peer):
    return masked_error(peer.layer(momentum=0.0), (5, 7, 1), -1)


@case("`axis=1` and a mask: error of the moving mean", 0.0, 1e-5, keras_layers=True)
def axis_1_mask(peer):
    return masked_error(peer.layer(axis=1, momentum=0.0), (5, 7, 7), 1)


@case("`axis=(1, 3)`: statistics", 12, keras_layers=True)
def two_axes(peer):
    layer = peer.layer(axis=(1, 3))
    layer(normal((6, 3, 5, 4)), training=True)
    return array(layer.moving_mean).size


@case("one sample a channel in training: warnings", 1, keras_layers=True)
def one_sample(peer):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        peer.layer()(normal((1, 3)), training=True)
    return sum("one sample" in str(one.message) for one in caught)


@case("float64 where JAX has it off: the output is", "ValueError", 0, True, ("jax",))
def float64(peer):
    y = peer.layer(dtype="float64")(normal((8, 3)), training=True)
    return keras.backend.standardize_dtype(y.dtype)


@case("`momentum=2`", "ValueError", 0, True)
def momentum_2(peer):
    peer.layer(momentum=2.0)
    return "taken"


@case("`synchronized=True`", "taken", 0, True)
def synchronized(peer):
    peer.layer(synchronized=True)
    return "taken"


@case("`keras.RematScope`, a training step: updates of the moving mean", 1, 1e-3, True)
def recomputed(peer):
    with keras.RematScope(mode="full"):
        layer = peer.layer(momentum=0.5)
    model = keras.Sequential([keras.Input((3,)), layer])
    # Compiled, Keras 3.15.1 recomputes no layer at all on TensorFlow.
    eagerly = keras.backend.backend() == "tensorflow"
    model.compile("sgd", "mse", run_eagerly=eagerly)
    x = normal((64, 3), 3.0)
    model.train_on_batch(x, x)
    left = 1 - (array(layer.moving_mean) / x.mean(0)).mean()
    return -np.log2(left)


@case("Hessian times a vector: relative error", 0.0, 1e-3, True, ("tensorflow",))
def second_gradient(peer):
    import tensorflow as tf

    x = normal((4, 2))
    upstream, along = np.random.default_rng(1).normal(size=(2, 4, 2))
    layer, inputs = peer.layer(), tf.Variable(x)
    with tf.GradientTape() as outer:
        with tf.GradientTape() as inner:
            y = layer(inputs, training=True)
            weighted = tf.reduce_sum(y * upstream.astype("float32"))
        slope = tf.reduce_sum(
            inner.gradient(weighted, inputs) * along.astype("float32")
        )
    found = outer.gradient(slope, inputs).numpy()
    exact, step = x.astype("float64"), 1e-5 * along
    higher, lower = (gradient(exact + by, upstream) for by in (step, -step))
    expected = (higher - lower) / 2e-5
    return np.abs(found - expected).max() / np.abs(expected).max()


def gradient(x: np.ndarray, upstream: np.ndarray) -> np.ndarray:
    """As the paper has it."""
    deviation = np.sqrt(x.var(0) + 1e-3)
    normalized = (x - x.mean(0)) / deviation
    along = (upstream * normalized).mean(0) * normalized
    return (upstream - upstream.mean(0) - along) / deviation


@case("`torch.utils.checkpoint` around it: updates a step", 1, 1e-3, False, ("torch",))
def checkpointed(peer):
    import torch
    from torch.utils.checkpoint import checkpoint

    x = torch.from_numpy(normal((64, 3), 3.0)).requires_grad_()
    if peer.layer is None:
        call = norm = torch.nn.BatchNorm1d(3, momentum=0.5)
    else:
        norm = peer.layer(momentum=0.5)
        call = partial(norm, training=True)
    checkpoint(call, x, use_reentrant=False).sum().backward()
    moving = norm.running_mean if peer.layer is None else norm.moving_mean
    return -np.log2(1 - (array(moving) / x.detach().numpy().mean(0)).mean())
