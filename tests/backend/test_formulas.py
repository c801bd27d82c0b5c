"""What the formulas promise each other, apart from any kernel."""

import keras
import numpy as np
import pytest
from test_kernels import Inputs

import cases
import frameworks
from keras_bn.backend import derivatives, formulas

CASES = cases.KINDS | {"weights": cases.WEIGHTS["weights_keras_two_axes"]}

pytestmark = pytest.mark.usefixtures("float64")


def _tangents_and_gradients(case, activation):
    """`y'` along random tangents, `dy`, those tangents, and the gradients of `dy`."""
    inputs = Inputs(case, "float64", mean=3.0)
    rng = np.random.default_rng(1)
    tangents = [
        frameworks.tensor(rng.normal(size=tuple(one.shape))) for one in inputs.tensors
    ]
    if weighted(inputs):
        tangents.append(frameworks.tensor(rng.normal(size=tuple(inputs.mask.shape))))
    x, scale, offset = inputs.tensors
    axes, mask = inputs.axes, inputs.mask
    centred = formulas.centred_moments(x, axes, mask)
    given = (x, scale, offset, mask, centred)
    every = (*tangents, *[None] * (4 - len(tangents)))
    along = derivatives.tangent(*given, every, axes, 1e-3, activation)
    slopes = derivatives.gradients(
        *(*given, inputs.dy, axes, 1e-3, activation), of_weights=weighted(inputs)
    )
    return inputs, tangents, along, slopes


def weighted(inputs):
    """Whether there are weights, for which there are a tangent and a gradient."""
    return formulas.is_weights(inputs.mask)


def _dot(ones, others):
    return sum(
        float(keras.ops.sum(one * other))
        for one, other in zip(ones, others, strict=True)
    )


@pytest.mark.parametrize(
    ("case", "activation"),
    # A slope knows no shapes.
    [
        *((case, "sigmoid") for case in CASES.values()),
        *((CASES["weights"], activation) for activation in (None, "relu")),
    ],
)
def test_gradients_are_the_transpose_of_the_tangent(case, activation):
    inputs, tangents, along, slopes = _tangents_and_gradients(case, activation)
    forward, backward = _dot([along], [inputs.dy]), _dot(tangents, slopes)
    assert abs(forward - backward) <= 1e-9 * max(1, abs(forward))


@cases.parametrize(CASES)
def test_the_tangent_is_the_derivative(case):
    inputs, tangents, along, _ = _tangents_and_gradients(case, "sigmoid")

    def value(step):
        every = [*inputs.tensors, *([inputs.mask] if weighted(inputs) else [])]
        moved = [
            one + step * tangent for one, tangent in zip(every, tangents, strict=True)
        ]
        mask = moved.pop() if weighted(inputs) else inputs.mask
        centred = formulas.centred_moments(moved[0], inputs.axes, mask)
        return keras.ops.sigmoid(formulas.normalize(*moved, centred, inputs.axes, 1e-3))

    step = 1e-5
    expected = frameworks.numpy((value(step) - value(-step)) / (2 * step))
    np.testing.assert_allclose(frameworks.numpy(along), expected, atol=1e-7)


@cases.parametrize(CASES)
def test_a_tangent_of_none_is_one_of_zeros(case):
    inputs = Inputs(case, "float64")
    x, scale, offset = inputs.tensors
    centred = formulas.centred_moments(x, inputs.axes, inputs.mask)
    given = (x, scale, offset, inputs.mask, centred)

    def along(tangents):
        found = derivatives.tangent(*given, tangents, inputs.axes, 1e-3, "sigmoid")
        return frameworks.numpy(found)

    tangents = (x, scale, offset, inputs.mask if weighted(inputs) else None)
    parts = [
        along(tuple(one if i == k else None for k, one in enumerate(tangents)))
        for i, tangent in enumerate(tangents)
        if tangent is not None
    ]
    np.testing.assert_allclose(sum(parts), along(tangents), atol=1e-12)
