"""The layer as an object: configuration, copies, shapes, weights."""

import copy
import inspect
import itertools
import json
import pickle

import keras
import numpy as np
import pytest

import frameworks
import keras_bn
import oracle
from keras_bn import _keras
from slow import slow

ON_TORCH = slow("layers that JAX runs op by op", but_on="torch")
ARGUMENTS = {
    "default": {},
    "axis": {"axis": 1},
    "axes": {"axis": (1, -1)},
    "numbers": {"momentum": 0.7, "epsilon": 1e-5, "renorm_momentum": 0.5},
    "bare": {"center": False, "scale": False},
    "renorm": {"renorm": True, "renorm_clipping": {"rmax": 2.0, "dmax": 0.5}},
    "renorm_clipping unread": {"renorm_clipping": {"rmax": 2.0}},
    "regularized": {
        "gamma_regularizer": keras.regularizers.L2(0.1),
        "beta_constraint": "non_neg",
    },
    "policy": {"dtype": "mixed_bfloat16", "name": "norm", "trainable": False},
}
parametrize = pytest.mark.parametrize("arguments", ARGUMENTS.values(), ids=ARGUMENTS)


def random(*shape):
    return np.random.default_rng(0).normal(3, 2, shape).astype("float32")


def values(layer):
    return [frameworks.numpy(weight.value).copy() for weight in layer.weights]


def trained(arguments):
    layer = keras_bn.BatchNormalization(**arguments)
    layer(random(5, 4, 3), training=True)
    return layer


@parametrize
def test_config_gives_an_equal_layer(arguments):
    layer = keras_bn.BatchNormalization(**arguments)
    config = layer.get_config()
    assert keras_bn.BatchNormalization.from_config(config).get_config() == config


# Of each argument a value that is not its default.
EACH = {
    keras_bn.BatchNormalization: {
        "axis": 1,
        "momentum": None,
        "epsilon": 1e-5,
        "center": False,
        "scale": False,
        "beta_initializer": "ones",
        "gamma_initializer": "zeros",
        "moving_mean_initializer": "ones",
        "moving_variance_initializer": "zeros",
        "beta_regularizer": keras.regularizers.L1(0.1),
        "gamma_regularizer": keras.regularizers.L2(0.1),
        "beta_constraint": "non_neg",
        "gamma_constraint": keras.constraints.MaxNorm(1.5),
        "renorm": True,
        "renorm_clipping": {"rmax": 2.0},
        "renorm_momentum": 0.5,
        "synchronized": True,
        "activation": "relu",
        "accumulation_steps": 2,
        "virtual_batch_size": 1,
        "freeze_statistics": True,
        "zero_debias": True,
        "inference_statistics": "batch",
        "replica_groups": [[0, 1], [2]],
    },
    keras_bn.ConditionalBatchNormalization: {"classes": 1, "axis": 1},
    keras_bn.DomainBatchNormalization: {"domains": 1, "axis": 1, "share_affine": True},
}


@pytest.mark.parametrize("kind", EACH)
def test_each_argument_is_known_here(kind):
    assert {*inspect.signature(kind).parameters} == {*EACH[kind], "kwargs"}


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, table in EACH.items() for name in table]
)
def test_each_argument_is_in_the_config(kind, name):
    needed = {"domains": 2} if kind is keras_bn.DomainBatchNormalization else {}
    needed |= {"synchronized": True} if name == "replica_groups" else {}
    default, layer = kind(**needed), kind(**{**needed, name: EACH[kind][name]})
    again = kind.from_config(layer.get_config())

    def argument(one):
        value = getattr(one, name)
        return (
            (type(value), value.get_config()) if hasattr(value, "get_config") else value
        )

    assert argument(again) == argument(layer) != argument(default)


@parametrize
def test_serialization_gives_an_equal_layer(arguments):
    layer = keras_bn.BatchNormalization(**arguments)
    copied = keras.layers.deserialize(keras.layers.serialize(layer))
    assert type(copied) is keras_bn.BatchNormalization
    assert copied.get_config() == layer.get_config()


