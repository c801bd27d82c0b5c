"""Weights and residuals against the float64 oracle; what a mask may be."""

from typing import NamedTuple

import keras
import numpy as np
import pytest
from test_batch_norm import Problem, assert_gradient, assert_output

import cases
import frameworks
import oracle
from keras_bn.ops import batch_norm_inference, batch_norm_train
from keras_bn.ops.moving_average import usable


class Setting(NamedTuple):
    """A call with weights, a residual, or both."""

    case: cases.Case
    weights: bool = True
    mask: tuple | None = None  # the shape of a mask beside the weights
    residual: bool = False
    activation: str | None = None
    dtype: str = "float32"
    correct: bool = False
    mean: float = 3.0
    compiled: bool = False


LARGE = cases.Case((32, 32, 32, 4), mask=(32, 32, 32))
DENSE = cases.Case((64, 4), mask=(64,))
IMAGE = cases.WEIGHTS["weights_image"]
SETTINGS = {
    **{name: Setting(case) for name, case in cases.WEIGHTS.items()},
    "mask too": Setting(IMAGE, mask=(6, 4, 5)),
    "large": Setting(LARGE, activation="tanh"),
    "large mean": Setting(DENSE, mean=1e4),
    "renorm": Setting(DENSE, correct=True),
    "compiled": Setting(IMAGE, residual=True, activation="relu", compiled=True),
    "bfloat16": Setting(IMAGE, dtype="bfloat16"),
    "float64": Setting(IMAGE, True, None, True, "relu", "float64"),
    "residual": Setting(IMAGE, weights=False, residual=True),
    "residual, tanh": Setting(DENSE, residual=True, activation="tanh"),
    "residual, relu": Setting(
        cases.SHAPES["first_image"], weights=False, residual=True, activation="relu"
    ),
    "residual, gelu": Setting(DENSE, weights=False, residual=True, activation="gelu"),
    "residual, large": Setting(
        LARGE, weights=False, residual=True, activation="leaky_relu"
    ),
    "residual, float16": Setting(
        IMAGE, weights=False, residual=True, activation="relu", dtype="float16"
    ),
}
# What two of these do to z, and their slope there.
ACTIVATIONS = {
    None: lambda z: (z, np.ones_like(z)),
    "tanh": lambda z: (np.tanh(z), 1 - np.tanh(z) ** 2),
    "relu": lambda z: (np.maximum(z, 0), np.float64(z > 0)),
    "leaky_relu": lambda z: (np.where(z > 0, z, 0.2 * z), np.where(z > 0, 1, 0.2)),
}


class Along:
    """What a setting gives beside x, as the call's arguments and as float64."""

    def __init__(self, setting, p):
        rng = np.random.default_rng(1)
        self.given, self.counts = {}, np.ones(p.x.shape)
        if setting.weights:
            wide = "float64" if setting.dtype == "float64" else "float32"
            weights = rng.uniform(0.5, 2, setting.case.mask)
            weights = (weights * (rng.random(setting.case.mask) < 0.8)).astype(wide)
            self.given["weights"] = frameworks.tensor(weights)
            self.counts = oracle.weights(
                weights, p.x, setting.case.axis, setting.case.drop
            )
        self.mask = None if setting.mask is None else rng.random(setting.mask) < 0.7
        if self.mask is not None:
            self.counts = self.counts * oracle.weights(
                self.mask, p.x, setting.case.axis
            )
        self.residual = 0.0
        if setting.residual:
            residual = frameworks.tensor(rng.normal(size=p.x.shape), setting.dtype)
            self.given["residual"] = residual
            self.residual = np.asarray(frameworks.numpy(residual), "float64")


