"""`to_torch`: a PyTorch module computes what the model does; there and back."""

import keras
import numpy as np
import pytest

import keras_bn
from cases_tools import images, numpy, randomize, weights_of
from slow import slow

torch = pytest.importorskip("torch")  # `make BACKENDS=jax` leaves it out
L, nn = keras.layers, torch.nn
# What is written are NumPy arrays, on every backend.
ON_TORCH = slow("a network that JAX compiles op by op", but_on="torch")


def _model(epsilon=1e-5, **more):
    layers = [
        L.Conv2D(4, 3, use_bias=False, name="conv"),
        L.BatchNormalization(epsilon=epsilon, name="bn", **more),
        L.DepthwiseConv2D(2, depth_multiplier=2, name="wise"),
        L.Flatten(),
        keras_bn.BatchNormalization(epsilon=epsilon, name="flat_bn"),
        L.Dense(3, name="head"),
    ]
    return randomize(keras.Sequential([keras.Input((5, 4, 2)), *layers]))


class Net(nn.Module):
    def __init__(self, **more):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, bias=False)
        self.bn = nn.BatchNorm2d(4, **more)
        self.wise = nn.Conv2d(4, 8, 2, groups=4)
        self.flat_bn = nn.BatchNorm1d(16, eps=more.get("eps", 1e-5))
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        x = self.wise(self.bn(self.conv(x))).flatten(1)
        return self.head(self.flat_bn(x))


ALL = {"layers": "all", "flatten": "channels_first"}


@ON_TORCH
def test_outputs_agree_and_the_way_back_gives_the_same_bits():
    model, module = _model(), nn.DataParallel(Net()).eval()
    before = {name: one.clone() for name, one in module.state_dict().items()}
    kept = weights_of(model)
    state = keras_bn.to_torch(model, module, **ALL)
    assert all(torch.equal(one, before[n]) for n, one in module.state_dict().items())
    assert weights_of(model) == kept
    module.load_state_dict(state)
    x = images(2, 5, 4, 2)
    with torch.no_grad():
        y = module.module(torch.as_tensor(np.moveaxis(x, -1, 1).copy()))
    np.testing.assert_allclose(y, numpy(model(x)), atol=1e-5)
    again = keras_bn.from_torch(_model(epsilon=1e-3), module, **ALL)
    assert weights_of(again) == kept


