"""Findings: from where on each is one, how grave, and what it says."""

import keras
import numpy as np
import pytest

import keras_bn
from keras_bn.tools._reports.calls import from_graphs
from keras_bn.tools._reports.findings import Facts, findings_of

L = keras.layers
Constant = keras.initializers.Constant
Norm = keras_bn.BatchNormalization
# Which backend has the weights is of no matter.
pytestmark = pytest.mark.once
BATCH = {"inference_statistics": "batch"}


def found(known, settings=None, **weights):
    """The findings on a layer of 20 channels; weights are of the first so many."""
    layer = Norm(**settings or {})
    layer.build((None, 20))
    if not known.pop("initial", False):
        layer.moving_mean.assign(np.ones(20))
    for name, (count, value) in weights.items():
        values = np.array(keras.ops.convert_to_numpy(getattr(layer, name)))
        values[:count] = value
        getattr(layer, name).assign(values)
    unknown = dict.fromkeys(("updates", "distance", "bias")) | {
        "always_training": False
    }
    return findings_of(Facts("norm", layer, **unknown | known))


BOUNDS = {
    "near": ({"distance": 0.299}, {}, []),
    "far": ({"distance": 0.3}, {}, [("far", "warning")]),
    "quite far": ({"distance": 0.999}, {}, [("far", "warning")]),
    "very far": ({"distance": 1.0}, {}, [("far", "error")]),
    "far and frozen": ({"distance": 9.0}, {"trainable": False}, [("far", "note")]),
    "far and unused": ({"distance": 9.0}, BATCH, [("batch-inference", "note")]),
    "not finite": ({"distance": np.inf}, {}, [("not-finite", "error")]),
    "not finite and unused": (
        {"distance": np.inf},
        BATCH,
        [("not-finite", "error"), ("batch-inference", "note")],
    ),
    "initial": ({"initial": True}, {}, [("never-updated", "error")]),
    "initial and right": ({"initial": True, "distance": 0.299}, {}, []),
    "initial and wrong": (
        {"initial": True, "distance": 0.3},
        {},
        [("never-updated", "error"), ("far", "warning")],
    ),
    "initial and unused": ({"initial": True}, BATCH, [("batch-inference", "note")]),
    # 0.99 ** 298 is 0.0500, the next one 0.0495.
    "lag": ({"updates": 298}, {}, [("lag", "warning")]),
    "no lag": ({"updates": 299}, {}, []),
    "lag of no matter": ({"updates": 298, "distance": 0.299}, {}, []),
    "lag that shows": (
        {"updates": 298, "distance": 0.3},
        {},
        [("lag", "warning"), ("far", "warning")],
    ),
    "no lag, just": ({"updates": 1}, {"momentum": 0.05}, []),
    "no step": ({"updates": 0}, {}, []),
    "kept as it is": ({"updates": 298}, {"momentum": 1.0}, []),
    "frozen": ({"updates": 298}, {"trainable": False}, []),
    "lag of what is unused": ({"updates": 298}, BATCH, [("batch-inference", "note")]),
    "bias": ({"bias": "dense"}, {}, [("bias", "note")]),
    "infinite outputs": (
        {},
        {"epsilon": 0.5, "moving_variance_initializer": Constant(-0.5)},
        [("negative-variance", "error")],
    ),
    "always": ({"always_training": True}, {}, [("always-training", "warning")]),
}


@pytest.mark.parametrize(("known", "settings", "expected"), BOUNDS.values(), ids=BOUNDS)
def test_what_is_known_of_a_layer(known, settings, expected):
    findings = found(dict(known), settings)
    assert [(one.code, one.severity) for one in findings] == expected


WEIGHTS = {
    "small gamma": ("gamma", 1, 1.1e-3, None),
    "dead gamma": ("gamma", 2, -0.9e-3, ("dead-gamma", "note", "2 of 20")),
    "dead gammas": ("gamma", 3, 0.9e-3, ("dead-gamma", "warning", "3 of 20")),
    "negative gamma": ("gamma", 20, -1.0, None),
    "small variance": ("moving_variance", 3, 1.1e-4, None),
    "negative": (
        *("moving_variance", 2, -1e-9),
        ("negative-variance", "warning", "2 of 20 channels, which no data have"),
    ),
    "below -epsilon": (
        *("moving_variance", 1, -1e-3),
        ("negative-variance", "error", "below -epsilon the output is NaN"),
    ),
    "no variance": ("moving_variance", 2, 0.0, ("collapsed", "note", "2 of 20")),
    "tiny": (
        "moving_variance",
        3,
        0.98e-4,
        ("collapsed", "warning", "(0.001) in 3 of"),
    ),
    "large variance": ("moving_variance", 9, 0.9e6, None),
    "huge": ("moving_variance", 1, 1.1e6, ("exploded", "warning", "1 of 20")),
    **{
        name: (name, 1, np.nan, ("not-finite", "error", f"{name} not finite"))
        for name in ("gamma", "beta", "moving_mean", "moving_variance")
    },
}


