"""`inspect`: each finding where it is due, and not elsewhere."""

import json
import sys

import keras
import numpy as np
import pytest

import keras_bn
from cases_tools import InTraining, images, numpy, randomize, weights_of
from keras_bn.tools._statistics.moments import distance
from slow import slow

L = keras.layers
Norm = keras_bn.BatchNormalization
# Findings are made in NumPy, of what a run on data has given.
ON_TORCH = slow("models that JAX runs op by op", but_on="torch")


def _model(bias=False, **arguments):
    layers = [L.Dense(20, use_bias=bias), Norm(name="norm", **arguments), L.ReLU()]
    return keras.Sequential([keras.Input((4,)), *layers], name="net")


def _trained(model, steps=1000):
    """A model with true statistics, compiled, after so many steps by its optimizer."""
    model.compile("sgd", "mse")
    model.optimizer.iterations.assign(steps)
    keras_bn.recalibrate(model, images(64, 4), verbose=0, include_frozen=True)
    return model


def _set(**weights):
    model = _trained(_model())
    for name, value in weights.items():
        variable = getattr(model.get_layer("norm"), name)
        array = numpy(variable)
        array[: value[0]] = value[1]
        variable.assign(array)
    return model


def _always():
    inputs = keras.Input((4,))
    x = Norm(name="norm")(inputs, training=True)
    return _trained(keras.Model(inputs, x))


FINDINGS = [
    ("nothing", lambda: _trained(_model()), []),
    ("never updated", _model, [("never-updated", "error")]),
    (
        "never updated, of its own",
        lambda: _model(
            moving_mean_initializer=keras.initializers.Constant(0.1), dtype="float64"
        ),
        [("never-updated", "error")],
    ),
    ("not known", lambda: _model(moving_mean_initializer="random_normal"), []),
    ("bias", lambda: _trained(_model(bias=True)), [("bias", "note")]),
    ("lag", lambda: _trained(_model(), 50), [("lag", "warning")]),
    ("low momentum", lambda: _trained(_model(momentum=0.9), 50), []),
    ("frozen", lambda: _trained(_model(trainable=False), 50), []),
    ("one dead", lambda: _set(gamma=(1, 1e-5)), [("dead-gamma", "note")]),
    ("many dead", lambda: _set(gamma=(9, 0.0)), [("dead-gamma", "warning")]),
    ("collapsed", lambda: _set(moving_variance=(9, 1e-6)), [("collapsed", "warning")]),
    ("exploded", lambda: _set(moving_variance=(1, 1e9)), [("exploded", "warning")]),
    ("nan", lambda: _set(beta=(1, np.nan)), [("not-finite", "error")]),
    ("always training", _always, [("always-training", "warning")]),
]


@ON_TORCH
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("build", "expected"),
    [case[1:] for case in FINDINGS],
    ids=[case[0] for case in FINDINGS],
)
def test_findings(build, expected):
    model = build()
    before = weights_of(model)
    report = keras_bn.inspect(model)
    assert [(one.code, one.severity) for one in report.findings] == expected
    assert all(one.layer == "norm" and one.advice for one in report.findings)
    assert report.severity == (expected[0][1] if expected else None)
    assert weights_of(model) == before


@ON_TORCH
def test_facts_of_a_layer():
    model = _trained(_model(momentum=0.8), 7)
    (row,) = keras_bn.inspect(model).layers
    assert row[:8] == ("norm", "keras_bn", -1, 20, 0.8, 1e-3, True, 7)
    assert row.gamma == (1.0, 1.0, 1.0)
    norm = model.get_layer("norm")
    stddev = np.sqrt(numpy(norm.moving_variance))
    norm.gamma.assign(np.linspace(-3, 1, 20))
    (row,) = keras_bn.inspect(model).layers
    for spread, values in ((row.stddev, stddev), (row.gamma, numpy(norm.gamma))):
        values = abs(values)
        expected = values.min(), np.median(values), values.max()
        np.testing.assert_allclose(spread, expected, rtol=1e-6)
    model = keras.Sequential(
        [
            keras.Input((4, 4)),
            L.BatchNormalization(renorm=True, scale=False, trainable=False),
            Norm(axis=(1, 2), epsilon=np.float32(0.25)),
        ]
    )
    variance = np.linspace(-1, 2, 16)
    model.layers[1].moving_variance.assign(variance.reshape(1, 4, 4))
    report = keras_bn.inspect(model)
    row, other = report.layers
    assert (row.kind, row.updates, row.gamma) == ("keras renorm frozen", 0, None)
    assert (other.kind, other.axis, other.channels) == ("keras_bn", [1, 2], 16)
    stddev = np.sqrt(np.maximum(variance, 0))
    assert other.stddev == pytest.approx((0, np.median(stddev), 2**0.5))
    assert json.loads(json.dumps(report.to_dict()))["layers"][1]["epsilon"] == 0.25