@parametrize
def test_keras_reads_the_config_of_our_layer_and_back(arguments):
    if isinstance(arguments.get("axis"), tuple):
        pytest.skip("Keras's layer has one axis")
    config = keras_bn.BatchNormalization(**arguments).get_config()
    theirs = keras.layers.BatchNormalization.from_config(config).get_config()
    assert keras_bn.BatchNormalization.from_config(theirs).get_config() == config


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
}
QUICK_COPIES = {("renorm", "deepcopy"), ("policy", "pickle")}


@pytest.mark.parametrize(
    ("name", "how"),
    [
        pytest.param(*one, marks=() if one in QUICK_COPIES else ON_TORCH)
        for one in itertools.product(["axes", "renorm", "policy"], COPIES)
    ],
)
def test_copies_of_a_model_have_equal_weights_of_their_own(name, how):
    layer = trained(ARGUMENTS[name])
    copied = COPIES[how](keras.Sequential([keras.Input((4, 3)), layer])).layers[0]
    before = values(layer)
    np.testing.assert_equal(values(copied), before)
    copied.moving_mean.assign(copied.moving_mean + 1)
    np.testing.assert_equal(values(layer), before)


@pytest.mark.parametrize(
    "name", ["renorm", *(pytest.param(n, marks=ON_TORCH) for n in ("axes", "policy"))]
)
def test_clone_model_gives_fresh_weights(name):
    layer = trained({**ARGUMENTS[name], "trainable": True})
    model = keras.Sequential([keras.Input((4, 3)), layer])
    clone = keras.models.clone_model(model).layers[0]
    assert clone.get_config() == layer.get_config()
    np.testing.assert_array_equal(frameworks.numpy(clone.moving_mean.value), 0.0)
    assert np.all(frameworks.numpy(layer.moving_mean.value) != 0.0)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({}, ["gamma", "beta", "moving_mean", "moving_variance"]),
        ({"center": False}, ["gamma", "moving_mean", "moving_variance"]),
        ({"scale": False}, ["beta", "moving_mean", "moving_variance"]),
    ],
    ids=["both", "no beta", "no gamma"],
)
@pytest.mark.parametrize("renorm", [False, True])
def test_weights_in_kerass_order(arguments, names, renorm):
    names = names + (
        ["moving_stddev", "renorm_mean", "renorm_stddev"] if renorm else []
    )
    ours, theirs = (
        layer(renorm=renorm, **arguments)
        for layer in (keras_bn.BatchNormalization, keras.layers.BatchNormalization)
    )
    for name in ("gamma", "beta", "moving_mean", "moving_variance"):
        assert getattr(ours, name) is getattr(theirs, name) is None
    ours.build((None, 3))
    theirs.build((None, 3))
    for weights in ("trainable_weights", "non_trainable_weights"):
        assert [w.name for w in getattr(ours, weights)] == [
            w.name for w in getattr(theirs, weights)
        ]
    assert sorted(w.name for w in ours.weights) == sorted(names)


def test_frozen_layer_has_no_trainable_weights():
    layer = trained({"trainable": False})
    assert layer.trainable_weights == []
    assert len(layer.non_trainable_weights) == 4