@pytest.mark.parametrize(
    ("name", "count", "value", "expected"), WEIGHTS.values(), ids=WEIGHTS
)
def test_weights(name, count, value, expected):
    findings = found({}, **{name: (count, value)})
    assert [(one.code, one.severity) for one in findings] == (
        [expected[:2]] if expected else []
    )
    assert all(expected[2] in one.verdict for one in findings)


def test_bounds_themselves_are_no_findings(monkeypatch):
    for name in ("DEAD_GAMMA", "EXPLODED_VARIANCE"):
        monkeypatch.setattr(f"keras_bn.tools._reports.findings.{name}", 1.0)
    assert found({}, {"epsilon": 10.0}) == []  # gamma and the variance are 1


def test_layers_without_gamma_and_beta():
    assert found({}, {"scale": False, "center": False}) == []


def test_numbers_in_what_is_said():
    (lag,) = found({"updates": 50})
    assert "after 50 steps with momentum 0.99, 61% of" in lag.verdict
    assert "momentum 0.94 or less" in lag.advice  # 0.05 ** (1 / 50)
    (far,) = found({"distance": 0.456})
    assert "are 0.46 standard deviations" in far.verdict


def _model(*layers, shape=(4, 4, 3)):
    return keras.Sequential([keras.Input(shape), *layers])


def _read_twice():
    inputs = keras.Input((3,))
    x = L.Dense(3)(inputs)
    return keras.Model(inputs, L.Add()([Norm()(x), x]))


def _inner(**call):
    inner = _model(L.Dense(3, name="dense"), Norm(name="norm"), shape=(3,))
    inner.name = "inner"
    inputs = keras.Input((3,))
    return keras.Model(inputs, inner(inputs, **call))


def _shared():
    inputs, dense = keras.Input((3,)), L.Dense(3)
    return keras.Model(inputs, [Norm()(dense(inputs)), dense(L.ReLU()(inputs))])


def _held_elsewhere():
    inputs, dense = keras.Input((3,)), L.Dense(3)
    steps = L.TimeDistributed(dense)(inputs[:, None])
    return keras.Model(inputs, [Norm()(dense(inputs)), steps])


def _first(axis):
    return _model(L.Conv2D(3, 2, data_format="channels_first", name="c"), Norm(axis))


LINEAR = {
    "at once": (lambda: _model(L.Dense(3, name="d"), Norm()), ["d"]),
    "without": (lambda: _model(L.Dense(3, use_bias=False), Norm()), []),
    "pooled": (
        lambda: _model(
            *(L.Conv2D(3, 2, name="c"), L.MaxPooling2D(2), L.Identity(), Norm())
        ),
        ["c"],
    ),
    "dropped": (lambda: _model(L.Dense(3), L.Dropout(0.5), Norm()), []),
    "activated": (lambda: _model(L.Dense(3, activation="relu"), Norm()), []),
    "along another axis": (lambda: _model(L.Dense(3), Norm(axis=1)), []),
    "along several": (lambda: _model(L.Dense(3), Norm(axis=(1, 3))), []),
    "channels first": (lambda: _first(1), ["c"]),
    "channels first, other axis": (lambda: _first(-1), []),
    "frozen": (lambda: _model(L.Dense(3), Norm(trainable=False)), []),
    "read twice": (_read_twice, []),
    "shared": (_shared, []),
    "held elsewhere": (_held_elsewhere, []),
    "nothing before": (lambda: _model(Norm(), L.Dense(3)), []),
    "inside": (_inner, ["inner/dense"]),
}


@pytest.mark.parametrize(("build", "expected"), LINEAR.values(), ids=LINEAR)
def test_biases_that_do_nothing(build, expected):
    biases, training = from_graphs(build())
    assert list(biases.values()) == expected
    assert not training


def test_a_model_that_is_called_in_training_mode():
    inside, inputs = keras.Input((3,)), keras.Input((3,))
    norm, deep = Norm(), _inner()
    model = keras.Model(inside, norm(deep(inside)))
    trained = keras.Model(inputs, Norm()(model(inputs, training=True)))
    assert from_graphs(trained)[1] == {id(norm), id(deep.layers[-1].layers[-1])}
    assert from_graphs(_inner(training=False))[1] == set()
