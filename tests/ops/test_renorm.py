"""The correction of batch renormalization."""

import numpy as np
import pytest

import frameworks
from keras_bn.ops import batch_norm_train, renorm_correction

RNG = np.random.default_rng(0)
MEAN, RENORM_MEAN = RNG.normal(3, 1, (2, 50)).astype("float32")
VARIANCE, RENORM_STDDEV = RNG.uniform(0.5, 4, (2, 50)).astype("float32")
EPSILON = 1e-2

LIMITS = {
    "none": None,
    "empty": {},
    "rmax": {"rmax": 1.2},
    "rmin": {"rmin": 0.9},
    "dmax": {"dmax": 0.4},
    "zero dmax": {"dmax": 0.0},
    "all": {"rmax": 1.2, "rmin": 0.9, "dmax": 0.4},
    "one r": {"rmax": 1.0, "rmin": 1.0},
    "None stands for no limit": {"rmax": None, "dmax": 0.4},
}


def correction(clipping, dtype="float32"):
    tensors = (
        frameworks.tensor(one, dtype)
        for one in (MEAN, VARIANCE, RENORM_MEAN, RENORM_STDDEV)
    )
    r, d = renorm_correction(*tensors, epsilon=EPSILON, clipping=clipping)
    return frameworks.numpy(r), frameworks.numpy(d)


def test_limits_may_be_tensors():
    """They are told apart from unknown keys, and as wide as the mean."""
    limits = LIMITS["all"]
    tensors = {key: frameworks.tensor(one, "float32") for key, one in limits.items()}
    np.testing.assert_array_equal(correction(tensors), correction(limits))
    with pytest.raises(ValueError, match="invalid keys"):
        correction({"rmix": tensors["rmax"]})


def limit(clipping, key, otherwise):
    value = (clipping or {}).get(key)
    return otherwise if value is None else value


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("dtype", "near"), [("float32", 1e-5), ("float64", 1e-12)])
@pytest.mark.parametrize("clipping", LIMITS.values(), ids=LIMITS)
def test_definition(clipping, dtype, near):
    r, d = correction(clipping, dtype)
    mean, variance, renorm_mean, renorm_stddev = (
        one.astype("float64") for one in (MEAN, VARIANCE, RENORM_MEAN, RENORM_STDDEV)
    )
    dmax = limit(clipping, "dmax", np.inf)
    expected_r = np.clip(
        np.sqrt(variance + EPSILON) / renorm_stddev,
        limit(clipping, "rmin", 0.0),
        limit(clipping, "rmax", np.inf),
    )
    expected_d = np.clip((mean - renorm_mean) / renorm_stddev, -dmax, dmax)
    assert str(r.dtype) == str(d.dtype) == dtype
    np.testing.assert_allclose(r, expected_r, rtol=near)
    np.testing.assert_allclose(d, expected_d, rtol=near, atol=near)


def test_the_dtype_is_that_of_the_mean():
    mean = frameworks.tensor(MEAN)
    others = (one.astype("float64") for one in (VARIANCE, RENORM_MEAN, RENORM_STDDEV))
    found = map(frameworks.numpy, renorm_correction(mean, *others, epsilon=EPSILON))
    for one, expected in zip(found, correction(None), strict=True):
        assert one.dtype == "float32"
        np.testing.assert_allclose(one, expected, rtol=1e-6)


def test_limits_are_reached():
    r, d = correction({"rmax": 1.2, "rmin": 0.9, "dmax": 0.4})
    assert (r.min(), r.max()) == (np.float32(0.9), np.float32(1.2))
    assert (d.min(), d.max()) == (np.float32(-0.4), np.float32(0.4))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("dtype", "near"), [("float32", 1e-6), ("float64", 1e-14)])
def test_a_deviation_of_zero_does_not_divide(dtype, near):
    one = frameworks.tensor(np.ones(1, dtype))
    r, d = renorm_correction(one, one, 0 * one, 0 * one, epsilon=1e-2)
    np.testing.assert_allclose(frameworks.numpy(r), np.sqrt(1.01) / 0.1, rtol=near)
    np.testing.assert_allclose(frameworks.numpy(d), 10.0, rtol=near)


def test_unclipped_correction_normalizes_by_the_moving_statistics():
    x = RNG.normal(2, 3, (16, 50)).astype("float32")
    y, _ = batch_norm_train(
        x,
        epsilon=EPSILON,
        correction=lambda mean, variance: renorm_correction(
            mean, variance, RENORM_MEAN, RENORM_STDDEV, epsilon=EPSILON
        ),
    )
    expected = (x - RENORM_MEAN) / RENORM_STDDEV
    np.testing.assert_allclose(frameworks.numpy(y), expected, atol=1e-5)


def test_epsilon_is_that_of_the_layer():
    one = np.ones(1, "float32")
    r, _ = renorm_correction(one, 0 * one, one, one)
    np.testing.assert_allclose(frameworks.numpy(r), [1e-3**0.5], rtol=1e-6)
