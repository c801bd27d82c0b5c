"""The tools on layers that average otherwise: plainly, debiased, by a schedule."""

import json

import keras
import numpy as np
import pytest

import frameworks
import keras_bn
import oracle
from keras_bn.callbacks import Recalibrate
from keras_bn.tools._statistics.averaging import momentum_now, remaining
from keras_bn.tools._statistics.moments import RunningAverage
from slow import slow

Norm = keras_bn.BatchNormalization
PLAIN, DEBIASED = {"momentum": None}, {"momentum": 0.5, "zero_debias": True}
HALF = keras.optimizers.schedules.PiecewiseConstantDecay([2], [0.5, 0.75])
X = [np.random.default_rng(i).normal(i, 2, (8, 3)).astype("float32") for i in range(4)]


def model_of(*norms):
    return keras.Sequential([keras.Input((3,)), *norms])


def trained(norm, x=X[:2]):
    """A model of this norm, and the norm, after training on these batches."""
    model = model_of(norm)
    for batch in x:
        norm(batch, training=True)
    return model, norm


def values(layer):
    return {w.name: frameworks.numpy(w.value).copy() for w in layer.weights}


def assert_statistics(layer, expected):
    got = [values(layer)[name] for name in ("moving_mean", "moving_variance")]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


# How a layer averages is told from its settings, which no backend knows.
ON_TORCH = slow("layers that JAX runs op by op", but_on="torch")
SETTINGS = [
    pytest.param(DEBIASED, [0.5] * 4, id="debiased"),
    pytest.param(PLAIN, None, id="plain", marks=ON_TORCH),
    pytest.param(
        *({"momentum": HALF}, [0.5, 0.5, 0.5, 0.75]), id="schedule", marks=ON_TORCH
    ),
]


@pytest.mark.parametrize(("settings", "momenta"), SETTINGS)
def test_a_converted_layer_goes_on_as_it_would_have(settings, momenta):
    model, _ = trained(Norm(**settings), X[:3])
    ours = keras_bn.convert(model, epsilon=0.01).layers[0]
    ours(X[3], training=True)
    debias = settings.get("zero_debias", False)
    assert_statistics(ours, oracle.moving_statistics(X, momenta, debias))


@ON_TORCH
def test_averages_of_unknown_counts():
    """Kept by zero_debias, unless nothing has moved them; replaced by momentum=None."""
    theirs = keras.layers.BatchNormalization(momentum=0.5)
    model, theirs = trained(theirs)
    fresh = model_of(keras.layers.BatchNormalization(momentum=0.5))
    cases = [(model, 1.0, DEBIASED), (fresh, 0.0, DEBIASED), (model, 0.0, PLAIN)]
    for start, weight, settings in cases:
        ours = keras_bn.convert(start, **settings).layers[0]
        name = "moving_count" if settings is PLAIN else "moving_weight"
        np.testing.assert_array_equal(values(ours)[name], [weight] * 3)
        if start is model:
            np.testing.assert_array_equal(
                values(ours)["moving_mean"], values(theirs)["moving_mean"]
            )
        before = [values(ours)[name] for name in ("moving_mean", "moving_variance")]
        ours(X[2], training=True)
        new = [X[2].mean(0), X[2].var(0)]
        share = 0.5 if weight else 1.0
        assert_statistics(
            ours,
            [b * (1 - share) + n * share for b, n in zip(before, new, strict=True)],
        )


@ON_TORCH
def test_a_count_says_what_debiasing_starts_from():
    model, norm = trained(Norm(**PLAIN))
    norm.moving_count.assign([16.0, 1.0, 0.0])
    ours = keras_bn.convert(model, renorm=True, **DEBIASED).layers[0]
    for name in ("moving_weight", "renorm_weight"):
        np.testing.assert_array_equal(values(ours)[name], [1.0, 1.0, 0.0])


REFUSED = {
    "plain": (PLAIN, r"`momentum` is a number.*momentum=None"),
    "debiased": (DEBIASED, "has no argument `zero_debias`"),
    "schedule": ({"momentum": HALF}, "`momentum` is a number"),
    "limits": (
        {"renorm": True, "renorm_clipping": {"rmax": HALF}},
        r"`renorm_clipping\['rmax'\]` is a number",
    ),
    "batch": (
        {"inference_statistics": "batch"},
        "has no argument `inference_statistics`.*'batch'",
    ),
}


