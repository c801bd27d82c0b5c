"""The layers that a layer holds in its attributes."""

import keras
import numpy as np

import keras_bn
from cases_tools import images, numpy, randomize
from slow import slow

L = keras.layers
ON_TORCH = slow("models that JAX runs op by op", but_on="torch")


@keras.saving.register_keras_serializable("test_held")
class Owner(L.Layer):
    """Has attributes that a model has others of, and containers in containers."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.layers = [L.BatchNormalization(), [L.Dense(4), L.BatchNormalization()]]
        self.inputs = {"one": (L.Dense(4), {"two": [L.BatchNormalization()]})}

    def _every(self):
        first, others = self.layers
        dense, more = self.inputs["one"]
        return [first, *others, dense, *more["two"]]

    def build(self, shape):
        for one in self._every():
            one.build(shape)

    def call(self, x):
        for one in self._every():
            x = one(x)
        return x


@ON_TORCH
def test_what_is_held_at_any_depth_is_there_after_loading(tmp_path):
    model = randomize(keras.Sequential([keras.Input((4,)), Owner()]))
    ours = keras_bn.convert(model)
    ours.save(tmp_path / "ours.keras")
    loaded = keras.saving.load_model(tmp_path / "ours.keras")
    x = images(3, 4)
    for one in (ours, loaded):
        owner = one.layers[0]
        first, (_, second) = owner.layers
        third = owner.inputs["one"][1]["two"][0]
        kinds = [type(norm) for norm in (first, second, third)]
        assert kinds == [keras_bn.BatchNormalization] * 3
        np.testing.assert_allclose(numpy(one(x)), numpy(model(x)), atol=2e-6)
    paths = [[v.path for v in one.variables] for one in (model, ours)]
    assert paths[0] == paths[1]


class Part(L.Layer):
    """Knows who holds it, of which Keras is not told."""

    def __init__(self, owner):
        super().__init__()
        self.norm = L.BatchNormalization()
        vars(self)["owner"] = owner

    def build(self, shape):
        self.norm.build(shape)

    def call(self, x):
        return self.norm(x)


class Whole(L.Layer):
    def __init__(self):
        super().__init__()
        self.part = Part(self)

    def build(self, shape):
        self.part.build(shape)

    def call(self, x):
        return self.part(x)


@ON_TORCH
def test_a_layer_may_know_who_holds_it():
    model = randomize(keras.Sequential([keras.Input((4,)), Whole()]))
    ours = keras_bn.convert(model)
    whole, x = ours.layers[0], images(3, 4)
    assert whole.part.owner is whole
    assert type(whole.part.norm) is keras_bn.BatchNormalization
    np.testing.assert_allclose(numpy(ours(x)), numpy(model(x)), atol=2e-6)
