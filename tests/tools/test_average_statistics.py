"""`average_statistics`: replicas' moving statistics, as one pass would have them."""

import sys

import keras
import numpy as np
import pytest

import frameworks
import keras_bn
from slow import slow

RNG = np.random.default_rng(0)
DATA = (RNG.normal(size=(3, 8, 2)) * [[[1.0]], [[2.0]], [[3.0]]]).astype("float32")
DATA += np.float32([[[0.0]], [[1.0]], [[100.0]]])
# States are read and written through Keras, and brought together in NumPy.
ON_TORCH = slow("layers that JAX runs op by op", but_on="torch")


def trained(data, **settings):
    """A model whose layer has trained on `data`, one batch after the other."""
    layer = keras_bn.BatchNormalization(**settings)
    model = keras.Sequential([keras.Input((2,)), layer])
    for batch in data:
        model(batch, training=True)
    return model


def state(model):
    layer = model.layers[0]
    return {
        weight.name: frameworks.numpy(weight).astype("float64")
        for weight in layer.non_trainable_variables
    }


def average(replicas, **settings):
    model = trained([], **settings)
    report = keras_bn.average_statistics(model, replicas)
    assert report.replicas == len(replicas)
    return state(model), report


def test_equal_batches():
    replicas = [trained([batch], momentum=0.0) for batch in DATA]
    found, report = average(replicas, momentum=0.0)
    together = DATA.reshape(-1, 2).astype("float64")
    np.testing.assert_allclose(found["moving_mean"], together.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found["moving_variance"], together.var(0), rtol=1e-6)
    assert report.to_dict()["layers"][0]["spread"] > 0.5
    title, header, _, row = filter(None, str(report).splitlines())
    assert title == "average_statistics: 1 batch norm layers, 3 replicas"
    spread = f"{report.rows[0].spread:.3g}"
    assert (header.split(), row.split()) == (
        ["layer", "spread"],
        [report.rows[0].layer, spread],
    )


@ON_TORCH
def test_counts():
    sizes = (8, 3, 0)
    replicas = [
        trained([batch[:n]] if n else [], momentum=None)
        for batch, n in zip(DATA, sizes, strict=True)
    ]
    found, _ = average(replicas, momentum=None)
    parts = [batch[:n] for batch, n in zip(DATA, sizes, strict=True)]
    together = np.concatenate(parts).astype("float64")
    np.testing.assert_allclose(found["moving_count"], 11)
    np.testing.assert_allclose(found["moving_mean"], together.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found["moving_variance"], together.var(0), rtol=1e-5)


@ON_TORCH
def test_where_nobody_has_counted_nothing_changes():
    found, _ = average([trained([], momentum=None)] * 2, momentum=None)
    np.testing.assert_array_equal(found["moving_mean"], [0.0, 0.0])
    np.testing.assert_array_equal(found["moving_variance"], [1.0, 1.0])
    np.testing.assert_array_equal(found["moving_count"], [0.0, 0.0])


@ON_TORCH
def test_debiased_averages_by_the_weight_that_batches_have():
    settings = {"momentum": 0.8, "zero_debias": True}
    replicas = [trained(DATA[:n], **settings) for n in (1, 2, 0)]
    found, _ = average(replicas, **settings)
    states = [state(one) for one in replicas]
    weight = np.array([0.2, 0.36])[:, None]
    means = np.stack([one["moving_mean"] for one in states[:2]])
    mean = (weight * means).sum(0) / weight.sum()
    variances = np.stack([one["moving_variance"] for one in states[:2]])
    variance = (weight * (variances + (means - mean) ** 2)).sum(0) / weight.sum()
    np.testing.assert_allclose(found["moving_mean"], mean, rtol=1e-6)
    np.testing.assert_allclose(found["moving_variance"], variance, rtol=1e-6)
    np.testing.assert_allclose(found["moving_weight"], 0.56 / 3, rtol=1e-6)


@ON_TORCH
def test_renorm_and_accumulation():
    settings = {"renorm": True, "momentum": 0.0, "renorm_momentum": 0.0}
    settings["epsilon"] = 10.0
    replicas = [
        trained([*batches, batches[0][:n]], accumulation_steps=2, **settings)
        for n, batches in ((8, DATA[:2]), (4, DATA[1:]))
    ]
    found, _ = average(replicas, accumulation_steps=2, **settings)
    merged = np.stack([DATA[:2], DATA[1:]]).reshape(-1, 2).astype("float64")
    stddev = np.sqrt(merged.var(0) + 10.0)
    np.testing.assert_allclose(found["moving_mean"], merged.mean(0), rtol=1e-6)
    for name in ("moving_stddev", "renorm_stddev"):
        np.testing.assert_allclose(found[name], stddev, rtol=1e-6)
    np.testing.assert_allclose(found["renorm_mean"], merged.mean(0), rtol=1e-6)
    pending = np.concatenate([DATA[0], DATA[1][:4]]).astype("float64")
    np.testing.assert_allclose(found["accumulated_count"], 12)
    np.testing.assert_allclose(found["accumulated_mean"], pending.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found["accumulated_variance"], pending.var(0), rtol=1e-5)
    assert found["accumulated_steps"] == 1