def gelu(z):
    """Keras's gelu and its slope, by the framework."""
    y, _, (slope,) = frameworks.gradients(
        lambda z: (keras.activations.gelu(z), None),
        [frameworks.tensor(z.astype("float32"))],
        frameworks.tensor(np.ones(z.shape, "float32")),
    )
    return y, slope


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_training(setting):
    axis, dtype = setting.case.axis, setting.dtype
    p = Problem(setting.case._replace(mask=None), dtype, mean=setting.mean)
    along = Along(setting, p)
    options = {"axis": axis, "mask": along.mask, "activation": setting.activation}
    correction = {}
    if setting.correct:
        correction = {"r": p.r, "d": p.d}
        options["correction"] = lambda mean, variance: (p.r_tensor, p.d_tensor)

    def call(x, gamma, beta, *rest):
        given = dict(zip(along.given, rest, strict=True))
        return batch_norm_train(x, gamma, beta, **given, **options)

    point = (p.x_tensor, p.gamma_tensor, p.beta_tensor, *along.given.values())
    y, moments, (dx, dgamma, dbeta, *rest) = frameworks.gradients(
        frameworks.compiled(call) if setting.compiled else call, point, p.dy_tensor
    )

    weight = {"weight": along.counts}
    normal = oracle.forward(p.x, p.gamma, p.beta, axis, **weight, **correction)
    activation = ACTIVATIONS.get(setting.activation, gelu)
    expected, slope = activation(normal.y + along.residual)
    dz = p.dy * slope
    r = correction.get("r", 1.0)
    assert_output(y, expected, p.x, normal.variance, p.gamma * r, dtype)
    shape = p.parameter_shape
    for name in ("count", "mean", "variance"):
        found = np.broadcast_to(frameworks.numpy(getattr(moments, name)), shape)
        right = np.broadcast_to(getattr(normal, name), normal.mean.shape)
        np.testing.assert_allclose(found, right.reshape(shape), rtol=1e-5, atol=1e-6)
    slopes = oracle.backward(p.x, dz, p.gamma, axis, **weight, **correction)
    for found, right in ((dx, slopes.x), (dgamma, slopes.gamma), (dbeta, slopes.beta)):
        assert_gradient(found, right, dtype)
    found = dict(zip(along.given, rest, strict=True))
    if setting.residual:
        assert_gradient(found["residual"], dz, dtype)
    if setting.weights:
        dw = oracle.for_weights(p.x, dz, p.gamma, axis, **weight, r=r)
        if along.mask is not None:
            dw = dw * oracle.weights(along.mask, p.x, axis)
        like = oracle_shape(setting.case)
        over = tuple(i for i, size in enumerate(like) if size == 1)
        dw = dw.sum(over).reshape(setting.case.mask)
        assert_gradient(found["weights"], dw, dtype, scale=np.abs(dz).max())


def oracle_shape(case):
    """The shape of a case's weights, with an axis of size 1 for each that they lack."""
    ndim = len(case.shape)
    dropped = oracle.features(case.axis, ndim) if case.drop is None else {ndim - 1}
    return np.expand_dims(np.empty(case.mask), tuple(sorted(dropped))).shape


@pytest.mark.parametrize("activation", [None, "relu"])
def test_integer_weights_are_repeated_samples(activation):
    rng = np.random.default_rng(0)
    x, dy = rng.normal(5, 2, (2, 6, 3, 4)).astype("float32")
    times = np.array([1, 3, 0, 2, 1, 4])
    rows = np.repeat(np.arange(6), times)
    first = np.flatnonzero(np.diff(rows, prepend=-1))
    # The gradient comes to one of the copies; what each has of it is added up.
    dy_rows = np.zeros((len(rows), 3, 4), "float32")
    dy_rows[first] = dy[times > 0]
    dy[times == 0] = 0
    weights = np.repeat(times[:, None], 3, axis=1).astype("float32")

    def gradients(x, dy, **options):
        return frameworks.gradients(
            lambda x: batch_norm_train(x, activation=activation, **options),
            [frameworks.tensor(x)],
            frameworks.tensor(dy),
        )

    y, moments, (dx,) = gradients(x, dy, weights=weights)
    y_rows, moments_rows, (dx_rows,) = gradients(x[rows], dy_rows)
    dx_sums = np.zeros_like(x)
    np.add.at(dx_sums, rows, dx_rows)
    near = {"rtol": 1e-5, "atol": 1e-6}
    np.testing.assert_allclose(y[times > 0], y_rows[first], **near)
    np.testing.assert_allclose(dx, dx_sums, **near)
    for one, other in zip(moments, moments_rows, strict=True):
        one, other = frameworks.numpy(one), frameworks.numpy(other)
        np.testing.assert_allclose(one, np.broadcast_to(other, one.shape), rtol=1e-6)


def test_weights_of_ones_and_zeros_are_a_mask():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 4)).astype("float32")
    mask = np.array([0, 1, 0, 1, 0, 1, 1, 1], bool)
    # A weight of 0 hides it as a mask does.
    x[0, 2], x[2, 1], x[4, 0] = np.nan, np.nan, np.inf
    ones = mask.astype("float32")
    masked, *alike = (
        batch_norm_train(x, **along)
        for along in (
            {"mask": mask},
            {"weights": ones},
            {"mask": ones},
            {"mask": mask.astype("int32")},
            {"mask": mask.tolist()},
        )
    )
    expected = x[mask].mean(0), x[mask].var(0)
    for one, other in zip(masked[1][1:], expected, strict=True):
        np.testing.assert_allclose(frameworks.numpy(one), other, rtol=1e-5)
    for y, moments in alike:
        for one, other in zip((masked[0], *masked[1]), (y, *moments), strict=True):
            one, other = frameworks.numpy(one), frameworks.numpy(other)
            np.testing.assert_array_equal(one, other)


