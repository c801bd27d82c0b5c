"""`from_torch`: weights by name, by order or by a mapping; settings checked."""

import contextlib
import itertools

import keras
import numpy as np
import pytest

import keras_bn
from cases_tools import images, numpy, weights_of
from slow import slow

L = keras.layers
NORMS = [keras_bn.BatchNormalization, L.BatchNormalization]
# Which weight is which is found in names, and what is taken over are NumPy arrays.
ON_TORCH = slow("what another library saved, on no backend", but_on="torch")


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


by_order = pytest.mark.filterwarnings("ignore:.*paired by their order")


@pytest.mark.parametrize(
    ("match", "norm"),
    [
        ("by name", NORMS[0]),
        ("in order", NORMS[1]),
        *(
            pytest.param(match, norm, marks=ON_TORCH)
            for match, norm in itertools.product(MATCHES, NORMS)
            if (match, norm) not in {("by name", NORMS[0]), ("in order", NORMS[1])}
        ),
    ],
)
def test_matching(match, norm):
    names, prefixes, mapping = MATCHES[match]
    model, state = _model(names, norm=norm), _state(prefixes)
    before = weights_of(model)
    guessed = match == "in order"
    message = "2 layers were paired by their order, 'one' with 'features.1' the first"
    with pytest.warns(match=message) if guessed else contextlib.nullcontext():
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


@ON_TORCH
def test_settings_are_taken_over_and_the_optimizer_starts_anew():
    model = _model(epsilon=1e-3)
    model.compile(keras.optimizers.SGD(momentum=0.9), "mae")
    model.fit(images(4, 3), images(4, 3), verbose=0)
    model.layers[0].gamma.trainable = False
    ours = keras_bn.from_torch(model, _state(), epsilon=1e-4, momentum=0.1)
    norm = ours.get_layer("stem_bn")
    assert (norm.epsilon, norm.momentum) == (1e-4, 0.9)
    assert (norm.gamma.trainable, norm.beta.trainable) == (False, True)
    assert (ours.loss, int(ours.optimizer.iterations)) == ("mae", 0)


@by_order
def test_a_module_brings_its_own_settings():
    torch = pytest.importorskip("torch")  # `make BACKENDS=jax` leaves it out

    module = torch.nn.Sequential(
        torch.nn.BatchNorm1d(3, eps=1e-2, momentum=0.3),
        torch.nn.ReLU(),
        torch.nn.BatchNorm1d(3, eps=1e-4, momentum=0.2, affine=False),
    )
    x = images(16, 3)
    module(torch.as_tensor(x * 2 + 1))
    model = _model(
        epsilon=1e-3, renorm=True, zero_debias=True, gamma_initializer="zeros"
    )
    ours = keras_bn.from_torch(model, module)
    assert [one.epsilon for one in ours.layers[::2]] == [1e-2, 1e-4]
    assert [one.momentum for one in ours.layers[::2]] == [0.7, 0.8]
    # Training goes on from them: they are no initial values.
    assert numpy(ours.layers[0].moving_weight).tolist() == [1, 1, 1]
    stddev = np.sqrt(module[0].running_var.numpy() + 1e-2)
    np.testing.assert_allclose(numpy(ours.layers[0].renorm_stddev), stddev, rtol=1e-6)
    expected = module.eval()(torch.as_tensor(x)).detach().numpy()
    np.testing.assert_allclose(numpy(ours(x)), expected, atol=1e-6)


