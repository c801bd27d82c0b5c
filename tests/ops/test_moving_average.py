"""The moving average, and which moments it may take in."""

import numpy as np
import pytest

import frameworks
from keras_bn.ops import Moments, moving_average
from keras_bn.ops.moving_average import usable

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("momentum", "expected"), [(0.0, 20.0), (0.9, 11.0), (1.0, 10.0)]
)
def test_momentum_is_the_share_kept(momentum, expected):
    result = moving_average(np.float32([10.0]), np.float32([20.0]), momentum)
    np.testing.assert_allclose(frameworks.numpy(result), [expected], rtol=1e-6)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("average", "value", "dtype"),
    [
        ("float32", "float16", "float32"),
        ("float32", "float64", "float32"),
        ("float64", "float64", "float64"),
        ("float64", "float32", "float64"),
    ],
)
def test_dtype_is_that_of_the_average(average, value, dtype):
    result = moving_average(
        frameworks.tensor([1.0], average), frameworks.tensor([2.0], value), 0.5
    )
    assert str(frameworks.numpy(result).dtype) == dtype
    assert frameworks.numpy(result) == [1.5]


@pytest.mark.usefixtures("float64")
def test_float64_keeps_its_digits():
    result = moving_average(np.array([1.0]), np.array([1.0 + 1e-12]), 0.5)
    assert frameworks.numpy(result)[0] - 1.0 == pytest.approx(5e-13, rel=1e-3)


@pytest.mark.parametrize("value", [NAN, INF, -INF, 3.0])
def test_where_false_the_average_stays(value):
    average = np.float32([1.1, 2.2])
    where = frameworks.tensor(np.array([False, True]))
    result = moving_average(average, np.float32([value, 4.2]), 0.5, where)
    result = frameworks.numpy(result)
    assert result[0] == average[0]
    assert result[1] == pytest.approx(3.2, rel=1e-6)


def test_a_step_at_momentum_1_keeps_the_average_bit_by_bit():
    average = np.random.default_rng(0).normal(size=100).astype("float32")
    result = moving_average(average, average + 1, 1.0)
    np.testing.assert_array_equal(frameworks.numpy(result), average)


def test_momentum_may_be_a_tensor_of_any_float_dtype():
    momentum = frameworks.tensor([0.5, 0.0, 1.0], "float16")
    average, value = np.float32([1, 2, 3]), np.float32([3, 4, 5])
    result = frameworks.numpy(moving_average(average, value, momentum))
    assert (result.dtype, result.tolist()) == ("float32", [2.0, 4.0, 3.0])


USABLE = {
    "finite": (4.0, 1.0, 1.0, True),
    "one sample": (1.0, 1.0, 0.0, True),
    "product infinite": (4.0, 1e30, 1e30, True),
    "nothing": (0.0, 0.0, 0.0, False),
    "mean NaN": (4.0, NAN, 1.0, False),
    "mean infinite": (4.0, -INF, 1.0, False),
    "variance NaN": (4.0, 1.0, NAN, False),
    "variance infinite": (4.0, 1.0, INF, False),
}


@pytest.mark.parametrize(
    ("count", "mean", "variance", "expected"), USABLE.values(), ids=USABLE
)
def test_usable(count, mean, variance, expected):
    tensors = (frameworks.tensor(np.float32([v, 1.0])) for v in (count, mean, variance))
    found = usable(Moments(*tensors))
    found = [True] * 2 if found is True else frameworks.numpy(found).tolist()
    assert found == [expected, True]


@pytest.mark.parametrize(
    ("where", "expected"),
    [(True, [1.5, 3.0]), (False, [1.0, 2.0]), (np.array([True, False]), [1.5, 2.0])],
    ids=["everywhere", "nowhere", "array"],
)
def test_where(where, expected):
    average, value = np.float32([1, 2]), np.float32([2, 4])
    moved = moving_average(average, value, momentum=0.5, where=where)
    assert frameworks.numpy(moved).tolist() == expected
