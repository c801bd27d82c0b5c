"""How the moving statistics are averaged: plainly, debiased, by schedules; reset."""

import warnings

import keras
import numpy as np
import pytest
from keras.optimizers import schedules

import frameworks
import keras_bn
import loops
import oracle
from slow import slow

STATISTICS = ("moving_mean", "moving_variance")
# The arithmetic is written once, in keras.ops: on every backend one way of each kind.
ON_TORCH = slow("layers that JAX runs op by op", but_on="torch")


@keras.saving.register_keras_serializable("tests")
def warm_up(step):
    """Like the step count itself: 0, 1/2, 2/3, ..."""
    return step / (step + 1)


@keras.saving.register_keras_serializable("tests")
def rising(step):
    return 1 + step / 2


@keras.saving.register_keras_serializable("tests")
def from_nothing(step):
    return step / 4


HALVING = schedules.ExponentialDecay(0.9, decay_steps=1, decay_rate=0.5)


def batches(sizes=(8, 3, 5, 8), seed=0):
    """Batches unlike each other, and of unlike sizes."""
    rng = np.random.default_rng(seed)
    return [
        rng.normal(2 * i, 1 + i, (size, 3)).astype("float32")
        for i, size in enumerate(sizes)
    ]


def built(**settings):
    layer = keras_bn.BatchNormalization(**settings)
    layer.build((None, 3))
    return layer


def values(layer):
    return {
        w.name: frameworks.numpy(w.value).copy() for w in layer.non_trainable_weights
    }


def trained(layer, x):
    """`layer` after a compiled training call on each batch; a mask keeps one shape."""
    train = loops.training_call(layer, loops.QUICKEST)
    size = max(map(len, x))
    for batch in x:
        padded = np.full((size, 3), 7.0, "float32")
        padded[: len(batch)] = batch
        train(padded, np.arange(size) < len(batch))
    return layer


def assert_statistics(layer, expected, tolerance=1e-5):
    got = [values(layer)[name] for name in STATISTICS]
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)


def spoilt(x):
    """`x` with a NaN in channel 1 of the first and of the third batch."""
    x = [batch.copy() for batch in x]
    x[0][1, 1] = x[2][0, 1] = np.nan
    return x


def grouped(x, steps):
    return [np.concatenate(x[i : i + steps]) for i in range(0, len(x), steps)]


AVERAGES = {
    # settings, the momenta of the batches (None: plain)
    "plain": ({"momentum": None}, None),
    "debiased": ({"momentum": 0.7, "zero_debias": True}, [0.7] * 4),
    "debiased by a function": (
        {"momentum": warm_up, "zero_debias": True},
        [0, 1 / 2, 2 / 3, 3 / 4],
    ),
    "function": ({"momentum": warm_up}, [0, 1 / 2, 2 / 3, 3 / 4]),
    "schedule": ({"momentum": HALVING}, [0.9, 0.45, 0.225, 0.1125]),
}
QUICK = {"plain", "debiased by a function"}
parametrize = pytest.mark.parametrize(
    ("settings", "momenta"),
    [
        pytest.param(*one, id=name, marks=() if name in QUICK else ON_TORCH)
        for name, one in AVERAGES.items()
    ],
)


@parametrize
def test_averages_equal_the_oracle(settings, momenta):
    """Of batches of unlike sizes, one channel of which is not a number in two."""
    x = spoilt(batches())
    expected = oracle.moving_statistics(
        x, momenta, zero_debias=settings.get("zero_debias", False)
    )
    assert_statistics(trained(built(**settings), x), expected)


@parametrize
def test_averages_of_accumulated_batches(settings, momenta):
    x = batches()
    layer = trained(built(accumulation_steps=2, **settings), x)
    expected = oracle.moving_statistics(
        grouped(x, 2),
        None if momenta is None else momenta[:2],
        zero_debias=settings.get("zero_debias", False),
    )
    assert_statistics(layer, expected)


@pytest.mark.parametrize("settings", [{"momentum": None}, {"zero_debias": True}])
@pytest.mark.usefixtures("float64")
def test_one_step_gives_the_statistics_of_the_batch(settings):
    """Inference then equals training on that batch, and no digits of it are lost."""
    layer = built(dtype="float64", moving_variance_initializer="zeros", **settings)
    x = np.asarray(batches()[1], "float64") * 1e4
    y = layer(x, training=True)
    assert_statistics(layer, [x.mean(0), x.var(0)], tolerance=1e-13)
    np.testing.assert_allclose(
        *map(frameworks.numpy, (layer(x), y)), rtol=1e-10, atol=1e-10
    )


