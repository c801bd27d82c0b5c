"""Each network trains, saves, and predicts the same by every way that should."""

import functools
from functools import partial

import keras
import numpy as np
import pytest

import keras_bn
from cases_models import NETWORKS, PLACED
from keras_bn._keras import layer_of
from keras_bn.models._blocks import Blocks
from slow import slow

# A network of every kind of block; what they are made of, tests/layers tries.
QUICK = ("mlp", "lenet5", "plain_cnn", "resnet20_projected")
networks = pytest.mark.parametrize("case", NETWORKS.values(), ids=NETWORKS)
by_name = pytest.mark.parametrize(
    "name",
    [
        *QUICK,
        *(
            pytest.param(
                name, marks=slow("a deep network, compiled whole", but_on="torch")
            )
            for name in NETWORKS
            if name not in QUICK
        ),
    ],
)
KERAS_NORM = keras.layers.BatchNormalization


pytestmark = pytest.mark.usefixtures("zero_kernels")


def randomize(model):
    """Gives every weight its own value, of a size that keeps signals alive."""
    rng = np.random.default_rng(0)
    for weight in model.weights:
        shape = tuple(weight.shape)
        if weight.name == "gamma":
            value = rng.uniform(0.5, 1.5, shape)
        elif weight.name == "moving_variance":
            value = rng.uniform(1, 2, shape)
        else:
            fan_in = np.prod(shape[:-1]) if len(shape) > 1 else 100
            value = rng.normal(0, (2 / fan_in) ** 0.5, shape)
            # The softmax of large numbers is the same for every image.
            value *= 0.3 if "classes" in weight.path else 1
        weight.assign(value.astype("float32"))
    return model


def images(count, shape):
    return np.random.default_rng(1).normal(size=(count, *shape)).astype("float32")


def predict(model, x):
    """JAX compiles a whole model sooner than its operations, the others not."""
    if keras.backend.backend() == "jax":
        return model.predict_on_batch(x)
    return keras.ops.convert_to_numpy(model(x, training=False))


class Known:
    """A network of ours with its weights and outputs; compiled once for all tests."""

    def __init__(self, name):
        self.model = randomize(NETWORKS[name].model())
        self.weights = self.model.get_weights()
        self.x = images(4, NETWORKS[name].shape)
        self.y = predict(self.model, self.x)

    def predict(self, weights):
        """What the network makes of `x` with other weights."""
        self.model.set_weights(weights)
        try:
            return predict(self.model, self.x)
        finally:
            self.model.set_weights(self.weights)


@pytest.fixture(scope="module")
def known():
    """`known(name)` is the `Known` of a case."""
    return functools.cache(Known)


@networks
def test_output_and_last_map_have_their_shapes(case):
    with keras.StatelessScope(initialize_variables=False):
        model = case.model()
    name, shape = case.last
    assert model.output_shape == (None, 3)
    assert model.get_layer(name).output.shape == (None, *shape)


@pytest.mark.once
@networks
def test_no_bias_before_beta(case):
    with keras.StatelessScope(initialize_variables=False):
        model = case.model()
    biases = [weight.path for weight in model.weights if weight.name == "bias"]
    assert biases == ["classes/bias"]


@pytest.mark.once
@pytest.mark.parametrize(
    "norm",
    [
        None,
        partial(KERAS_NORM, center=False),
        lambda axis, name: keras.layers.UnitNormalization(axis, name=name),
    ],
    ids=["no_norm", "no_beta", "never_a_beta"],
)
@networks
def test_a_bias_where_no_beta_follows(case, norm):
    with keras.StatelessScope(initialize_variables=False):
        model = case.model(norm=norm)
    kernels = [w for w in model.weights if w.name in ("kernel", "pointwise_kernel")]
    biases = [weight for weight in model.weights if weight.name == "bias"]
    assert len(biases) == len(kernels)


# The dearest file has a hundred megabytes; the network's other tests stay.
by_name_but_the_largest = pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            "resnet50_v2",
            marks=slow(
                "a hundred megabytes are written and read",
                witness="test_trains_a_step_and_comes_back_from_its_file",
            ),
        )
        if getattr(name, "values", (name,))[0] == "resnet50_v2"
        else name
        for name in by_name.args[1]
    ],
)


@by_name_but_the_largest
def test_trains_a_step_and_comes_back_from_its_file(name, known, tmp_path):
    model = randomize(NETWORKS[name].model())
    before = [keras.ops.convert_to_numpy(weight) for weight in model.trainable_weights]
    # Compiling such a step takes longer than it does.
    eagerly = keras.backend.backend() != "jax"
    model.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=eagerly)
    x = known(name).x
    assert np.isfinite(model.train_on_batch(x, np.array([0, 2, 1, 0])))
    after = [keras.ops.convert_to_numpy(weight) for weight in model.trainable_weights]
    moved = [bool((a != b).any()) for a, b in zip(before, after, strict=True)]
    assert all(np.isfinite(weight).all() for weight in after)
    assert all(moved)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", compile=False)
    expected = known(name).predict(model.get_weights())
    np.testing.assert_allclose(predict(loaded, x), expected, atol=1e-6)


@by_name
def test_weights_of_keras_s_norm_load_into_ours(name, known, tmp_path):
    theirs = randomize(NETWORKS[name].model(norm=KERAS_NORM))
    ours = NETWORKS[name].model()
    theirs.save_weights(tmp_path / "all.weights.h5")
    ours.load_weights(tmp_path / "all.weights.h5")
    received = known(name).predict(ours.get_weights())
    expected = predict(theirs, known(name).x)
    np.testing.assert_allclose(received, expected, atol=1e-5)
    assert [w.shape for w in ours.weights] == [w.shape for w in theirs.weights]


