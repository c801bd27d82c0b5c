"""What goes along to a copy: a user's own objects, and how a model was compiled."""

import keras
import numpy as np
import pytest

import keras_bn
from cases_tools import images, numpy
from slow import slow

L = keras.layers
ops = keras.ops
ON_TORCH = slow("models that JAX runs op by op", but_on="torch")


def _model(*layers, **settings):
    layers = layers or (L.Dense(3), L.BatchNormalization(**settings))
    return keras.Sequential([keras.Input((4,)), *layers])


class Counting(keras.Initializer):
    """Has no config, and knows how often it was called."""

    def __init__(self):
        self.calls = 0

    def __call__(self, shape, dtype=None):
        self.calls += 1
        return ops.ones(shape, dtype)


@ON_TORCH
def test_the_users_own_objects_go_along_and_are_not_run():
    initializer = Counting()
    double = eval("lambda x: 2 * x", {})  # which is of no module
    dense = L.Dense(3, activation=double, kernel_initializer=initializer)
    model = _model(L.BatchNormalization(), dense)
    calls = initializer.calls
    folded = keras_bn.fold(model).layers[-1]
    assert (folded.activation, folded.kernel_initializer) == (double, initializer)
    assert type(folded.bias_initializer) is keras.initializers.Zeros
    assert initializer.calls == calls > 0


@ON_TORCH
@pytest.mark.parametrize("to", ["keras_bn", "group"])
def test_weights_that_a_layer_had_not_start_as_its_initializers_say(to):
    random = keras.initializers.RandomUniform(1, 2)
    settings = {"gamma_initializer": random, "beta_initializer": random}
    model = _model(L.Dense(4), L.BatchNormalization(scale=False, **settings))
    model.layers[1].beta.assign([3, 4, 5, 6])
    norm = keras_bn.convert(model, to=to, scale=True).layers[1]
    gamma = numpy(norm.gamma)
    assert ((gamma > 1) & (gamma < 2)).all()
    np.testing.assert_array_equal(numpy(norm.beta), [3, 4, 5, 6])


@ON_TORCH
def test_a_layer_that_is_no_model_is_copied_too():
    layer = L.TimeDistributed(L.BatchNormalization())
    layer.build((None, 3, 4))
    assert type(keras_bn.convert(layer).layer) is keras_bn.BatchNormalization


def test_an_optimizer_goes_along_with_its_state():
    model = _model()
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    for number, one in enumerate(model.optimizer.variables):
        one.assign(np.full(one.shape, number + 1))
    state = [numpy(one).tolist() for one in model.optimizer.variables]
    ours = keras_bn.convert(model).optimizer
    assert [numpy(one).tolist() for one in ours.variables] == state
    ours.variables[-1].assign(ours.variables[-1] + 1)
    assert [numpy(one).tolist() for one in model.optimizer.variables] == state


@pytest.mark.parametrize(
    "tool", [keras_bn.convert, pytest.param(keras_bn.fold, marks=ON_TORCH)]
)
def test_what_is_trained_may_be_said_until_training_starts(tool):
    model = _model()
    model.layers[0].trainable = False
    model.compile("sgd", "mse")
    copy = tool(model)
    copy.layers[0].trainable = True
    before = numpy(copy.layers[0].kernel)
    copy.fit(images(4, 4), images(4, 3, seed=1), verbose=0)
    assert (numpy(copy.layers[0].kernel) != before).all()


@ON_TORCH
def test_the_state_for_gamma_is_not_given_to_beta():
    model = _model(center=False)
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    with pytest.raises(UserWarning, match="starts anew"):  # warnings are errors here
        keras_bn.convert(model, center=True, scale=False)


@ON_TORCH
def test_a_model_that_is_to_be_evaluated_needs_no_optimizer():
    model, x = _model(), images(4, 4)
    model.compile(None, "mse")
    ours = keras_bn.convert(model)  # warnings are errors here
    loss = ours.evaluate(x, np.ones((4, 3)), verbose=0)
    assert loss == pytest.approx(model.evaluate(x, np.ones((4, 3)), verbose=0))


class Compiling(keras.Model):
    """Its `compile` takes other arguments, and its config says which."""

    def __init__(self):
        super().__init__()
        self.norm = L.BatchNormalization()

    def call(self, x):
        return self.norm(x)

    def compile(self, power):
        super().compile("sgd", lambda y, p: ops.mean(ops.abs(y - p) ** power))
        self.power = power

    def get_compile_config(self):
        return {"power": self.power}

    def compile_from_config(self, config):
        self.compile(**config)


@ON_TORCH
def test_a_model_that_compiles_in_its_own_way():
    model, x = Compiling(), images(4, 4)
    model(x)
    model.compile(3)
    ours = keras_bn.convert(model)
    assert ours.evaluate(x, x + 2, verbose=0) == pytest.approx(8, rel=0.01)
