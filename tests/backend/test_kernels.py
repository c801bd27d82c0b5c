"""The kernels of the running backend against the reference, which they replace."""

import functools
import itertools
from pathlib import Path

import keras
import numpy as np
import pytest

import cases
import frameworks
import oracle
from keras_bn import backend
from keras_bn.backend import activations, reference
from keras_bn.backend.interface import Axes
from keras_bn.ops import batch_norm_inference, batch_norm_train
from slow import slow

ACTIVATIONS = sorted(activations.SLOPES)
KERNELS = backend.kernels()


def axes_of(case):
    """The `Axes` of a case, by the oracle's arithmetic rather than the package's."""
    ndim = len(case.shape)
    return Axes(
        tuple(sorted(oracle.features(case.axis, ndim))),
        oracle.reduction(case.axis, ndim),
    )


class Inputs:
    """Random inputs of a kernel call for a case."""

    def __init__(self, case, dtype="float32", mean=0.0):
        rng = np.random.default_rng(0)
        self.axes = axes_of(case)
        shape = self.axes.parameter_shape(case.shape)
        wide = "float64" if dtype == "float64" else "float32"
        self.tensors = [
            frameworks.tensor(rng.normal(mean, 1, case.shape), dtype),
            frameworks.tensor(rng.normal(1, 0.5, shape), wide),
            frameworks.tensor(rng.normal(0, 0.5, shape), wide),
        ]
        self.dy = frameworks.tensor(rng.normal(size=case.shape), dtype)
        self.mask = None
        if case.mask is not None:
            dropped = self.axes.features if case.drop is None else case.drop
            mask = rng.random(case.mask) < 0.7
            if case.weighted:
                mask = (mask * rng.uniform(0.5, 2, case.mask)).astype(wide)
            self.mask = frameworks.tensor(np.expand_dims(mask, dropped))

    def run(self, kernels, activation=None):
        """`y`, the moments and the gradients, as NumPy."""
        return frameworks.gradients(
            lambda *inputs: kernels.train(
                *inputs, self.axes, 1e-3, self.mask, None, activation
            ),
            self.tensors,
            self.dy,
            quick=kernels is reference,
        )


@functools.cache
def plain_output(case, mean):
    """What the kernels give without an activation."""
    return Inputs(case, mean=mean).run(KERNELS)[0]


def assert_same(run, expected, dtype, wider=1):
    # What the two round differently; half-precision outputs by one unit of their own,
    # and sums, which are wide, by more of them where they are of many values.
    relative = {"float64": 1e-12, "float32": 2e-6, "float16": 2e-3, "bfloat16": 2e-2}
    wide = "float64" if dtype == "float64" else "float32"
    y, moments, slopes = run
    y_expected, moments_expected, slopes_expected = expected
    for one, other, its in zip(
        [y, *map(frameworks.numpy, moments), *slopes],
        [y_expected, *map(frameworks.numpy, moments_expected), *slopes_expected],
        [dtype, *[wide] * 3, dtype, *[wide] * 2],
        strict=True,
    ):
        size = np.max(np.abs(other), initial=1e-2)
        limit = relative[its] * size * (wider if its == wide else 1)
        assert np.max(np.abs(one - other), initial=0.0) <= limit


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("case", "dtype"),
    # In other dtypes only what widens is another; ops/test_batch_norm.py has them all.
    [(case, "float32") for case in cases.KINDS.values()]
    + [
        (cases.KINDS[name], dtype)
        for name in ("first_image", "mask_image")
        for dtype in cases.DTYPES[1:]
    ],
)
def test_training_equals_the_reference(case, dtype):
    inputs = Inputs(case, dtype)
    assert_same(inputs.run(KERNELS), inputs.run(reference), dtype)