@ON_TORCH
@pytest.mark.parametrize("settings", [{"momentum": None}, {"zero_debias": True}])
def test_before_a_step_inference_is_by_the_initializers(settings):
    layer = built(
        moving_mean_initializer=keras.initializers.Constant(2.0),
        moving_variance_initializer=keras.initializers.Constant(4.0),
        **settings,
    )
    for nothing in (np.zeros((0, 3), "float32"), np.full((2, 3), np.nan, "float32")):
        layer(nothing, training=True)
    x = batches()[0]
    expected = oracle.inference(x, np.full(3, 2.0), np.full(3, 4.0))
    np.testing.assert_allclose(frameworks.numpy(layer(x)), expected, rtol=1e-5)


@ON_TORCH
def test_the_plain_average_does_not_depend_on_the_split():
    x = np.concatenate(batches())
    one, other = built(momentum=None), built(momentum=None)
    one(x, training=True)
    for part in (x[:1], x[1:7], x[7:]):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a batch of one
            other(part, training=True)
    assert_statistics(one, [values(other)[name] for name in STATISTICS])
    np.testing.assert_array_equal(values(other)["moving_count"], [24.0] * 3)


def test_the_plain_average_counts_positions_of_images():
    layer = keras_bn.BatchNormalization(momentum=None, axis=1)
    x = np.random.default_rng(0).normal(1, 2, (4, 3, 5, 2)).astype("float32")
    layer(x, training=True)
    layer(x[:1], training=True)
    seen = np.concatenate([x, x[:1]]).swapaxes(0, 1).reshape(3, -1)
    assert_statistics(layer, [seen.mean(1), seen.var(1)])
    np.testing.assert_array_equal(values(layer)["moving_count"], [50.0] * 3)


@pytest.mark.parametrize(
    ("momentum", "momenta"),
    [
        (0.6, [0.6] * 4),
        pytest.param(None, None, marks=ON_TORCH),
        pytest.param(warm_up, [0, 0.5], marks=ON_TORCH),
    ],
)
def test_renorm_statistics_are_debiased_too(momentum, momenta):
    debias = momentum == 0.6
    x = batches()[: len(momenta or range(4))]
    layer = built(
        renorm=True,
        momentum=momentum,
        renorm_momentum=rising_share if debias else 0.5,
        zero_debias=debias,
    )
    got = values(trained(layer, x))
    weights = np.zeros(3)
    mean, stddev, moving = np.zeros(3), np.zeros(3), np.zeros(3)
    if not debias:
        stddev, moving = np.ones(3), np.ones(3)
    for t, batch in enumerate(x):
        wide = batch.astype("float64")
        keep = (t + 1) / 4 if debias else 0.5
        s = np.sqrt(wide.var(0) + 1e-3)
        weights = weights * keep + 1 - keep
        mean = mean * keep + wide.mean(0) * (1 - keep)
        stddev = stddev * keep + s * (1 - keep)
        if momentum is not None:
            moving = moving * momenta[t] + s * (1 - momenta[t])
    divisor = weights if debias else 1
    expected = {"renorm_mean": mean / divisor, "renorm_stddev": stddev / divisor}
    if momentum is None:
        all_values = np.concatenate(x).astype("float64")
        moving = np.sqrt(all_values.var(0) + 1e-3)
    elif debias:
        moving = moving / (1 - np.prod(momenta))
        np.testing.assert_allclose(got["renorm_weight"], weights, rtol=1e-6)
    expected |= {"moving_stddev": moving, "moving_variance": moving**2 - 1e-3}
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=2e-5, err_msg=name)


@ON_TORCH
def test_debiased_averages_that_take_in_nothing_stay():
    layer = built(momentum=1, zero_debias=True, renorm=True, renorm_momentum=1.0)
    before = values(layer)
    layer(batches()[0], training=True)
    after = values(layer)
    # With renorm it is the square of another.
    del before["moving_variance"], after["moving_variance"]
    np.testing.assert_equal(after, before)


