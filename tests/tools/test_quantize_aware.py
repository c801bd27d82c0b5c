"""`quantize_aware`: rounds as the papers and torch.ao do, and `fold` agrees with it."""

import itertools
import warnings

import keras
import numpy as np
import pytest

import frameworks
import keras_bn
import oracle_quantized
from cases_copies import Unclear
from cases_fold import FOLDS
from cases_tools import images, layers_in, numpy, randomize, weights_of
from keras_bn._keras import layer_of
from keras_bn.tools._folding.chains import _is_relu, _moves
from keras_bn.tools._folding.fake_quantize import FakeQuantize
from keras_bn.tools._folding.linear_layers import axes_of_one_channel
from keras_bn.tools._folding.quantized_linear import QuantizedLinear
from slow import slow

L = keras.layers
Norm = keras_bn.BatchNormalization
ON_TORCH = keras.backend.backend() == "torch"
# Where each shape is compiled for itself, one row; else one of each kind, since the way
# to the norm is found by what `fold` finds it by.
ROWS = {"groups"}
KINDS = ROWS | {
    *("dense", "dense, no bias", "dense after", "conv1d causal", "conv3d", "flatten"),
    *("depthwise1d", "depthwise2d", "separable2d", "transpose2d", "two norms"),
    *("keras's", "no gamma or beta", "renorm", "permute", "average pool", "nested"),
    *("fused", "fused, twice", "same 1x1", "rescaling", "relu between"),
    *("padding after", "dtype"),
}
ALIKE = slow(
    "more models of these kinds", witness="test_fold_agrees_with_what_is_trained"
)
CASES = [
    pytest.param(one, id=one.name, marks=() if one.name in KINDS else ALIKE)
    for one in FOLDS
    if ON_TORCH or one.name in ROWS
]
AS_IN_THE_PAPERS = slow(
    "more of what the papers say, too",
    witness="test_values_and_gradients_are_those_of_the_papers",
)
GRAPHS = slow("graphs, which know no backend", but_on="torch")
OP_BY_OP = slow("layers that JAX runs op by op", but_on="torch")
pytestmark = pytest.mark.usefixtures("zero_kernels")


def _parts(model, kind):
    return [one for one in layers_in(model) if isinstance(one, kind)]


def _run(model, x):
    return model.predict_on_batch(x).astype("float64")


def _gradients(model, x, dy, training=True):
    """The output, the state after it, and gradients by name of the weight."""
    state = [v.value for v in model.non_trainable_variables]

    def call(x, *weights):
        return model.stateless_call(list(weights), state, x, training=training)

    tensors = [v.value for v in model.trainable_variables]
    y, after, slopes = frameworks.gradients(
        call, [frameworks.tensor(x), *tensors], frameworks.tensor(dy)
    )
    names = ["x", *(v.name for v in model.trainable_variables)]
    state = {
        v.name: numpy(value)
        for v, value in zip(model.non_trainable_variables, after, strict=True)
    }
    return y, state, dict(zip(names, slopes, strict=True))


@pytest.mark.parametrize("case", CASES)
def test_fold_agrees_with_what_is_trained(case):
    keras.utils.clear_session(free_memory=False)
    model = randomize(keras.Sequential([keras.Input(case.shape), *case.layers()]))
    before = weights_of(model)
    trained, report = keras_bn.quantize_aware(model, activations=False, explain=True)
    assert weights_of(model) == before
    assert [row.into is None for row in report.rows] == [
        row.into is None for row in keras_bn.fold(model, explain=True)[1].rows
    ]
    x = images(3, *case.shape)
    folded, _ = keras_bn.fold(trained, explain=True)
    exact, received, deployed = (_run(one, x) for one in (model, trained, folded))
    largest = np.abs(exact).max()
    assert 0 < np.abs(received - exact).max() < 0.05 * largest
    assert np.abs(deployed - received).max() <= 2e-6 * largest
    assert len(_parts(folded, Norm)) == len(
        _parts(keras_bn.fold(model, explain=True)[0], Norm)
    )
    assert not _parts(folded, (QuantizedLinear, FakeQuantize))


