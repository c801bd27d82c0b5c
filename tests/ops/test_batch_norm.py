"""`batch_norm_train` and `batch_norm_inference` against the float64 oracle."""

import keras
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import cases
import frameworks
import oracle
from keras_bn.ops import batch_norm_inference, batch_norm_train
from slow import slow


class Problem:
    """Random numbers for a case, as float64 NumPy and as the backend's tensors.

    The oracle is given what the function is given: numbers rounded to the dtype.
    """

    def __init__(self, case, dtype="float32", mean=0.0, std=1.0, seed=0):
        rng = np.random.default_rng(seed)
        self.case, self.dtype = case, dtype
        axes = sorted(oracle.features(case.axis, len(case.shape)))
        self.parameter_shape = [case.shape[a] for a in axes]
        if len(axes) > 1:
            self.parameter_shape = [
                n if i in axes else 1 for i, n in enumerate(case.shape)
            ]
        self.x_tensor = frameworks.tensor(rng.normal(mean, std, case.shape), dtype)
        self.dy_tensor = frameworks.tensor(rng.normal(0, 1, case.shape), dtype)
        wide = "float64" if dtype == "float64" else "float32"
        self.gamma_tensor, self.beta_tensor, self.r_tensor, self.d_tensor = (
            frameworks.tensor(rng.normal(1, 0.5, self.parameter_shape), wide)
            for _ in range(4)
        )
        self.mask = None if case.mask is None else rng.random(case.mask) < 0.7
        self.x, self.dy = map(self._exact, (self.x_tensor, self.dy_tensor))
        self.gamma, self.beta, self.r, self.d = (
            oracle.spread(self._exact(p), self.x, case.axis)
            for p in (self.gamma_tensor, self.beta_tensor, self.r_tensor, self.d_tensor)
        )
        self.weight = oracle.weights(self.mask, self.x, case.axis, case.drop)

    @staticmethod
    def _exact(tensor):
        return np.asarray(frameworks.numpy(tensor), "float64")

    def train(self, x, gamma, beta, **kwargs):
        return batch_norm_train(
            x, gamma, beta, axis=self.case.axis, mask=self.mask, **kwargs
        )


def assert_output(y, expected, x, variance, gamma, dtype, epsilon=1e-3):
    error = np.abs(np.asarray(y, "float64") - expected)
    allowed = oracle.tolerance(x, variance, gamma, epsilon, dtype)
    # A half-precision output is itself rounded, half a unit in its own last place.
    allowed = allowed + np.vectorize(oracle.ulp)(np.abs(expected), dtype)
    assert np.all(error <= allowed), f"off by {np.max(error - allowed)} too much"


def assert_gradient(gradient, expected, dtype, scale=0.0):
    """Within 1e-4 of the largest gradient; within the output's rounding at half."""
    error = np.abs(np.asarray(gradient, "float64") - expected.reshape(gradient.shape))
    size = max(np.max(np.abs(expected), initial=0.0), scale)
    relative = max(1e-13 if dtype == "float64" else 1e-4, oracle.ulp(1.0, dtype))
    assert np.all(error <= relative * (size + 1e-2)), (
        f"off by {np.max(error)} of {size}"
    )


def check_training(problem, correct=False, quick=False):
    p, axis = problem, problem.case.axis
    correction = {"r": p.r, "d": p.d} if correct else {}
    hook = {"correction": lambda mean, var: (p.r_tensor, p.d_tensor)} if correct else {}

    y, moments, (dx, dgamma, dbeta) = frameworks.gradients(
        lambda *inputs: p.train(*inputs, **hook),
        (p.x_tensor, p.gamma_tensor, p.beta_tensor),
        p.dy_tensor,
        quick,
    )
    expected = oracle.forward(p.x, p.gamma, p.beta, axis, weight=p.weight, **correction)
    slope = oracle.backward(p.x, p.dy, p.gamma, axis, weight=p.weight, **correction)

    total = p.gamma * correction.get("r", 1.0)
    assert_output(y, expected.y, p.x, expected.variance, total, p.dtype)
    shape = p.parameter_shape
    precision = 1e-13 if p.dtype == "float64" else 1e-5
    np.testing.assert_allclose(
        frameworks.numpy(moments.mean),
        expected.mean.reshape(shape),
        rtol=precision / 10,
        atol=precision / 10 * float(np.sqrt(expected.variance.max())),
    )
    np.testing.assert_allclose(
        frameworks.numpy(moments.variance),
        expected.variance.reshape(shape),
        rtol=precision,
        # Where x hardly differs from its mean: a hundredth of its rounding, squared.
        atol=(1e-2 * oracle.ulp(np.max(np.abs(p.x)), p.dtype)) ** 2,
    )
    count = np.broadcast_to(frameworks.numpy(moments.count), shape)
    full_count = np.broadcast_to(
        expected.count, oracle.spread(np.ones(shape), p.x, axis).shape
    )
    np.testing.assert_array_equal(count, full_count.reshape(shape))
    # A gradient that cancels to nearly nothing is measured by what cancelled.
    deviation = np.sqrt(expected.variance + 1e-3)
    assert_gradient(dx, slope.x, p.dtype, 1e-2 * np.max(np.abs(total) / deviation))
    assert_gradient(dgamma, slope.gamma, p.dtype)
    assert_gradient(dbeta, slope.beta, p.dtype)


