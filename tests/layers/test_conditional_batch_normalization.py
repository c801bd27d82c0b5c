"""Gamma and beta a sample, given or by its class."""

import keras
import numpy as np
import pytest

import cases
import frameworks
import keras_bn
import oracle
from keras_bn.ops import _rows
from slow import slow

CLASSES = 4
ON_TORCH = slow("layers that JAX runs op by op", but_on="torch")


def random(shape, mean=1.0, seed=0):
    return np.random.default_rng(seed).normal(mean, 2, shape).astype("float32")


def values(layer):
    return {w.name: frameworks.numpy(w).astype("float64") for w in layer.weights}


def per_sample(axis, shape):
    """The shape of a gamma a sample."""
    kept = oracle.features(axis, len(shape))
    if len(kept) == 1:
        return (shape[0], shape[min(kept)])
    return tuple(n if i in {0, *kept} else 1 for i, n in enumerate(shape))


def expected(x, dy, gamma, beta, axis, weight):
    """Output and gradients in float64: the plain layer's, then an affine function."""
    whole = [
        n if i in {0, *oracle.features(axis, x.ndim)} else 1
        for i, n in enumerate(x.shape)
    ]
    gamma, beta = (one.astype("float64").reshape(whole) for one in (gamma, beta))
    settings = {"axis": axis, "weight": weight}
    normalized = oracle.forward(x, **settings)
    over = tuple(set(oracle.reduction(axis, x.ndim)) - {0})
    dgamma, dbeta = (one.sum(over, keepdims=True) for one in (dy * normalized.y, dy))
    dx = oracle.backward(x, dy * gamma, **settings).x
    return normalized, normalized.y * gamma + beta, (dx, dgamma, dbeta)


def stepped(layer, x, dy, parameters, call):
    """Output, new statistics, gradients for x and `parameters`; nothing is assigned."""
    fixed = [v.value for v in layer.non_trainable_variables]

    def function(x, gamma, beta):
        weights, arguments = call(gamma, beta)
        return layer.stateless_call(weights, fixed, x, training=True, **arguments)

    tensors = [frameworks.tensor(one) for one in (x, *parameters)]
    return frameworks.gradients(function, tensors, frameworks.tensor(dy))


KINDS = {n: cases.ALL[n] for n in ("dense", "first_image", "two_axes", "mask_image")}


# On every backend each source and each kind once.
QUICK = {
    *(("dense", "given"), ("two_axes", "given")),
    *(("first_image", "classes"), ("mask_image", "classes")),
}


@pytest.mark.parametrize(
    ("case", "source"),
    [
        pytest.param(
            *(case, source),
            id=f"{name}-{source}",
            marks=() if (name, source) in QUICK else ON_TORCH,
        )
        for name, case in KINDS.items()
        for source in ("given", "classes")
    ],
)
def test_equals_oracle(case, source):
    x, dy = random(case.shape), random(case.shape, seed=2)
    mask = None if case.mask is None else random(case.mask, seed=3) > 1
    layer = keras_bn.ConditionalBatchNormalization(
        CLASSES if source == "classes" else None, axis=case.axis, momentum=0.5
    )
    layer.build(case.shape)
    shape = per_sample(case.axis, case.shape)
    if source == "classes":
        shape = (CLASSES, *shape[1:])
        labels = np.random.default_rng(0).integers(CLASSES, size=len(x), dtype="int32")
        arguments = {"labels": frameworks.tensor(labels), "mask": mask}
        call = lambda gamma, beta: ([gamma, beta], arguments)  # noqa: E731
    else:
        labels = np.arange(len(x))
        call = lambda g, b: ([], {"gamma": g, "beta": b, "mask": mask})  # noqa: E731
    gamma, beta = random(shape, seed=4), random(shape, seed=5)
    y, updated, slopes = stepped(layer, x, dy, (gamma, beta), call)
    weight = oracle.weights(mask, x, case.axis)
    result, wanted, exact = expected(
        x, dy, gamma[labels], beta[labels], case.axis, weight
    )
    np.testing.assert_allclose(y, wanted, atol=5e-5)
    np.testing.assert_allclose(slopes[0], exact[0], rtol=1e-4, atol=1e-4)
    for slope, one in zip(slopes[1:], exact[1:], strict=True):
        total = np.zeros(slope.shape)
        np.add.at(total, labels, one.reshape(len(x), *slope.shape[1:]))
        np.testing.assert_allclose(slope, total, rtol=1e-4, atol=1e-4)
    for one, new, old in zip(updated, result[1:3], (0, 1), strict=True):
        new = (new / 2 + old / 2).reshape(one.shape)
        np.testing.assert_allclose(frameworks.numpy(one), new, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "training",
    [
        pytest.param(True, id="training"),
        pytest.param(False, id="inference", marks=ON_TORCH),
    ],
)
def test_statistics_are_the_plain_layers(training):
    """Bit by bit, with every setting that moves them otherwise."""
    settings = {"renorm": True, "accumulation_steps": 2, "momentum": 0.5}
    plain = keras_bn.BatchNormalization(scale=False, center=False, **settings)
    layer = keras_bn.ConditionalBatchNormalization(2, **settings)
    for seed in range(3):
        x = random((6, 3), seed=seed)
        wanted = plain(x, training=training)
        y = layer(x, np.array([0, 1] * 3, "int32"), training=training)
        np.testing.assert_array_equal(frameworks.numpy(y), frameworks.numpy(wanted))
    after = values(layer)
    for name, value in values(plain).items():
        np.testing.assert_array_equal(after[name], value)