def test_distance_is_as_defined():
    model = keras.Sequential([keras.Input((2,)), Norm(epsilon=0.5)])
    norm = model.layers[0]
    norm.moving_mean.assign([1.0, 0.0])
    norm.moving_variance.assign([4.0, 1.0])
    # Mean 4 and 0, variance 4 and 9.
    x = np.array([[2, -3], [6, 3]], "float32")
    (row,) = keras_bn.inspect(model, x).layers
    first, second = 3**2 / 4.5, (9.5**0.5 - 1.5**0.5) ** 2 / 1.5
    assert row.distance == pytest.approx(((first + second) / 2) ** 0.5, rel=1e-5)


@ON_TORCH
def test_distance_is_the_change_of_the_normalized_output():
    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, (100_000, 1))
    training = (x - x.mean()) / x.std()
    inference = (x - 1) / 1.5
    change = np.sqrt(np.mean((training - inference) ** 2))
    one = distance(x.mean(0), x.var(0), np.ones(1), np.full(1, 1.5**2), 1e-9)
    assert one == pytest.approx(change, rel=1e-6)


def test_data_show_the_distance_and_what_it_does_to_outputs():
    model = _trained(_model(), 1000)
    x = images(64, 4)
    right = keras_bn.inspect(model, x)
    assert right.findings == []
    assert right.layers[0].distance < 1e-5
    assert right.output_change < 1e-5
    shifted = keras_bn.inspect(model, x * 4 + 3, steps=2, batch_size=16)
    assert [one.code for one in shifted.findings] == ["far"]
    assert shifted.severity == "error"
    with keras_bn.no_update():
        parts = np.split(x * 4 + 3, 4)[:2]
        training, inference = (
            np.concatenate([numpy(model(part, training=mode)) for part in parts])
            for mode in (True, False)
        )
    change = np.linalg.norm(training - inference) / np.linalg.norm(inference)
    assert shifted.output_change == pytest.approx(change, rel=1e-4)


def test_the_change_is_that_of_all_outputs():
    inputs = keras.Input((2,))
    outputs = {"normal": Norm()(inputs), "others": [inputs, 0.0 * inputs]}
    model, x = keras.Model(inputs, outputs), images(8, 2) * 3
    before, after = ((x - x.mean(0)) / np.sqrt(x.var(0) + 1e-3), x / 1.001**0.5)
    size = (after**2).sum() + (x**2).sum()
    change = ((before - after) ** 2).sum() / size
    assert keras_bn.inspect(model, x).output_change == pytest.approx(change**0.5)
    nothing = keras.Model(inputs, 0.0 * Norm()(inputs))
    assert keras_bn.inspect(nothing, x).output_change == 0


@ON_TORCH
def test_progress_is_by_layers_and_batches(monkeypatch):
    module = sys.modules["keras_bn.tools.inspect"]
    said = []

    class Noted(module.Progress):
        def __init__(self, what, total):
            said.append((what, total))
            super().__init__(what, total)

        def advance(self):
            said.append("more")

    monkeypatch.setattr(module, "Progress", Noted)
    layers = [keras.Input((4,)), Norm(), L.Dense(2), Norm(trainable=False)]
    keras_bn.inspect(keras.Sequential(layers, name="net"), images(9, 4), batch_size=3)
    assert said == [("inspecting net", 6), *["more"] * 6]


class Raising(L.Layer):
    """Adds 1, unless it is told that nothing is trained."""

    def call(self, x, training=True):
        return x + 1 if training else x


@ON_TORCH
def test_layers_that_train_by_default_are_told_not_to():
    model = keras.Sequential([keras.Input((4,)), Raising(), Norm()])
    x = images(64, 4)
    keras_bn.recalibrate(model, x, verbose=0)
    report = keras_bn.inspect(model, x)
    assert report.layers[0].distance < 1e-5
    assert report.output_change < 1e-5


def test_nothing_is_written_by_calls_in_training_mode_which_have_no_other():
    model = randomize(keras.Sequential([keras.Input((4,)), InTraining()]))
    before = weights_of(model)
    report = keras_bn.inspect(model, images(8, 4) + 9)
    assert weights_of(model) == before
    assert report.layers[0].distance > 1
    assert report.output_change == 0


def test_what_is_written_into_a_graph_has():
    model = _always()
    x = images(8, 4) + 9
    before = weights_of(model)
    change = keras_bn.inspect(model, x).output_change
    assert weights_of(model) == before
    inference = model.predict(x, verbose=0)  # since Keras 3.16 it trains there too
    norm = np.linalg.norm(numpy(model(x)) - inference) / np.linalg.norm(inference)
    assert change == pytest.approx(norm, rel=1e-5)
    assert weights_of(model) != before  # as the finding says


@ON_TORCH
def test_batches_have_128_samples():
    model, x = _trained(_model()), images(129, 4) + 3
    default, told, other = (
        keras_bn.inspect(model, x, **how).output_change
        for how in ({}, {"batch_size": 128}, {"batch_size": 129})
    )
    assert default == told != other


@ON_TORCH
def test_initial_statistics_that_are_right_are_not_reported():
    model = keras.Sequential([keras.Input((1,)), Norm()])
    x = np.array([[-1.0], [1.0]], "float32")
    assert keras_bn.inspect(model, x).findings == []


