"""`from_haiku`: the average without its pull to zero, and Haiku's names."""

import sys

import keras
import numpy as np
import pytest

import keras_bn
from cases_tools import images, numpy
from slow import slow

L = keras.layers
ON_TORCH = slow("checks of arguments, on no backend", but_on="torch")


def _ema(values, decay=0.9):
    """What hk.ExponentialMovingAverage keeps of one axis, by its definition."""
    hidden = np.zeros_like(values[0])
    for value in values:
        hidden = decay * hidden + (1 - decay) * value
    average = hidden / (1 - decay ** len(values))
    shaped = {"hidden": hidden, "average": average}
    shaped = {name: one.reshape(1, 1, 1, -1) for name, one in shaped.items()}
    return {**shaped, "counter": np.int32(len(values))}


def _net():
    rng = np.random.default_rng(0)
    state, params = {}, {"net/~/conv": {"w": rng.normal(size=(3, 3, 2, 4))}}
    params["net/~/head"] = {"w": rng.normal(size=(16, 5)), "b": rng.normal(size=5)}
    params["net/~/gain"] = {"w": np.ones(4)}  # of one axis: no kernel
    for name, steps in (("batch_norm", 3), ("batch_norm_1", 1)):
        module = f"net/~/{name}"
        params[module] = {
            "scale": rng.uniform(0.5, 1.5, (1, 1, 1, 4)),
            "offset": rng.normal(size=(1, 1, 1, 4)),
        }
        for of in ("mean", "var"):
            batches = rng.uniform(0.5, 1.5, (steps, 4))
            state[f"{module}/~/{of}_ema"] = _ema(batches)
    return params, state


def _model():
    norms = [L.BatchNormalization(name="batch_norm")]
    norms.append(keras_bn.BatchNormalization(name="batch_norm_1"))
    conv = L.Conv2D(4, 3, use_bias=False, name="conv")
    head = [L.Flatten(), L.Dense(5, name="head")]
    return keras.Sequential([keras.Input((4, 4, 2)), conv, *norms, *head])


def test_the_average_is_taken():
    params, state = _net()
    model = _model()
    expected = {"batch_norm": "net/~/batch_norm", "batch_norm_1": "net/~/batch_norm_1"}
    match = keras_bn.tools.match_haiku
    assert match(model, params, state).mapping == expected
    every = match(model, params, state, layers="all").mapping
    assert every == {"conv": "net/~/conv", **expected, "head": "net/~/head"}
    part = keras.Sequential([keras.Input((4, 4, 2)), *model.layers[:2]])
    del expected["batch_norm_1"]
    assert match(part, params, state, strict=False).mapping == expected
    ours = keras_bn.from_haiku(
        model, params, state, layers="all", epsilon=1e-4, momentum=0.9
    )
    x = images(2, 4, 4, 2)
    expected = keras.ops.conv(x, params["net/~/conv"]["w"].astype("float32"))
    expected = numpy(expected)
    for norm in ours.layers[1:3]:
        own = params[f"net/~/{norm.name}"]
        mean = state[f"net/~/{norm.name}/~/mean_ema"]
        var = state[f"net/~/{norm.name}/~/var_ema"]["average"]
        assert np.all(mean["average"] > 3 * mean["hidden"])
        expected = own["scale"] * (expected - mean["average"]) / np.sqrt(var + 1e-4)
        expected += own["offset"]
        assert (norm.epsilon, norm.momentum) == (1e-4, 0.9)
    head = params["net/~/head"]
    expected = expected.reshape(2, 16) @ head["w"] + head["b"]
    np.testing.assert_allclose(numpy(ours(x)), expected, rtol=1e-4, atol=1e-4)


@ON_TORCH
def test_an_average_without_a_step_is_an_error():
    params, state = _net()
    state["net/~/batch_norm/~/var_ema"]["counter"] = np.int32(0)
    message = "'net/~/batch_norm/~/var_ema' with an `average` that a training step"
    with pytest.raises(ValueError, match=message):
        keras_bn.from_haiku(_model(), params, state, epsilon=1e-5)