def test_activation_comes_after_gamma_and_beta():
    x, gamma = random((6, 3)), random((6, 3), mean=0.0, seed=1)
    layers = [
        keras_bn.ConditionalBatchNormalization(activation=one) for one in ("relu", None)
    ]
    received, before = (
        frameworks.numpy(layer(x, gamma=gamma, beta=-gamma, training=True))
        for layer in layers
    )
    np.testing.assert_array_equal(received, np.maximum(before, 0))
    assert (received > 0).any()
    assert (before < 0).any()


def test_bfloat16_is_widened_for_gamma_and_beta():
    x, gamma, beta = (random((8, 3), seed=seed) for seed in range(3))
    layer = keras_bn.ConditionalBatchNormalization(dtype="mixed_bfloat16")
    given = [frameworks.tensor(one, "bfloat16") for one in (x, gamma, beta)]
    y = layer(given[0], gamma=given[1], beta=given[2], training=True)
    assert keras.backend.standardize_dtype(y.dtype) == "bfloat16"
    exact = [frameworks.numpy(one).astype("float64") for one in given]
    wanted = oracle.forward(exact[0]).y * exact[1] + exact[2]
    allowed = (np.abs(wanted - exact[2]) + np.abs(wanted)) * 2**-8 + 1e-5
    assert (np.abs(frameworks.numpy(y) - wanted) <= allowed).all()


@pytest.mark.parametrize(
    "kind", [frameworks.tensor, pytest.param(np.asarray, marks=ON_TORCH)]
)
def test_gamma_and_beta_keep_their_digits_under_a_policy_of_half(kind):
    x = np.array([[1.0], [-1.0]], "float32")
    gamma, beta = np.full_like(x, 257.0), np.full_like(x, -256.0)
    layer = keras_bn.ConditionalBatchNormalization(dtype="mixed_bfloat16")
    for _ in range(2):  # whatever was converted before
        y = layer(x, gamma=kind(gamma), beta=kind(beta), training=True)
        # Of bfloat16, 257 is 256.
        np.testing.assert_array_equal(frameworks.numpy(y), [[1], [-512]])


@ON_TORCH
def test_gamma_for_several_axes_may_be_an_array():
    layer = keras_bn.ConditionalBatchNormalization(axis=(1, 3))
    x, gamma = random((2, 3, 4, 5)), random((2, 3, 1, 5), seed=1)
    given = (gamma.astype("float64"), frameworks.tensor(gamma))
    y = [frameworks.numpy(layer(x, gamma=one)) for one in given]
    np.testing.assert_allclose(*y, rtol=1e-6)


