"""On the device: outputs and gradients against the oracle, at any mean and dtype."""

import os

import keras
import numpy as np
import pytest

import frameworks
import keras_bn
import oracle
from keras_bn.backend.activations import SLOPES
from keras_bn.ops import batch_norm_train

pytestmark = pytest.mark.gpu

DRY = os.environ.get("GPU_DRY") == "1"
SIDE = 12 if DRY else 56
SHAPES = {
    "image": ((8, 9, 7, 24), -1),
    "large": ((16, SIDE, SIDE, 64), -1),
    "one channel": ((8, 33, 5, 1), -1),
    "first": ((8, 24, 9, 7), 1),
    "first, large": ((16, 64, SIDE, SIDE), 1),
    "dense": ((67, 130), -1),
    "volume": ((2, 3, 5, 4, 6), -1),
    "sequence": ((5, 77, 12), -1),
}
# Mean and deviation; the input of the oracle is what the dtype leaves of them.
SPREADS = {"plain": (0.3, 1.0), "1e3": (1e3, 1.0), "1e5": (1e5, 1.0), "far": (1e5, 10)}
NAMES = ["image", "large", "first", "first, large"]
ACTIVATIONS = sorted(SLOPES)
if DRY:  # Each case compiles, and all of them run on the CPU in tests/ops.
    SHAPES = {name: SHAPES[name] for name in ("image", "large", "first, large")}
    SPREADS = {name: SPREADS[name] for name in ("plain", "far")}
    NAMES, ACTIVATIONS = ["large"], ["elu"]
# How far gradients may be off: what the promise says, or the dtype's own rounding.
GRADIENTS = {"float32": 1e-4, "bfloat16": 5e-3, "float16": 1e-3}
ACTIVATED = {
    "relu": lambda z: (np.maximum(z, 0), z > 0),
    "sigmoid": lambda z: (1 / (1 + np.exp(-z)), np.exp(-z) / (1 + np.exp(-z)) ** 2),
    "tanh": lambda z: (np.tanh(z), 1 - np.tanh(z) ** 2),
}


def inputs(shape, axis, spread, dtype):
    """x, dy, gamma and beta as tensors."""
    rng = np.random.default_rng(0)
    mean, deviation = spread
    values = (
        rng.normal(mean, deviation, shape),
        rng.normal(0, 1, shape),
        rng.uniform(0.5, 1.5, shape[axis]),
        rng.normal(0, 1, shape[axis]),
    )
    dtypes = (dtype, dtype, "float32", "float32")
    return [
        keras.ops.cast(frameworks.tensor(value.astype("float32")), kind)
        for value, kind in zip(values, dtypes, strict=True)
    ]


def relative(found, expected):
    """The norm of the difference over that of what was expected."""
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def check(shape, axis, spread, dtype, activation=None):
    tensors = inputs(shape, axis, spread, dtype)
    x, dy, gamma, beta = (np.float64(frameworks.numpy(one)) for one in tensors)
    over = oracle.reduction(axis, x.ndim)
    scale, offset = oracle.spread(gamma, x, axis), oracle.spread(beta, x, axis)
    true = oracle.forward(x, scale, offset, axis)
    expected, slope = true.y, 1.0
    if activation is not None:
        expected, slope = ACTIVATED[activation](true.y)
    gradients = oracle.backward(x, dy * slope, scale, axis)

    def train(x, gamma, beta):
        return batch_norm_train(x, gamma, beta, axis=axis, activation=activation)

    y, moments, slopes = frameworks.gradients(
        train, [tensors[0], tensors[2], tensors[3]], tensors[1]
    )
    limit = oracle.tolerance(x, true.variance, scale, dtype=dtype)
    if dtype != "float32":  # The output is rounded too.
        limit = limit + np.abs(expected) * oracle.ulp(1.0, dtype)
    assert np.all(np.abs(frameworks.numpy(y) - expected) <= limit)
    variance = frameworks.numpy(moments.variance)
    np.testing.assert_allclose(variance, np.squeeze(true.variance, over), rtol=1e-4)
    for found, wanted in zip(slopes, gradients, strict=True):
        assert relative(found, wanted.reshape(found.shape)) <= GRADIENTS[dtype]