@ON_TORCH
def test_a_schedule_is_kept_in_the_range_of_a_momentum():
    x = batches()[:3]
    layer = built(momentum=lambda step: step * (step * 4 - 6))  # 0, -2, 4
    for batch, expected in zip(x, (x[0], x[1], x[1]), strict=True):
        layer(batch, training=True)
        assert_statistics(layer, [expected.mean(0), expected.var(0)])


@pytest.mark.parametrize("epsilon", [1e-5, 1e-3, 0.3])
def test_the_variance_of_a_constant_is_never_negative(epsilon):
    layer = built(momentum=0.0, renorm=True, epsilon=epsilon)
    layer(np.full((8, 3), 5.0, "float32"), training=True)
    variance = values(layer)["moving_variance"]
    assert np.all(variance >= 0)
    np.testing.assert_allclose(variance, 0, atol=1e-7)


@keras.saving.register_keras_serializable("tests")
def rising_share(step):
    return keras.ops.minimum((step + 1) / 4, 1.0)


@ON_TORCH
def test_a_schedule_is_given_a_float32_scalar():
    seen = []

    def schedule(step):
        seen.append((keras.backend.standardize_dtype(step.dtype), tuple(step.shape)))
        return 0.5

    keras.config.set_floatx("float16")
    try:
        layer = built(momentum=schedule)
    finally:
        keras.config.set_floatx("float32")
    layer(batches()[0], training=True)
    assert seen == [("float32", ())] * 2


def test_limits_of_renorm_follow_the_step():
    limits = {"rmax": rising, "rmin": 1.0, "dmax": from_nothing}
    layer = built(renorm=True, renorm_clipping=limits, renorm_momentum=1.0)
    train = loops.training_call(layer, loops.QUICKEST)
    x = np.random.default_rng(0).normal(3, 5, (8, 3)).astype("float32")
    mean, stddev = x.mean(0), np.sqrt(x.var(0) + 1e-3)
    for step in range(4):
        r = np.clip(stddev, 1, 1 + step / 2)
        d = np.clip(mean, -step / 4, step / 4)
        expected = oracle.forward(x, r=r, d=d).y
        got = frameworks.numpy(train(x, np.ones(8, bool)))
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    assert values(layer)["moving_step"] == 4


def test_where_a_limit_falls_below_another_rmax_counts():
    """Of a function that gives plain numbers, too, whose values could be looked at."""
    limits = {"rmax": lambda step: 2.0 - float(frameworks.numpy(step)), "rmin": 1.0}
    layer = built(renorm=True, renorm_clipping=limits, renorm_momentum=1.0)
    x = np.random.default_rng(0).normal(0, 5, (8, 3)).astype("float32")
    for r in (2.0, 1.0, 0.0):
        expected = oracle.forward(x, r=r, d=x.mean(0)).y
        got = frameworks.numpy(layer(x, training=True))
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_the_step_counts_updates():
    layer = built(momentum=HALVING, accumulation_steps=2)
    x = batches()[0]
    with keras_bn.no_update():
        layer(x, training=True)
    layer(x)
    for _ in range(5):
        layer(x, training=True)
    layer.freeze_statistics = True
    layer(x, training=True)
    assert values(layer)["moving_step"] == 2


def test_without_them_there_are_no_more_weights():
    names = set(values(built(renorm=True, accumulation_steps=2)))
    assert not {n for n in names if n.startswith("moving_")} - {
        *STATISTICS,
        "moving_stddev",
    }


@pytest.mark.parametrize(
    ("settings", "aggregation"),
    [
        ({}, "mean"),
        ({"synchronized": True}, "none"),
        ({"synchronized": True, "replica_groups": [[0, 1]]}, "mean"),
    ],
)
def test_how_replicas_statistics_are_brought_together(settings, aggregation):
    layer = built(momentum=warm_up, **settings)
    found = {w.name: w.aggregation for w in layer.non_trainable_weights}
    step = "only_first_replica" if aggregation == "mean" else "none"
    assert found == dict.fromkeys(STATISTICS, aggregation) | {"moving_step": step}


