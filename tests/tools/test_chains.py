"""Where `quantize_aware` rounds: what becomes one layer, and where such layers end."""

import keras
import pytest
from keras import ops

import keras_bn
from cases_tools import layers_in
from keras_bn.tools._folding.fake_quantize import FakeQuantize
from keras_bn.tools._folding.quantized_linear import QuantizedLinear
from slow import slow

L = keras.layers
Norm = keras_bn.BatchNormalization
pytestmark = [
    pytest.mark.usefixtures("zero_kernels"),
    slow("graphs, which know no backend", but_on="torch"),
]


def _dense(x, name=None, units=4):
    return L.Dense(units, name=name)(x)


def _two_readers(x):
    y = Norm()(x)
    return [_dense(y), _dense(y)]


# Most of it `fold` folds, into layers that stay as they are.
IN_NO_CHAIN = {
    "a layer step by step": (
        lambda x: Norm()(L.TimeDistributed(L.Dense(3))(x)),
        "before: 'time_distributed' (TimeDistributed) is in the way; after: ",
    ),
    "a norm step by step": (
        lambda x: L.TimeDistributed(Norm())(_dense(x)),
        "it is called by a wrapper",
    ),
    "an operation": (
        lambda x: Norm()(2.0 * _dense(x)),
        "before: 'multiply' (Multiply) is in the way; after: ",
    ),
    "another layer": (
        lambda x: Norm()(L.LayerNormalization()(x)),
        "before: 'layer_normalization' (LayerNormalization) is in the way; after: ",
    ),
    "layers joined": (
        lambda x: Norm()(L.Add()([_dense(x), _dense(x)])),
        "before: 'add' (Add) is in the way; after: ",
    ),
    "joined with others": (
        lambda x: _dense(L.Concatenate()([L.ReLU()(x), Norm()(x)])),
        "; after: 'concatenate' (Concatenate) is in the way",
    ),
    "several readers": (
        _two_readers,
        "; after: what 'batch_normalization' gives is used by '",
    ),
    "a mask": (
        lambda x: Norm()(_dense(x), mask=ops.any(x > 0, -1)),
        "it is called with a mask or weights of its own",
    ),
    # Here all numbers are equal, which training changes.
    "a scale of positions": (
        lambda x: Norm(axis=(1, 2))(_dense(x)),
        "before: it scales positions of one channel differently; after: ",
    ),
}


@pytest.mark.parametrize("name", IN_NO_CHAIN)
def test_what_is_in_no_chain_says_why(name):
    keras.utils.clear_session(free_memory=False)
    build, reason = IN_NO_CHAIN[name]
    inputs = keras.Input((6, 4))
    model = keras.Model(inputs, build(inputs))
    trained, report = keras_bn.quantize_aware(model, explain=True)
    assert [row.into for row in report.rows] == [None]
    assert reason in report.rows[0].reason
    assert sum(hasattr(one, "moving_mean") for one in layers_in(trained)) == 1


@pytest.mark.parametrize("gamma", [-1.0, 0.0, 0.5])
def test_a_negative_gamma_does_not_pass_a_maximum(gamma):
    norm = Norm()
    model = keras.Sequential(
        [keras.Input((4, 4, 3)), L.Conv2D(3, 1), L.MaxPooling2D(2), norm]
    )
    norm.gamma.assign([1.0, gamma, 1.0])
    _, report = keras_bn.quantize_aware(model, explain=True)
    assert len(report.folded) == (gamma >= 0)