@ON_TORCH
def test_values_in_place_of_models_and_keras_layers():
    def model(mean):
        layer = keras.layers.BatchNormalization()
        model = keras.Sequential([keras.Input((2,)), layer])
        layer.moving_mean.assign([mean, -mean])
        return model

    target = model(5.0)
    stacked = [np.array([[1.0, -1.0], [3.0, -3.0]]), np.array([[1.0, 2.0], [1.0, 4.0]])]
    states = [[one[i] for one in stacked] for i in range(2)]
    keras_bn.average_statistics(target, states)
    np.testing.assert_allclose(state(target)["moving_mean"], [2.0, -2.0])
    np.testing.assert_allclose(state(target)["moving_variance"], [2.0, 4.0])
    keras_bn.average_statistics(target, [model(1.0), model(3.0)])
    np.testing.assert_allclose(state(target)["moving_variance"], [2.0, 2.0])
    keras_bn.average_statistics(target, [model(3.0)])
    np.testing.assert_allclose(state(target)["moving_mean"], [3.0, -3.0])


@ON_TORCH
def test_one_process_alone_is_left_as_it_is():
    model = trained(DATA, renorm=True)
    before = state(model)
    report = keras_bn.average_statistics(model)
    assert report.replicas == 1
    assert report.rows[0].spread == 0
    for name, value in state(model).items():
        np.testing.assert_array_equal(value, before[name])


class Gathering:
    """Stands for the processes: notes what this one sends, and gives what all sent."""

    def __init__(self):
        self.rows = []

    def gather(self, row):
        self.rows.append(row)
        return np.stack(self.rows)


@pytest.mark.parametrize("several", [False, True])
def test_two_processes_are_averaged(monkeypatch, several):
    """By the states that they gather; tests/synchronized has real ones, of four."""
    module = sys.modules["keras_bn.tools.average_statistics"]
    settings = {"momentum": 0.0, "accumulation_steps": 2}
    other, model = (
        trained([batch, batch, batch[:n]], **settings)
        for batch, n in zip(DATA[:2], (8, 4), strict=True)
    )
    before = [state(one)["moving_mean"] for one in (other, model)]
    gathering, asked = Gathering(), []

    def processes(groups, argument):
        asked.append((groups, argument))
        return gathering

    monkeypatch.setattr(module, "processes", processes)
    if several:  # of vectors, as if two devices held them
        copies = module.copies
        twice = {0: 1, 1: 2}
        monkeypatch.setattr(
            module, "copies", lambda one: twice[len(one.shape)] * copies(one)
        )
    keras_bn.average_statistics(other)
    report = keras_bn.average_statistics(model, replica_groups=[[0, 1]])
    assert asked == [(None, "replicas"), ([[0, 1]], "replicas")]
    assert report.replicas == (4 if several else 2)
    found = state(model)
    np.testing.assert_allclose(found["moving_mean"], sum(before) / 2, rtol=1e-6)
    # Each goes on with its share of the values of all.
    np.testing.assert_array_equal(found["accumulated_count"], 6)
    np.testing.assert_array_equal(found["accumulated_steps"], 1)


def test_one_process_alone_recalibrates_as_without(monkeypatch):
    module, asked = sys.modules["keras_bn.tools.recalibrate"], []
    processes = module.processes
    monkeypatch.setattr(
        module, "processes", lambda one: asked.append(one) or processes(one)
    )
    models = [trained([]) for _ in range(2)]
    alone = {"synchronized": True, "replica_groups": [[0]]}
    for model, settings in zip(models, ({}, alone), strict=True):
        keras_bn.recalibrate(model, DATA[2], verbose=0, **settings)
    assert asked == [[[0]]]
    one, other = map(state, models)
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name])


BAD = {
    "no list": (lambda: trained([]), TypeError, "`replicas` must be a list of models"),
    "no state": (lambda: [3], TypeError, "`replicas` must be a list of models.*int"),
    "none": (lambda: [], ValueError, "at least one replica"),
    "other values": (lambda: [[np.ones(2)]], ValueError, "variables.*: 2.*Received: 1"),
    "other shapes": (
        lambda: [[np.ones(3), np.ones(3)]],
        ValueError,
        r"statistics in layer 'norm'.*'moving_mean': \(2,\).* \{'moving_mean': \(3,\)",
    ),
    "other settings": (
        lambda: [trained([], momentum=None)],
        ValueError,
        "Received.*moving_count",
    ),
    "other layers": (
        lambda: [keras.Sequential([trained([]), trained([])])],
        ValueError,
        "batch normalization layers.*: 1. Received: 2",
    ),
    "NaN": (
        lambda: [[np.full(2, np.nan), np.ones(2)]],
        ValueError,
        "finite statistics.*layer 'norm'",
    ),
}


@ON_TORCH
@pytest.mark.parametrize(("replicas", "error", "match"), BAD.values(), ids=BAD)
def test_bad_replicas_leave_the_model_as_it_was(replicas, error, match):
    model = trained(DATA[:1], name="norm")
    before = state(model)
    with pytest.raises(error, match=f"(?s){match}"):
        keras_bn.average_statistics(model, replicas())
    for name, value in state(model).items():
        np.testing.assert_array_equal(value, before[name])


@ON_TORCH
def test_contradictions():
    model = trained([])
    with pytest.raises(ValueError, match="`replica_groups` must be None where"):
        keras_bn.average_statistics(model, [model], replica_groups=[[0]])
    with pytest.raises(ValueError, match="`replica_groups` needs synchronized=True"):
        keras_bn.recalibrate(model, DATA[0], replica_groups=[[0]])
    with pytest.raises(ValueError, match="`synchronized` needs method"):
        keras_bn.recalibrate(model, DATA[0], method="ema", synchronized=True)
    ours = [trained(DATA[:n], accumulation_steps=4) for n in (1, 2)]
    with pytest.raises(ValueError, match="same step of their accumulation"):
        keras_bn.average_statistics(ours[0], ours)
