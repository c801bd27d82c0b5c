"""What the builders refuse, and that they say what is allowed."""

import re

import keras
import pytest

from cases_models import BAD_ARGUMENTS, NETWORKS, PLACED
from keras_bn import models

pytestmark = pytest.mark.once


@pytest.mark.parametrize(
    ("build", "arguments", "message"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS
)
def test_bad_argument(build, arguments, message):
    with pytest.raises(ValueError, match=message):
        build(**arguments)


@pytest.mark.parametrize("classes", [0, -1, 2.5, True, "10"])
@pytest.mark.parametrize("name", models.__all__)
def test_classes(name, classes):
    message = f"`classes` must be an integer of at least 1. Received: .*{classes!r}"
    with pytest.raises(ValueError, match=message):
        getattr(models, name)(classes=classes)


@pytest.mark.parametrize("name", PLACED)
def test_placement(name):
    message = "`placement` must be one of 'before', 'after'. Received: .*'between'"
    with pytest.raises(ValueError, match=message):
        NETWORKS[name].model(placement="between")


@pytest.mark.parametrize("name", models.__all__)
def test_norm(name):
    with pytest.raises(ValueError, match=r"`norm` must be None .*'batch'"):
        getattr(models, name)(norm="batch")


@pytest.fixture
def channels_first(monkeypatch):
    monkeypatch.setattr(keras.config, "image_data_format", lambda: "channels_first")


@pytest.mark.usefixtures("channels_first")
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((32, 32, 3), "a height and width of at least 16 "),
        ((3, 15, 32), "a height and width of at least 16 "),
        ((None, 32, 32), "a known number of channels"),
    ],
)
def test_order_of_the_shape_is_keras_s(shape, message):
    order = r"\(channels, height, width\)"
    received = re.escape(str(shape))
    with pytest.raises(ValueError, match=f"{order}, .*{message}.*={received}"):
        models.lenet5(input_shape=shape)


@pytest.mark.usefixtures("channels_first")
def test_default_shape_is_in_keras_s_order():
    assert models.mlp(depth=1, width=1).input_shape == (None, 1, 28, 28)
