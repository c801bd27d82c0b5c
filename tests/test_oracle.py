"""The oracle itself: its gradient against finite differences, its forward by hand."""

import numpy as np
import pytest

import oracle

pytestmark = pytest.mark.once


def difference_quotient(function, x, step=1e-5):
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[index] += step
        down[index] -= step
        gradient[index] = (function(up) - function(down)) / (2 * step)
    return gradient


CASES = {
    "dense": ((5, 3), -1, None),
    "image": ((3, 2, 4, 2), -1, None),
    "channels_first": ((3, 2, 4), 1, None),
    "two_axes": ((3, 2, 4), (1, 2), None),
    "masked": ((3, 4, 2), -1, [[1, 1, 0, 1], [1, 0, 0, 0], [0, 1, 1, 1]]),
    "channel_without_samples": ((2, 3, 2), 1, [[1, 0], [1, 0]]),
    "weighted": ((3, 2, 4), (1, 2), [0.5, 2.0, 0.0]),
}


@pytest.mark.parametrize(("shape", "axis", "mask"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("renorm", [False, True])
def test_gradient_equals_finite_differences(shape, axis, mask, renorm):
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=(2, *shape))
    gamma, beta, r, d = (
        oracle.spread(
            rng.normal(
                1, 0.3, [shape[a] for a in sorted(oracle.features(axis, x.ndim))]
            ),
            x,
            axis,
        )
        for _ in range(4)
    )
    correction = {"r": r, "d": d} if renorm else {}
    weight = oracle.weights(mask, x, axis)

    def loss(x=x, gamma=gamma, beta=beta):
        y = oracle.forward(x, gamma, beta, axis, weight=weight, **correction).y
        return np.sum(y * dy)

    expected = oracle.backward(x, dy, gamma, axis, weight=weight, **correction)
    near = {"rtol": 1e-6, "atol": 1e-6}
    np.testing.assert_allclose(expected.x, difference_quotient(loss, x), **near)
    np.testing.assert_allclose(
        expected.gamma, difference_quotient(lambda g: loss(gamma=g), gamma), **near
    )
    np.testing.assert_allclose(
        expected.beta, difference_quotient(lambda b: loss(beta=b), beta), **near
    )


@pytest.mark.parametrize(("shape", "axis"), [((5, 3), -1), ((3, 2, 4), (1, 2))])
def test_gradient_for_weights_equals_finite_differences(shape, axis):
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=(2, *shape))
    weight, gamma, r = rng.uniform(0.5, 2, shape), 1.5, 0.7

    def loss(weight):
        return np.sum(oracle.forward(x, gamma, 0.0, axis, weight=weight, r=r).y * dy)

    expected = oracle.for_weights(x, dy, gamma, axis, weight=weight, r=r)
    found = difference_quotient(loss, weight)
    np.testing.assert_allclose(expected, found, rtol=1e-6, atol=1e-6)


def test_forward_by_hand():
    y, mean, variance, count = oracle.forward([[1.0], [3.0]], gamma=2.0, beta=5.0)
    assert (mean, variance, count) == (2.0, 1.0, 2.0)
    np.testing.assert_allclose(y, [[5 - 2 / 1.001**0.5], [5 + 2 / 1.001**0.5]])


def test_masked_positions_do_not_count_but_are_normalized():
    x = np.array([[1.0], [3.0], [1e6]])
    weight = oracle.weights([1, 1, 0], x, -1)
    result = oracle.forward(x, weight=weight)
    assert (result.mean, result.variance, result.count) == (2.0, 1.0, 2.0)
    assert result.y[2] > 1e5


def test_a_weight_is_a_count():
    x, weight = np.array([[1.0], [4.0]]), np.array([[2.0], [1.0]])
    result = oracle.forward(x, weight=weight)
    assert (result.mean, result.variance, result.count) == (2.0, 2.0, 3.0)


def test_tolerance_is_made_of_roundings():
    assert oracle.ulp(1.0, "float32") == np.spacing(np.float32(1))
    assert oracle.ulp(1e5, "float32") == np.spacing(np.float32(1e5))
    assert oracle.ulp(3.0, "float16") == np.spacing(np.float16(3))