@pytest.mark.parametrize(
    ("axis", "shape"),
    [(-1, (None, 3)), (1, (None, 3, None)), ((1, 3), (2, 3, None, 4))],
    ids=str,
)
def test_output_has_the_shape_of_the_input(axis, shape):
    layer = keras_bn.BatchNormalization(axis=axis)
    assert layer.compute_output_shape(shape) == shape
    assert tuple(layer(keras.Input(batch_shape=shape)).shape) == shape
    mask = keras.Input(batch_shape=shape[:-1], dtype="bool")
    assert tuple(layer(keras.Input(batch_shape=shape), mask=mask).shape) == shape
    # Once it is built, it knows its channels.
    unknown = (None,) * len(shape)
    assert layer.compute_output_shape(unknown) == unknown
    assert tuple(layer(keras.Input(batch_shape=unknown)).shape) == unknown


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="others know each call's sizes"
)
@pytest.mark.parametrize("training", [True, False])
def test_channels_that_a_graph_does_not_know_are_those_of_the_weights(training):
    layer, x = keras_bn.BatchNormalization(), random(5, 4, 3)
    layer.build(x.shape)
    call = frameworks.compiled(
        lambda x: layer(x, training=training), unknown=[(None,) * 3]
    )
    inference = oracle.inference(x, np.zeros(3), np.ones(3))
    expected = oracle.forward(x).y if training else inference
    np.testing.assert_allclose(
        frameworks.numpy(call(frameworks.tensor(x))), expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("built", [False, True])
def test_output_shape_of_an_axis_that_is_not_there(built):
    layer = keras_bn.BatchNormalization(axis=2)
    if built:
        layer.build((None, 4, 3))
    with pytest.raises(ValueError, match=r"`axis` must be in the range \[-2, 1\]"):
        layer.compute_output_shape((None, 3))


MASKS = {
    "kerass": (-1, (5, 4), True),
    "kerass, axis 1": (1, (5, 4), True),
    "without the feature axis": (1, (5, 3), False),
    "none": (-1, None, False),
}


@pytest.mark.parametrize(("axis", "shape", "passed"), MASKS.values(), ids=MASKS)
def test_mask_is_passed_on_where_it_lacks_the_last_axis(axis, shape, passed):
    layer = keras_bn.BatchNormalization(axis=axis)
    mask = None if shape is None else np.ones(shape, bool)
    x = random(5, 4, 3)
    assert layer.supports_masking
    assert layer.compute_mask(x, mask) is (mask if passed else None)
    y = layer(x, mask=mask)
    # The name under which Keras attaches a mask to a tensor.
    assert (getattr(y, "_keras_mask", None) is not None) == passed


def test_repr_names_the_layer():
    layer = keras_bn.BatchNormalization(name="norm")
    assert repr(layer) == "<BatchNormalization name=norm, built=False>"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("axis", np.int64(1)), ("axis", (np.int64(1), np.int32(2)))),
        *((name, np.float32(0.5)) for name in ("momentum", "epsilon")),
        *((name, np.array(0.5)) for name in ("momentum", "epsilon")),
        ("renorm_momentum", np.float32(0.5)),
        ("accumulation_steps", np.int64(2)),
        ("virtual_batch_size", np.int64(2)),
        *((n, np.True_) for n in ("synchronized", "freeze_statistics", "zero_debias")),
    ],
    ids=str,
)
def test_numbers_of_numpy_are_python_s_in_the_config(name, value):
    config = keras_bn.BatchNormalization(**{name: value}).get_config()
    assert json.loads(json.dumps(config[name])) == np.asarray(value).tolist()


@pytest.mark.parametrize("value", [0, 1, None, np.True_, np.int64(1)], ids=repr)
def test_what_keras_takes_for_a_boolean(value):
    layer = keras_bn.BatchNormalization(center=value, scale=value, renorm=value)
    config = layer.get_config()
    assert [config[name] for name in ("center", "scale", "renorm")] == [bool(value)] * 3
    assert {type(config[name]) for name in ("center", "scale", "renorm")} == {bool}


def test_list_of_axes_stays_a_list_in_the_config():
    assert keras_bn.BatchNormalization(axis=(1, 2)).get_config()["axis"] == [1, 2]


def test_initializers():
    layer = keras_bn.BatchNormalization(
        gamma_initializer=keras.initializers.Constant(2.0),
        beta_initializer="ones",
        moving_mean_initializer=keras.initializers.Constant(3.0),
        moving_variance_initializer=keras.initializers.Constant(4.0),
        renorm=True,
    )
    layer.build((None, 1))
    got = {
        weight.name: float(frameworks.numpy(weight.value)[0])
        for weight in layer.weights
    }
    assert got == {
        "gamma": 2.0,
        "beta": 1.0,
        "moving_mean": 3.0,
        "moving_variance": 4.0,
        "moving_stddev": 2.0,
        "renorm_mean": 3.0,
        "renorm_stddev": 2.0,
    }


@pytest.mark.parametrize("training", [True, pytest.param(False, marks=ON_TORCH)])
def test_without_gamma_and_beta_it_normalizes_alone(training):
    layer = keras_bn.BatchNormalization(
        center=False, scale=False, moving_mean_initializer="ones"
    )
    x = random(5, 3)
    y = layer(x, training=training)
    inference = oracle.inference(x, np.ones(3), np.ones(3))
    expected = oracle.forward(x).y if training else inference
    np.testing.assert_allclose(frameworks.numpy(y), expected, rtol=1e-4, atol=1e-5)


