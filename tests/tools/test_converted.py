"""What becomes of one layer's arguments in the layer in its place."""

import keras
import numpy as np
import pytest

import keras_bn
from cases_copies import Decay
from cases_tools import numpy, randomize
from slow import slow

L = keras.layers
Norm = keras_bn.BatchNormalization
ON_TORCH = slow("models that JAX runs op by op", but_on="torch")


def _model(*layers):
    return keras.Sequential([keras.Input((2, 3)), *layers])


@ON_TORCH
@pytest.mark.parametrize(("axis", "wanted"), [((1,), 1), ([2], 2), (-1, -1)])
def test_one_axis_is_a_number_for_keras(axis, wanted):
    (norm,) = keras_bn.convert(_model(Norm(axis=axis)), to="keras").layers
    assert norm.axis == wanted


@ON_TORCH
def test_a_users_own_objects_are_in_the_layer_but_where_others_are_given():
    decays = Decay(0.1), Decay(0.2)
    model = _model(
        L.BatchNormalization(gamma_regularizer=decays[0], beta_regularizer=decays[0])
    )
    (norm,) = keras_bn.convert(model, beta_regularizer=decays[1]).layers
    assert norm.gamma_regularizer is decays[0]
    assert norm.beta_regularizer is decays[1]


@ON_TORCH
def test_an_activation_is_of_the_norms_dtype():
    policy = "mixed_float16"
    model = _model(Norm(activation=lambda x: 3 * x, dtype=policy, name="norm"))
    norm, activation = keras_bn.convert(model, to="keras").layers
    assert [one.dtype_policy.name for one in (norm, activation)] == [policy] * 2
    assert activation.activation is model.layers[0].activation


@ON_TORCH
def test_residuals_stay_in_the_calls_of_a_norm_that_takes_them():
    inputs = keras.Input((3,))
    model = keras.Model(inputs, Norm()(inputs, residual=inputs))
    ours = keras_bn.convert(model, momentum=0.5)
    assert [type(one) for one in ours.layers] == [L.InputLayer, Norm]


@ON_TORCH
def test_a_weight_that_a_layer_has_not_is_not_lost():
    model = randomize(_model(L.BatchNormalization(scale=False)))
    (norm,) = keras_bn.convert(model, scale=False).layers
    np.testing.assert_array_equal(numpy(norm.beta), numpy(model.layers[0].beta))


@ON_TORCH
@pytest.mark.parametrize("to", ["keras_bn", "keras", "group", "layer", "domain"])
@pytest.mark.parametrize("trainable", [True, False])
def test_whether_to_train_can_be_set(to, trainable):
    kind = Norm if to == "keras" else L.BatchNormalization
    model = _model(kind(name="norm", trainable=not trainable))
    domains = {"domains": 2} if to == "domain" else {}
    ours = keras_bn.convert(model, to=to, trainable=trainable, **domains)
    assert ours.get_layer("norm").trainable == trainable
    assert len(ours.trainable_variables) == 2 * trainable