CHAINS = {
    "alone": (lambda a, b: [L.Dropout(0.5), L.Dense(4, name="d"), L.Dropout(0.5)], "d"),
    "both sides": (
        lambda a, b: [
            *(L.Dropout(0.5), a, L.Dropout(0.5, name="x"), L.Dense(4, name="d")),
            *(L.Dropout(0.5, name="y"), L.Identity(name="z"), b, L.Dropout(0.5)),
        ],
        "a x d y z b",
    ),
    "two before": (lambda a, b: [a, b, L.Dense(4, name="d"), L.ReLU()], "a b d"),
    "two after": (
        lambda a, b: [L.ReLU(), L.Dense(4, name="d"), a, L.Identity(name="x"), b],
        "d a x b",
    ),
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_goes_from_its_first_norm_to_its_last(name):
    build, expected = CHAINS[name]
    layers = build(Norm(name="a"), Norm(name="b"))
    layers = [
        keras.Input((4,)),
        *layers,
        L.ReLU(),
        L.Dense(2, name="last"),
        Norm(name="end"),
    ]
    trained = keras_bn.quantize_aware(keras.Sequential(layers), activations=False)
    chain, last = _parts(trained, QuantizedLinear)
    assert [one.name for one in chain.layers] == expected.split()
    assert [one.name for one in last.layers] == ["last", "end"]


def test_a_norm_of_two_axes_is_scaled_along_both():
    layers = [Norm(axis=(1, 2)), L.Flatten(), L.Dense(3, name="dense")]
    model = keras.Sequential([keras.Input((6, 4)), *layers])
    _, report = keras_bn.quantize_aware(model, explain=True)
    assert [row.into for row in report.rows] == ["dense"]


def _parts(model, kind):
    return [one for one in layers_in(model) if isinstance(one, kind)]


def _model(call, *shapes):
    inputs = [keras.Input(shape) for shape in shapes]
    return keras.Model(inputs, call(*inputs))


def _into_relu(x):
    inner = _model(lambda y: _dense(y, "b"), (6, 4))
    return L.ReLU(name="relu")(inner(_dense(x, "a")))


def _into_relu_at_one_call(x):
    inner = _model(lambda y: _dense(y, "b"), (6, 4))
    return L.ReLU(name="relu")(inner(inner(x)))


def _into_relu_of_two(x):
    inner = _model(lambda y: [_dense(y, "b"), _dense(y, "c")], (6, 4))
    one, other = inner(_dense(x, "a"))
    return [one, L.ReLU(name="relu")(other)]


def _second_is_raw(x):
    inner = _model(lambda y, z: [_dense(y, "b"), _dense(z, "c")], (6, 4), (24,))
    return inner([_dense(x, "a"), L.Flatten()(x)])


def _raw_at_one_call(x):
    inner = keras.Sequential([keras.Input((6, 4)), L.Dense(4, name="b")])
    return inner(inner(ops.transpose(ops.transpose(x, (0, 2, 1)), (0, 2, 1))))


def _read_and_given(x):
    y = _dense(x, "a")
    return [y, L.ReLU(name="relu")(y)]


# The names of what rounds: `a_inputs` is within `a`, and rounds what goes into it.
ROUNDED = {
    "an activation": (
        lambda x: L.ReLU(name="relu")(_dense(x, "a")),
        "a_inputs relu",
    ),
    "read by a relu, and given": (_read_and_given, "a_inputs a relu"),
    "two outputs": (lambda x: ops.split(_dense(x, "a"), 2, -1), "a_inputs a"),
    "whole numbers": (lambda x: ops.argmax(_dense(x, "a"), -1), "a_inputs a"),
    "operations": (
        lambda x: ops.transpose(ops.exp(_dense(x, "a"))),
        "a_inputs a exp",
    ),
    "moved": (
        lambda x: L.UpSampling1D(2)(
            L.Dropout(0.5)(_dense(L.Flatten()(x), "a")[:, None])
        ),
        "a_inputs a",
    ),
    "blended": (
        lambda x: L.UpSampling2D(2, interpolation="bilinear", name="up")(
            L.UpSampling2D(2)(_dense(x, "a")[:, None])
        ),
        "a_inputs a up",
    ),
    "not of the input": (
        lambda x: _dense(ops.exp(x), "a"),
        "exp a",
    ),
    "a model before a relu": (_into_relu, "a_inputs a relu"),
    "a model before another": (_into_relu_at_one_call, "b_inputs b relu"),
    "a model of two outputs": (_into_relu_of_two, "a_inputs a b relu"),
    "a model of two inputs": (_second_is_raw, "a_inputs a b c_inputs c"),
    "a model called on it": (_raw_at_one_call, "b_inputs b"),
    "after a model": (
        lambda x: _dense(_model(lambda y: _dense(y, "a"), (6, 4))(x), "b"),
        "a_inputs a b",
    ),
}


@pytest.mark.parametrize("name", ROUNDED)
def test_what_is_rounded(name):
    keras.utils.clear_session(free_memory=False)
    call, expected = ROUNDED[name]
    inputs = keras.Input((6, 4))
    model = keras.Model(inputs, [call(inputs), Norm(name="norm")(inputs)])
    trained = keras_bn.quantize_aware(model)
    names = {one.name for one in _parts(trained, FakeQuantize)}
    names = {one.removesuffix("_fake_quantize") for one in names}
    assert names == {*expected.split(), "norm"}