@ON_TORCH
def test_norms_alone_and_the_unbiased_variance():
    model = _model()
    module = Net()
    given = module.state_dict()
    before = dict(given)
    state = keras_bn.to_torch(
        model,
        given,
        count={"bn": 6, "flat_bn": 2},
        flatten="channels_last",
    )
    assert all(given[name] is one for name, one in before.items())
    assert torch.equal(state["conv.weight"], module.conv.weight)
    variance = numpy(model.get_layer("bn").moving_variance)
    np.testing.assert_allclose(state["bn.running_var"], variance * 6 / 5, rtol=1e-6)
    back = keras_bn.from_torch(
        model, state, count={"bn": 6, "flat_bn": 2}, flatten="channels_last"
    )
    for a, b in zip(back.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_without_a_state_names_are_paths():
    inner = keras.Sequential([keras.Input((3,)), L.BatchNormalization(name="bn")])
    inner.name = "inner"
    dense = L.Dense(2, dtype="bfloat16", name="d")
    model = keras.Sequential([keras.Input((3,)), inner, dense])
    state = keras_bn.to_torch(model, epsilon=1e-3, layers="all")
    ends = ("weight", "bias", "running_mean", "running_var")
    names = [f"inner.bn.{end}" for end in ends]
    assert list(state) == [*names, "d.weight", "d.bias"]
    assert state["d.weight"].shape == (2, 3)
    assert {one.dtype for one in state.values()} == {np.dtype("float32")}


@ON_TORCH
def test_several_axes_are_one_there():
    norm = keras_bn.BatchNormalization(axis=(1, 2), epsilon=1e-5, name="bn")
    model = keras.Sequential([keras.Input((3, 4)), norm])
    assert {one.shape for one in keras_bn.to_torch(model).values()} == {(12,)}


@ON_TORCH
def test_what_a_layer_lacks_is_neutral_there():
    bn = L.BatchNormalization(scale=False, center=False, epsilon=1e-5, name="bn")
    layers = [L.Dense(3, use_bias=False, name="d"), bn]
    model = keras.Sequential([keras.Input((2,)), *layers])
    names = ("bn.weight", "bn.bias", "bn.running_mean", "bn.running_var", "d.bias")
    state = {name: np.full(3, 7.0) for name in names}
    state["d.weight"] = np.zeros((3, 2))
    given = keras_bn.to_torch(model, state, layers="all")
    firsts = {name: one.flat[0] for name, one in given.items() if name in names}
    assert list(firsts.values()) == [1, 0, 0, 1, 0]
    model = keras.Sequential([*model.layers, L.LayerNormalization(name="ln")])
    model.build((None, 2))
    with pytest.raises(ValueError, match=r"{'ln': 'LayerNormalization'}"):
        keras_bn.to_torch(model, state, layers="all")


@ON_TORCH
def test_types_are_kept():
    module = nn.Sequential(nn.Linear(3, 3, bias=False), nn.BatchNorm1d(3)).half()
    state = module.state_dict()
    norm = L.BatchNormalization(epsilon=1e-5, dtype="float16")
    layers = [L.Dense(3, use_bias=False, dtype="bfloat16"), norm]
    model = randomize(keras.Sequential([keras.Input((3,)), *layers]))
    given = keras_bn.to_torch(model, state, layers="all")
    del given["1.num_batches_tracked"]
    assert {one.dtype for one in given.values()} == {torch.float16}
    arrays = {name: one.numpy().astype("float64") for name, one in state.items()}
    given = keras_bn.to_torch(model, arrays, count=4)
    assert {one.dtype for one in given.values()} == {np.dtype("float64")}
    variance = numpy(norm.moving_variance) * 4 / 3
    np.testing.assert_allclose(given["1.running_var"], variance, rtol=1e-12)


@ON_TORCH
def test_pairs_that_rest_on_the_order_alone_are_told_of():
    layers = [L.BatchNormalization(epsilon=1e-5, name=name) for name in ("a", "b")]
    model = keras.Sequential([keras.Input((3,)), *layers])
    module = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    with pytest.raises(UserWarning, match="2 layers were paired by their order, 'a'"):
        keras_bn.to_torch(model, module)


@ON_TORCH
def test_an_epsilon_that_nobody_gave_is_said_to_be_the_other_library_s():
    norm = keras_bn.BatchNormalization(epsilon=1e-3)
    model = keras.Sequential([keras.Input((2,)), norm])
    with pytest.raises(ValueError, match="epsilon=None, that is 1e-05"):
        keras_bn.to_torch(model)


@ON_TORCH
@pytest.mark.parametrize(
    ("model", "module", "arguments", "message"),
    [
        (
            {"epsilon": 1e-3},
            {},
            {},
            "0.001 in 'bn'.*eps=0.001.*Received: epsilon=1e-05",
        ),
        ({}, {"eps": 1e-3}, {}, "1e-05 in 'bn'.*Received: epsilon=0.001"),
        ({}, {"affine": False}, {}, "must have 'bn.weight'.*gamma of layer 'bn'"),
        ({}, {}, {"flatten": None}, "`flatten` must say"),
        ({}, {}, {"count": 1}, "`count` must be a whole number above 1"),
        ({}, {}, {"epsilon": "a"}, "`epsilon` must be a finite number.*epsilon='a'"),
        ({}, {}, {"mapping": {"bn": "flat_bn"}}, "No `mapping` helps"),
        (
            {},
            {},
            {"mapping": {"bn": "flat_bn", "flat_bn": "bn"}, "layers": "norms"},
            r"'flat_bn.weight' of shape \(4,\), as layer 'bn' .* shape \(16,\)",
        ),
    ],
)
def test_bad_input(model, module, arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        keras_bn.to_torch(_model(**model), Net(**module), **{**ALL, **arguments})


@ON_TORCH
def test_the_state_of_another_epsilon_is_refused():
    with pytest.raises(
        ValueError, match=r"`epsilon` must be that of the layers, 0.001"
    ):
        keras_bn.to_torch(_model(epsilon=1e-3), Net().state_dict(), **ALL)
    rounded = float(np.float32(1e-3))
    keras_bn.to_torch(_model(epsilon=1e-3), Net().state_dict(), epsilon=rounded, **ALL)
    with pytest.raises(ValueError, match=r"that of the layers, 1e-09"):
        keras_bn.to_torch(_model(epsilon=1e-9), Net().state_dict(), epsilon=2e-9, **ALL)
    keras_bn.from_torch(
        _model(epsilon=float(np.float32(1e-5))), Net().state_dict(), **ALL
    )