@ON_TORCH
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
        *(
            (
                {"norm": norm},
                {},
                {name: value},
                ValueError if isinstance(value, float | int) else TypeError,
                rf"`{name}` must be {expected}.*Received: {name}=",
            )
            for norm in NORMS
            for name, expected, values in (
                ("epsilon", "a finite number of", (-1, np.nan, np.inf, "1e-5")),
                ("momentum", r"a number in \[0, 1\], .*replaced", (1.5, -0.5, ".1")),
                (
                    "mapping",
                    "a dictionary of strings",
                    (["n"], "n=1", {"stem_bn": [1]}),
                ),
                ("strict", "True or False", ("no",)),
            )
            for value in values
        ),
        ({}, {}, {"epsilon": 0}, ValueError, "greater than 0 for layer 'stem_bn'"),
        ({}, {}, {"count": True}, ValueError, r"`count` must be a whole number"),
        ({}, {}, {"count": 2.5}, ValueError, r"`count` must be a whole number"),
        (
            {},
            {"size": 4},
            {},
            ValueError,
            r"'stem_bn' is a norm of size 3, 'stem.bn' a norm of size 4",
        ),
        (
            {},
            {"size": 4},
            {"mapping": {"stem_bn": "stem.bn", "head_bn": "head.bn"}},
            ValueError,
            r"'stem.bn.weight' of shape \(3,\).*\(4,\)",
        ),
        (
            {},
            {"prefixes": ["one"]},
            {},
            ValueError,
            r"`mapping` must be given.*2 layers.*1 prefixes",
        ),
        ({}, {"prefixes": ["stem.bn", "b"]}, {}, ValueError, r"nothing says the order"),
        ({}, {"prefixes": []}, {}, ValueError, r"must hold weights of layers"),
        (
            {},
            {},
            {"mapping": {"x": "stem.bn"}},
            ValueError,
            r"paths of layers that take weights.*'x'",
        ),
        ({}, {}, {"mapping": {"stem_bn": "x"}}, ValueError, r"prefixes of .*'x'"),
        (
            {},
            {"prefixes": ["stem.bn", "one", "two"]},
            {"mapping": {"stem_bn": "stem.bn"}},
            ValueError,
            r"1 layers, \['head_bn'\], and 2 prefixes",
        ),
        ({}, {}, {"layers": "convolutions"}, ValueError, r"`layers` must be one of"),
        ({}, {}, {"flatten": "rows"}, ValueError, r"`flatten` must be one of"),
        ({}, {}, {"flatten": "channels_last"}, ValueError, r"`flatten` must be None"),
        ({}, {}, {"count": 1}, ValueError, r"`count` must be a whole number above 1"),
        (
            {},
            {},
            {"count": {"stem_bn": 9}},
            ValueError,
            r"`count`.*None for layer 'head_bn'",
        ),
        ({}, {}, {"key": "ema"}, ValueError, r"`key` must be one under .*\[\].*'ema'"),
        ({"scale": False}, {}, {}, ValueError, r"must have scale=True"),
    ],
)
def test_bad_input(model, state, arguments, error, message):
    model = _model(**model)
    before = weights_of(model)
    with pytest.raises(error, match=message) as caught:
        keras_bn.from_torch(model, _state(**state), **arguments)
    assert "Left out" not in str(caught.value)
    assert weights_of(model) == before


@ON_TORCH
@pytest.mark.parametrize("bad", [object(), "abc"], ids=["an object", "a text"])
def test_what_is_no_number_is_refused(bad):
    model = _model()
    before = weights_of(model)
    state = {**_state(), "stem.bn.bias": bad}
    with pytest.raises(TypeError, match=r"arrays of numbers.*'stem.bn' with a bias"):
        keras_bn.from_torch(model, state)
    assert weights_of(model) == before


@ON_TORCH
@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("running_var", -1.0),
        *itertools.product(("running_var", "running_mean", "bias"), (np.nan, np.inf)),
        ("weight", -np.inf),
    ],
)
def test_weights_that_no_data_leave_are_refused(name, bad):
    model, state = _model(), _state()
    state["stem.bn.bias"][0] = -1.0  # that is for variances only
    state["stem.bn.running_var"][0] = 0.0
    state[f"head.bn.{name}"][1] = bad
    before = weights_of(model)
    with pytest.raises(ValueError, match=rf"'head.bn.{name}' with 1 .*{bad}"):
        keras_bn.from_torch(model, state, epsilon=1e-5)
    assert weights_of(model) == before


@ON_TORCH
def test_an_epsilon_of_0_is_for_keras_layer_alone():
    ours = keras_bn.from_torch(_model(norm=NORMS[1]), _state(), epsilon=0)
    assert ours.layers[0].epsilon == 0


@ON_TORCH
@pytest.mark.parametrize(("setting", "bad"), [("eps", -2.0), ("momentum", 3.0)])
def test_what_a_module_says_is_checked_too(setting, bad):
    import torch

    model = keras.Sequential([keras.Input((3,)), L.BatchNormalization()])
    with pytest.raises(ValueError, match=f"`{setting}.*Received: {setting}.*=-2.0"):
        keras_bn.from_torch(model, torch.nn.BatchNorm1d(3, **{setting: bad}))


@ON_TORCH
def test_not_a_state_dict():
    with pytest.raises(TypeError, match="`state_dict` must be a PyTorch state dict"):
        keras_bn.from_torch(_model(), [1, 2])


@ON_TORCH
def test_a_bare_norm_and_a_mapping_of_a_part():
    state = {"running_mean": np.ones(3), "running_var": np.full(3, 2.0)}
    state["other.running_var"] = np.ones(3)  # of something else
    model = keras.Sequential([keras.Input((3,)), L.BatchNormalization()])
    ours = keras_bn.from_torch(model, state, epsilon=1e-5)
    np.testing.assert_array_equal(ours.layers[0].moving_variance, np.full(3, 2.0))
    state = _state(("one.bn", "head.bn"))
    ours = keras_bn.from_torch(_model(), state, {"stem_bn": "one.bn"})
    _check(ours.get_layer("stem_bn"), state, "one.bn")
    _check(ours.get_layer("head_bn"), state, "head.bn")


