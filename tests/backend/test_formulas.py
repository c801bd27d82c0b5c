"""What the formulas promise each other, apart from any kernel."""

import keras
import numpy as np
import pytest
from test_kernels import Inputs

import cases
import frameworks
from keras_bn.backend import derivatives, formulas

pytestmark = pytest.mark.usefixtures("float64")


def _tangents_and_gradients(case, activation):
    """`y'` along random tangents, `dy`, those tangents, and the gradients of `dy`."""
    inputs = Inputs(case, "float64", mean=3.0)
    rng = np.random.default_rng(1)
    tangents = [
        frameworks.tensor(rng.normal(size=tuple(one.shape))) for one in inputs.tensors
    ]
    x, scale, offset = inputs.tensors
    axes, mask = inputs.axes, inputs.mask
    centred = formulas.centred_moments(x, axes, mask)
    given = (x, scale, offset, mask, centred)
    along = derivatives.tangent(*given, tuple(tangents), axes, 1e-3, activation)
    slopes = derivatives.gradients(*given, inputs.dy, axes, 1e-3, activation)
    return inputs, tangents, along, slopes


def _dot(ones, others):
    return sum(
        float(keras.ops.sum(one * other))
        for one, other in zip(ones, others, strict=True)
    )


@pytest.mark.parametrize("activation", [None, "relu", "sigmoid"])
@cases.parametrize(cases.KINDS)
def test_gradients_are_the_transpose_of_the_tangent(case, activation):
    inputs, tangents, along, slopes = _tangents_and_gradients(case, activation)
    forward, backward = _dot([along], [inputs.dy]), _dot(tangents, slopes)
    assert abs(forward - backward) <= 1e-9 * max(1, abs(forward))


@cases.parametrize(cases.KINDS)
def test_the_tangent_is_the_derivative(case):
    inputs, tangents, along, _ = _tangents_and_gradients(case, "sigmoid")

    def value(step):
        moved = [
            one + step * tangent
            for one, tangent in zip(inputs.tensors, tangents, strict=True)
        ]
        centred = formulas.centred_moments(moved[0], inputs.axes, inputs.mask)
        return keras.ops.sigmoid(formulas.normalize(*moved, centred, inputs.axes, 1e-3))

    step = 1e-5
    expected = frameworks.numpy((value(step) - value(-step)) / (2 * step))
    np.testing.assert_allclose(frameworks.numpy(along), expected, atol=1e-7)


@cases.parametrize(cases.KINDS)
def test_a_tangent_of_none_is_one_of_zeros(case):
    inputs = Inputs(case, "float64")
    x, scale, offset = inputs.tensors
    centred = formulas.centred_moments(x, inputs.axes, inputs.mask)
    given = (x, scale, offset, inputs.mask, centred)

    def along(tangents):
        found = derivatives.tangent(*given, tangents, inputs.axes, 1e-3, "sigmoid")
        return frameworks.numpy(found)

    parts = [
        along(
            tuple(one if i == k else None for k, one in enumerate((x, scale, offset)))
        )
        for i in range(3)
    ]
    np.testing.assert_allclose(sum(parts), along((x, scale, offset)), atol=1e-12)