@ON_TORCH
def test_printed_and_as_json():
    report = keras_bn.inspect(_model(bias=True), images(8, 4))
    text = str(report)
    for word in ("net", "norm", "never-updated", "use_bias=False", "moving stddev"):
        assert word in text
    assert json.loads(json.dumps(report.to_dict()))["layers"][0]["layer"] == "norm"


@ON_TORCH
@pytest.mark.parametrize(
    ("layers", "data"), [(1, None), (40, images(8, 4))], ids=["plain", "data"]
)
def test_plot(tmp_path, layers, data):
    norms = [Norm(scale=bool(i % 2)) for i in range(layers)]
    model = keras.Sequential([keras.Input((4,)), *norms])
    keras_bn.inspect(model, data).plot(tmp_path / "one.png")
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")


@ON_TORCH
def test_plot_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"keras-bn\[plot\]"):
        keras_bn.inspect(_model()).plot(tmp_path / "one.png")


@ON_TORCH
@pytest.mark.parametrize(
    ("model", "data", "error", "message"),
    [
        (lambda: "net.keras", None, TypeError, r"`model` must be a Keras model"),
        (lambda: keras.Sequential([Norm()]), None, ValueError, r"must be built"),
        (_model, images(3, 5), ValueError, r"\(None, 4\).*\(3, 5\)"),
        (_model, images(0, 4), ValueError, r"at least one batch"),
    ],
)
def test_bad_input(model, data, error, message):
    with pytest.raises(error, match=message):
        keras_bn.inspect(model(), data)


@ON_TORCH
@pytest.mark.parametrize("name", ["steps", "batch_size"])
def test_sizes_must_be_above_zero(name):
    with pytest.raises(ValueError, match=rf"`{name}` must be an integer above 0.*=0"):
        keras_bn.inspect(_model(), images(8, 4), **{name: 0})


@ON_TORCH
def test_data_that_are_not_finite_are_an_error_of_the_report(tmp_path):
    report = keras_bn.inspect(_trained(_model()), np.full((8, 4), np.nan, "float32"))
    codes = [(one.code, one.severity) for one in report.findings]
    assert codes == [("not-finite", "error")]
    assert "NaN or an infinity" in report.findings[0].verdict
    json.dumps(report.to_dict(), allow_nan=False)
    report.plot(tmp_path / "one.png")


@ON_TORCH
def test_frozen_statistics_are_named_and_let_the_bias_matter():
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(2),
            keras_bn.BatchNormalization(freeze_statistics=True),
        ]
    )
    report = keras_bn.inspect(model)
    assert report.layers[0].kind == "keras_bn frozen statistics"
    assert "bias" not in {one.code for one in report.findings}


@ON_TORCH
@pytest.mark.parametrize(
    ("norm", "steps"),
    [
        (lambda: Norm(), 1),
        (lambda: Norm(accumulation_steps=2), 2),
        (L.BatchNormalization, 1),
    ],
)
def test_updates_are_counted_by_accumulation(norm, steps):
    model = keras.Sequential([keras.Input((3,)), norm(), keras.layers.Dense(1)])
    optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
    model.compile(optimizer, "mse")
    x = images(24, 3)
    model.fit(x, x[:, :1], batch_size=4, verbose=0)
    assert keras_bn.inspect(model).layers[0].updates == 6 // steps


@ON_TORCH
def test_a_frozen_layer_changes_no_outputs_and_is_a_note():
    model = _trained(_model(trainable=False))
    report = keras_bn.inspect(model, images(64, 4) * 4 + 3)
    assert report.output_change == 0
    assert [(one.code, one.severity) for one in report.findings] == [("far", "note")]


@ON_TORCH
@pytest.mark.parametrize(
    ("count", "data"), [(1, None), (20, images(8, 4))], ids=["plain", "data"]
)
def test_weights_that_are_not_finite_still_print_plot_and_are_json(
    tmp_path, count, data
):
    model = _set(moving_variance=(count, np.nan), gamma=(20, np.inf))
    report = keras_bn.inspect(model, data)
    assert report.severity == "error"
    assert report.findings[0].verdict.startswith("gamma and moving_variance not finite")
    assert "not-finite" in str(report)
    assert np.isfinite(report.layers[0].stddev).all() == (count == 1)
    json.dumps(report.to_dict(), allow_nan=False)
    report.plot(tmp_path / "one.png")
    assert (tmp_path / "one.png").stat().st_size > 1000


def test_without_epsilon_what_never_varied_is_where_it_was():
    zero, one = np.zeros(2), np.array([1.0, 0.0])
    assert distance(zero, zero, zero, zero, 0) == 0
    assert distance(one, 4 * one, zero, 4 * one, 0) == pytest.approx(0.5**0.5 / 2)


def test_a_negative_variance_is_as_far_as_none():
    one = np.ones(1)
    assert distance(one, one, 0 * one, -one, 0.25) == distance(
        one, one, 0 * one, 0, 0.25
    )
