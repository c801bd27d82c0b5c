"""Weights, files and configs go to Keras's own layer and come from it."""

import keras
import numpy as np
import pytest

import keras_bn

CASES = {
    "default": ((6,), {}),
    "image": ((4, 5, 6), {}),
    "axis_1": ((6, 4, 5), {"axis": 1}),
    "without_center": ((6,), {"center": False}),
    "without_scale": ((6,), {"scale": False}),
    "without_both": ((6,), {"center": False, "scale": False}),
    "renorm": ((4, 6), {"renorm": True}),
    "renorm_axis_1": (
        (6, 4),
        {"axis": 1, "renorm": True, "renorm_clipping": {"rmax": 1.5, "dmax": 0.5}},
    ),
    "regularized": ((6,), {"gamma_regularizer": "l2", "beta_constraint": "non_neg"}),
    "mixed_bfloat16": ((4, 6), {"dtype": "mixed_bfloat16"}),
}
CLASSES = {
    "ours": keras_bn.BatchNormalization,
    "keras": keras.layers.BatchNormalization,
}
# Float32 outputs of one input differ in their last bits; bfloat16 ones by a rounding.
TOLERANCE = {"mixed_bfloat16": 2**-7}


def inputs(shape):
    return np.random.default_rng(1).normal(3, 2, (16, *shape)).astype("float32")


def model_of(layer, shape):
    return keras.Sequential([keras.Input(shape), layer])


def randomize(layer):
    """Other values than the initial ones, positive as deviations must be."""
    rng = np.random.default_rng(2)
    layer.set_weights([rng.uniform(0.5, 2, w.shape) for w in layer.weights])


def get_and_set_weights(source, target, folder):
    target.set_weights(source.get_weights())


def weights_file(source, target, folder):
    source.save_weights(folder / "exchange.weights.h5")
    target.load_weights(folder / "exchange.weights.h5")


ROUTES = [get_and_set_weights, weights_file]


@pytest.fixture(params=CASES)
def case(request):
    return request.param


@pytest.fixture(params=["ours", "keras"])
def pair(request, case):
    """Two models of one layer: one of our class with random weights and one of Keras's,
    or the other way round; the second is built from the first one's config.
    """
    shape, arguments = CASES[case]
    (other,) = set(CLASSES) - {request.param}
    source = CLASSES[request.param](**arguments)
    target = CLASSES[other].from_config(source.get_config())
    models = model_of(source, shape), model_of(target, shape)
    randomize(source)
    return models


def close(first, second, case):
    tolerance = TOLERANCE.get(case, 1e-5)
    first, second = (
        keras.ops.convert_to_numpy(keras.ops.cast(y, "float32"))
        for y in (first, second)
    )
    np.testing.assert_allclose(first, second, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("route", ROUTES)
def test_weights_arrive_bit_by_bit(pair, route, tmp_path):
    source, target = pair
    route(source, target, tmp_path)
    names = [weight.name for weight in source.weights]
    assert [weight.name for weight in target.weights] == names
    np.testing.assert_equal(
        dict(zip(names, target.get_weights(), strict=True)),
        dict(zip(names, source.get_weights(), strict=True)),
    )


# From ours to Keras's: the weights that arrive are the same the other way round, and by
# the other route.
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("pair", ["ours"], indirect=True)
def test_outputs_are_equal_afterwards(pair, case, training, tmp_path):
    source, target = pair
    get_and_set_weights(source, target, tmp_path)
    x = inputs(CASES[case][0])
    close(target(x, training=training), source(x, training=training), case)


def test_training_goes_on_alike(pair, case, tmp_path):
    source, target = pair
    get_and_set_weights(source, target, tmp_path)
    x = inputs(CASES[case][0])
    for model in pair:
        model(x, training=True)
        model(2 * x + 1, training=True)
    np.testing.assert_allclose(
        np.concatenate(target.get_weights()),
        np.concatenate(source.get_weights()),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_statistics_of_keras_arrive_exactly_in_float32(dtype, route, tmp_path):
    theirs = model_of(keras.layers.BatchNormalization(dtype=dtype), (6,))
    ours = model_of(keras_bn.BatchNormalization(dtype=dtype), (6,))
    randomize(theirs.layers[-1])
    route(theirs, ours, tmp_path)
    assert ours.layers[-1].moving_mean.dtype == "float32"
    np.testing.assert_array_equal(
        np.stack(ours.get_weights()).astype("float32"),
        np.stack(theirs.get_weights()).astype("float32"),
    )


def test_config_comes_back_equal(pair):
    source, target = (model.layers[-1] for model in pair)
    assert target.get_config() == source.get_config()


def test_model_file_of_keras_loads_with_our_class_in_its_place(tmp_path):
    theirs = model_of(keras.layers.BatchNormalization(axis=1, renorm=True), (6, 4))
    randomize(theirs.layers[-1])
    theirs.save(tmp_path / "model.keras")
    ours = keras.models.clone_model(
        keras.models.load_model(tmp_path / "model.keras"),
        clone_function=lambda layer: keras_bn.BatchNormalization.from_config(
            layer.get_config()
        ),
    )
    ours.set_weights(theirs.get_weights())
    assert type(ours.layers[-1]) is keras_bn.BatchNormalization
    close(ours(inputs((6, 4))), theirs(inputs((6, 4))), "default")