WHOLE_STEPS = {
    "conv": (lambda: [L.Conv2D(6, 3, groups=2), Norm(), L.ReLU()], (0, 1, 2)),
    "conv, one step": (lambda: [L.Conv2D(6, 3), Norm()], None),
    "both sides": (lambda: [Norm(), L.Conv2D(6, 3, groups=2), Norm()], (0, 1, 2)),
    "turned": (
        lambda: [
            *(L.Conv2D(6, 3), L.Permute((3, 1, 2)), Norm(axis=1)),
            *(L.Identity(), L.Permute((2, 1, 3)), Norm(axis=2)),
        ],
        (0, 1, 2),
    ),
    "depthwise": (lambda: [L.DepthwiseConv2D(3, depth_multiplier=2), Norm()], (0, 1)),
    "transpose": (lambda: [L.Conv2DTranspose(5, 3), Norm()], (0, 1, 3)),
    "flatten, one step": (
        lambda: [
            *(Norm(axis=(1, 3)), L.Permute((3, 1, 2)), Norm(axis=(1, 2))),
            *(L.Flatten(), L.Dense(3)),
        ],
        None,
    ),
}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            case,
            marks=()
            if case == "depthwise"
            else slow("shapes that JAX compiles", but_on="torch"),
        )
        for case in WHOLE_STEPS
    ],
)
def test_folded_weights_are_whole_steps(case):
    layers, axes = WHOLE_STEPS[case]
    model = randomize(keras.Sequential([keras.Input((6, 6, 4)), *layers()]))
    trained = keras_bn.quantize_aware(model, per_channel=axes is not None)
    folded = keras_bn.fold(trained)
    (linear,) = (one for one in folded.layers if hasattr(one, "kernel"))
    kernel = numpy(linear.kernel)
    steps = kernel / np.abs(kernel).max(axis=axes, keepdims=True) * 127
    assert np.abs(steps - np.rint(steps)).max() < 1e-3
    assert len(np.unique(np.rint(steps))) > 30


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("kind", "per_channel", "frozen"),
    [*itertools.product(["dense", "dense after", "conv"], *[[True, False]] * 2)]
    if ON_TORCH
    else [("dense", True, False), ("dense after", False, False), ("conv", False, True)],
)
def test_values_and_gradients_are_those_of_the_papers(kind, per_channel, frozen):
    shape, linear = (5,), L.Dense(4, dtype="float64")
    if kind == "conv":
        shape, linear = (6, 6, 3), L.Conv2D(4, 3, dtype="float64")
    norm = Norm(dtype="float64", freeze_statistics=frozen)
    layers = [norm, linear] if kind == "dense after" else [linear, norm]
    model = randomize(keras.Sequential([keras.Input(shape, dtype="float64"), *layers]))
    norm.gamma.assign(numpy(norm.gamma) * (-1) ** np.arange(norm.gamma.shape[0]))
    w = oracle_quantized.Weights(
        numpy(linear.kernel).reshape(-1, 4),
        *(numpy(one) for one in (linear.bias, norm.gamma, norm.beta)),
        *(numpy(one) for one in (norm.moving_mean, norm.moving_variance)),
    )
    rng = np.random.default_rng(1)
    x = rng.normal(size=(7, *shape))
    dy = rng.normal(size=(7, *model.output_shape[1:]))
    trained = keras_bn.quantize_aware(model, per_channel=per_channel, activations=False)
    y, _, slopes = _gradients(trained, x, dy)
    rows = oracle_quantized.patches(x, 3) if kind == "conv" else x
    expected, gradients = oracle_quantized.train(
        *(rows, dy.reshape(-1, 4), w, per_channel),
        *(kind == "dense after", frozen),
    )
    # Keras's Dense adds its bias in float32 on torch.
    np.testing.assert_allclose(y.reshape(-1, 4), expected, rtol=1e-6, atol=1e-6)
    for name, slope in zip(
        ("x", "kernel", "bias", "gamma", "beta"), gradients, strict=True
    ):
        if name != "x" or kind != "conv":
            received = slopes[name].reshape(slope.shape)
            np.testing.assert_allclose(received, slope, rtol=1e-6, atol=1e-6)


CONVOLUTIONS = {
    "1d": (L.Conv1D, (9, 4), {}, {}),
    "2d": (L.Conv2D, (7, 7, 4), {"strides": 2}, {"stride": 2}),
    "2d same": (L.Conv2D, (5, 5, 4), {"padding": "same"}, {"padding": 1}),
    "2d groups": (
        *(L.Conv2D, (7, 7, 4)),
        *({"groups": 2, "dilation_rate": 2}, {"groups": 2, "dilation": 2}),
    ),
    "2d no bias": (L.Conv2D, (5, 5, 4), {"use_bias": False}, {"bias": False}),
    "3d": (L.Conv3D, (4, 4, 4, 4), {}, {}),
}