def test_a_shortcut_is_added_as_in_the_reference():
    """Which serves it on backends without kernels of their own."""
    inputs = Inputs(cases.SHAPES["image"])
    one, other = (
        frameworks.at_once(
            lambda *tensors, kernels=kernels: kernels.train(
                *(*tensors[:3], inputs.axes, 1e-3, None, None, "relu"),
                shortcut=tensors[3],
            )[0]
        )(*inputs.tensors, inputs.dy)
        for kernels in (KERNELS, reference)
    )
    np.testing.assert_allclose(*map(frameworks.numpy, (one, other)), atol=2e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_counts_samples_in_float32(dtype):
    # More samples than float16 goes to, and no multiple of what bfloat16 resolves.
    case = cases.Case((257, 259, 2))
    inputs = Inputs(case, dtype)
    upstream = np.random.default_rng(1).normal(1, 1, case.shape)
    inputs.dy = frameworks.tensor(upstream, dtype)
    found = inputs.run(KERNELS)
    _, _, (slope, *_) = found
    # The statistics take the mean of the upstream gradient out.
    assert np.max(np.abs(slope.mean((0, 1)))) < 2e-3
    assert_same(found, inputs.run(reference), dtype, wider=32)


FUSED = [
    # Each slope once, and of each kind of them one where the kernels are others.
    *((cases.SHAPES["image"], activation, 0.0) for activation in ACTIVATIONS),
    *((cases.LARGE, activation, 0.0) for activation in ("relu", "selu", "tanh")),
    *((case, "tanh", 1e4) for case in (cases.SHAPES["image"], cases.LARGE)),
]


@pytest.mark.parametrize(("case", "activation", "mean"), FUSED)
def test_fused_activation_equals_the_reference(case, activation, mean):
    inputs = Inputs(case, mean=mean)
    y, moments, slopes = inputs.run(KERNELS, activation)
    plain = plain_output(case, mean)
    expected = keras.ops.convert_to_numpy(keras.activations.get(activation)(plain))
    np.testing.assert_allclose(y, expected, atol=1e-6)
    # At mean 1e4 the two round differently, and relu turns that on and off near zero.
    if mean == 0.0:
        wider = 1 if case is not cases.LARGE else 4  # sums of 32,768 values
        expected = inputs.run(reference, activation)
        assert_same((y, moments, slopes), expected, "float32", wider)
    assert all(np.all(np.isfinite(slope)) for slope in slopes)


def test_relu6_has_no_slope_beyond_6():
    inputs = Inputs(cases.SHAPES["image"])
    inputs.tensors[1] = 8 * inputs.tensors[1]
    found = inputs.run(KERNELS, "relu6")
    assert (found[0] == 6).any()
    assert_same(found, inputs.run(reference, "relu6"), "float32")


@pytest.mark.parametrize(
    ("case", "activation"),
    # Activations know no shapes: one each, and all of them where kernels are others.
    [
        *zip(cases.KINDS.values(), itertools.cycle([None, "relu", "tanh"])),
        *((cases.LARGE, activation) for activation in (None, "relu", "tanh")),
    ],
)
def test_inference_equals_the_reference(case, activation):
    inputs = Inputs(case)
    x, scale, offset = inputs.tensors
    rng = np.random.default_rng(1)
    shape = inputs.axes.parameter_shape(case.shape)
    mean, variance = (
        frameworks.tensor(values.astype("float32"))
        for values in (rng.normal(0, 0.5, shape), rng.uniform(0.5, 2, shape))
    )

    def run(kernels):
        y, _, slopes = frameworks.gradients(
            lambda *tensors: (
                kernels.inference(*tensors, inputs.axes, 1e-3, activation),
                None,
            ),
            [x, mean, variance, scale, offset],
            inputs.dy,
            quick=kernels is reference,
        )
        return [frameworks.numpy(y), *map(frameworks.numpy, slopes)]

    for one, other in zip(run(KERNELS), run(reference), strict=True):
        np.testing.assert_allclose(one, other, atol=8e-6 * np.max(np.abs(other)))


@pytest.mark.parametrize("axis", [-1, 1, (1, 2)])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_inference_keeps_half_precision(dtype, axis):
    x = np.random.default_rng(0).normal(3, 2, (4, 5, 5)).astype("float32")
    shape = 5 if isinstance(axis, int) else (1, 5, 5)
    mean, variance = np.full(shape, 3, "float32"), np.full(shape, 4, "float32")
    half = frameworks.tensor(x, dtype)
    y = batch_norm_inference(half, mean, variance, axis=axis)
    assert keras.backend.standardize_dtype(y.dtype) == dtype
    right = (frameworks.numpy(half) - 3) / np.sqrt(4.001)
    np.testing.assert_allclose(frameworks.numpy(y), right, rtol=2**-7, atol=1e-3)


# Gradients are always compiled on JAX.
WAYS = ["compiled"] if keras.backend.backend() == "jax" else ["eagerly", "compiled"]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "case",
    [cases.SHAPES["image"], cases.SHAPES["first_image"], cases.LARGE],
    ids=["last", "first", "large"],
)
def test_gradients_of_inference_far_from_zero(case, way):
    """They are sums of `x - mean`; sums of x and of the mean apart would cancel."""
    inputs = Inputs(case, mean=1e4)
    x, scale, offset = inputs.tensors
    rng = np.random.default_rng(1)
    shape = inputs.axes.parameter_shape(case.shape)
    mean, variance = (
        frameworks.tensor(values.astype("float32"))
        for values in (rng.normal(1e4, 0.5, shape), rng.uniform(0.5, 2, shape))
    )
    tensors = [x, mean, variance, scale, offset]

    def normalize(*tensors):
        return batch_norm_inference(*tensors, axis=case.axis, activation="tanh")

    def run(function, tensors, upstream, quick=False):
        y, _, slopes = frameworks.gradients(
            lambda *tensors: (function(*tensors), None), tensors, upstream, quick
        )
        return y, slopes

    exact = [
        frameworks.tensor(frameworks.numpy(one), "float64")
        for one in (*tensors, inputs.dy)
    ]
    y_expected, expected = run(
        lambda *tensors: reference.inference(*tensors, inputs.axes, 1e-3, "tanh"),
        *(exact[:-1], exact[-1]),
        quick=True,
    )
    function = frameworks.compiled(normalize) if way == "compiled" else normalize
    y, slopes = run(function, tensors, inputs.dy)
    # One multiply-add, as some of them are, has 1e4 to take off.
    np.testing.assert_allclose(y, y_expected, atol=5e-3)
    for one, other in zip(slopes, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * np.max(np.abs(other)))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_slopes_are_the_derivatives(activation):
    x = np.linspace(-8, 8, 4001)[::2].astype("float32")
    y = activations.activate(activation, frameworks.tensor(x))
    _, _, (expected,) = frameworks.gradients(
        lambda x: (keras.activations.get(activation)(x), None),
        [frameworks.tensor(x)],
        frameworks.tensor(np.ones_like(x)),
    )
    slope = frameworks.numpy(activations.SLOPES[activation](y))
    # relu and its kin have no derivative at 0; frameworks differ on what to call it.
    differentiable = x != 0
    np.testing.assert_allclose(
        slope[differentiable], expected[differentiable], atol=2e-6
    )