@ON_TORCH
@pytest.mark.parametrize(("settings", "match"), REFUSED.values(), ids=REFUSED)
def test_what_keras_cannot_express(settings, match):
    model = model_of(Norm(**settings))
    with pytest.raises(ValueError, match="(?s)" + match):
        keras_bn.convert(model, to="keras")


@ON_TORCH
def test_a_plain_average_goes_to_keras_by_a_momentum_and_back():
    model, norm = trained(Norm(**PLAIN))
    theirs = keras_bn.convert(model, to="keras", momentum=0.5)
    assert type(theirs.layers[0]) is keras.layers.BatchNormalization
    ours = keras_bn.convert(theirs, **PLAIN)
    for one in (theirs.layers[0], ours.layers[0]):
        assert_statistics(
            one, [values(norm)["moving_mean"], values(norm)["moving_variance"]]
        )


def test_recalibrated_values_are_counted():
    """So that training goes on from them: twelve values, then eight."""
    model, norm = trained(Norm(**PLAIN))
    data = np.concatenate(X)[5:17]
    keras_bn.recalibrate(model, data, batch_size=4, verbose=0)
    np.testing.assert_array_equal(values(norm)["moving_count"], [12.0] * 3)
    norm(X[3], training=True)
    everything = np.concatenate([data, X[3]])
    assert_statistics(norm, [everything.mean(0), everything.var(0)])


@pytest.mark.parametrize(("settings", "momenta"), SETTINGS)
def test_recalibrating_by_ema_is_what_training_does(settings, momenta):
    model, norm = trained(Norm(**settings), X[:1])
    report = keras_bn.recalibrate(
        model, np.concatenate(X[1:3]), method="ema", batch_size=8, verbose=0
    )
    assert report.rows[0].values == 16
    debias = settings.get("zero_debias", False)
    # A schedule stands still: these are no steps of training.
    momenta = momenta and momenta[:3]
    assert_statistics(norm, oracle.moving_statistics(X[:3], momenta, debias))
    if debias:
        np.testing.assert_allclose(values(norm)["moving_weight"], [1 - 0.5**3] * 3)


@ON_TORCH
@pytest.mark.parametrize(("settings", "momenta"), SETTINGS)
def test_a_batch_without_values_of_a_channel_leaves_its_average(settings, momenta):
    _, norm = trained(Norm(**settings), [])
    average = RunningAverage(norm)
    moments = [(one.mean(0).astype("f8"), one.var(0).astype("f8")) for one in X[:2]]
    average.add(np.array([8.0, 0.0, 8.0]), *moments[0])
    average.add(np.array([8.0, 1.0, 8.0]), *moments[1])  # one value is one
    debias = settings.get("zero_debias", False)
    every, last = (
        oracle.moving_statistics(x, momenta and momenta[: len(x)], debias)
        for x in (X[:2], X[1:2])
    )
    for found, all_of_them, one in zip(
        (average.mean, average.variance), every, last, strict=True
    ):
        expected = [all_of_them[0], one[1], all_of_them[2]]
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_array_equal(average.count, [16.0, 1.0, 16.0])


@ON_TORCH
def test_recalibrated_debiased_averages_are_whole():
    model, norm = trained(Norm(renorm=True, **DEBIASED), X[:1])
    keras_bn.recalibrate(model, X[1], verbose=0)
    for name in ("moving_weight", "renorm_weight"):
        np.testing.assert_array_equal(values(norm)[name], [1.0] * 3)


KEPT = [
    pytest.param({"renorm": True}, id="renorm"),
    pytest.param(PLAIN, id="plain", marks=ON_TORCH),
    pytest.param(DEBIASED, id="debiased", marks=ON_TORCH),
]


@pytest.mark.parametrize("settings", KEPT)
def test_the_callback_puts_all_statistics_back(settings):
    model, norm = trained(Norm(**settings))
    callback = Recalibrate(X[3], when=("epoch", "validation"))
    callback.set_model(model)
    before = values(norm)
    callback.on_epoch_end(0)
    recalibrated = values(norm)
    for name in set(before) - {"gamma", "beta"}:
        assert np.any(recalibrated[name] != before[name])
    callback.on_test_begin()  # by another callback, before the next epoch
    np.testing.assert_equal(values(norm), recalibrated)
    callback.on_test_end()
    np.testing.assert_equal(values(norm), before)