def _torch_ao(rank, linear, norm, options, per_channel, frozen):
    """torch.ao's fused module with the weights of these layers."""
    import torch
    from torch.ao import quantization
    from torch.ao.nn.intrinsic import qat

    observer, scheme = quantization.MinMaxObserver, torch.per_tensor_symmetric
    if per_channel:
        observer, scheme = (
            quantization.PerChannelMinMaxObserver,
            torch.per_channel_symmetric,
        )
    weight = quantization.FakeQuantize.with_args(
        observer=observer,
        quant_min=-127,
        quant_max=127,
        dtype=torch.qint8,
        qscheme=scheme,
    )
    qconfig = quantization.QConfig(activation=torch.nn.Identity, weight=weight)
    module = getattr(qat, f"ConvBn{rank}d")(
        *(4, 6, 3),
        **{"bias": True, "eps": norm.epsilon, "momentum": 1 - norm.momentum, **options},
        qconfig=qconfig,
    )
    kernel = np.moveaxis(numpy(linear.kernel), (-1, -2), (0, 1))
    values = {"weight": kernel, "bn.weight": numpy(norm.gamma)}
    values |= {"bn.bias": numpy(norm.beta), "bn.running_mean": numpy(norm.moving_mean)}
    values["bn.running_var"] = numpy(norm.moving_variance)
    if linear.bias is not None:
        values["bias"] = numpy(linear.bias)
    values = {k: torch.tensor(v, dtype=torch.float32) for k, v in values.items()}
    module.load_state_dict(values, strict=False)
    return module.freeze_bn_stats() if frozen else module.update_bn_stats()


@slow("layers that JAX compiles, beside PyTorch's", but_on="torch")
@pytest.mark.parametrize(
    ("case", "per_channel", "frozen"),
    # The rounding does not know what is frozen.
    [
        pytest.param(*one, marks=() if one[1] != one[2] else AS_IN_THE_PAPERS)
        for one in itertools.product(CONVOLUTIONS, [True, False], [True, False])
    ],
)
def test_agrees_with_torch_ao(case, per_channel, frozen):
    import torch

    layer, shape, keras_options, torch_options = CONVOLUTIONS[case]
    linear, norm = layer(6, 3, **keras_options), Norm(freeze_statistics=frozen)
    model = randomize(keras.Sequential([keras.Input(shape), linear, norm]))
    rank = len(shape) - 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao is to move to another package
        module = _torch_ao(rank, linear, norm, torch_options, per_channel, frozen)
    trained = keras_bn.quantize_aware(model, per_channel=per_channel, activations=False)
    x, dy = images(4, *shape), images(4, *model.output_shape[1:], seed=1)
    y, state, slopes = _gradients(trained, x, dy)

    given = torch.tensor(np.moveaxis(x, -1, 1), requires_grad=True)
    expected = module(given)
    expected.backward(torch.tensor(np.moveaxis(dy, -1, 1)))
    theirs = {
        "x": np.moveaxis(given.grad.numpy(), 1, -1),
        "kernel": np.moveaxis(module.weight.grad.numpy(), (0, 1), (-1, -2)),
        "gamma": module.bn.weight.grad.numpy(),
        "beta": module.bn.bias.grad.numpy(),
    }
    expected = np.moveaxis(expected.detach().numpy(), 1, -1)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    for name, slope in theirs.items():
        np.testing.assert_allclose(slopes[name], slope, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        state["moving_mean"], module.bn.running_mean.numpy(), rtol=1e-5, atol=1e-6
    )


def test_what_a_range_is_kept_in(monkeypatch):
    monkeypatch.undo()  # random initial weights, as by default
    layer = FakeQuantize()
    layer.build((None, 2))
    assert [float(numpy(weight)) for weight in layer.weights] == [0] * 3
    names = [weight.name for weight in layer.weights]
    assert names == ["minimum", "maximum", "observed"]
    # How those of replicas are brought together.
    assert [weight.aggregation for weight in layer.weights] == ["mean"] * 3


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("dtype", "rtol"),
    [
        ("float32", 1e-5),
        ("float64", 1e-12),
        pytest.param("bfloat16", 2.0**-8, marks=OP_BY_OP),
    ],
)
def test_activations_are_rounded_to_a_moving_range(dtype, rtol):
    layer = FakeQuantize(momentum=0.9)
    batches = [
        frameworks.tensor(images(5, 3, seed=seed) * (seed + 1) / 10, dtype)
        for seed in range(3)
    ]
    values = [numpy(x) for x in batches]
    np.testing.assert_array_equal(numpy(layer(batches[0])), values[0])  # no range yet
    low, high = values[0].min(), values[0].max()
    for number, (x, value) in enumerate(zip(batches, values, strict=True)):
        kept = 0.9 if number else 0.0
        low = kept * low + (1 - kept) * value.min()
        high = kept * high + (1 - kept) * value.max()
        y = layer(x, training=True)
        assert keras.backend.standardize_dtype(y.dtype) == dtype
        bounds = numpy(layer.minimum), numpy(layer.maximum)
        np.testing.assert_allclose(bounds, (low, high), rtol=1e-6)
        expected = oracle_quantized.rounded_activations(value, *bounds)
        np.testing.assert_allclose(numpy(y), expected, rtol=rtol, atol=1e-6 * rtol)
    x = np.linspace(-1, 1, 3000, dtype="float32").reshape(-1, 3)
    x[0] = 0
    levels = numpy(layer(x))
    assert not levels[0].any()
    assert len(np.unique(levels.round(5))) == 256


