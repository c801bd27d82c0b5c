"""The saved format is the one in golden/*.json, and Keras's where that is promised."""

import inspect
import json

import keras
import pytest

import keras_bn
from golden import regenerate

MESSAGE = (
    "The saved format changed. If that is meant, and older files still load, run "
    "`python tests/golden/regenerate.py` and commit the difference."
)

# A layer that Keras's own cannot be, or (float16) whose statistics it keeps narrower.
NOT_IN_KERAS = {"axis_tuple", "activation", "float16", "synchronized"} | {
    "accumulation",
    "ghost_batches",
    "replica_groups",
    "freeze_statistics",
    "plain_average",
    "zero_debias",
    "schedules",
    "inference_statistics",
}
IN_KERAS = [case for case in regenerate.LAYERS if case not in NOT_IN_KERAS]


def golden(view):
    return json.loads(regenerate.path_of(view).read_text())


@pytest.mark.parametrize("case", regenerate.LAYERS)
@pytest.mark.parametrize("view", regenerate.VIEWS)
def test_format_is_the_golden_one(view, case):
    assert regenerate.look(view, case) == golden(view).get(case), MESSAGE


@pytest.mark.parametrize("view", regenerate.VIEWS)
def test_golden_file_has_these_cases_and_no_others(view):
    assert list(golden(view)) == list(regenerate.LAYERS), MESSAGE


@pytest.mark.parametrize("case", IN_KERAS)
@pytest.mark.parametrize("view", ["config", "weights", "weights_file"])
def test_format_is_that_of_keras(view, case):
    ours = regenerate.look(view, case)
    assert ours == regenerate.look(view, case, keras.layers.BatchNormalization)


@pytest.mark.parametrize("case", IN_KERAS)
def test_model_file_differs_from_that_of_keras_in_the_class_only(case):
    ours = regenerate.look("model_file", case)
    expected = regenerate.look("model_file", case, keras.layers.BatchNormalization)
    expected["module"] = "keras_bn.layers.batch_normalization"
    expected["registered_name"] = "keras_bn>BatchNormalization"
    assert ours == expected


def arguments():
    """The constructor's arguments that a layer can have at another than the default."""
    signature = inspect.signature(keras_bn.BatchNormalization)
    return [
        name
        for name, parameter in signature.parameters.items()
        if parameter.kind is not parameter.VAR_KEYWORD
    ]


@pytest.mark.parametrize("argument", arguments())
def test_every_argument_is_pinned_at_another_value_too(argument):
    pinned = golden("config")
    default = pinned["default"].get(argument)
    assert any(config.get(argument) != default for config in pinned.values())


@pytest.mark.parametrize("case", regenerate.LAYERS)
def test_layer_comes_back_from_its_golden_config(case):
    layer = keras_bn.BatchNormalization.from_config(golden("config")[case])
    assert layer.get_config() == golden("config")[case]