def test_no_weight_at_all_is_an_empty_batch():
    x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
    y, moments = batch_norm_train(x, weights=np.zeros(8))
    assert np.all(np.isfinite(frameworks.numpy(y)))
    for part in moments:
        np.testing.assert_array_equal(frameworks.numpy(part), np.zeros(4))


@pytest.fixture(scope="module")
def compiled():
    return frameworks.compiled(lambda x, w: batch_norm_train(x, weights=w))


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_compiled_a_wrong_weight_is_a_nan_and_moves_no_average(compiled, bad):
    x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
    weights = np.array([1, 1, bad, 1, 1, 1, 1, 1], "float32")
    y, moments = compiled(frameworks.tensor(x), frameworks.tensor(weights))
    assert np.all(np.isnan(frameworks.numpy(y)))
    assert np.all(np.isnan(frameworks.numpy(moments.mean)))
    assert not np.any(frameworks.numpy(usable(moments)))


def test_weights_of_a_size_that_is_not_known():
    """A size that is 1 when it runs is not taken for one of 1."""
    function = frameworks.compiled(
        lambda x, w: batch_norm_train(x, weights=w)[0], unknown=[(None, 4), (None,)]
    )
    rng = np.random.default_rng(0)
    for batch in (7, 3):
        x = rng.normal(size=(batch, 4)).astype("float32")
        w = rng.uniform(0.5, 2, batch).astype("float32")
        y = frameworks.numpy(function(frameworks.tensor(x), frameworks.tensor(w)))
        expected = oracle.forward(x, weight=np.broadcast_to(w[:, None], x.shape)).y
        np.testing.assert_allclose(y, expected, atol=1e-5)


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="others know each call's sizes"
)
def test_gradient_for_one_weight_of_a_size_that_is_not_known():
    function = frameworks.compiled(
        lambda x, w: batch_norm_train(x, weights=w)[0], unknown=[(None, 4), (None,)]
    )
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=(2, 3, 4)).astype("float32")
    y, _, (_, dw) = frameworks.gradients(
        lambda x, w: (function(x, w), None),
        map(frameworks.tensor, (x, np.full(1, 2.0, "float32"))),
        frameworks.tensor(dy),
    )
    weight = np.full(x.shape, 2.0)
    np.testing.assert_allclose(y, oracle.forward(x, weight=weight).y, atol=1e-5)
    expected = oracle.for_weights(x, dy, weight=weight).sum()
    np.testing.assert_allclose(dw, [expected], atol=1e-5)


def test_inference_with_a_residual():
    rng = np.random.default_rng(0)
    x, residual = rng.normal(size=(2, 3, 5, 4)).astype("float32")
    mean, variance = rng.uniform(0.5, 2, (2, 4)).astype("float32")
    y = batch_norm_inference(x, mean, variance, residual=residual, activation="tanh")
    expected = np.tanh(oracle.inference(x, mean, variance) + residual)
    np.testing.assert_allclose(frameworks.numpy(y), expected, atol=1e-5)


def test_second_gradient_for_weights(float64):
    """Of sum(slope²), against the difference of two slopes along a direction."""
    rng = np.random.default_rng(0)
    x = frameworks.tensor(rng.normal(3, 2, (6, 2)))
    weights, direction = rng.uniform(0.5, 2, (6,)), rng.normal(size=(6,))
    upstream = frameworks.tensor(rng.normal(size=(6, 2)))

    def normalized(weights):
        return batch_norm_train(x, weights=weights, epsilon=1e-3)[0]

    def squares(weights):
        _, _, (slope,) = frameworks.gradients(
            lambda one: (normalized(one), ()), [frameworks.tensor(weights)], upstream
        )
        return np.sum(slope**2)

    step = 1e-5 * direction
    expected = (squares(weights + step) - squares(weights - step)) / 2e-5
    received = frameworks.second_gradient(
        normalized, frameworks.tensor(weights), upstream
    )
    np.testing.assert_allclose(np.sum(received * direction), expected, rtol=1e-6)
