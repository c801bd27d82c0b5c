"""The networks have as many trainable parameters as their references say."""

import inspect
import math

import keras
import pytest

from cases_models import COUNTS, MILLIONS, figure_5_parameters
from keras_bn import models

pytestmark = pytest.mark.once


def built(build, **arguments):
    # In such a scope variables have a shape and no value.
    with keras.StatelessScope(initialize_variables=False):
        return build(**arguments)


def trainable(build, **arguments):
    weights = built(build, **arguments).trainable_weights
    return sum(math.prod(weight.shape) for weight in weights)


@pytest.mark.parametrize("case", COUNTS.values(), ids=COUNTS)
def test_count_is_the_reference_s(case):
    assert trainable(case.build, **case.arguments) == case.expected


@pytest.mark.parametrize("case", COUNTS.values(), ids=COUNTS)
def test_docstring_states_the_count(case):
    assert f"{case.expected:,}" in inspect.getdoc(case.build)


# Each count that a docstring states and no reference gives.
STATED = [
    (models.mlp, {}, "100,010"),
    (models.lenet5, {}, "61,932"),
    (models.plain_cnn, {}, "279,002"),
    *(
        (models.vgg, {"depth": depth, "head": "small", "classes": 1000}, count)
        for depth, count in (
            (11, "9,736,232"),
            (13, "9,920,936"),
            (16, "15,231,912"),
            (19, "20,542,888"),
        )
    ),
    *(
        (models.resnet, {"depth": depth, "preactivation": True}, count)
        for depth, count in (
            (18, "11,687,720"),
            (34, "21,795,880"),
            (50, "25,549,352"),
            (101, "44,541,480"),
            (152, "60,185,128"),
            (20, "269,722"),
            (56, "853,018"),
            (110, "1,727,962"),
        )
    ),
]


@pytest.mark.parametrize(("build", "arguments", "count"), STATED)
def test_stated_count_is_true(build, arguments, count):
    assert f"{trainable(build, **arguments):,}" == count
    assert count in inspect.getdoc(build)


@pytest.mark.parametrize("depth", MILLIONS)
def test_small_resnets_have_the_papers_millions(depth):
    digits = 1 if depth == 110 else 2
    count = trainable(models.resnet, depth=depth)
    assert round(count / 1e6, digits) == MILLIONS[depth]


def test_inception_is_the_papers_table():
    expected = figure_5_parameters()
    assert trainable(models.inception_bn) == expected
    assert f"{expected:,}" in inspect.getdoc(models.inception_bn)


def test_inception_has_the_papers_sizes():
    model = built(models.inception_bn)
    sizes = {"pool1": 56, "pool2": 28, "inception_3b": 28, "inception_3c": 14}
    sizes |= {"inception_4d": 14, "inception_4e": 7, "inception_5b": 7}
    found = {name: model.get_layer(name).output.shape[1:3] for name in sizes}
    assert found == {name: (size, size) for name, size in sizes.items()}