@ON_TORCH
def test_pytorch_averages_the_unbiased_variance():
    import torch

    x = images(6, 3)
    norm = torch.nn.BatchNorm1d(3, momentum=1.0)
    norm(torch.as_tensor(x))
    model = keras.Sequential([keras.Input((3,)), L.BatchNormalization()])
    as_it_is = keras_bn.from_torch(model, norm).layers[0]
    np.testing.assert_allclose(
        numpy(as_it_is.moving_variance), x.var(0, ddof=1), rtol=1e-5
    )
    for count in (6, {"batch_normalization": 6}):
        model.layers[0].name = "batch_normalization"
        biased = keras_bn.from_torch(model, norm, count=count).layers[0]
        np.testing.assert_allclose(numpy(biased.moving_variance), x.var(0), rtol=1e-5)


@ON_TORCH
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_taken_exactly(dtype):
    """Of parameters, as of arrays, which NumPy has no bfloat16 for."""
    import torch

    norm = torch.nn.BatchNorm1d(3).to(getattr(torch, dtype))
    norm.running_var.copy_(torch.tensor([1.1, 2.3, 0.7]))
    state = {**dict(norm.named_parameters()), **dict(norm.named_buffers())}
    if dtype == "float16":
        state = {name: one.detach().numpy() for name, one in state.items()}
    model = keras.Sequential([keras.Input((3,)), L.BatchNormalization()])
    ours = keras_bn.from_torch(model, state, epsilon=1e-5, count=3).layers[0]
    expected = norm.running_var.double().numpy() * 2 / 3
    np.testing.assert_allclose(numpy(ours.moving_variance), expected, rtol=1e-6)


@ON_TORCH
@pytest.mark.parametrize("layers", ["norms", "all"])
def test_lists_that_are_used_from_their_end(layers):
    import torch

    class Backwards(torch.nn.Module):
        def __init__(self):
            super().__init__()
            n = torch.nn
            self.norms = n.ModuleList([n.BatchNorm2d(4), n.BatchNorm2d(4)])
            self.convs = n.ModuleList([n.Conv2d(4, 4, 3), n.Conv2d(3, 4, 3)])

        def forward(self, x):
            for conv, norm in zip(self.convs[::-1], self.norms[::-1], strict=True):
                x = norm(conv(x))
            return x

    module = Backwards()
    for i, norm in enumerate(module.norms):
        torch.nn.init.constant_(norm.bias, i)
    model = keras.Sequential([keras.Input((6, 6, 3))])
    for name in ("one", "two"):
        model.add(L.Conv2D(4, 3))
        model.add(NORMS[0](epsilon=1e-5, name=name))
    with pytest.raises(ValueError, match=r"the numbers do not follow(?s:.*)norms.1"):
        keras_bn.tools.match_torch(model, module, layers=layers)
    mapping = {"one": "norms.1", "two": "norms.0"}
    ours = keras_bn.from_torch(model, module, mapping, layers=layers)
    assert numpy(ours.get_layer("one").beta).tolist() == [1] * 4
    if layers == "all":
        x = images(2, 6, 6, 3)
        theirs = module.eval()(torch.as_tensor(x.transpose(0, 3, 1, 2)))
        theirs = theirs.detach().numpy().transpose(0, 2, 3, 1)
        np.testing.assert_allclose(numpy(ours(x)), theirs, atol=1e-5)


@ON_TORCH
@by_order
def test_a_plain_average_there_is_one_here():
    import torch

    module = torch.nn.Sequential(
        torch.nn.BatchNorm1d(3, momentum=None), torch.nn.BatchNorm1d(3, momentum=0.2)
    )
    ours = keras_bn.from_torch(_model(("a", "b")), module)
    assert [one.momentum for one in ours.layers[::2]] == [None, 0.8]
    assert numpy(ours.layers[0].moving_count).tolist() == [0, 0, 0]  # not known
    for model, what in (
        (_model(("a", "b"), norm=NORMS[1]), "is Keras's own"),
        (_model(("a", "b"), zero_debias=True), "has zero_debias=True"),
    ):
        with pytest.raises(ValueError, match=f"`momentum` must be given.*'a' {what}"):
            keras_bn.from_torch(model, module)
        ours = keras_bn.from_torch(model, module, momentum=0.3)
        assert [one.momentum for one in ours.layers[::2]] == [0.7, 0.8]
    assert numpy(ours.layers[0].moving_weight).tolist() == [1, 1, 1]  # all of data