@cases.parametrize(cases.ALL)  # the digits, below, of some
def test_training(case):
    check_training(Problem(case), quick=True)


MORE_DTYPES = slow(
    "what is widened has no shape; JAX compiles each",
    witness="test_training_in_other_dtypes",
)
# Of each kind of shape one dtype, and of each dtype two kinds.
IN_OTHER_DTYPES = pytest.mark.parametrize(
    ("case", "dtype"),
    [
        pytest.param(
            *(case, dtype),
            id=f"{name}-{dtype}",
            marks=() if i % 3 == k else MORE_DTYPES,
        )
        for i, (name, case) in enumerate(cases.KINDS.items())
        for k, dtype in enumerate(["bfloat16", "float16", "float64"])
    ],
)


@pytest.mark.usefixtures("float64")
@IN_OTHER_DTYPES
def test_training_in_other_dtypes(case, dtype):
    check_training(Problem(case, dtype))


@cases.parametrize(cases.KINDS)  # a correction is shaped as gamma and beta are
def test_training_with_correction(case):
    check_training(Problem(case), correct=True, quick=True)


@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("center", [False, True])
def test_gamma_and_beta_may_be_left_out(center, scale):
    p = Problem(cases.SHAPES["image"])
    y, _ = batch_norm_train(
        p.x_tensor, p.gamma_tensor if scale else None, p.beta_tensor if center else None
    )
    expected = oracle.forward(p.x, p.gamma if scale else 1, p.beta if center else 0)
    assert_output(
        frameworks.numpy(y), expected.y, p.x, expected.variance, p.gamma, "float32"
    )


@pytest.mark.usefixtures("float64")
@IN_OTHER_DTYPES
def test_inference_in_other_dtypes(case, dtype):
    check_inference(case, dtype)


@cases.parametrize(cases.SHAPES)
def test_inference(case):
    check_inference(case, "float32")


def check_inference(case, dtype):
    p = Problem(case, dtype)
    rng = np.random.default_rng(1)
    wide = str(keras.backend.standardize_dtype(p.gamma_tensor.dtype))
    mean = rng.normal(size=p.parameter_shape).astype(wide)
    variance = rng.uniform(0.5, 2, p.parameter_shape).astype(wide)
    y, _, (dx, dgamma, dbeta) = frameworks.gradients(
        lambda x, gamma, beta: (
            batch_norm_inference(x, mean, variance, gamma, beta, axis=case.axis),
            None,
        ),
        (p.x_tensor, p.gamma_tensor, p.beta_tensor),
        p.dy_tensor,
        quick=True,
    )
    expected = oracle.inference(p.x, mean, variance, p.gamma, p.beta, case.axis)
    spread = oracle.spread(variance, p.x, case.axis)
    assert_output(y, expected, p.x, spread, p.gamma, dtype)
    factor = p.gamma / np.sqrt(spread + 1e-3)
    normalized = oracle.inference(p.x, mean, variance, axis=case.axis)
    over = oracle.reduction(case.axis, p.x.ndim)
    assert_gradient(dx, p.dy * factor, dtype)
    assert_gradient(dgamma, (p.dy * normalized).sum(over, keepdims=True), dtype)
    assert_gradient(dbeta, p.dy.sum(over, keepdims=True), dtype)