@OP_BY_OP
def test_0_is_within_a_range():
    for sign in (1, -1):
        layer = FakeQuantize()
        x = np.abs(images(5, 3)) / 10 + 0.1
        layer(sign * x, training=True)
        bounds = sorted(float(sign * numpy(one)) for one in layer.weights[:2])
        np.testing.assert_allclose(bounds, (0, x.max()), rtol=1e-6)


def test_whole_numbers_stay_as_they_are():
    layer = FakeQuantize()
    layer(np.array([[-1.0, 3.0]], "float32"), training=True)
    before = weights_of(layer)
    x = np.arange(600, dtype="int32").reshape(2, 300)
    np.testing.assert_array_equal(numpy(layer(x, training=True)), x)
    assert weights_of(layer) == before


@pytest.mark.parametrize(
    ("x", "training", "expected"),
    [
        ([-1.5, -1.0, -0.7, 0.0, 2.9, 3.0, 3.2], False, [0, 1, 1, 1, 1, 1, 0]),
        # The range that this batch sets is no function of it.
        pytest.param([-1.0, -0.7, 0.0, 3.0], True, [1, 1, 1, 1], marks=OP_BY_OP),
    ],
)
def test_the_gradient_of_an_activation_stops_where_it_is_clipped(x, training, expected):
    layer = FakeQuantize()
    layer(np.array([[-1.0, 3.0]], "float32"), training=True)
    state = [v.value for v in layer.variables]
    _, _, (slope,) = frameworks.gradients(
        lambda x: layer.stateless_call([], state, x, training=training),
        [frameworks.tensor(np.array([x], "float32"))],
        frameworks.tensor(np.ones((1, len(x)), "float32")),
    )
    np.testing.assert_array_equal(slope, [expected])


@pytest.mark.parametrize(
    "x",
    [
        np.zeros((0, 3)),
        np.array([[np.nan, 1, 2]]),
        pytest.param(np.array([[np.inf, 1, 9]]), marks=OP_BY_OP),
        pytest.param(np.array([[-np.inf, 1, 9]]), marks=OP_BY_OP),
    ],
)
def test_a_range_is_not_spoilt(x):
    layer = FakeQuantize()
    layer(images(4, 3), training=True)
    before = weights_of(layer)
    y = numpy(layer(x.astype("float32"), training=True))
    if x.size:
        assert weights_of(layer) == before
        assert np.isnan(y[0, 0])
        assert np.isfinite(y[0, 1])
    else:
        assert y.shape == (0, 3)


@GRAPHS
def test_a_range_stays_where_statistics_do():
    layer = FakeQuantize()
    layer(images(4, 3), training=True)
    before = weights_of(layer)
    with keras_bn.no_update():
        layer(9 * images(4, 3), training=True)
    layer.trainable = False
    layer(9 * images(4, 3), training=True)
    assert weights_of(layer) == before


@pytest.mark.parametrize(
    "per_channel",
    [
        True,
        pytest.param(False, marks=OP_BY_OP),
    ],
)
def test_a_channel_without_scale_can_learn(per_channel):
    norm = Norm()
    model = keras.Sequential([keras.Input((4,)), L.Dense(3), norm])
    # A scale of 0 in two channels, a kernel of 0 in the third.
    model.layers[0].kernel.assign(images(4, 3) * [1, 1, 0])
    norm.gamma.assign([0, 0, 1])
    trained = keras_bn.quantize_aware(model, per_channel=per_channel)
    y, _, slopes = _gradients(trained, images(8, 4), images(8, 3, seed=1))
    assert np.isfinite(y).all()
    assert all(np.isfinite(slope).all() for slope in slopes.values())
    assert np.abs(slopes["gamma"][:2]).min() > 0


def _network():
    """Two branches that meet, a shared ReLU, a model in it, a frozen layer."""
    inputs = keras.Input((8, 8, 2))
    relu = L.ReLU(name="relu")
    x = L.Conv2D(4, 3, padding="same", name="stem")(inputs)
    x = relu(Norm(name="stem_norm")(x))
    inner = keras.Sequential(
        [
            keras.Input((8, 8, 4)),
            L.DepthwiseConv2D(3, padding="same", use_bias=False, name="deep"),
            Norm(name="deep_norm"),
        ],
        name="inner",
    )
    y = L.Conv2D(4, 1, name="point")(relu(inner(x)))
    y = L.BatchNormalization(name="point_norm")(y)
    x = L.Activation("swish", name="swish")(L.Add(name="add")([x, y]))
    x = L.Dropout(0.5, name="drop")(L.GlobalAveragePooling2D(name="pool")(x))
    model = keras.Model(inputs, L.Dense(3, name="head")(x), name="net")
    model.get_layer("stem").trainable = False
    return randomize(model)


