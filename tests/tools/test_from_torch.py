"""`from_torch`: weights by name, by order or by a mapping; settings checked."""

import keras
import numpy as np
import pytest

import keras_bn
from cases_tools import images, numpy, weights_of

L = keras.layers
NORMS = [keras_bn.BatchNormalization, L.BatchNormalization]


def _model(names=("stem_bn", "head_bn"), epsilon=1e-5, norm=NORMS[0], **arguments):
    first, second = (norm(epsilon=epsilon, name=name, **arguments) for name in names)
    return keras.Sequential([keras.Input((3,)), first, L.ReLU(), second])


def _state(prefixes=("stem.bn", "head.bn"), size=3):
    rng = np.random.default_rng(0)
    state = {}
    for prefix in prefixes:
        for name in ("weight", "bias", "running_mean", "running_var"):
            state[f"{prefix}.{name}"] = rng.uniform(0.5, 1.5, size).astype("float32")
        state[f"{prefix}.num_batches_tracked"] = np.array(5)
    return state


def _check(layer, state, prefix):
    pairs = zip(
        layer.get_weights(),
        ("weight", "bias", "running_mean", "running_var"),
        strict=False,
    )
    for weight, name in pairs:
        np.testing.assert_array_equal(weight, state[f"{prefix}.{name}"])


MATCHES = {
    "by name": (("stem_bn", "head_bn"), ("head.bn", "stem.bn"), None),
    "data parallel": (
        ("stem_bn", "head_bn"),
        ("module.head.bn", "module.stem.bn"),
        None,
    ),
    "in order": (("one", "two"), ("features.1", "features.4"), None),
    "by mapping": (("one", "two"), ("a", "b", "c"), {"one": "c", "two": "a"}),
}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("match", MATCHES)
def test_matching(match, norm):
    names, prefixes, mapping = MATCHES[match]
    model, state = _model(names, norm=norm), _state(prefixes)
    before = weights_of(model)
    ours = keras_bn.from_torch(model, state, mapping)
    expected = {
        "by name": ("stem.bn", "head.bn"),
        "data parallel": ("module.stem.bn", "module.head.bn"),
        "in order": prefixes,
        "by mapping": ("c", "a"),
    }[match]
    for name, prefix in zip(names, expected, strict=True):
        assert type(ours.get_layer(name)) is norm
        _check(ours.get_layer(name), state, prefix)
    assert weights_of(model) == before


def test_settings_are_taken_over():
    ours = keras_bn.from_torch(
        _model(epsilon=1e-3), _state(), epsilon=1e-4, momentum=0.1
    )
    norm = ours.get_layer("stem_bn")
    assert (norm.epsilon, norm.momentum) == (1e-4, 0.9)


def test_a_module_brings_its_own_settings():
    import torch

    module = torch.nn.Sequential(
        torch.nn.BatchNorm1d(3, eps=1e-2, momentum=0.3),
        torch.nn.ReLU(),
        torch.nn.BatchNorm1d(3, eps=1e-4, momentum=0.2, affine=False),
    )
    x = images(16, 3)
    module(torch.as_tensor(x * 2 + 1))
    ours = keras_bn.from_torch(_model(epsilon=1e-3, renorm=True), module)
    assert [one.epsilon for one in ours.layers[::2]] == [1e-2, 1e-4]
    assert [one.momentum for one in ours.layers[::2]] == [0.7, 0.8]
    expected = module.eval()(torch.as_tensor(x)).detach().numpy()
    np.testing.assert_allclose(numpy(ours(x)), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("model", "state", "arguments", "error", "message"),
    [
        (
            {"epsilon": 1e-3},
            {},
            {},
            ValueError,
            r"`epsilon` must be.*'stem_bn' has 0.001",
        ),
        ({}, {}, {"momentum": 1.5}, ValueError, r"`momentum` must be in \[0, 1\]"),
        ({}, {"size": 4}, {}, ValueError, r"'stem.bn.weight' of shape \(3,\).*\(4,\)"),
        (
            {},
            {"prefixes": ["one"]},
            {},
            ValueError,
            r"`mapping` must be given.*2 in the",
        ),
        ({}, {"prefixes": ["stem.bn", "b"]}, {}, ValueError, r"only some names match"),
        ({}, {"prefixes": []}, {}, ValueError, r"must have batch norm statistics"),
        (
            {},
            {},
            {"mapping": {"x": "stem.bn"}},
            ValueError,
            r"paths of batch norm.*'x'",
        ),
        ({}, {}, {"mapping": {"stem_bn": "x"}}, ValueError, r"prefixes of .*'x'"),
        (
            {},
            {},
            {"mapping": {"stem_bn": "stem.bn"}},
            ValueError,
            r"without \['head_bn'\]",
        ),
        ({"scale": False}, {}, {}, ValueError, r"must have scale=True"),
    ],
)
def test_bad_input(model, state, arguments, error, message):
    with pytest.raises(error, match=message):
        keras_bn.from_torch(_model(**model), _state(**state), **arguments)


def test_not_a_state_dict():
    with pytest.raises(TypeError, match="`state_dict` must be a PyTorch state dict"):
        keras_bn.from_torch(_model(), [1, 2])