@pytest.mark.parametrize(
    ("activation", "name"),
    [
        (None, None),
        ("relu", "relu"),
        (keras.activations.tanh, "tanh"),
        ("gelu", None),
        ("softmax", None),
        (lambda x: x, None),
        (keras.layers.LeakyReLU(0.3), None),
    ],
)
def test_only_known_activations_are_fused(activation, name):
    assert activations.fusible(keras.activations.get(activation)) == name


@pytest.mark.parametrize("activation", ["relu", "gelu", lambda x: 3 * x])
def test_activation_in_both_modes(activation):
    x = np.random.default_rng(0).normal(size=(8, 5)).astype("float32")
    function = keras.activations.get(activation)
    for plain, activated in (
        (batch_norm_train(x)[0], batch_norm_train(x, activation=activation)[0]),
        (
            batch_norm_inference(x, np.zeros(5), np.ones(5)),
            batch_norm_inference(x, np.zeros(5), np.ones(5), activation=activation),
        ),
    ):
        np.testing.assert_allclose(
            frameworks.numpy(activated), frameworks.numpy(function(plain)), atol=1e-6
        )


@pytest.mark.parametrize(
    ("name", "mean"),
    # A mean is taken off before shapes matter.
    [
        *(("image", 0.0), ("first_image", 100.0)),
        *(("mask_image", 100.0), ("two_axes", 100.0)),
    ],
)
def test_gradient_of_the_gradient(name, mean):
    inputs = Inputs(cases.ALL[name], mean=mean)

    def squared_slope(kernels):
        return frameworks.second_gradient(
            lambda x: kernels.train(
                x, *inputs.tensors[1:], inputs.axes, 1e-3, inputs.mask, None, "tanh"
            )[0],
            inputs.tensors[0],
            inputs.dy,
            quick=kernels is reference,
        )

    expected = squared_slope(reference)
    np.testing.assert_allclose(
        squared_slope(KERNELS), expected, atol=1e-4 * np.max(np.abs(expected))
    )