@ON_TORCH
def test_the_callback_leaves_the_statistics_of_the_end():
    model, norm = trained(Norm())
    callback = Recalibrate(X[3], when=("epoch", "end"))
    callback.set_model(model)
    callback.on_epoch_end(0)
    callback.on_train_end()
    recalibrated = values(norm)
    callback.on_test_end()
    np.testing.assert_equal(values(norm), recalibrated)


@ON_TORCH
def test_inspect_knows_how_they_average():
    norms = [
        Norm(**PLAIN, name="plain"),
        Norm(**DEBIASED, name="debiased"),
        Norm(momentum=lambda step: 0.99 + 0 * step, name="slow"),
        Norm(momentum=HALF, name="quick"),
        Norm(inference_statistics="batch", name="batch"),
    ]
    model = model_of(*norms)
    model.compile("sgd", "mse")
    for norm in norms[:4]:
        norm(X[0], training=True)
    model.optimizer.iterations.assign(20)
    report = keras_bn.inspect(model)
    assert [(f.layer, f.code) for f in report.findings] == [
        ("slow", "lag"),
        ("batch", "batch-inference"),
    ]
    assert "a scheduled momentum, 82% of" in report.findings[0].verdict
    assert [row.momentum for row in report.layers] == [
        *(None, 0.5, pytest.approx(0.99), 0.5, 0.99)
    ]
    assert report.layers[-1].kind == "keras_bn batch at inference"
    assert json.loads(json.dumps(report.to_dict())) == report.to_dict()
    assert "none" in str(report)


@ON_TORCH
def test_what_remains_of_the_initial_values():
    norm = Norm(momentum=HALF)
    assert remaining(norm, 4) == pytest.approx(0.5**3 * 0.75)
    assert remaining(norm, 100_000) == 0.0
    assert [remaining(Norm(**one), 1) for one in (PLAIN, DEBIASED)] == [0.0, 0.0]
    theirs = keras.layers.BatchNormalization(momentum=np.float32(0.5))
    shares = [remaining(theirs, 3), momentum_now(theirs)]
    assert [(one, type(one)) for one in shares] == [(0.125, float), (0.5, float)]
    none = Norm(momentum=lambda step: 0 * step)
    assert remaining(none, 3) == 0.0
    norm.build((None, 3))
    norm.moving_step.assign(3)
    assert momentum_now(norm) == 0.75
    seen = []
    norm.momentum = lambda step: seen.append(step) or 0.5 + step  # above 1 keeps all
    assert momentum_now(norm) == 1.0
    norm(X[0], training=True)
    assert seen[0].dtype == seen[1].dtype  # as in training


@ON_TORCH
def test_tools_let_a_layer_infer_by_the_batch():
    """Outputs do not change between the modes; what comes after sees the batch's."""
    norm, after = Norm(inference_statistics="batch"), Norm()
    model = model_of(norm, keras.layers.Dense(3), after)
    assert keras_bn.inspect(model_of(norm), X[0]).output_change < 1e-6
    report = keras_bn.inspect(model, X[0])
    assert report.layers[0].distance > 0.3  # which nobody minds
    assert not [f for f in report.findings if f.layer == norm.name and f.code == "far"]
    keras_bn.recalibrate(model, X[0], layer_by_layer=True, batch_size=4, verbose=0)
    parts = [norm(part) for part in np.split(X[0], 2)]
    seen = np.concatenate([frameworks.numpy(model.layers[1](y)) for y in parts])
    assert_statistics(after, [seen.mean(0), seen.var(0)])


@ON_TORCH
def test_fold_leaves_a_layer_that_infers_by_the_batch():
    model = model_of(keras.layers.Dense(3), Norm(inference_statistics="batch"))
    folded, report = keras_bn.fold(model, explain=True)
    assert 'inference_statistics="batch"' in report.left[0].reason
    np.testing.assert_allclose(
        *(one.predict(X[0], verbose=0) for one in (folded, model)), rtol=1e-6
    )
    aware, report = keras_bn.quantize_aware(model, explain=True)
    assert [row.reason for row in report.left] == [
        'it infers by inference_statistics="batch": no scale and offset are fixed'
    ]
    name = model.layers[-1].name
    assert aware.get_layer(name).inference_statistics == "batch"