@GRAPHS
def test_rounding_stands_where_a_deployed_graph_has_it():
    model = _network()
    trained = keras_bn.quantize_aware(model)
    names = {one.name for one in _parts(trained, FakeQuantize)}
    assert names == {
        *("stem_inputs", "relu_fake_quantize", "relu_fake_quantize_1"),
        *("point_norm_fake_quantize", "add_fake_quantize", "swish_fake_quantize"),
        *("pool_fake_quantize", "head_fake_quantize"),
    }
    chains = [[p.name for p in one.layers] for one in _parts(trained, QuantizedLinear)]
    assert sorted(chains) == [
        ["deep", "deep_norm"],
        ["head"],
        ["point", "point_norm"],
        ["stem_inputs", "stem", "stem_norm"],
    ]
    frozen = {one.name for one in layers_in(trained) if not one.trainable}
    assert frozen == {"stem"}
    ranges = {id(v) for one in _parts(trained, FakeQuantize) for v in one.weights}
    assert [(v.name, v.trainable) for v in trained.weights if id(v) not in ranges] == [
        (v.name, v.trainable) for v in model.weights
    ]
    assert [v.name for v in trained.trainable_variables] == [
        v.name for v in model.trainable_variables
    ]


@GRAPHS
def test_what_a_relu_does_not_read_alone_is_rounded():
    inputs = keras.Input((4,))
    x = Norm(name="norm")(L.Dense(4)(inputs))
    outputs = L.Add(name="add")([x, L.ReLU(name="relu")(x)])
    trained = keras_bn.quantize_aware(keras.Model(inputs, outputs))
    names = {one.name for one in _parts(trained, FakeQuantize)}
    assert {f"{one}_fake_quantize" for one in ("norm", "relu", "add")} <= names


@slow("trains a network of two branches", but_on="torch")
def test_files_and_configs_bring_it_back(tmp_path):
    trained = keras_bn.quantize_aware(_network(), per_channel=False)
    x = images(4, 8, 8, 2)
    trained.compile("sgd", "mse")
    trained.train_on_batch(x, images(4, 3))  # there are ranges now
    trained.save(tmp_path / "trained.keras")
    loaded = keras.saving.load_model(tmp_path / "trained.keras")
    expected = _run(trained, x)
    np.testing.assert_array_equal(_run(loaded, x), expected)
    assert not any(one.per_channel for one in _parts(loaded, QuantizedLinear))
    stem = trained.get_layer("stem")
    assert QuantizedLinear.from_config(stem.get_config()).get_config() == (
        stem.get_config()
    )


@slow("trains two networks, three and two epochs", but_on="torch")
def test_both_phases_train_and_fold():
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            *(L.Conv2D(4, 3), L.BatchNormalization(momentum=0.5), L.ReLU()),
            *(L.GlobalAveragePooling2D(), L.Dense(3)),
        ]
    )
    model = randomize(model)
    model.compile("sgd", "mae")
    model.optimizer.build(model.trainable_variables)
    model.optimizer.iterations.assign(7)
    trained = keras_bn.quantize_aware(model, momentum=0.5)
    assert (trained.loss, int(trained.optimizer.iterations)) == ("mae", 0)
    trained.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse")
    x, y = images(64, 6, 6, 2), images(64, 3, seed=1)
    first = trained.fit(x, y, epochs=3, batch_size=16, verbose=0).history["loss"]
    frozen = keras_bn.convert(trained, freeze_statistics=True)
    np.testing.assert_array_equal(_run(frozen, x), _run(trained, x))
    assert int(frozen.optimizer.iterations) == 12
    (norm,) = _parts(frozen, Norm)
    variance, gamma = numpy(norm.moving_variance), numpy(norm.gamma)
    second = frozen.fit(x, y, epochs=2, batch_size=16, verbose=0).history["loss"]
    np.testing.assert_array_equal(numpy(norm.moving_variance), variance)
    assert np.abs(numpy(norm.gamma) - gamma).max() > 0
    assert second[-1] < first[-1] < first[0]
    folded, report = keras_bn.fold(frozen, explain=True)
    assert len(report.folded) == 1
    # What differs is the rounding of activations, and the clipping of the largest.
    expected = _run(frozen, x)
    assert np.abs(_run(folded, x) - expected).mean() < 0.02 * np.abs(expected).max()
    assert not _parts(folded, (QuantizedLinear, FakeQuantize))


@GRAPHS
def test_the_norm_alone_sets_the_frozen_phase_apart():
    model = keras.Sequential([keras.Input((4,)), L.Dense(3), Norm()])
    trained = keras_bn.quantize_aware(randomize(model), activations=False)
    frozen = keras_bn.convert(trained, freeze_statistics=True)
    x = images(8, 4)
    np.testing.assert_array_equal(numpy(frozen(x, training=True)), numpy(trained(x)))
    assert np.abs(numpy(trained(x, training=True)) - numpy(frozen(x))).max() > 0.1


