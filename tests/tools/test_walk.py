"""What the tools share: how a model's layers are found, and what is asked of them."""

import keras
import pytest

import keras_bn
from keras_bn._keras import layer_of
from keras_bn.tools._graphs import walk

L = keras.layers
pytestmark = pytest.mark.once


def test_a_layer_of_two_models_is_listed_once_by_its_first_path():
    norm, inputs = keras_bn.BatchNormalization(name="norm"), keras.Input((3,))
    one, other = (
        keras.Sequential([keras.Input((3,)), L.ReLU(name="relu"), norm], name=name)
        for name in ("one", "other")
    )
    model = keras.Model(inputs, other(one(inputs)))
    paths = [path for path, _ in walk.sublayers(model) if "input" not in path]
    assert paths == ["one", "one/relu", "one/norm", "other", "other/relu"]
    assert list(walk.batch_norms(model)) == ["one/norm"]


def test_a_number_tells_layers_of_one_name_apart():
    model = keras.Model()
    names = ("norm", "norm", "other")
    model.norms = [keras_bn.BatchNormalization(name=name) for name in names]
    for norm in model.norms:
        norm.build((None, 3))
    model.built = True
    found = walk.batch_norms(model)
    assert list(found) == ["norm#1", "norm#2", "other"]
    assert list(found.values()) == model.norms


class Holds(keras.Model):
    def __init__(self):
        super().__init__()
        self.norm = keras_bn.BatchNormalization()


@pytest.mark.parametrize("built", [False, True])
@pytest.mark.parametrize("norm_built", [False, True])
def test_a_model_is_built_if_its_norms_are_too(built, norm_built):
    model = Holds()
    if norm_built:
        model.norm.build((None, 3))
    model.built = built
    assert walk.is_built(model) == (built and norm_built)


def test_a_model_without_norms_may_be_built():
    assert walk.is_built(keras.Sequential([keras.Input((3,)), L.Dense(1)]))


def _class(constructor, base=keras.Model):
    return type("Own", (base,), {"__init__": constructor})


@pytest.mark.parametrize(
    ("cls", "expected"),
    [
        (keras.Model, True),
        (keras.Sequential, False),
        (_class(lambda self, *args, **kwargs: None), True),
        (_class(lambda self, *args: None), False),
        (_class(lambda self, **kwargs: None), False),
        (_class(lambda self, width: None), False),
        (_class(lambda self, inputs, outputs, name=None: None), True),
        (_class(lambda self, inputs, outputs, name=None, **kwargs: None), True),
        (_class(lambda self, width, outputs, name=None: None), False),
        (_class(lambda self, inputs, outputs: None), False),
    ],
)
def test_a_class_is_made_of_inputs_and_outputs_where_keras_says_so(cls, expected):
    assert walk.takes_inputs_and_outputs(cls) == expected


def test_asking_for_it_uses_no_name_up():
    keras.utils.clear_session(free_memory=False)
    walk.any_graph.cache_clear()
    walk.takes_inputs_and_outputs(keras.Model)
    inputs = keras.Input((1,))
    assert keras.Model(inputs, inputs).name == "functional"
    assert layer_of(inputs).name == "input_layer"