@pytest.mark.skipif(frameworks.platform() != "cpu", reason="it would have to wait")
@pytest.mark.parametrize("x", [random((2, 3)), keras.Input((3,))], ids=["x", "Input"])
def test_a_tensor_of_labels_is_looked_at(x):
    layer = keras_bn.ConditionalBatchNormalization(CLASSES)
    labels = frameworks.tensor([0, CLASSES], "int32")
    with pytest.raises(ValueError, match=f"`labels` must be .*Received: .*={CLASSES}"):
        layer(x, labels)


@pytest.mark.parametrize(
    "label",
    [pytest.param(2, id="int"), pytest.param(np.int64(2), id="numpy", marks=ON_TORCH)],
)
def test_one_class_for_all_samples(label):
    layer = keras_bn.ConditionalBatchNormalization(CLASSES)
    layer.build((None, 3))
    layer.gamma.assign(random((CLASSES, 3)))
    x = random((4, 3))
    np.testing.assert_array_equal(
        frameworks.numpy(layer(x, label)),
        frameworks.numpy(layer(x, np.full(4, 2, "int32"))),
    )


def test_the_mask_that_keras_attaches_is_used():
    """Keras hands masks on only to calls of one single tensor."""
    x = keras.layers.Masking()(np.array([[[1.0], [3.0]], [[0.0], [5.0]]], "float32"))
    layer = keras_bn.ConditionalBatchNormalization(2, momentum=0.0)
    layer(x, np.array([0, 1], "int32"), training=True)
    np.testing.assert_allclose(frameworks.numpy(layer.moving_mean), [3.0])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        pytest.param({"scale": False}, marks=ON_TORCH),
        pytest.param({"center": False}, marks=ON_TORCH),
    ],
    ids=str,
)
def test_where_nobody_looks_a_class_out_of_range_is_nan(settings, monkeypatch):
    monkeypatch.setattr(_rows, "readable", lambda x: False)
    layer = keras_bn.ConditionalBatchNormalization(
        CLASSES, activation="relu", **settings
    )
    labels = frameworks.tensor(np.array([0, CLASSES, -1, 3], "int32"))
    y = frameworks.numpy(layer(random((4, 3)), labels, training=True))
    assert np.isfinite(y[[0, 3]]).all()
    assert np.isnan(y[[1, 2]]).all()


def test_a_functional_model_trains_and_is_saved(tmp_path):
    """One norm by class, and one whose gamma a dense layer predicts."""
    x, labels = random((12, 4), seed=1), np.arange(12) % CLASSES
    inputs = [keras.Input((4,)), keras.Input((), dtype="int32", name="label")]
    by_class = keras_bn.ConditionalBatchNormalization(
        CLASSES, activation="relu", name="by_class"
    )
    given = keras_bn.ConditionalBatchNormalization(name="given")
    y = by_class(*inputs)
    y = given(y, gamma=1 + keras.layers.Dense(4)(inputs[0]))
    model = keras.Model(inputs, keras.layers.Dense(1)(y))
    model.compile(keras.optimizers.SGD(0.1), "mse")
    model.fit([x, labels], x[:, :1], batch_size=12, verbose=0)
    assert np.any(values(by_class)["gamma"] != 1)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for one in (by_class, given):
        assert loaded.get_layer(one.name).get_config() == one.get_config()
    np.testing.assert_array_equal(
        loaded.predict_on_batch([x, labels]), model.predict_on_batch([x, labels])
    )


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"classes": 2}, ["gamma", "beta"]),
        ({"classes": 2, "scale": False}, ["beta"]),
        ({}, []),
    ],
    ids=str,
)
def test_weights(settings, names):
    layer = keras_bn.ConditionalBatchNormalization(**settings)
    layer.build((None, 3))
    assert [w.name for w in layer.trainable_weights] == names
    names = [w.name for w in layer.non_trainable_weights]
    assert names == ["moving_mean", "moving_variance"]