@pytest.mark.parametrize(
    ("momentum", "name", "each"),
    [
        (warm_up, "moving_step", [1, 2]),
        pytest.param(None, "moving_count", [6, 12], marks=ON_TORCH),
    ],
)
def test_each_domain_has_steps_and_counts_of_its_own(momentum, name, each):
    x = batches((6, 6))
    layer = keras_bn.DomainBatchNormalization(domains=2, momentum=momentum)
    domains = [frameworks.tensor(d, "int32") for d in (1, 0, 1)]
    for batch, domain in zip((*x, x[1]), domains, strict=True):
        layer(batch, domain=domain, training=True)
    got = values(layer)
    seen = np.concatenate([x[0], x[1]])
    np.testing.assert_allclose(got["moving_mean"][1], seen.mean(0), rtol=1e-5)
    assert got[name].reshape(2, -1)[:, 0].tolist() == each
    layer.reset_statistics(domain=1)
    assert values(layer)[name].reshape(2, -1)[:, 0].tolist() == [each[0], 0]
    layer.reset_statistics()
    np.testing.assert_array_equal(values(layer)["moving_mean"], np.zeros((2, 3)))


@ON_TORCH
def test_inference_by_the_batch_of_each_domain():
    layer = keras_bn.DomainBatchNormalization(2, inference_statistics="batch")
    x, domain = batches((6,))[0], np.array([0, 1, 1, 0, 1, 0])
    y = frameworks.numpy(layer(x, domain=domain))
    for number in (0, 1):
        here = domain == number
        expected = oracle.forward(x[here]).y
        np.testing.assert_allclose(y[here], expected, rtol=1e-4, atol=1e-5)


RESETTABLE = {
    "default": {},
    "plain": {"momentum": None, "accumulation_steps": 2},
    "all": {
        "momentum": warm_up,
        "zero_debias": True,
        "renorm": True,
        "renorm_clipping": {"rmax": rising},
        "accumulation_steps": 3,
    },
}


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(one, id=name, marks=() if name == "all" else ON_TORCH)
        for name, one in RESETTABLE.items()
    ],
)
def test_reset_statistics(settings):
    layer = built(moving_mean_initializer="ones", **settings)
    layer.gamma.assign(layer.gamma.value * 2)
    before = values(layer)
    for batch in batches():
        layer(batch, training=True)
    moved = {n for n, value in values(layer).items() if np.any(value != before[n])}
    assert {"moving_mean", "moving_variance"} <= moved
    layer.reset_statistics()
    np.testing.assert_equal(values(layer), before)
    np.testing.assert_array_equal(frameworks.numpy(layer.gamma.value), [2.0] * 3)
    layer(batches()[0], training=True)
    fresh = built(moving_mean_initializer="ones", **settings)
    fresh(batches()[0], training=True)
    np.testing.assert_equal(values(layer), values(fresh))


def test_reset_of_a_layer_that_is_not_built():
    layer = keras_bn.BatchNormalization()
    layer.reset_statistics()
    assert not layer.weights


def test_reset_where_it_is_compiled():
    """It works, or, where the values could not get out, says so and leaves them."""
    layer = built()
    layer(batches()[0], training=True)
    before = values(layer)

    def reset(x):
        layer.reset_statistics()
        return x

    x = frameworks.tensor(batches()[0])
    if keras.backend.backend() == "jax":
        with pytest.raises(
            ValueError, match="cannot be reset within a function that is"
        ):
            frameworks.compiled(reset)(x)
        np.testing.assert_equal(values(layer), before)
    else:
        frameworks.compiled(reset)(x)
        np.testing.assert_equal(values(layer), values(built()))


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="torch.func's")
def test_reset_where_it_is_transformed():
    import torch

    layer = built()
    layer(batches()[0], training=True)
    before = values(layer)

    def reset(x):
        layer.reset_statistics()
        return x

    with keras.StatelessScope(initialize_variables=False):
        # Random weights that wait to be made, which no vmap could.
        keras.layers.Dense(2).build((None, 3))
    with pytest.raises(ValueError, match="cannot be reset within a function that is"):
        torch.func.vmap(reset)(frameworks.tensor(batches()[0]))
    np.testing.assert_equal(values(layer), before)


def test_settings_that_need_a_weight_later_on():
    layer = built(renorm=True)
    before = values(layer)
    for momentum, weight in ((None, "moving_count"), (warm_up, "moving_step")):
        layer.momentum = momentum
        with pytest.raises(ValueError, match=f"without the weight `{weight}`"):
            layer(batches()[0], training=True)
    layer.momentum, layer.zero_debias = 0.9, True
    with pytest.raises(ValueError, match="without the weight `moving_weight`"):
        layer(batches()[0], training=True)
    np.testing.assert_equal(values(layer), before)