def test_inference_gradient_for_given_statistics():
    p = Problem(cases.SHAPES["image"])
    rng = np.random.default_rng(1)
    mean = rng.normal(size=6).astype("float32")
    variance = rng.uniform(0.5, 2, 6).astype("float32")
    _, _, (dmean, dvariance) = frameworks.gradients(
        lambda m, v: (batch_norm_inference(p.x_tensor, m, v, p.gamma_tensor), None),
        (frameworks.tensor(mean), frameworks.tensor(variance)),
        p.dy_tensor,
    )
    deviation = np.sqrt(variance.astype("float64") + 1e-3)
    slope = p.dy * p.gamma / deviation
    assert_gradient(dmean, -slope.sum((0, 1, 2)), "float32")
    expected = -(slope * (p.x - mean)).sum((0, 1, 2)) / (2 * deviation**2)
    assert_gradient(dvariance, expected, "float32")


LARGE = {
    "mean 1e4": (cases.Case((32, 8, 8, 4)), 1e4, 1.0),
    "mean 1e4 first": (cases.Case((32, 4, 8, 8), 1), 1e4, 1.0),
    "mean 1e4 dense": (cases.Case((256, 8)), 1e4, 1.0),
    "mean -1e4": (cases.Case((32, 8, 8, 4)), -1e4, 1.0),
    "mean 1e3": (cases.Case((64, 32, 32, 4)), 1e3, 1.0),
    "65k samples": (cases.Case((64, 32, 32, 4)), 1e5, 10.0),
    "65k samples first": (cases.Case((64, 4, 32, 32), 1), 1e5, 10.0),
    "65k samples dense": (cases.Case((65536, 4)), 1e5, 10.0),
    "400k samples": (cases.Case((32, 112, 112, 2)), 0.0, 1.0),
}


@pytest.mark.parametrize(("case", "mean", "std"), LARGE.values(), ids=LARGE)
def test_large_means_and_many_samples(case, mean, std):
    check_training(Problem(case, mean=mean, std=std))


# PyTorch takes seconds for each, and then runs its operators one by one.
COMPILED = (
    slow("compiles ten functions for seconds", witness="test_compiled_equals_oracle")
    if keras.backend.backend() == "torch"
    else ()
)


@pytest.mark.parametrize("way", frameworks.COMPILERS)
# Only of a large input does the way to the moments hang on the mean.
@pytest.mark.parametrize(
    ("name", "mean"),
    [
        *(("image", 1e4), ("mask_sequence", 1e4), ("large", 1e4)),
        *(
            pytest.param(*one, marks=COMPILED)
            for one in (("first_image", 1e4), ("two_axes", 1e4), ("large", 1.0))
        ),
    ],
)
def test_compiled_equals_oracle(name, mean, way):
    p = Problem((cases.ALL | {"large": cases.LARGE})[name], mean=mean)
    y, moments = frameworks.COMPILERS[way](p.train)(
        p.x_tensor, p.gamma_tensor, p.beta_tensor
    )
    expected = oracle.forward(p.x, p.gamma, p.beta, p.case.axis, weight=p.weight)
    assert_output(
        frameworks.numpy(y), expected.y, p.x, expected.variance, p.gamma, "float32"
    )
    np.testing.assert_allclose(
        frameworks.numpy(moments.variance).ravel(), expected.variance.ravel(), rtol=1e-5
    )


@pytest.mark.parametrize(
    ("way", "activation"),
    # Compiled without an activation: above. Eagerly with one: ../backend.
    [
        ("eagerly", None),
        *(pytest.param(way, "tanh", marks=COMPILED) for way in frameworks.COMPILERS),
    ],
)
@pytest.mark.parametrize(
    "case",
    [
        *(cases.ALL[name] for name in ("image", "first_image", "two_axes")),
        *(cases.ALL[name] for name in ("mask_image", "mask_first_image")),
        cases.LARGE,
        cases.Case((32, 16, 16, 8), -1, (32, 16, 16)),
    ],
    ids=str,
)
def test_one_centre_for_all_that_read_it(case, activation, way):
    # The values are exact in float32, and so is what a centre leaves of them: if one
    # half of the work rounds the mean differently, its rounding of 5e-4 shows.
    p = Problem(case, mean=1e4)

    def output(x):
        return batch_norm_train(x, axis=case.axis, mask=p.mask, activation=activation)[
            0
        ]

    function = output if way == "eagerly" else frameworks.COMPILERS[way](output)
    expected = oracle.forward(p.x, 1.0, 0.0, case.axis, weight=p.weight).y
    if activation:
        expected = np.tanh(expected)
    np.testing.assert_allclose(
        frameworks.numpy(function(p.x_tensor)), expected, atol=1e-5
    )