RANGE = r"`labels` must be in the range \[0, 3\]. Received: labels="
NEEDED = "with classes={}. Received: {}"
WRONG = {
    "too large": ({"labels": np.array([0, 1, 4, 2])}, 4, ValueError, RANGE + "4"),
    "negative": ({"labels": -1}, 4, ValueError, RANGE + "-1"),
    "floats": (
        {"labels": np.ones(4, "float32")},
        *(4, TypeError, "`labels` must hold integers.*labels of dtype float32"),
    ),
    "one-hot": (
        {"labels": np.eye(4, dtype="int32")},
        *(4, ValueError, r"`labels` must have shape \(4,\).*labels of shape \(4, 4\)"),
    ),
    "too few": (
        {"labels": np.zeros(3, "int32")},
        *(4, ValueError, r"`labels` must have shape \(4,\).*labels of shape \(3,\)"),
    ),
    "none": ({}, 4, ValueError, "`labels` must be.*" + NEEDED.format(4, "none")),
    "gamma": (
        {"gamma": np.ones((4, 3), "float32")},
        *(4, ValueError, "`labels` must be.*" + NEEDED.format(4, "gamma")),
    ),
    "no classes": (
        {"labels": 1},
        *(None, ValueError, "`gamma` or `beta`.*" + NEEDED.format(None, "labels")),
    ),
    "nothing given": (
        {},
        *(None, ValueError, "`gamma` or `beta` must.*" + NEEDED.format(None, "none")),
    ),
    "one for all": (
        {"gamma": np.ones(3, "float32")},
        *(None, ValueError, r"`gamma` must have shape \(4, 3\).*of shape \(3,\)"),
    ),
    "other channels": (
        {"beta": np.ones((4, 2), "float32")},
        *(None, ValueError, r"`beta` must have shape \(4, 3\).*of shape \(4, 2\)"),
    ),
    "a number": ({"gamma": 1.0}, None, TypeError, "`gamma` must be a tensor.*float"),
    "complex": (
        {"gamma": np.ones((4, 3), "complex64")},
        *(None, TypeError, "`gamma` must hold real numbers.*complex64"),
    ),
}


@pytest.mark.parametrize(
    ("arguments", "classes", "error", "match"), WRONG.values(), ids=WRONG
)
def test_a_call_that_raises_leaves_the_layer_as_it_was(
    arguments, classes, error, match
):
    layer = keras_bn.ConditionalBatchNormalization(classes)
    layer.build((None, 3))
    before = values(layer)
    with pytest.raises(error, match=f"(?s){match}"):
        layer(random((4, 3)), training=True, **arguments)
    np.testing.assert_equal(values(layer), before)


def test_a_layer_without_gamma_takes_none():
    layer = keras_bn.ConditionalBatchNormalization(scale=False)
    with pytest.raises(ValueError, match=r"`gamma` must be None.*scale=False"):
        layer(random((4, 3)), gamma=np.ones((4, 3), "float32"))


SYMBOLIC = {
    "dtype": ({"labels": ()}, "float32", TypeError, "`labels` must hold integers"),
    "rank": ({"labels": (1,)}, "int32", ValueError, "`labels` must have shape"),
    "channels": ({"gamma": (2,)}, "float32", ValueError, "`gamma` must have shape"),
}


@pytest.mark.parametrize(
    ("shapes", "dtype", "error", "match"), SYMBOLIC.values(), ids=SYMBOLIC
)
def test_a_functional_model_fails_where_it_is_made(shapes, dtype, error, match):
    layer = keras_bn.ConditionalBatchNormalization(2 if "labels" in shapes else None)
    given = {name: keras.Input(one, dtype=dtype) for name, one in shapes.items()}
    with pytest.raises(error, match=match):
        layer(keras.Input((3,)), **given)


CONSTRUCTOR = {
    "classes 0": ({"classes": 0}, ValueError, "`classes` must be an integer above 0"),
    "classes 1.5": ({"classes": 1.5}, TypeError, "`classes` must be an integer"),
    "nothing": (
        {"scale": False, "center": False},
        *(ValueError, "`scale` and `center` must not both be False"),
    ),
}


@pytest.mark.parametrize(
    ("arguments", "error", "match"), CONSTRUCTOR.values(), ids=CONSTRUCTOR
)
def test_constructor(arguments, error, match):
    with pytest.raises(error, match=match):
        keras_bn.ConditionalBatchNormalization(**arguments)


def test_the_batch_s_axis_is_no_feature_axis():
    with pytest.raises(ValueError, match="`axis` must not name the batch's axis"):
        keras_bn.ConditionalBatchNormalization(2, axis=0).build((4, 3))