def _frozen(epsilon):
    """A norm as detection models have it: buffers only, no momentum, maybe no eps."""
    import torch

    class FrozenBatchNorm2d(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for i, name in enumerate(("weight", "bias", "running_mean", "running_var")):
                self.register_buffer(name, torch.arange(1.0, 4.0) + i)
            if epsilon is not None:
                self.eps = epsilon

    return FrozenBatchNorm2d()


@ON_TORCH
@by_order
def test_frozen_norms():
    import torch

    module = torch.nn.Sequential(_frozen(1e-2), torch.nn.ReLU(), _frozen(1e-2))
    ours = keras_bn.from_torch(_model(epsilon=1e-3), module)
    assert [one.epsilon for one in ours.layers[::2]] == [1e-2, 1e-2]
    assert ours.layers[0].momentum == _model().layers[0].momentum
    assert numpy(ours.layers[0].gamma).tolist() == [1, 2, 3]
    with pytest.raises(
        ValueError, match="`epsilon` must be that of the PyTorch layers"
    ):
        keras_bn.from_torch(
            _model(epsilon=1e-3), torch.nn.Sequential(*[_frozen(None)] * 2)
        )


@ON_TORCH
def test_instance_norm_is_not_batch_norm():
    import torch

    module = torch.nn.Sequential(
        torch.nn.BatchNorm1d(3), torch.nn.InstanceNorm1d(3, track_running_stats=True)
    )
    message = r"(?s)2 layers, 1 prefixes.*instance normalization.*\['1'\]"
    with pytest.raises(ValueError, match=message):
        keras_bn.from_torch(_model(), module)
    with pytest.raises(ValueError, match=r"none in 0 layers\nLeft out.*instance"):
        keras_bn.from_torch(_model(), module[1:])


@ON_TORCH
def test_the_pairs_are_shown():
    import torch

    matching = keras_bn.tools.match_torch(_model(), _state(("x.stem.bn", "x.head.bn")))
    assert matching.mapping == {"stem_bn": "x.stem.bn", "head_bn": "x.head.bn"}
    assert [(pair.size, pair.by) for pair in matching.pairs] == [((3,), "name")] * 2
    assert "2 layers matched" in str(matching)
    more = _state(("stem.bn", "head.bn", "bn"))
    assert len(keras_bn.tools.match_torch(_model(), more, strict=False).pairs) == 2
    last = L.Dense(2, use_bias=False, name="last")
    model = keras.Sequential([keras.Input((3,)), *_model().layers, last])
    every = {**_state(), "last.weight": torch.ones(2, 3)}
    norms = keras_bn.tools.match_torch(model, every)
    assert (len(norms.pairs), norms.unused) == (2, [])
    pairs = keras_bn.tools.match_torch(model, every, layers="all").pairs
    assert list(map(repr, pairs[1:])) == [
        "Pair(layer='head_bn', prefix='head.bn', kind='norm', size=(3,), by='name')",
        "Pair(layer='last', prefix='last', kind='linear', size=(2, 3), by='name')",
    ]
    assert "x.head.bn" in str(matching)


class _Inside:
    """Where checkpoints of the usual training scripts have the weights."""

    def __getitem__(self, name):
        state = _state()
        return {
            "state_dict": {
                **{"epoch": np.int64(3), "weight": 0.5, "state_dict": state},
                "optimizer": {"state": {0: {"exp_avg": np.ones(3)}}},
            },
            "numbered": {0: _state(("b", "c")), 1: state},
            "deep": {"model": {"module": state}, "loss": 0.1},
            "ema": {"model": _state(("stem.bn", "b", "c")), "ema": state},
        }[name]


@ON_TORCH
@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("state_dict", None),
        ("deep", None),
        ("deep", "model.module"),
        ("ema", "ema"),
        ("numbered", "1"),
    ],
)
def test_checkpoints(name, key):
    ours = keras_bn.from_torch(_model(), _Inside()[name], key=key)
    _check(ours.get_layer("stem_bn"), _state(), "stem.bn")


@ON_TORCH
def test_a_checkpoint_of_two_models_wants_a_key():
    with pytest.raises(ValueError, match=r"`key` must say.*\['model', 'ema'\]"):
        keras_bn.from_torch(_model(), _Inside()["ema"])


@pytest.mark.once
@pytest.mark.parametrize("momentum", [-0.1, 1.1])
def test_a_momentum_is_a_share_in_flax_too(momentum):
    with pytest.raises(ValueError, match=r"`momentum` must be a number in \[0, 1\]"):
        keras_bn.from_flax(_model(), {}, momentum=momentum)


@pytest.mark.once
@pytest.mark.parametrize("momentum", [0, 1])
def test_all_and_nothing_are_shares(momentum):
    ours = keras_bn.from_torch(_model(), _state(), momentum=momentum)
    assert [ours.layers[i].momentum for i in (0, 2)] == [1 - momentum] * 2