def test_random_initializers_are_not_shared_by_two_weights():
    initializer = keras.initializers.RandomUniform(1.0, 2.0)
    layer = keras_bn.BatchNormalization(
        moving_variance_initializer=initializer, renorm=True
    )
    layer.build((None, 8))
    assert np.all(frameworks.numpy(layer.moving_stddev.value) >= 1)
    assert np.all(frameworks.numpy(layer.renorm_stddev.value) >= 1)


# One whose slope is known, and one that is no more than a function.
@pytest.mark.parametrize(
    "activation", ["relu", pytest.param(keras.ops.sin, marks=ON_TORCH)]
)
def test_activation_equals_a_layer_after_it(activation):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(16, 6, 6, 4)).astype("float32")
    targets = rng.normal(size=x.shape).astype("float32")
    weights, predictions = [], []
    for layers in (
        [keras_bn.BatchNormalization(activation=activation)],
        [keras_bn.BatchNormalization(), keras.layers.Activation(activation)],
    ):
        keras.utils.set_random_seed(0)
        convolution = keras.layers.Conv2D(4, 3, padding="same")
        model = keras.Sequential([keras.Input((6, 6, 4)), convolution, *layers])
        model.compile(keras.optimizers.SGD(0.1), "mse")
        model.train_on_batch(x, targets)
        model.train_on_batch(x, targets)
        weights.append(model.get_weights())
        predictions.append(frameworks.numpy(model(x)))
    for one, other in zip(*weights, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    np.testing.assert_allclose(*predictions, atol=1e-5)


@pytest.mark.parametrize("activation", ["relu", pytest.param("gelu", marks=ON_TORCH)])
def test_activation_is_saved_with_the_model(activation, tmp_path):
    layer = keras_bn.BatchNormalization(activation=activation)
    model = keras.Sequential([keras.Input((4,)), layer])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.layers[0].activation is keras.activations.get(activation)
    x = np.linspace(-2, 2, 8, dtype="float32").reshape(2, 4)
    np.testing.assert_array_equal(*(frameworks.numpy(m(x)) for m in (model, loaded)))


def test_config_without_activation_is_keras_s():
    config = keras_bn.BatchNormalization().get_config()
    assert "activation" not in config
    keras.layers.BatchNormalization.from_config(config)


@pytest.mark.parametrize("make", [list, lambda both: dict(enumerate(both))])
@pytest.mark.parametrize(
    "layer", [keras_bn.BatchNormalization, keras_bn.ConditionalBatchNormalization]
)
def test_several_tensors_are_not_one(layer, make):
    x = frameworks.tensor(random(5, 3))
    with pytest.raises(TypeError, match=r"`inputs` must be one tensor.*\(5, 3\)"):
        layer()(make([x, x]))


def test_unknown_activation():
    with pytest.raises(ValueError, match="nonsense"):
        keras_bn.BatchNormalization(activation="nonsense")


class Doubled(keras_bn.BatchNormalization):
    def call(self, x, training=None):
        return 2 * super().call(x, training=training)


def test_a_subclass_may_have_a_call_without_a_mask():
    layer = Doubled(name="doubled")
    model = keras.Sequential([keras.Input((3,)), layer])
    x = random(5, 3)
    expected = 2 * x / np.sqrt(1 + layer.epsilon)
    np.testing.assert_allclose(model.predict(x, verbose=0), expected, rtol=1e-5)


class Recording(keras_bn.BatchNormalization):
    """Remembers the dtypes that `call` is given."""

    def call(self, inputs, training=None, mask=None):
        seen = (inputs, mask)
        self.seen = [
            one if one is None else keras.backend.standardize_dtype(one.dtype)
            for one in seen
        ]
        return super().call(inputs, training=training, mask=mask)


@pytest.mark.parametrize("first", [True, False], ids=["at once", "later"])
@pytest.mark.parametrize(
    ("inputs", "mask", "seen"),
    {
        "tensor": (frameworks.tensor(random(5, 3)), None, ["bfloat16", None]),
        "array": (random(5, 3), None, ["bfloat16", None]),
        "float64": (random(5, 3).astype("float64"), None, ["bfloat16", None]),
        "mask": (
            frameworks.tensor(random(5, 3)),
            np.ones(5, bool),
            ["bfloat16", "bool"],
        ),
        "integers": (np.ones((5, 3), "int32"), None, ["int32", None]),
    }.values(),
)
def test_inputs_are_cast_to_the_compute_dtype(inputs, mask, seen, first):
    layer = Recording(dtype="mixed_bfloat16")
    if not first:
        layer(keras.ops.cast(random(5, 3), "bfloat16"), training=True)
    y = layer(inputs, mask=mask)
    assert layer.seen == seen
    assert keras.backend.standardize_dtype(y.dtype) == "bfloat16"


TENSOR, ARRAY = frameworks.tensor(random(5, 3)), random(5, 3)


@pytest.mark.parametrize(
    ("inputs", "settings", "looks"),
    {
        "tensor": ({"inputs": TENSOR}, {}, False),
        "a mask": ({"inputs": TENSOR, "mask": TENSOR[:, 0] > 3}, {}, False),
        "symbolic": ({"inputs": keras.Input((3,))}, {}, False),
        "array": ({"inputs": ARRAY}, {}, True),
        "array of a mask": ({"inputs": TENSOR, "mask": ARRAY[:, 0] > 3}, {}, True),
        "another dtype": ({"inputs": TENSOR}, {"dtype": "mixed_bfloat16"}, True),
    }.values(),
)
def test_keras_looks_for_what_to_convert_once_there_was_something(
    inputs, settings, looks
):
    """It takes longer than a small batch on PyTorch."""
    layer = keras_bn.BatchNormalization(**settings)
    layer(**inputs)
    layer(**inputs)
    assert _keras.converts_arguments(layer) == looks


def test_a_tensor_on_another_device_is_converted(monkeypatch):
    layer = keras_bn.BatchNormalization()
    layer(TENSOR)
    where = "keras_bn.layers.batch_normalization.same_device"
    monkeypatch.setattr(where, lambda x, weight: False)
    layer(TENSOR)
    assert _keras.converts_arguments(layer)


@pytest.mark.parametrize("training", [True, pytest.param(False, marks=ON_TORCH)])
def test_gamma_and_beta_keep_their_digits_under_a_policy_of_half(training):
    # Of bfloat16, 257 is 256.
    layer = keras_bn.BatchNormalization(
        gamma_initializer=keras.initializers.Constant(257.0),
        beta_initializer=keras.initializers.Constant(-256.0),
        epsilon=1e-7,
        dtype="mixed_bfloat16",
    )
    y = layer(np.array([[1.0], [-1.0]], "float32"), training=training)
    np.testing.assert_array_equal(frameworks.numpy(y), [[1], [-512]])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("dtype", "number"),
    # Of which bfloat16, float16 and float32 have no more.
    [
        ("mixed_bfloat16", 257),
        ("float64", 2**25 + 1),
        pytest.param("float16", 2049, marks=ON_TORCH),
        pytest.param("float32", 4097, marks=ON_TORCH),
    ],
)
def test_integers_keep_their_digits(dtype, number):
    layer = keras_bn.BatchNormalization(momentum=0.0, dtype=dtype)
    x = np.array([[number], [0]], "int32")
    y = layer(x, training=True)
    half = number / 2
    np.testing.assert_array_equal(frameworks.numpy(layer.moving_mean), [half])
    np.testing.assert_allclose(
        frameworks.numpy(layer.moving_variance), [half**2], rtol=1e-6
    )
    assert keras.backend.standardize_dtype(y.dtype) == layer.compute_dtype
    np.testing.assert_allclose(frameworks.numpy(y), [[1], [-1]], atol=1e-6)


def test_a_mask_survives_the_cast():
    x = keras.layers.Masking()(np.array([[[1.0], [3.0]], [[0.0], [5.0]]], "float32"))
    layer = keras_bn.BatchNormalization(dtype="mixed_bfloat16", momentum=0.0)
    layer(x, training=True)
    np.testing.assert_allclose(frameworks.numpy(layer.moving_mean), [3.0])