def test_unknown_sizes():
    function = frameworks.compiled(
        lambda x: batch_norm_train(x)[0], unknown=[(None, None, None, 3)]
    )
    rng = np.random.default_rng(0)
    for shape in ((2, 3, 4, 3), (5, 2, 2, 3)):
        x = rng.normal(size=shape).astype("float32")
        expected = oracle.forward(x)
        y = frameworks.numpy(function(frameworks.tensor(x)))
        assert_output(y, expected.y, x, expected.variance, 1.0, "float32")


@pytest.mark.parametrize("dtype", ["int32", "uint8", "bool"])
def test_integers_are_computed_in_float32(dtype):
    x = np.arange(24).reshape(6, 4).astype(dtype)
    y, moments = batch_norm_train(x)
    expected = oracle.forward(x.astype("float64"))
    assert keras.backend.standardize_dtype(y.dtype) == "float32"
    assert keras.backend.standardize_dtype(moments.mean.dtype) == "float32"
    np.testing.assert_allclose(frameworks.numpy(y), expected.y, atol=1e-5)


def test_no_gradient_through_the_moments():
    p = Problem(cases.SHAPES["image"])

    def y_and_moments(x):
        y, moments = batch_norm_train(x)
        return y + moments.mean * 3 + moments.variance * 5, moments

    _, _, (dx,) = frameworks.gradients(y_and_moments, [p.x_tensor], p.dy_tensor)
    assert_gradient(dx, oracle.backward(p.x, p.dy).x, "float32")


@pytest.mark.parametrize(
    "shape", [(0, 4), (0, 3, 3, 4), (2, 0, 3, 4)], ids=["dense", "batch", "space"]
)
def test_empty_batch(shape):
    y, moments = batch_norm_train(np.zeros(shape, "float32"))
    assert tuple(y.shape) == shape
    assert float(moments.count) == 0
    np.testing.assert_array_equal(frameworks.numpy(moments.mean), np.zeros(4))
    np.testing.assert_array_equal(frameworks.numpy(moments.variance), np.zeros(4))
    y = batch_norm_inference(np.zeros(shape, "float32"), np.zeros(4), np.ones(4))
    assert tuple(y.shape) == shape


ANY = given(
    sizes=st.lists(st.integers(1, 7), min_size=2, max_size=5),
    position=st.integers(0, 4),
    mean=st.floats(-1e5, 1e5),
    scale=st.floats(-4, 4).map(lambda exponent: 10.0**exponent),
    seed=st.integers(0, 2**32 - 1),
)


def check_any(sizes, position, mean, scale, seed):
    case = cases.Case(tuple(sizes), position % len(sizes))
    check_training(Problem(case, mean=mean, std=scale, seed=seed))


@settings(max_examples=5, deadline=None, derandomize=True)
@ANY
@example(sizes=[7, 1], position=1, mean=1e5, scale=1e-4, seed=0)
@example(sizes=[1, 1], position=0, mean=0.0, scale=1.0, seed=0)
@example(sizes=[5, 5, 5], position=2, mean=-1e5, scale=1e4, seed=0)
@example(sizes=[4, 5, 2, 4, 5], position=2, mean=6317.71875, scale=1e-3, seed=1)
@example(sizes=[2, 5, 2, 5, 6], position=2, mean=6472.71875, scale=1e-3, seed=1)
def test_any_shape_mean_and_scale(sizes, position, mean, scale, seed):
    check_any(sizes, position, mean, scale, seed)


@slow("each of 40 shapes is compiled on JAX", witness="test_any_shape_mean_and_scale")
@settings(max_examples=40, deadline=None, derandomize=True)
@ANY
def test_many_shapes_means_and_scales(sizes, position, mean, scale, seed):
    check_any(sizes, position, mean, scale, seed)