def test_a_fused_sum_is_the_same_network(known):
    plain = known("resnet20_projected")
    fused = NETWORKS["resnet20_projected"].model(fused_sum=True)
    assert not any(isinstance(layer, keras.layers.Add) for layer in fused.layers)
    # As numbers: on JAX `assign` keeps the array that it is given, and the one model's
    # prediction gives its arrays away.
    paths = [weight.path for weight in plain.model.weights]
    values = dict(zip(paths, plain.weights, strict=True))
    assert {weight.path for weight in fused.weights} == set(values)
    for weight in fused.weights:
        weight.assign(values[weight.path])
    np.testing.assert_allclose(predict(fused, plain.x), plain.y, atol=1e-6)


@by_name
def test_one_sample_is_its_row_of_the_batch(name, known):
    model, x, batch = known(name).model, known(name).x, known(name).y
    assert np.ptp(batch, axis=0).max() > 1e-3
    np.testing.assert_allclose(predict(model, x[2:3])[0], batch[2], atol=1e-6)


@pytest.mark.parametrize(
    "name",
    [
        *(name for name in QUICK if name != "resnet20_projected"),
        *(
            pytest.param(
                name, marks=slow("a deep network, compiled by XLA", but_on="torch")
            )
            for name in NETWORKS
            if name not in QUICK or name == "resnet20_projected"
        ),
    ],
)
def test_channels_first_predicts_the_same(name, known):
    case, last = NETWORKS[name], known(name)
    keras.config.set_image_data_format("channels_first")
    try:
        *sides, channels = case.shape
        first = case._replace(shape=(channels, *sides)).model()
        first.set_weights(last.weights)
        # On CPUs TensorFlow knows this order only in what XLA compiles.
        first.compile(jit_compile=keras.backend.backend() == "tensorflow" or "auto")
        received = first.predict_on_batch(np.moveaxis(last.x, -1, 1))
    finally:
        keras.config.set_image_data_format("channels_last")
    np.testing.assert_allclose(received, last.y, atol=1e-5)


@pytest.mark.once
@pytest.mark.parametrize("name", PLACED)
def test_placement_after_the_activation(name):
    model = NETWORKS[name].model(norm=KERAS_NORM, placement="after")
    norms = [layer for layer in model.layers if isinstance(layer, KERAS_NORM)]
    before = {type(layer_of(norm.input)) for norm in norms}
    assert before == {keras.layers.Activation}
    # The norm does not subtract what comes before the activation.
    assert sum(w.name == "bias" for w in model.weights) == len(norms) + 1


@pytest.mark.once
@pytest.mark.parametrize("name", PLACED)
def test_placement_before_the_activation(name):
    model = NETWORKS[name].model(norm=KERAS_NORM, placement="before")
    norms = [layer for layer in model.layers if isinstance(layer, KERAS_NORM)]
    before = {type(layer_of(norm.input)) for norm in norms}
    assert before <= {
        keras.layers.Conv2D,
        keras.layers.SeparableConv2D,
        keras.layers.Dense,
    }


@pytest.mark.once
@pytest.mark.parametrize("size", [1, 3, 7])
def test_a_stride_takes_every_second_pixel(size):
    x, blocks = keras.Input((6, 5, 2)), Blocks(None, activation=None)
    model = keras.Model(
        x, [blocks.conv(x, 3, size, strides, name=f"by{strides}") for strides in (1, 2)]
    )
    model.get_layer("by2").set_weights(model.get_layer("by1").get_weights())
    every, second = (keras.ops.convert_to_numpy(y) for y in model(images(1, (6, 5, 2))))
    np.testing.assert_allclose(second, every[:, ::2, ::2], atol=1e-5)


@pytest.mark.once
def test_our_norm_takes_the_activation_in():
    model = NETWORKS["plain_cnn"].model()
    norms = [
        x for x in model.layers if isinstance(x, keras_bn.layers.BatchNormalization)
    ]
    assert {norm.activation for norm in norms} == {keras.activations.relu}
    assert not any(isinstance(x, keras.layers.Activation) for x in model.layers)


@pytest.mark.parametrize(
    "norm",
    [
        pytest.param(
            partial(keras.layers.GroupNormalization, groups=2),
            marks=slow("a third network to compile", but_on="torch"),
        ),
        partial(keras_bn.layers.BatchNormalization, renorm=True),
        lambda axis, name: keras.layers.LayerNormalization(axis=axis, name=name),
    ],
    ids=["group", "renorm", "function"],
)
def test_any_norm(norm):
    model = NETWORKS["plain_cnn"].model(norm=norm)
    eagerly = keras.backend.backend() != "jax"
    model.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=eagerly)
    x = images(2, NETWORKS["plain_cnn"].shape)
    assert np.isfinite(model.train_on_batch(x, np.array([0, 2])))


@pytest.mark.once
def test_vgg_has_the_papers_head():
    with keras.StatelessScope(initialize_variables=False):
        model = keras_bn.models.vgg(depth=11, input_shape=(64, 96, 3))
    assert model.get_layer("flatten").output.shape == (None, 2 * 3 * 512)
    shapes = [tuple(model.get_layer(name).kernel.shape) for name in ("fc1", "fc2")]
    assert shapes == [(3072, 4096), (4096, 4096)]
    assert model.output_shape == (None, 1000)


def test_unknown_height_and_width():
    model = keras_bn.models.resnet(depth=20, input_shape=(None, None, 3))
    assert predict(model, images(2, (8, 12, 3))).shape == (2, 10)