@pytest.mark.parametrize(
    "policy",
    [
        "mixed_bfloat16",
        pytest.param("float16", marks=OP_BY_OP),
    ],
)
def test_half_precision_rounds_weights_in_full(policy):
    keras.config.set_dtype_policy(policy)
    # Whose statistics are of half precision too, under a policy of that.
    dense, norm = L.Dense(6), L.BatchNormalization()
    model = keras.Sequential([keras.Input((40,)), dense, norm, L.ReLU()])
    randomize(model)
    trained = keras_bn.quantize_aware(model, per_channel=False, activations=False)
    kernel = trained.layers[0].quantized_kernels()["kernel"]
    scale = numpy(norm.gamma) / np.sqrt(numpy(norm.moving_variance) + norm.epsilon)
    expected = oracle_quantized.rounded_weights(numpy(dense.kernel) * scale, False)
    np.testing.assert_allclose(numpy(kernel), expected / scale, rtol=1e-5, atol=1e-7)
    x = images(8, 40)
    assert np.abs(numpy(trained(x)) - numpy(model(x))).max() < 0.1
    y = trained(x, training=True)
    assert keras.backend.standardize_dtype(y.dtype) == policy.removeprefix("mixed_")


@OP_BY_OP
def test_half_precision_rounds_weights_in_full_within_a_call():
    keras.config.set_dtype_policy("mixed_bfloat16")
    layers = [L.Dense(1, name="linear"), L.ReLU(), Norm()]
    model = keras.Sequential([keras.Input((2,)), *layers])
    # In steps of 1, which in half precision were as near to 100.
    layers[0].kernel.assign([[127.0], [99.3]])
    trained = keras_bn.quantize_aware(model, activations=False)
    x = np.array([[0.0, 1.0]], "float32")
    for call in (trained.layers[0], trained):
        assert numpy(call(x)) == 99


@OP_BY_OP
def test_a_range_sees_inputs_before_half_precision_does():
    keras.config.set_dtype_policy("float16")
    inputs = keras.Input((1,), dtype="float32")
    trained = keras_bn.quantize_aware(keras.Model(inputs, Norm()(L.Dense(1)(inputs))))
    trained(np.array([[2049.0], [1.0]], "float32"), training=True)
    # Of float16, 2049 is 2048.
    (first,) = (one for one in _parts(trained, FakeQuantize) if "inputs" in one.name)
    assert numpy(first.maximum) == 2049


@GRAPHS
def test_attributes_hold_the_layers_that_are_called():
    dense = L.Dense(3)
    model = keras.Model(inputs := keras.Input((4,)), Norm()(dense(inputs)))
    model.parts = [dense]
    trained = keras_bn.quantize_aware(model)
    assert [type(one) for one in trained.parts] == [QuantizedLinear, FakeQuantize]
    assert trained.parts[0].compute_output_shape((None, 4)) == (None, 3)
    assert {id(one) for one in trained.parts} <= {id(one) for one in trained.layers}


@pytest.mark.parametrize(
    "policy", ["mixed_bfloat16", pytest.param("bfloat16", marks=OP_BY_OP)]
)
def test_a_range_keeps_its_digits_under_a_policy_of_half(policy):
    layer = FakeQuantize(momentum=0.5, dtype=policy)
    for largest in (257.0, 1.0, 1.0):
        layer(np.array([[largest]], "float32"), training=True)
    # Of bfloat16, 257 is 256.
    assert numpy(layer.maximum) == ((257 + 1) / 2 + 1) / 2


@GRAPHS
@pytest.mark.usefixtures("float64")
def test_ranges_are_of_the_dtype_of_the_weights():
    policy = {"dtype": "float64"}
    layers = [L.Dense(3, **policy), Norm(**policy), L.Activation("tanh", **policy)]
    model = keras.Sequential([keras.Input((4,), **policy), *layers])
    ranges = _parts(keras_bn.quantize_aware(model), FakeQuantize)
    assert len(ranges) == 3
    assert {v.dtype for one in ranges for v in one.weights} == {"float64"}


@GRAPHS
def test_a_call_makes_no_weights_that_wait():
    trained = keras_bn.quantize_aware(_sequential(Norm()))
    made = []

    def initializer(shape, dtype):
        made.append(shape)
        return np.zeros(shape, dtype)

    with keras.StatelessScope(initialize_variables=False):
        waiting = keras.Variable(initializer, (5,), "float32")
    made.clear()
    trained.layers[0](images(2, 4))
    assert made == []
    assert waiting.shape == (5,)