SAVED = {
    "plain": {"momentum": None},
    "functions": RESETTABLE["all"],
    "schedule": {
        "momentum": HALVING,
        "renorm": True,
        "renorm_momentum": HALVING,
        "renorm_clipping": {
            "rmax": schedules.PolynomialDecay(1.0, 3, 3.0),
            "rmin": 0.0,
        },
    },
    "batch": {"inference_statistics": "batch"},
}


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(one, id=name, marks=() if name == "functions" else ON_TORCH)
        for name, one in SAVED.items()
    ],
)
def test_training_goes_on_after_saving(settings, tmp_path):
    x = batches((8, 8, 8))
    model = keras.Sequential([keras.Input((3,)), built(**settings)])
    for batch in x[:2]:
        model(batch, training=True)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.layers[0].get_config() == model.layers[0].get_config()
    outputs = [frameworks.numpy(one(x[2], training=True)) for one in (model, again)]
    np.testing.assert_array_equal(*outputs)
    np.testing.assert_equal(values(again.layers[0]), values(model.layers[0]))
    np.testing.assert_array_equal(
        *(frameworks.numpy(one(x[0])) for one in (model, again))
    )


@pytest.mark.parametrize(
    "eager",
    [
        pytest.param(False, id="compiled"),
        pytest.param(True, id="eager", marks=ON_TORCH),
    ],
)
def test_fit(eager):
    """The averages and the step go through Keras's own loops."""
    layers = {
        "plain": built(momentum=None),
        "debiased": built(momentum=warm_up, zero_debias=True),
    }
    model = keras.Sequential([keras.Input((3,)), *layers.values()])
    model.compile("sgd", "mse", run_eagerly=eager)
    x = np.concatenate(batches((8, 8, 8)))
    model.fit(x, x, batch_size=8, shuffle=False, verbose=0)
    wide = x.astype("float64")
    assert_statistics(layers["plain"], [wide.mean(0), wide.var(0)])
    assert values(layers["debiased"])["moving_step"] == 3
    np.testing.assert_allclose(values(layers["debiased"])["moving_weight"], [1.0] * 3)


# Inference by the batch


def test_inference_by_the_batch():
    x = batches((8,))[0] + 5
    layer = built(inference_statistics="batch", renorm=True, activation="relu")
    before = values(layer)
    mask = np.arange(8) < 5
    for given in (None, mask):
        weight = None if given is None else oracle.weights(given, x, -1)
        expected = np.maximum(oracle.forward(x, weight=weight).y, 0)
        got = frameworks.numpy(layer(x, mask=given))
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_equal(values(layer), before)


def test_inference_by_the_batch_in_predict_and_evaluate():
    """Nothing moves, dropout stays off; each batch of `predict` is its own."""
    layer = built(center=False, scale=False)
    model = keras.Sequential([keras.Input((3,)), layer, keras.layers.Dropout(0.5)])
    x = np.concatenate(batches((4, 4)))
    by_moving = model.predict(x, batch_size=4, verbose=0)
    layer.inference_statistics = "batch"
    model.compile("sgd", "mae")
    before = values(layer)
    y = model.predict(x, batch_size=4, verbose=0)
    expected = np.concatenate([oracle.forward(part).y for part in (x[:4], x[4:])])
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    error = model.evaluate(x, np.zeros_like(x), batch_size=4, verbose=0)
    np.testing.assert_allclose(error, np.abs(expected).mean(), rtol=1e-4)
    np.testing.assert_equal(values(layer), before)
    layer.inference_statistics = "moving"
    model.compile("sgd", "mae")
    np.testing.assert_array_equal(model.predict(x, batch_size=4, verbose=0), by_moving)


def test_a_frozen_layer_infers_by_the_batch_too():
    layer = built(inference_statistics="batch", trainable=False)
    x = batches()[0]
    before = values(layer)
    y = frameworks.numpy(layer(x, training=True))
    np.testing.assert_allclose(y, oracle.forward(x).y, rtol=1e-4, atol=1e-5)
    np.testing.assert_equal(values(layer), before)


def test_inference_by_the_batch_warns_once_of_a_single_sample():
    layer = built(inference_statistics="batch")
    with pytest.warns(UserWarning, match=r'inference by inference_statistics="batch"'):
        y = layer(batches()[0][:1])
    np.testing.assert_array_equal(frameworks.numpy(y), np.zeros((1, 3)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(batches()[0][:1])
