"""The promises on numbers, one function a promise, for any layer class.

A promise is given a layer class and `start`: `start(layer)` gives a function
`train(x, mask=None)`, which calls the layer in training mode and returns its output as
NumPy. Where Keras's own layer breaks a promise, `@promise` names the backend, the error
and its message.
"""

import re
import warnings
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np

import frameworks
import oracle


class Promise(NamedTuple):
    """What is promised, and how Keras's own layer breaks it, per backend."""

    check: Callable
    broken: dict
    only_plain: bool


class Broken(NamedTuple):
    """The error that Keras's layer gives, and a pattern of its message."""

    error: type
    match: str


PROMISES = {}


def promise(only_plain=False, **broken):
    """Enters a function into the table, under its name."""
    if "everywhere" in broken:
        broken = dict.fromkeys(("tensorflow", "jax", "torch"), broken["everywhere"])

    def enter(check):
        PROMISES[check.__name__] = Promise(check, broken, only_plain)
        return check

    return enter


def wrong(message):
    """A promise that is not kept, by a number: the assertion's own message."""
    return Broken(AssertionError, message)


def normal(shape, mean=0.0, std=1.0, seed=0):
    return np.random.default_rng(seed).normal(mean, std, shape).astype("float32")


def statistics(layer):
    return {
        weight.name: frameworks.numpy(weight.value).copy()
        for weight in layer.non_trainable_variables
        if weight.name.startswith(("moving", "renorm"))
    }


def assert_near(name, value, expected, allowed):
    """Every value within what is allowed; the message says by how much not."""
    value, expected = np.asarray(value, "float64"), np.asarray(expected, "float64")
    assert value.shape == expected.shape, f"{name} has shape {value.shape}"
    error = np.abs(value - expected)
    # Written so that a NaN fails.
    good = (error <= allowed) | (value == expected)
    assert np.all(good), (
        f"{name} is off by {np.max(error)}, where {np.max(allowed)} is allowed; "
        f"it has {np.sum(np.isnan(value))} NaN and a minimum of {np.nanmin(value)}"
        if not np.all(np.isnan(value))
        else f"{name} is all NaN"
    )


def assert_training(layer, y, x, mask=None, before=(0.0, 1.0), drop=None):
    """Output and moving statistics after one training call are as the oracle has them.

    The layer's gamma and beta are 1 and 0; `before` holds the statistics so far.
    """
    weight = oracle.weights(mask, x, layer.axis, drop)
    expected = oracle.forward(x, axis=layer.axis, weight=weight, epsilon=layer.epsilon)
    allowed = oracle.tolerance(x, expected.variance, epsilon=layer.epsilon)
    assert_near("the output", y, expected.y, allowed)
    shape = tuple(layer.moving_mean.shape)
    for name, value, start in (
        ("moving_mean", expected.mean, before[0]),
        ("moving_variance", expected.variance, before[1]),
    ):
        keep = layer.momentum
        average = np.reshape(start * keep + value * (1 - keep), shape)
        allowed = 1e-6 * (1 + np.abs(average)) + 1e-5 * np.sqrt(expected.variance).max()
        assert_near(name, statistics(layer)[name], average, allowed)


@promise(
    tensorflow=wrong("the output is off by 0.0"),
    torch=wrong("the output is off by (nan|[1-9])"),
)
def mean_1e4(BatchNormalization, start):
    layer, x = BatchNormalization(), normal((32, 8, 8, 4), mean=1e4)
    assert_training(layer, start(layer)(x), x)


@promise(
    tensorflow=wrong("the output is off by 0.0"),
    torch=wrong("the output is off by (nan|[1-9])"),
)
def mean_1e4_channels_first(BatchNormalization, start):
    layer, x = BatchNormalization(axis=1), normal((32, 4, 8, 8), mean=1e4)
    assert_training(layer, start(layer)(x), x)


@promise(tensorflow=wrong("the output is off by"), torch=wrong("the output is off by"))
def many_samples(BatchNormalization, start):
    layer, x = BatchNormalization(), normal((64, 32, 32, 4), mean=1e5, std=10)
    assert_training(layer, start(layer)(x), x)


@promise(tensorflow=wrong("the output is off by"), torch=wrong("off by nan"))
def many_samples_channels_first(BatchNormalization, start):
    layer, x = BatchNormalization(axis=1), normal((64, 4, 32, 32), mean=1e5, std=10)
    assert_training(layer, start(layer)(x), x)