@pytest.mark.skipif(
    frameworks.saved_bytes is None,
    reason="TensorFlow has no public count of what its tape keeps",
)
@pytest.mark.parametrize("activation", [None, "relu", "tanh"])
def test_saves_the_input_alone(activation):
    x = np.random.default_rng(0).normal(size=(16, 8, 8, 32)).astype("float32")
    saved = frameworks.saved_bytes(
        lambda x, gamma: batch_norm_train(x, gamma, activation=activation)[0],
        [frameworks.tensor(x), frameworks.tensor(np.ones(32, "float32"))],
    )
    assert x.nbytes <= saved <= 1.01 * x.nbytes + 8 * 32 * 4


@pytest.mark.parametrize(
    ("shape", "order", "axis"),
    [
        *(
            ((4, 5, 6, 7), order, axis)
            for order in [(0, 1, 2, 3), (0, 3, 1, 2), (3, 0, 1, 2), (1, 0, 3, 2)]
            for axis in (-1, 1)
        ),
        *(
            pytest.param(
                *((5, 13, 12, 24), order, axis),
                marks=slow("compiled once more, where sizes mean less", but_on="torch"),
            )
            for order in [(0, 3, 1, 2), (1, 0, 3, 2)]
            for axis in (-1, 1)
        ),
    ],
)
def test_any_memory_order(shape, order, axis):
    """A transposed view gives what a copy of it gives, forward and backward."""
    x = np.random.default_rng(0).normal(3, 2, shape).astype("float32")
    inverse = np.argsort(order)

    def run(x):
        y, _ = batch_norm_train(keras.ops.transpose(x, order), axis=axis)
        return keras.ops.transpose(y, inverse.tolist()), None

    upstream = np.random.default_rng(1).normal(size=x.shape).astype("float32")
    y, _, (dx,) = frameworks.gradients(
        run, [frameworks.tensor(x)], frameworks.tensor(upstream)
    )
    view, dy = x.transpose(order), upstream.transpose(order)
    np.testing.assert_allclose(
        y.transpose(order), oracle.forward(view, axis=axis).y, atol=1e-5
    )
    np.testing.assert_allclose(
        dx.transpose(order), oracle.backward(view, dy, axis=axis).x, atol=1e-5
    )


