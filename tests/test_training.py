"""Training by `model.fit` in each of its ways and by hand, and inference after it."""

import keras
import numpy as np
import pytest
from keras import layers
from sklearn.datasets import load_digits

import frameworks
import keras_bn
import loops
from slow import slow

pytestmark = pytest.mark.filterwarnings(
    # torch.compile, of a cached function of Keras's, and of a module of its own.
    "ignore:Dynamo detected a call to a `functools.lru_cache`",
    "ignore:`torch.jit.script_method` is deprecated",
)

RATE = 0.1
STEPS = 6
BATCH = 32


@pytest.fixture(scope="module")
def digits():
    """A few batches of real images, and one-hot labels."""
    images, labels = load_digits(return_X_y=True)
    count = STEPS * BATCH
    x = images[:count].reshape(-1, 8, 8, 1).astype("float32") / 16
    return x, np.eye(10, dtype="float32")[labels[:count]]


def build(BatchNormalization=keras_bn.BatchNormalization, after_activation=False):
    """A small CNN, of the same initial weights at every call."""
    initializer = keras.initializers.RandomNormal(0.0, 0.2, seed=1)
    norm, relu = BatchNormalization(momentum=0.9), layers.ReLU()
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(4, 3, use_bias=False, kernel_initializer=initializer),
            *([relu, norm] if after_activation else [norm, relu]),
            layers.Flatten(),
            layers.Dense(10, activation="softmax", kernel_initializer=initializer),
        ]
    )


def loss(y, prediction):
    return keras.ops.mean(keras.losses.categorical_crossentropy(y, prediction))


def fitted(model, digits, **options):
    model.compile(keras.optimizers.SGD(RATE), loss, **options)
    model.fit(*digits, batch_size=BATCH, epochs=1, shuffle=False, verbose=0)
    return model


@pytest.fixture(scope="module")
def reference(digits):
    """The weights that a default `fit` ends at."""
    return weights(fitted(build(), digits))


def weights(model):
    return {
        f"{number} {weight.name}": frameworks.numpy(weight.value).copy()
        for number, layer in enumerate(model.layers)
        for weight in layer.weights
    }


def assert_same_weights(model, expected, allowed=2e-5):
    got = weights(model)
    assert list(got) == list(expected)
    for name, value in got.items():
        np.testing.assert_allclose(
            value, expected[name], rtol=allowed, atol=allowed, err_msg=name
        )


# On torch, `jit_compile` is Inductor, which has a C++ compiler take forty seconds.
# What it is given, torch.compile traces in the loop by hand as well.
JIT_COMPILE = pytest.param({"jit_compile": True}, id="jit_compile")
BY_INDUCTOR = pytest.param(
    {"jit_compile": True},
    id="jit_compile",
    marks=slow(
        "Inductor compiles C++ for forty seconds",
        witness="test_loop_by_hand_ends_at_the_same_weights_as_fit",
    ),
)
WAYS_OF_FIT = [
    pytest.param({"run_eagerly": True}, id="run_eagerly"),
    pytest.param({"jit_compile": False}, id="not compiled"),
    BY_INDUCTOR if keras.backend.backend() == "torch" else JIT_COMPILE,
]


@pytest.mark.parametrize("options", WAYS_OF_FIT)
def test_fit_ends_at_the_same_weights_however_it_runs(options, digits, reference):
    assert_same_weights(fitted(build(), digits, **options), reference)


@pytest.mark.parametrize("way", loops.WAYS)
def test_loop_by_hand_ends_at_the_same_weights_as_fit(way, digits, reference):
    model = build()
    batches = [np.split(part, STEPS) for part in digits]
    losses = loops.train(model, zip(*batches, strict=True), loss, RATE, way)
    assert_same_weights(model, reference)
    assert losses[-1] < losses[0]


def test_kerass_layer_ends_at_the_same_weights(digits, reference):
    model = fitted(build(keras.layers.BatchNormalization), digits)
    assert_same_weights(model, reference, allowed=1e-4)


def test_training_moved_every_weight(reference):
    start = weights(build())
    unmoved = [name for name in start if np.array_equal(start[name], reference[name])]
    assert not unmoved


@pytest.mark.parametrize(
    ("policy", "after_activation"),
    [("float32", True), ("mixed_bfloat16", False)],
)
def test_loss_decreases(policy, after_activation, digits):
    keras.config.set_dtype_policy(policy)
    model = build(after_activation=after_activation)
    model.compile(keras.optimizers.SGD(0.3), "categorical_crossentropy")
    history = model.fit(*digits, batch_size=BATCH, epochs=4, verbose=0).history["loss"]
    assert history[-1] < 0.7 * history[0]
    norm = next(x for x in model.layers if isinstance(x, keras_bn.BatchNormalization))
    assert {weight.dtype for weight in norm.weights} == {"float32"}
    assert np.all(np.isfinite(frameworks.numpy(norm.moving_variance.value)))