@promise(everywhere=wrong("moving_mean is bfloat16"))
def bfloat16_statistics_are_float32(BatchNormalization, start):
    layer = BatchNormalization(dtype="bfloat16")
    start(layer)(normal((8, 3)))
    for name, variable in moving_variables(layer).items():
        assert variable.dtype == "float32", f"{name} is {variable.dtype}"


@promise(everywhere=wrong("moving_mean .* minimum of 8.0"))
def bfloat16_mean_moves_on_beyond_8(BatchNormalization, start):
    layer = BatchNormalization(dtype="bfloat16", moving_mean_initializer=constant(8.0))
    train, x = start(layer), np.array([[9.0], [11.0]], "float32")
    for _ in range(10):
        train(x)
    expected = 10 - 2 * 0.99**10
    assert_near("moving_mean", statistics(layer)["moving_mean"], [expected], 1e-4)


@promise(everywhere=wrong("moving_variance is off by inf"))
def float16_variance_stays_finite(BatchNormalization, start):
    layer = BatchNormalization(dtype="float16", momentum=0.5)
    x = normal((64, 3), std=1e3).astype("float16")
    start(layer)(x)
    expected = 0.5 + 0.5 * x.astype("float64").var(0)
    assert_near(
        "moving_variance",
        statistics(layer)["moving_variance"],
        expected,
        1e-5 * expected,
    )


@promise(
    jax=Broken(IndexError, "tuple index out of range"),
    torch=Broken(IndexError, "tuple index out of range"),
)
def one_channel_and_a_mask(BatchNormalization, start):
    layer, x, mask = BatchNormalization(), normal((5, 7, 1)), some((5, 7))
    assert_training(layer, start(layer)(x, mask), x, mask)


@promise(everywhere=Broken(Exception, "(?i)incompatible|expanded size"))
def axis_1_and_a_mask(BatchNormalization, start):
    layer, x, mask = BatchNormalization(axis=1), normal((5, 4, 7)), some((5, 7))
    assert_training(layer, start(layer)(x, mask), x, mask)


@promise(everywhere=wrong("is off by"))
def axis_1_and_a_mask_where_sizes_match(BatchNormalization, start):
    layer, x, mask = BatchNormalization(axis=1), normal((5, 7, 7)), some((5, 7))
    assert_training(layer, start(layer)(x, mask), x, mask)


@promise(everywhere=Broken(TypeError, r"int\(\) argument must be"))
def two_axes(BatchNormalization, start):
    layer, x = BatchNormalization(axis=[1, 3]), normal((6, 3, 5, 4))
    y = start(layer)(x)
    # As in tf-keras 2: averaged axes stay, with size 1.
    assert [tuple(weight.shape) for weight in layer.weights] == [(1, 3, 1, 4)] * 4
    assert_training(layer, y, x)


@promise(everywhere=wrong("moving_mean changed to .*nan"))
def empty_batch(BatchNormalization, start):
    layer = BatchNormalization()
    train = start(layer)
    train(normal((6, 3)))
    before = statistics(layer)
    assert train(normal((0, 3))).shape == (0, 3)
    assert_unchanged(before, layer)


@promise(everywhere=wrong("moving_mean changed"))
def all_masked(BatchNormalization, start):
    layer, x = BatchNormalization(), normal((6, 5, 3), mean=3)
    train = start(layer)
    train(x, np.ones((6, 5), bool))
    before = statistics(layer)
    y = train(x, np.zeros((6, 5), bool))
    assert y.shape == x.shape
    assert np.all(np.isfinite(y))
    assert_unchanged(before, layer)


@promise(everywhere=wrong("moving_mean .* 1 NaN"))
def a_nan_in_the_batch(BatchNormalization, start):
    spoilt_by(np.nan, BatchNormalization, start)


@promise(everywhere=wrong(r"moving_mean .* (1 NaN|minimum of|off by inf)"))
def an_infinity_in_the_batch(BatchNormalization, start):
    spoilt_by(np.inf, BatchNormalization, start)