@ON_TORCH
@pytest.mark.parametrize("name", ["params", "state"])
def test_not_of_haiku(name):
    params, state = _net()
    arguments = {"params": params, "state": state, name: [1]}
    with pytest.raises(TypeError, match=f"`{name}` must be a mapping of Haiku modules"):
        keras_bn.from_haiku(_model(), **arguments)
    with pytest.raises(ValueError, match="`epsilon` must be that of the Haiku layers"):
        keras_bn.from_haiku(_model(), params, state)


def _up_and_bn(library):
    """A kernel and a norm as Flax and Haiku keep them."""
    ones, kernel = np.ones(3), np.ones((2, 3, 3))
    if library == "flax":
        norm = {"mean": ones, "var": ones}
        return [{"params": {"up": {"kernel": kernel}}, "batch_stats": {"bn": norm}}]
    average = {"average": ones, "hidden": ones, "counter": 1}
    state = {f"bn/~/{name}_ema": average for name in ("mean", "var")}
    return [{"up": {"w": kernel}}, state]


@pytest.mark.parametrize("library", ["flax", pytest.param("haiku", marks=ON_TORCH)])
def test_transposed_convolutions_are_not_taken(library):
    """Their kernels lie otherwise than here and in PyTorch."""
    layers = [L.Conv1DTranspose(3, 2, name="up"), L.BatchNormalization(name="bn")]
    model = keras.Sequential([keras.Input((4, 3)), *layers])
    take = getattr(keras_bn, f"from_{library}")
    with pytest.raises(ValueError, match=r"{'up': 'Conv1DTranspose'}"):
        take(model, *_up_and_bn(library), layers="all", epsilon=1e-5)


@ON_TORCH
@pytest.mark.parametrize(
    "name", ["from_flax", "match_flax", "from_haiku", "match_haiku"]
)
def test_no_layer_is_left_out_unasked(name):
    layers = [L.BatchNormalization(name=name) for name in ("bn", "other")]
    model = keras.Sequential([keras.Input((4, 3)), *layers])
    with pytest.raises(ValueError, match=r"2 layers, .*'other'.* 1 prefixes"):
        getattr(keras_bn.tools, name)(model, *_up_and_bn(name.partition("_")[2]))


@ON_TORCH
def test_what_is_not_of_flax_without_flax(monkeypatch):
    monkeypatch.setitem(sys.modules, "flax", None)
    with pytest.raises(TypeError, match=r"an nnx module.*variables of type list"):
        keras_bn.from_flax(_model(), [1, 2])


def test_flax_s_variables_may_be_plain_arrays():
    """Of linen, without Flax: its own tests import it, and run on JAX."""
    rng = np.random.default_rng(0)
    norm = {name: rng.uniform(1, 2, 4) for name in ("scale", "bias", "mean", "var")}
    dense = {"kernel": rng.normal(size=(2, 4)), "bias": rng.normal(size=4)}
    affine = {name: norm[name] for name in ("scale", "bias")}
    variables = {
        "params": {"net": {"dense": dense, "bn": affine}},
        "batch_stats": {
            "net": {"bn": {name: norm[name] for name in ("mean", "var")}},
            "centre": {"mean": np.ones(4)},  # of something else
        },
    }
    layers = [L.Dense(4, name="dense"), keras_bn.BatchNormalization(name="bn")]
    model = keras.Sequential([keras.Input((2,)), *layers])
    match, expected = keras_bn.tools.match_flax, {"bn": "net/bn"}
    assert match(model, variables).mapping == expected
    more = [keras.Input((2,)), *layers, L.BatchNormalization(name="other")]
    more = keras.Sequential(more)
    assert match(more, variables, strict=False).mapping == expected
    expected["dense"] = "net/dense"
    assert match(model, variables, layers="all").mapping == expected
    ours = keras_bn.from_flax(
        model, variables, epsilon=1e-2, momentum=0.8, layers="all"
    )
    expected = [*dense.values(), *norm.values()]
    for one, other in zip(ours.get_weights(), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    assert (ours.layers[1].epsilon, ours.layers[1].momentum) == (1e-2, 0.8)
