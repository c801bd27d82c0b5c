"""Weights and residuals at the layer's call: averages, models, files, tools."""

import keras
import numpy as np
import pytest

import frameworks
import keras_bn
import oracle
from slow import slow


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(3, 2, shape).astype("float32")


def statistics(layer):
    return [
        frameworks.numpy(one.value).copy()
        for one in (layer.moving_mean, layer.moving_variance)
    ]


ON_TORCH = slow("layers that JAX runs op by op", but_on="torch")
SETTINGS = [
    pytest.param({"accumulation_steps": 2}, id="accumulation"),
    pytest.param({}, id="plain", marks=ON_TORCH),
    pytest.param({"renorm": True}, id="renorm", marks=ON_TORCH),
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_moving_averages_are_those_of_repeated_samples(settings):
    weighted, repeated = (
        keras_bn.BatchNormalization(momentum=0.5, **settings) for _ in range(2)
    )
    times = np.array([2, 0, 1, 3])
    for seed in range(2):
        x = normal(4, 3, seed=seed)
        y = weighted(x, training=True, weights=times.astype("float32"))
        rows = repeated(np.repeat(x, times, axis=0), training=True)
        np.testing.assert_allclose(
            frameworks.numpy(y)[[0, 2, 3]], frameworks.numpy(rows)[[0, 2, 3]], atol=1e-5
        )
    for one, other in zip(statistics(weighted), statistics(repeated), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


@ON_TORCH
@pytest.mark.parametrize("settings", [*SETTINGS, {"momentum": None}])
def test_averages_hang_on_the_weights_relations_alone(settings):
    """Also where all of them together are less than one sample."""
    layers = [
        keras_bn.BatchNormalization(**{"momentum": 0.5, **settings}) for _ in range(2)
    ]
    weights = np.array([2, 0, 1, 3], "float32")
    for seed in range(2):
        x = normal(4, 3, seed=seed)
        for layer, unit in zip(layers, (1.0, 2.0**-6), strict=True):
            layer(x, training=True, weights=weights * np.float32(unit))
    np.testing.assert_allclose(*map(statistics, layers), rtol=1e-6)


def test_weights_keep_their_precision_under_a_policy_of_half():
    layer = keras_bn.BatchNormalization(momentum=0.0, dtype="mixed_bfloat16")
    x = np.array([[0.0], [1.0]], "float32")
    layer(x, training=True, weights=np.array([257.0, 1.0], "float32"))
    # Of bfloat16, 257 is 256.
    np.testing.assert_allclose(statistics(layer)[0], 1 / 258, rtol=1e-6)


@pytest.mark.parametrize("residual", [True, pytest.param(False, marks=ON_TORCH)])
def test_the_mask_that_keras_passes_on_counts_too(residual):
    x = normal(4, 5, 3)
    x[:, 3:] = 0.0
    masked = keras.layers.Masking()(x)
    weights = np.random.default_rng(1).uniform(0.5, 2, (4, 5)).astype("float32")
    layer = keras_bn.BatchNormalization(momentum=0.0)
    along = {"residual": x} if residual else {}
    y = layer(masked, training=True, weights=weights, **along)
    weight = oracle.weights(weights * (np.arange(5) < 3), x, -1)
    expected = oracle.forward(x, weight=weight)
    np.testing.assert_allclose(statistics(layer)[0], expected.mean.ravel(), rtol=1e-5)
    wanted = expected.y + (x if residual else 0)
    np.testing.assert_allclose(frameworks.numpy(y), wanted, atol=1e-4)
    assert getattr(y, "_keras_mask", None) is not None


@ON_TORCH
def test_ghost_batches_take_their_part_of_both():
    settings = {"momentum": 0.5, "activation": "relu"}
    ghosts = keras_bn.BatchNormalization(virtual_batch_size=4, **settings)
    x, residual = normal(6, 3), normal(6, 3, seed=1) - 3
    weights = np.array([1, 3, 0, 2, 1, 2], "float32")
    y = ghosts(x, training=True, weights=weights, residual=residual)
    parts = [
        keras_bn.BatchNormalization(**settings)(
            x[part], training=True, weights=weights[part], residual=residual[part]
        )
        for part in (slice(4), slice(4, 6))
    ]
    expected = np.concatenate([frameworks.numpy(one) for one in parts])
    np.testing.assert_allclose(frameworks.numpy(y), expected, atol=1e-5)
    whole = oracle.forward(x, weight=oracle.weights(weights, x, -1))
    found = statistics(ghosts)
    np.testing.assert_allclose(found[0], 0.5 * whole.mean.ravel(), rtol=1e-5)
    right = 0.5 + 0.5 * whole.variance.ravel()
    np.testing.assert_allclose(found[1], right, rtol=1e-5)


def network(activation="relu"):
    """Inputs, weights and a block with a shortcut."""
    inputs, weights = keras.Input((6, 6, 3), name="x"), keras.Input((6, 6), name="w")
    x = keras.layers.Conv2D(4, 3, padding="same", use_bias=False, name="stem")(inputs)
    y = keras.layers.Conv2D(4, 3, padding="same", use_bias=False, name="conv")(x)
    norm = keras_bn.BatchNormalization(name="norm", activation=activation, momentum=0.5)
    y = norm(y, residual=x, weights=weights)
    y = keras.layers.GlobalAveragePooling2D()(y)
    return keras.Model([inputs, weights], y)


def data():
    rng = np.random.default_rng(2)
    weights = rng.integers(0, 3, (8, 6, 6)).astype("float32")
    return normal(8, 6, 6, 3), weights


@pytest.fixture(scope="module")
def trained():
    model = network()
    model.compile(keras.optimizers.SGD(0.01), "mse")
    x, weights = data()
    model.fit([x, weights], np.ones((8, 4)), batch_size=8, verbose=0)
    return model


def test_a_functional_model_trains_by_its_weights(trained):
    model = network()
    x, weights = data()
    features = keras.Model(model.input, model.get_layer("conv").output)
    for layer in ("stem", "conv"):
        kernel = normal(3, 3, *model.get_layer(layer).kernel.shape[2:], seed=5) / 20
        model.get_layer(layer).kernel.assign(kernel)
    model([x, weights], training=True)
    seen = frameworks.numpy(features([x, weights]))
    weight = oracle.weights(weights, seen, -1)
    mean = oracle.forward(seen, weight=weight).mean.ravel()
    found = statistics(model.get_layer("norm"))[0]
    np.testing.assert_allclose(found, 0.5 * mean, rtol=1e-3, atol=1e-4)


def test_inference_adds_the_residual(trained):
    x, weights = data()
    layers = [trained.get_layer(name) for name in ("stem", "conv", "norm")]
    stem = layers[0](x)
    y = layers[2](layers[1](stem), residual=stem)
    bare = keras_bn.BatchNormalization.from_config(
        {**layers[2].get_config(), "activation": None}
    )
    bare.build(y.shape)
    bare.set_weights(layers[2].get_weights())
    expected = keras.ops.relu(bare(layers[1](stem)) + stem)
    np.testing.assert_allclose(
        frameworks.numpy(y), frameworks.numpy(expected), atol=1e-5
    )
    pooled = trained.predict([x, weights], verbose=0)
    np.testing.assert_allclose(
        pooled, frameworks.numpy(keras.ops.mean(expected, (1, 2))), atol=1e-5
    )


def test_a_file_keeps_the_call(trained, tmp_path):
    trained.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    x, weights = data()
    one, other = (frameworks.numpy(m([x, weights])) for m in (trained, loaded))
    np.testing.assert_array_equal(one, other)
    loaded([x, weights], training=True)
    assert np.any(
        statistics(loaded.get_layer("norm"))[0]
        != statistics(trained.get_layer("norm"))[0]
    )


BAD = {
    "float mask": (
        {"mask": np.full((4, 5), 0.5, "float32")},
        TypeError,
        "`mask` must be boolean.*argument `weights`.*mask of dtype float32",
    ),
    "weights of a wrong shape": (
        {"weights": np.ones((5, 4), "float32")},
        ValueError,
        r"`weights` must have the input's shape without .*shape \(5, 4\)",
    ),
    "weights a list": ({"weights": [1.0] * 4}, TypeError, "`weights` must be a tensor"),
    "weights complex": (
        {"weights": np.ones((4, 5), "complex64")},
        TypeError,
        "`weights` must hold real numbers",
    ),
    "negative weights": (
        {"weights": np.full((4, 5), -1.0, "float32")},
        ValueError,
        r"`weights` must hold finite.*20 other values, the first -1\.0",
    ),
    "weights with a NaN": (
        {"weights": np.full((4, 5), np.nan, "float32")},
        ValueError,
        "`weights` must hold finite.*the first nan",
    ),
    "residual of a wrong shape": (
        {"residual": np.ones((4, 1, 3), "float32")},
        ValueError,
        r"`residual` must be .*\(4, 5, 3\).*residual of shape \(4, 1, 3\)",
    ),
    "residual of a wrong rank": (
        {"residual": np.ones((5, 3), "float32")},
        ValueError,
        r"`residual` must be .*shape \(5, 3\)",
    ),
    "residual a number": ({"residual": 1.0}, ValueError, "residual of type float"),
    "residual of strings": (
        {"residual": np.full((4, 5, 3), "a")},
        TypeError,
        "`residual` must hold real numbers",
    ),
}


@pytest.mark.parametrize(("along", "error", "match"), BAD.values(), ids=BAD)
def test_bad_input_leaves_the_layer_as_it_was(along, error, match):
    layer = keras_bn.BatchNormalization()
    layer.build((4, 5, 3))
    before = statistics(layer)
    with pytest.raises(error, match=match):
        layer(normal(4, 5, 3), training=True, **along)
    np.testing.assert_equal(statistics(layer), before)
    with pytest.raises(error, match=match):
        keras_bn.ops.batch_norm_train(normal(4, 5, 3), **along)


SYMBOLIC = {
    "mask": (keras.Input((5,)), TypeError, "argument `weights`"),
    "weights": (keras.Input((4,)), ValueError, "`weights` must have"),
    "residual": (keras.Input((5, 1)), ValueError, r"`residual` must .*\(None, 5, 1\)"),
}


@pytest.mark.parametrize("name", SYMBOLIC)
def test_a_functional_model_says_so_when_it_is_made(name):
    argument, error, match = SYMBOLIC[name]
    with pytest.raises(error, match=match):
        keras_bn.BatchNormalization()(keras.Input((5, 3)), **{name: argument})


def block(weighted, activation="relu"):
    """A trained model with a residual, and perhaps weights; its inputs."""
    inputs = [keras.Input((6, 6, 3)), *([keras.Input((6, 6))] if weighted else [])]
    stem = keras.layers.Conv2D(4, 3, padding="same", name="stem")(inputs[0])
    x = keras.layers.Conv2D(4, 1, use_bias=False, name="conv")(stem)
    norm = keras_bn.BatchNormalization(name="norm", activation=activation, momentum=0.0)
    along = {"weights": inputs[1]} if weighted else {}
    outputs = keras.layers.GlobalMaxPooling2D()(norm(x, residual=stem, **along))
    model = keras.Model(inputs, outputs)
    given = list(data())[: len(inputs)]
    model(given, training=True)
    return model, given


def near(model, other, given):
    # Not by `predict`, which JAX compiles anew for each model; operations it keeps.
    one, two = (frameworks.numpy(m(given)) for m in (model, other))
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("weighted", "activation"),
    [
        (True, "relu"),
        *(
            pytest.param(*one, marks=ON_TORCH)
            for one in ((True, None), (False, "relu"), (False, None))
        ),
    ],
)
def test_fold_keeps_the_sum(weighted, activation):
    model, given = block(weighted, activation)
    folded, report = keras_bn.fold(model, explain=True)
    assert [(row.layer, row.into) for row in report.folded] == [("norm", "conv")]
    near(model, folded, given)


@ON_TORCH
def test_keras_gets_the_sum_as_a_layer():
    model, given = block(weighted=False)
    theirs = keras_bn.convert(model, to="keras")
    kinds = {layer.name: type(layer) for layer in theirs.layers}
    assert kinds["norm"] is keras.layers.BatchNormalization
    assert kinds["norm_add"] is keras.layers.Add
    assert kinds["norm_activation"] is keras.layers.Activation
    near(model, theirs, given)
    near(model, keras_bn.convert(theirs), given)


@ON_TORCH
def test_our_own_copy_is_called_alike():
    model, given = block(weighted=True)
    copy = keras_bn.convert(model, momentum=0.25)
    assert len(copy.layers) == len(model.layers)
    near(model, copy, given)


@ON_TORCH
@pytest.mark.parametrize("to", ["keras", "group", "layer"])
def test_weights_cannot_be_converted(to):
    model, _ = block(weighted=True)
    with pytest.raises(ValueError, match=r"'norm' .* called with `weights`"):
        keras_bn.convert(model, to=to)


@ON_TORCH
def test_a_quantize_aware_model_adds_by_a_layer():
    model, given = block(weighted=False)
    trains, report = keras_bn.quantize_aware(model, activations=False, explain=True)
    assert [(row.layer, row.into) for row in report.folded] == [("norm", "conv")]
    near(trains, keras_bn.fold(trains), given)


@pytest.mark.parametrize("layer_by_layer", [False, pytest.param(True, marks=ON_TORCH)])
def test_recalibrate_counts_by_weights(layer_by_layer):
    model, (x, weights) = block(weighted=True)
    before = statistics(model.get_layer("norm"))
    model.get_layer("norm").moving_mean.assign(np.zeros(4))
    batches = [[x, weights]]
    keras_bn.recalibrate(model, batches, layer_by_layer=layer_by_layer, verbose=0)
    for one, other in zip(statistics(model.get_layer("norm")), before, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