@pytest.mark.parametrize(
    "layer", [pytest.param(Norm, marks=OP_BY_OP), L.BatchNormalization]
)
def test_no_gradient_goes_by_the_statistics_of_an_earlier_call(layer):
    model = keras.Sequential([keras.Input((4,)), L.Dense(3), layer(momentum=0.1)])
    randomize(model)
    options = {"per_channel": False, "activations": False}
    block = keras_bn.quantize_aware(model, **options).layers[0]
    state = [v.value for v in block.non_trainable_variables]
    weights = [v.value for v in block.trainable_variables]
    x, dy = frameworks.tensor(images(8, 4)), frameworks.tensor(images(8, 3, seed=1))

    def call(*weights, state=state):
        return block.stateless_call(list(weights), state, x, training=True)

    def again(*weights):
        _, moved = call(*weights)
        return call(*weights, state=moved)

    _, moved, _ = frameworks.gradients(call, weights, dy)
    assert all(
        np.abs(numpy(a) - numpy(b)).min() > 0 for a, b in zip(state, moved, strict=True)
    )
    _, _, expected = frameworks.gradients(
        lambda *weights: call(*weights, state=moved), weights, dy
    )
    _, _, received = frameworks.gradients(again, weights, dy)
    for slope, known in zip(received, expected, strict=True):
        np.testing.assert_allclose(slope, known, rtol=1e-4, atol=1e-5)


@GRAPHS
def test_what_belongs_to_the_linear_layer_comes_along():
    dense = L.Dense(
        3, kernel_regularizer=keras.regularizers.L2(0.1), activity_regularizer="l2"
    )
    model = randomize(keras.Sequential([keras.Input((4,)), dense, Norm()]))
    trained = keras_bn.quantize_aware(model, activations=False)
    x = images(8, 4)
    model(x)
    trained(x)
    assert len(trained.losses) == len(model.losses) == 2
    np.testing.assert_allclose(
        sorted(float(numpy(one)) for one in trained.losses),
        sorted(float(numpy(one)) for one in model.losses),
        rtol=0.02,
    )
    model.layers[0].enable_lora(2)
    model.layers[0].lora_kernel_b.assign(np.ones((2, 3)))
    merged = keras_bn.quantize_aware(model, activations=False)
    assert np.abs(numpy(merged(x)) - numpy(model(x))).max() < 0.1


@GRAPHS
@pytest.mark.parametrize("explain", [False, True])
def test_norms_that_stay_in_float_are_named(explain):
    inputs = keras.Input((4,)), keras.Input((), dtype="int32")
    norm = keras_bn.DomainBatchNormalization(2, name="of_domains")
    y = norm(keras.layers.Dense(3)(inputs[0]), domain=inputs[1])
    model = keras.Model(inputs, y, name="m")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = keras_bn.quantize_aware(model, explain=explain)
    said = [str(one.message) for one in caught if one.category is UserWarning]
    if explain:
        ((path, into, reason),) = made[1].left
        assert (path, into, said) == ("of_domains", None, [])
        assert "statistics for each domain" in reason
    else:
        assert len(said) == 1
        assert "1 batch normalization layers of model 'm' stay in float" in said[0]
        assert "'of_domains' the first: it has statistics for each domain" in said[0]


@slow("a recurrent layer that JAX compiles", but_on="torch")
# What Keras 3.16 says of every mask that an LSTM ends.
@pytest.mark.filterwarnings("ignore:Layer 'lstm' .* does not support masking")
def test_masks_pass():
    model = randomize(
        keras.Sequential(
            [keras.Input((6, 4)), L.Masking(), L.Dense(3), Norm(), L.LSTM(2)]
        )
    )
    x = images(5, 6, 4)
    x[:, 3:] = 0
    trained = keras_bn.quantize_aware(model)
    y = numpy(trained(x, training=True))
    assert np.abs(y - numpy(model(x, training=True))).max() < 0.05
    (norm,), (theirs,) = _parts(trained, Norm), _parts(model, Norm)
    expected = numpy(theirs.moving_variance)
    np.testing.assert_allclose(numpy(norm.moving_variance), expected, rtol=1e-3)


@GRAPHS
def test_shared_layers_stay_shared():
    inputs, dense = keras.Input((4,)), L.Dense(4, name="dense")
    shared = keras.Sequential(
        [keras.Input((4,)), L.Dense(4, name="inner"), Norm()], name="shared"
    )
    x = Norm(name="norm")(dense(dense(inputs)))
    model = randomize(keras.Model(inputs, shared(shared(x))))
    trained, report = keras_bn.quantize_aware(model, explain=True)
    assert [row.into for row in report.rows] == [None, "shared/inner"]
    assert "'dense' is called 2 times" in report.rows[0].reason
    assert len(trained.trainable_variables) == len(model.trainable_variables)
    x = images(9, 4)
    assert np.abs(_run(trained, x) - _run(model, x)).max() < 0.5


@GRAPHS
def test_a_layer_that_a_wrapper_holds_too_is_left():
    inputs, held = keras.Input((6, 4)), L.Dense(4, name="held")
    x = held(L.TimeDistributed(held)(inputs))
    model = keras.Model(inputs, Norm()(L.Dense(3, name="free")(x)))
    trained = keras_bn.quantize_aware(model)
    assert [one.name for one in _parts(trained, QuantizedLinear)] == ["free"]
    assert "held" in {one.name for one in _parts(trained, L.Dense)}
    assert _run(trained, images(2, 6, 4)).shape == (2, 6, 3)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.norm = Norm()

    def call(self, inputs):
        return self.norm(inputs)


