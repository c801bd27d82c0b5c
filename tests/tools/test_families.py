"""Every family of `keras.applications` that has batch norm."""

import keras
import numpy as np
import pytest
from cases_tools import FAMILIES, images, numpy, randomize

import keras_bn

HERE = [case for case in FAMILIES if keras.backend.backend() in case.backends]
NOT_HERE = [case for case in FAMILIES if case not in HERE]


def _build(case):
    return getattr(keras.applications, case.name)(
        weights=None,
        input_shape=(case.size, case.size, 3),
        classes=10,
        classifier_activation=None,
        **case.arguments,
    )


@pytest.fixture(scope="module", params=HERE, ids=lambda case: case.name)
def family(request):
    """The case, its model, an input and the output for it."""
    case = request.param
    keras.backend.clear_session()
    model = randomize(_build(case))
    x = images(1, case.size, case.size, 3)
    return case, model, x, numpy(model(x, training=False))


def test_there_and_back_gives_the_same_bits(family):
    _, model, x, expected = family
    ours = keras_bn.convert(model)
    back = keras_bn.convert(ours, to="keras")
    assert [v.path for v in back.weights] == [v.path for v in model.weights]
    np.testing.assert_array_equal(numpy(back(x, training=False)), expected)
    # Ours is checked folded, below; here one norm of each is enough.
    kinds = {type(one) for one in ours.layers if "batchnorm" in type(one).__name__.lower()}
    assert kinds == {keras_bn.BatchNormalization}


def test_fold_agrees_and_counts_are_as_stated(family):
    case, model, x, expected = family
    folded, report = keras_bn.fold(keras_bn.convert(model), explain=True)
    assert (len(report.folded), len(report.left)) == (case.folded, case.left)
    difference = np.abs(numpy(folded(x, training=False)) - expected).max()
    assert difference <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("case", NOT_HERE, ids=lambda case: case.name)
def test_left_out_families_are_those_that_keras_refuses(case):
    with pytest.raises(ValueError, match="not available with the"):
        _build(case)