@pytest.mark.parametrize(
    ("shape", "axis", "dy", "activation"),
    # Each pair of two.
    [
        ((32, 112, 112, 2), -1, "constant", None),
        ((32, 112, 112, 2), -1, "one a sample", "relu"),
        ((32, 112, 112, 2), -1, "normal", "relu"),
        ((1, 2, 300_000), 1, "constant", "relu"),
        ((1, 2, 300_000), 1, "one a sample", None),
        ((1, 2, 300_000), 1, "normal", None),
        ((99_999, 2), -1, "constant", "relu"),
        ((99_999, 2), -1, "one a sample", "relu"),
        ((99_999, 2), -1, "normal", None),
    ],
    ids=str,
)
def test_gradients_of_many_samples(shape, axis, dy, activation):
    """Gradients of means are alike, and sums of many alike values lose digits."""
    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, shape).astype("float32")
    each = [1 if dy == "constant" else shape[0], *[1] * (len(shape) - 1)]
    size = shape if dy == "normal" else each
    upstream = np.broadcast_to(rng.normal(1, 1, size), shape).astype("float32")
    channels = shape[axis]
    inputs = x, np.ones(channels, "float32"), np.zeros(channels, "float32")
    _, _, slopes = frameworks.gradients(
        lambda *inputs: batch_norm_train(*inputs, axis=axis, activation=activation),
        map(frameworks.tensor, inputs),
        frameworks.tensor(upstream),
    )
    if activation == "relu":
        upstream = np.where(oracle.forward(x, axis=axis).y > 0, upstream, 0)
    expected = oracle.backward(x, upstream, axis=axis)
    typical = np.sqrt(np.mean(np.square(upstream, dtype="float64")))
    for found, right, per in zip(
        slopes, expected, (1, x.size / channels, x.size / channels), strict=True
    ):
        error = np.max(np.abs(found - np.reshape(right, found.shape)))
        assert error <= 5e-5 * typical * per


def test_moments_of_two_runs():
    x = np.random.default_rng(0).normal(3, [1, 5], (8192, 2)).astype("float32")
    x[:4096] += 1  # unlike the other
    _, (_, *moments) = batch_norm_train(x)
    for found, right in zip(moments, oracle.forward(x)[1:3], strict=True):
        np.testing.assert_allclose(frameworks.numpy(found), right.ravel(), rtol=1e-5)


def test_how_far_a_mean_is_from_zero_is_measured_in_deviations():
    """Of E[x²] - mean², a mean of 3 would leave nothing of a variance of 1e-6."""
    x = np.random.default_rng(0).normal(3, 1e-3, (4096, 8)).astype("float32")
    _, moments = batch_norm_train(x)
    variance = x.astype("float64").var(0)
    np.testing.assert_allclose(frameworks.numpy(moments.variance), variance, rtol=1e-5)


@pytest.mark.parametrize(
    "dtype",
    [
        "float32",
        pytest.param(
            "bfloat16", marks=slow("one more kernel to compile", but_on="torch")
        ),
    ],
)
def test_a_number_of_samples_that_no_equal_runs_make_up(dtype):
    """A prime, of more than a kernel adds up in a row."""
    rng = np.random.default_rng(0)
    x, dy = (
        frameworks.tensor(values.astype("float32"), dtype)
        for values in (rng.normal(3, [1, 5], (16411, 2)), rng.normal(1, 1, (16411, 2)))
    )
    gamma, beta = np.array([[0.5, 2.0], [1.0, -1.0]], "float32")
    y, moments, slopes = frameworks.gradients(
        batch_norm_train, [x, *map(frameworks.tensor, (gamma, beta))], dy
    )
    x, dy = map(frameworks.numpy, (x, dy))
    expected = oracle.forward(x, gamma, beta)
    rounding = 1e-6 if dtype == "float32" else 2**-8
    np.testing.assert_allclose(y, expected.y, rtol=rounding, atol=1e-5)
    for found, right in zip(moments[1:], expected[1:3], strict=True):
        np.testing.assert_allclose(frameworks.numpy(found), right.ravel(), rtol=1e-5)
    for found, right in zip(slopes, oracle.backward(x, dy, gamma), strict=True):
        size = np.max(np.abs(right))
        right = right.reshape(found.shape)
        np.testing.assert_allclose(found, right, rtol=rounding, atol=1e-5 * size)


def test_describe_names_existing_kernel_files():
    rows = backend.describe()
    assert {row.case.split(",")[0] for row in rows} == {"training", "inference"}
    folder = Path(backend.__file__).parent
    assert all((folder / f"{row.kernel}.py").exists() for row in rows)
    assert all(row.case and row.how for row in rows)