@pytest.mark.parametrize("spread", SPREADS.values(), ids=SPREADS)
@pytest.mark.parametrize(("shape", "axis"), SHAPES.values(), ids=SHAPES)
def test_float32(shape, axis, spread):
    check(shape, axis, spread, "float32")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision(name, dtype):
    check(*SHAPES[name], (0.5, 2.0), dtype)


@pytest.mark.parametrize("activation", ACTIVATED)
@pytest.mark.parametrize("name", NAMES)
def test_activations(name, activation):
    check(*SHAPES[name], (0.3, 1.0), "float32", activation)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", NAMES)
def test_every_fused_activation_is_that_of_keras(name, activation):
    shape, axis = SHAPES[name]
    x, dy, gamma, beta = inputs(shape, axis, (0.3, 1.0), "float32")

    def fused(x, gamma, beta):
        return batch_norm_train(x, gamma, beta, axis=axis, activation=activation)

    def apart(x, gamma, beta):
        y, moments = batch_norm_train(x, gamma, beta, axis=axis)
        return keras.activations.get(activation)(y), moments

    found = frameworks.gradients(fused, [x, gamma, beta], dy)
    wanted = frameworks.gradients(apart, [x, gamma, beta], dy)
    assert relative(found[0], wanted[0]) <= 1e-5
    for one, other in zip(found[2], wanted[2], strict=True):
        assert relative(one, other) <= 1e-4


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("axis", [-1, 1])
def test_what_is_not_finite_stays_in_its_channel(axis, value):
    x = np.random.default_rng(0).normal(size=(8, 16, 24, 16)).astype("float32")
    index = (3, 5, 7, 11) if axis == -1 else (3, 11, 5, 7)
    x[index] = value
    y, moments = batch_norm_train(frameworks.tensor(x), axis=axis)
    channels = np.moveaxis(frameworks.numpy(y), axis, -1).reshape(-1, 16)
    spoiled = ~np.isfinite(channels).all(axis=0)
    assert spoiled.tolist() == [channel == 11 for channel in range(16)]
    finite = np.isfinite(frameworks.numpy(moments.variance))
    assert finite.tolist() == [channel != 11 for channel in range(16)]


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_a_training_step_of_the_layer(policy):
    layer = keras_bn.BatchNormalization(dtype=policy, momentum=0.9)
    rng = np.random.default_rng(0)
    x = rng.normal(10, 2, (32, 8, 8, 16)).astype(layer.compute_dtype)
    y = frameworks.numpy(layer(frameworks.tensor(x), training=True))
    true = oracle.forward(x)
    limit = 1e-5 if policy == "float32" else 0.03  # Half a rounding at 4, or 8.
    assert np.all(np.abs(y - true.y) <= limit)
    assert layer.moving_mean.dtype == "float32"
    mean = keras.ops.convert_to_numpy(layer.moving_mean)
    variance = keras.ops.convert_to_numpy(layer.moving_variance)
    np.testing.assert_allclose(mean, 0.1 * true.mean.ravel(), rtol=1e-4)
    np.testing.assert_allclose(variance, 0.9 + 0.1 * true.variance.ravel(), rtol=1e-4)


def test_a_network_trains():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(8, 3, padding="same", use_bias=False),
            keras_bn.BatchNormalization(activation="relu"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(2),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss)
    rng = np.random.default_rng(0)
    labels = np.arange(32) % 2
    x = (rng.normal(size=(32, 8, 8, 3)) + labels[:, None, None, None]).astype("float32")
    losses = [float(model.train_on_batch(x, labels)) for _ in range(30)]
    assert losses[-1] < losses[0] / 2


def test_describe_names_what_serves_training():
    assert any("training" in service.case for service in keras_bn.backend.describe())