@pytest.fixture(scope="module")
def trained(digits):
    return fitted(build(), digits)


def test_evaluate_and_predict_use_the_moving_statistics(trained, digits):
    x, y = digits
    before = weights(trained)
    predictions = trained.predict(x, batch_size=50, verbose=0)
    evaluated = trained.evaluate(x, y, batch_size=7, verbose=0)
    np.testing.assert_equal(weights(trained), before)
    # An average of batches' means, weighted by their sizes, is the mean of all.
    expected = -np.mean(np.log(np.sum(predictions * y, axis=-1)))
    assert evaluated == pytest.approx(expected, rel=1e-4)
    training = frameworks.numpy(trained(x, training=True))
    trained.set_weights(list(before.values()))
    assert np.max(np.abs(training - predictions)) > 1e-3


def test_one_sample_alone_equals_its_row_in_a_batch(trained, digits):
    x = digits[0][:16]
    together = trained.predict(x, verbose=0)
    alone = trained.predict(x[5:6], verbose=0)
    np.testing.assert_allclose(alone[0], together[5], atol=1e-6)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(3, 2, shape).astype("float32")


def moving_mean(layer):
    return frameworks.numpy(layer.moving_mean.value)


def test_time_distributed():
    x = normal(4, 5, 3)
    layer = keras_bn.BatchNormalization(momentum=0.0)
    model = keras.Sequential([keras.Input((5, 3)), layers.TimeDistributed(layer)])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    model.train_on_batch(x, x)
    # One call a time step: with momentum 0, what stays is the last step's mean.
    np.testing.assert_allclose(moving_mean(layer), x[:, -1].mean(0), atol=1e-5)


def test_nested_model():
    x = normal(8, 3)
    layer = keras_bn.BatchNormalization()
    inner = keras.Sequential([keras.Input((3,)), layer])
    inputs = keras.Input((3,))
    model = keras.Model(inputs, layers.Dense(1)(inner(inputs)))
    model.compile(keras.optimizers.SGD(0.1), "mse")
    model.train_on_batch(x, np.ones((8, 1)))
    np.testing.assert_allclose(moving_mean(layer), 0.01 * x.mean(0), rtol=1e-5)
    inner.trainable = False
    model.compile(keras.optimizers.SGD(0.1), "mse")
    before = [frameworks.numpy(w.value).copy() for w in inner.weights]
    model.train_on_batch(x, np.ones((8, 1)))
    np.testing.assert_equal([frameworks.numpy(w.value) for w in inner.weights], before)


def test_shared_layer_averages_twice_a_step():
    first, second = normal(8, 3), normal(8, 3, seed=1) + 5
    layer = keras_bn.BatchNormalization(momentum=0.5)
    inputs = [keras.Input((3,)), keras.Input((3,))]
    model = keras.Model(inputs, layers.Add()([layer(one) for one in inputs]))
    model.compile(keras.optimizers.SGD(0.0), "mse")
    model.train_on_batch([first, second], first)
    expected = 0.25 * first.mean(0) + 0.5 * second.mean(0)
    np.testing.assert_allclose(moving_mean(layer), expected, rtol=1e-5)


def test_mask_that_keras_propagates():
    x = normal(4, 5, 3)
    x[:2, 3:] = 0.0
    layer = keras_bn.BatchNormalization(momentum=0.0)
    model = keras.Sequential(
        [keras.Input((5, 3)), layers.Masking(), layer, layers.GlobalAveragePooling1D()]
    )
    model.compile(keras.optimizers.SGD(0.0), "mse")
    model.train_on_batch(x, np.zeros((4, 3)))
    counted = np.concatenate([x[:2, :3].reshape(-1, 3), x[2:].reshape(-1, 3)])
    np.testing.assert_allclose(moving_mean(layer), counted.mean(0), rtol=1e-5)


def test_mask_without_the_feature_axis_does_not_reach_the_loss():
    x, mask = normal(6, 3, 5), np.random.default_rng(1).random((6, 5)) < 0.7
    layer = keras_bn.BatchNormalization(axis=1, momentum=0.0)
    inputs = [keras.Input((3, 5)), keras.Input((5,), dtype="bool")]
    model = keras.Model(inputs, layer(inputs[0], mask=inputs[1]))
    model.compile(keras.optimizers.SGD(0.0), "mse")
    model.train_on_batch([x, mask], x)
    counted = np.moveaxis(x, 1, -1)[mask]
    np.testing.assert_allclose(moving_mean(layer), counted.mean(0), rtol=1e-5)