def _subclassed():
    model = Subclassed()
    model(images(2, 3))
    return model


def _sequential(*layers):
    return keras.Sequential([keras.Input((4,)), L.Dense(3), *layers])


@GRAPHS
@pytest.mark.parametrize(
    ("build", "arguments", "error", "message"),
    [
        (lambda: 3, {}, TypeError, "`model` must be a Keras model"),
        (_sequential, {}, ValueError, "`model` must have a batch norm"),
        (
            lambda: keras.Sequential([L.Dense(3), Norm()]),
            {},
            ValueError,
            "`model` must be built",
        ),
        (_subclassed, {}, ValueError, "`model` must be a Functional or Sequential"),
        (
            lambda: keras_bn.quantize_aware(_sequential(Norm())),
            {},
            ValueError,
            "`model` must not be quantize-aware already",
        ),
        (
            lambda: _sequential(Norm()),
            {"per_channel": "no"},
            TypeError,
            "`per_channel` must be True or False",
        ),
        (
            lambda: _sequential(Norm()),
            {"activations": None},
            TypeError,
            "`activations` must be True or False",
        ),
        (
            lambda: _sequential(Norm()),
            {"explain": "no"},
            TypeError,
            "`explain` must be True or False",
        ),
        (
            lambda: _sequential(Norm()),
            {"momentum": 1.5, "activations": False},
            ValueError,
            "`momentum` must be a number in",
        ),
    ],
)
def test_bad_arguments(build, arguments, error, message):
    with pytest.raises(error, match=message):
        keras_bn.quantize_aware(build(), **arguments)


@GRAPHS
def test_a_failure_leaves_the_model():
    model = _sequential(Norm(), Unclear())
    before = weights_of(model)
    with pytest.raises(ValueError, match="class Unclear cannot be copied"):
        keras_bn.quantize_aware(model)
    assert weights_of(model) == before


def test_a_layer_on_the_way_that_is_called_twice_stops_a_norm():
    x, shared = keras.Input((4,)), L.Dropout(0.5, name="shared")
    y, z = (shared(L.Dense(3)(x)) for _ in range(2))
    model = keras.Model(x, [Norm()(y), z])
    _, report = keras_bn.quantize_aware(model, explain=True)
    assert "'shared' is called 2 times" in report.rows[0].reason


@pytest.mark.once
@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (L.Activation("relu"), True),
        (L.Activation("relu6"), True),
        (L.Activation("tanh"), False),
        (L.Dense(2, activation="relu"), False),
        (L.ReLU(), True),
        (L.ReLU(6.0), True),
        (L.ReLU(5.0), False),
        (L.ReLU(negative_slope=0.1), False),
        (L.ReLU(threshold=0.1), False),
    ],
)
def test_what_deployed_graphs_take_for_a_bound(layer, expected):
    assert _is_relu(layer) == expected


@pytest.mark.once
@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (L.Flatten(), True),
        (L.MaxPooling2D(2), True),
        (L.AveragePooling2D(2), False),
        (L.Dense(2), False),
        (lambda x: keras.ops.reshape(x, (-1, 8)), True),
        (keras.ops.transpose, True),
        (keras.ops.exp, False),
    ],
)
def test_what_hands_rounded_values_on(call, expected):
    assert _moves(layer_of(call(keras.Input((4, 4, 2))))) == expected


@pytest.mark.once
@pytest.mark.parametrize(
    ("layer", "rank", "expected"),
    [
        (L.Dense(3), 0, {"kernel": (0,)}),
        (L.Conv1D(3, 2), 1, {"kernel": (0, 1)}),
        (L.Conv2D(3, 2), 2, {"kernel": (0, 1, 2)}),
        (L.DepthwiseConv1D(2), 1, {"kernel": (0,)}),
        (L.DepthwiseConv2D(2), 2, {"kernel": (0, 1)}),
        (
            L.SeparableConv1D(3, 2),
            1,
            {"depthwise_kernel": (0,), "pointwise_kernel": (0, 1)},
        ),
        (
            L.SeparableConv2D(3, 2),
            2,
            {"depthwise_kernel": (0, 1), "pointwise_kernel": (0, 1, 2)},
        ),
        (L.Conv1DTranspose(3, 2), 1, {"kernel": (0, 2)}),
        (L.Conv2DTranspose(3, 2), 2, {"kernel": (0, 1, 3)}),
    ],
)
def test_a_step_is_of_one_channel(layer, rank, expected):
    layer.build((None, *(6,) * rank, 4))
    assert {name: axes_of_one_channel(layer, name) for name in expected} == expected