def spoilt_by(value, BatchNormalization, start):
    layer, x = BatchNormalization(), normal((8, 3), mean=3)
    train = start(layer)
    train(x)
    before = statistics(layer)
    spoilt = x.copy()
    spoilt[4, 1] = value
    y = train(spoilt)
    assert np.any(~np.isfinite(y[:, 1])), "the output does not show it"
    others = [0, 2]
    expected = oracle.forward(x[:, others]).y
    assert_near("the output", y[:, others], expected, 2e-5)
    # Channel 1 waits at its last value; the others take their share.
    share = np.where([True, False, True], 0.01, 0.0)
    for name, batch in (("moving_mean", x.mean(0)), ("moving_variance", x.var(0))):
        expected = before[name] * (1 - share) + batch * share
        assert_near(name, statistics(layer)[name], expected, 1e-6)
        assert statistics(layer)[name][1] == before[name][1]
    after = statistics(layer)
    train(x)
    assert_near(
        "moving_mean after recovery",
        statistics(layer)["moving_mean"],
        after["moving_mean"] * 0.99 + x.mean(0) * 0.01,
        1e-6,
    )


@promise(everywhere=wrong("warned 0 times"))
def one_sample_per_channel(BatchNormalization, start):
    layer = BatchNormalization(name="lonely", beta_initializer=constant(0.3))
    train = start(layer)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        outputs = [train(normal((1, 3), mean=1e3, seed=seed)) for seed in range(2)]
    mine = [w for w in caught if re.search("'lonely'.*one sample", str(w.message))]
    assert len(mine) == 1, f"warned {len(mine)} times"
    assert issubclass(mine[0].category, UserWarning)
    np.testing.assert_array_equal(outputs, np.full((2, 1, 3), 0.3, "float32"))


@promise()
def frozen(BatchNormalization, start):
    layer, x = BatchNormalization(), normal((8, 3), mean=3)
    start(layer)(x)
    layer.trainable = False
    before = statistics(layer)
    expected = oracle.inference(x, before["moving_mean"], before["moving_variance"])
    assert_near("the output", start(layer)(x), expected, 1e-5)
    assert_unchanged(before, layer)


@promise(jax=wrong("the output is off by"), torch=wrong("the output is off by"))
def float64_throughout(BatchNormalization, start):
    with frameworks.float64():
        layer = BatchNormalization(dtype="float64")
        x = np.random.default_rng(0).normal(1e4, 1.0, (64, 3))
        y = start(layer)(x)
        assert y.dtype == "float64"
        assert {weight.dtype for weight in layer.weights} == {"float64"}
        assert_near("the output", y, oracle.forward(x).y, 1e-9)
        for name, value, first in (
            ("moving_mean", x.mean(0), 0.0),
            ("moving_variance", x.var(0), 1.0),
        ):
            expected = first * 0.99 + value * 0.01
            assert_near(name, statistics(layer)[name], expected, 1e-12 * expected)


@promise(only_plain=True, jax=wrong("computed in float32"))
def float64_or_an_error(BatchNormalization, start):
    x = normal((8, 3))
    error = None
    try:
        y = BatchNormalization(dtype="float64")(x, training=True)
        dtype = keras.backend.standardize_dtype(y.dtype)
    except ValueError as refusal:
        error = str(refusal)
    if error is None:
        assert dtype == "float64", f"computed in {dtype}"
    else:
        assert re.search("float64 is not available.*jax_enable_x64.*backend jax", error)


@promise()
def momentum_is_the_share_kept(BatchNormalization, start):
    layer, x = BatchNormalization(momentum=0.8, epsilon=1e-2), normal((8, 3), mean=3)
    train = start(layer)
    mean, variance = np.zeros(3), np.ones(3)
    for seed in range(4):
        x = normal((8, 3), mean=seed, std=1 + seed, seed=seed)
        y = train(x)
        assert_training(layer, y, x, before=(mean, variance))
        mean, variance = 0.8 * mean + 0.2 * x.mean(0), 0.8 * variance + 0.2 * x.var(0)


def constant(value):
    return keras.initializers.Constant(value)


def some(shape):
    return np.random.default_rng(1).random(shape) < 0.7


def moving_variables(layer):
    return {v.name: v for v in (layer.moving_mean, layer.moving_variance)}


def assert_unchanged(before, layer):
    for name, value in statistics(layer).items():
        same = np.array_equal(value, before[name])
        assert same, f"{name} changed to {value}"
