"""`convert` to group and layer norm, which know one sample alone."""

import warnings
from typing import NamedTuple

import keras
import numpy as np
import pytest

import frameworks
import keras_bn
import oracle
from cases_tools import images, numpy, weights_of
from slow import slow

L = keras.layers
Norm = keras_bn.BatchNormalization
GROUP, LAYER = L.GroupNormalization, L.LayerNormalization
LAST_AXES_ONLY = keras.backend.backend() == "torch" and frameworks.KERAS < (3, 16)


def model_of(layer, shape):
    """A model of this layer alone, with gamma and beta of a trained one."""
    model = keras.Sequential([keras.Input(shape), layer], name="m")
    rng = np.random.default_rng(1)
    for weight in (layer.gamma, layer.beta):
        if weight is not None:
            weight.assign(rng.uniform(0.5, 1.5, tuple(weight.shape)))
    return model


class Case(NamedTuple):
    """A batch norm, its input, and the norm that takes its place."""

    name: str
    layer: object
    shape: tuple
    to: str
    arguments: dict
    groups: int | None
    """None for layer norm."""


CASES = [
    Case("default", lambda: Norm(), (3, 2, 12), "group", {}, 6),
    Case("prime", lambda: Norm(), (3, 2, 7), "group", {}, 1),
    Case("48 channels", lambda: Norm(), (2, 48), "group", {}, 24),
    Case("128 channels", lambda: Norm(), (2, 128), "group", {}, 32),
    Case("99 channels", lambda: Norm(), (2, 99), "group", {}, 11),
    Case("two channels", lambda: Norm(), (3, 2), "group", {}, 1),
    Case("given", lambda: Norm(), (3, 12), "group", {"groups": np.int64(4)}, 4),
    Case("instance", lambda: Norm(), (3, 4), "group", {"groups": -1}, 4),
    Case("Keras's", lambda: L.BatchNormalization(), (3, 2, 12), "group", {}, 6),
    Case("first", lambda: Norm(axis=1), (12, 3, 2), "group", {}, 6),
    Case("first, below 0", lambda: Norm(axis=-3), (12, 3, 2), "group", {}, 6),
    Case("epsilon", lambda: Norm(epsilon=0.1), (3, 4), "group", {}, 2),
    Case("no gamma", lambda: Norm(scale=False), (3, 4), "group", {}, 2),
    Case("no positions", lambda: Norm(), (12,), "group", {"groups": 1}, None),
    Case("one pixel", lambda: Norm(axis=1), (12, 1, 1), "group", {}, None),
    Case("all features", lambda: Norm(axis=(1, 2)), (3, 4), "group", {}, None),
    Case("layer", lambda: Norm(), (3, 12), "layer", {"epsilon": 0.1}, None),
    Case("layer first", lambda: Norm(axis=1), (12, 3, 2), "layer", {}, None),
    Case("axes", lambda: Norm(axis=(3, 1)), (3, 2, 4), "layer", {}, None),
    Case("no beta", lambda: Norm(center=False), (3, 4), "layer", {}, None),
]


# The others differ in arguments, which no backend sees.
QUICK = {"first", "layer first"}
ON_TORCH = slow("shapes that JAX compiles op by op", but_on="torch")


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=() if case.name in QUICK else ON_TORCH)
        for case in CASES
    ],
)
def test_the_norm_of_a_sample(case):
    model = model_of(case.layer(), case.shape)
    old = model.layers[0]
    before = weights_of(model)
    if case.name == "layer first" and LAST_AXES_ONLY:
        with pytest.raises(
            ValueError, match=r"'batch_norm\w+' .*last axes only.*axis=1"
        ):
            keras_bn.convert(model, to=case.to, **case.arguments)
        return
    new = keras_bn.convert(model, to=case.to, **case.arguments)
    layer = new.layers[0]
    assert type(layer) is (LAYER if case.groups is None else GROUP)
    assert (layer.name, layer.trainable) == (old.name, True)
    assert weights_of(model) == before
    x = 2 + images(3, *case.shape)
    gamma, beta = (
        default if weight is None else oracle.spread(numpy(weight), x, old.axis)
        for weight, default in ((old.gamma, 1), (old.beta, 0))
    )
    epsilon = case.arguments.get("epsilon", old.epsilon)
    if case.groups is None:
        expected = oracle.layer_norm(x, gamma, beta, old.axis, epsilon)
    else:
        expected = oracle.group_norm(x, gamma, beta, case.groups, old.axis, epsilon)
    np.testing.assert_allclose(numpy(new(x)), expected, atol=1e-4)


def _network():
    inputs = keras.Input((4, 4, 3), name="image")
    shared = Norm(name="shared", momentum=0.7, activation="relu", renorm=True)
    x = shared(L.Conv2D(8, 1)(inputs))
    x = shared(L.Conv2D(8, 3, padding="same")(x), residual=x)
    inner = keras.Sequential(
        [L.Conv2D(8, 1), L.BatchNormalization(trainable=False, name="frozen")]
    )
    x = L.GlobalAveragePooling2D()(inner(x, training=True))
    return keras.Model(inputs, Norm(dtype="mixed_bfloat16", name="half")(x), name="net")


@slow("trains a network, and runs others op by op", but_on="torch")
def test_a_network_keeps_all_but_its_statistics(tmp_path):
    model = _network()
    model.get_layer("shared").beta.trainable = False
    model.compile("adam", "mse")
    x = images(4, 4, 4, 3)
    model.fit(x, x.mean((1, 2)) @ np.ones((3, 8)), epochs=1, verbose=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        new = keras_bn.convert(model, to="group", groups=4)
    told = [str(one.message) for one in caught if one.category is UserWarning]
    unread, told = told
    assert (
        "`groups` is not read for 1 layers of model 'net', 'half' the first" in unread
    )
    assert unread.endswith("Received: groups=4")
    assert "of 2 layers of model 'net' are dropped, 'shared' the first" in told
    shared, half = new.get_layer("shared"), new.get_layer("half")
    frozen = new.layers[-3].layers[-1]
    assert [type(one) for one in (shared, frozen, half)] == [GROUP, GROUP, LAYER]
    assert (shared.groups, frozen.trainable) == (4, False)
    assert half.dtype_policy.name == "mixed_bfloat16"
    followers = [one.name for one in new.layers if one.name.startswith("shared_")]
    assert sorted(followers) == ["shared_activation", "shared_add"]
    flags = [weight.trainable for weight in shared.weights]
    assert flags == [True, False]
    slots = zip(model.optimizer.variables, new.optimizer.variables, strict=True)
    for one, other in slots:
        np.testing.assert_array_equal(numpy(one), numpy(other))
    # One sample alone, in training too: no statistic of a batch is left.
    alone = numpy(new(x[:1], training=True))
    np.testing.assert_allclose(numpy(new(x))[:1], alone, atol=0.02)
    new.save(tmp_path / "new.keras")
    # Files do not hold the flag of one weight, which the optimizer's state is after.
    loaded = keras.saving.load_model(tmp_path / "new.keras", compile=False)
    np.testing.assert_array_equal(numpy(loaded(x)), numpy(new(x)))


def _masked():
    inputs = keras.Input((4, 6))
    return keras.Model(inputs, Norm(name="norm")(L.Masking()(inputs)))


def _masked_behind_a_copy():
    copy = keras_bn.convert(_masked(), to="layer")
    return keras.Model(copy.input, Norm(name="next")(copy.output))


@ON_TORCH
def test_gamma_and_beta_that_one_side_has_not():
    model = keras.Sequential([keras.Input((3, 4)), Norm(scale=False)])
    layer = keras_bn.convert(model, to="layer", scale=True, center=False).layers[0]
    np.testing.assert_array_equal(numpy(layer.gamma), np.ones(4))
    assert layer.beta is None


@ON_TORCH
def test_statistics_that_have_not_moved_are_not_missed():
    norm = Norm(moving_mean_initializer=keras.initializers.Constant(2.0))
    model = keras.Sequential([keras.Input((3, 4)), norm])
    keras_bn.convert(model, to="layer")  # warnings are errors here
    norm.moving_mean.assign(np.zeros(4))
    with pytest.raises(UserWarning, match=r"of 1 layers of model .* are dropped"):
        keras_bn.convert(model, to="layer")


@ON_TORCH
def test_a_mask_is_of_no_matter_to_layer_norm():
    x = images(2, 4, 6)
    x[:, 2:] = 0
    y = numpy(keras_bn.convert(_masked(), to="layer")(x))
    np.testing.assert_allclose(y, oracle.layer_norm(x), atol=1e-5)


@ON_TORCH
@pytest.mark.parametrize(
    ("build", "arguments", "error", "message"),
    [
        (
            lambda: model_of(Norm(name="n"), (2, 6)),
            {"to": "group", "groups": 4},
            ValueError,
            r"`groups` must divide .*groups=4, layer 'n' with 6 channels",
        ),
        (
            lambda: model_of(Norm(), (2, 6)),
            {"to": "group", "groups": 0},
            ValueError,
            r"`groups` must be an integer above 0.*groups=0",
        ),
        (
            lambda: model_of(Norm(), (2, 6)),
            {"to": "layer", "groups": 2},
            TypeError,
            r"`groups` is not .* in every keras LayerNormalization",
        ),
        (
            lambda: model_of(Norm(), (2, 6)),
            {"to": "group", "momentum": 0.9},
            TypeError,
            r"`momentum` is not .* in every keras GroupNormalization",
        ),
        (
            lambda: model_of(Norm(), (2, 6)),
            {"to": "layer", "epsilon": 0},
            ValueError,
            r"`epsilon` must be",
        ),
        (
            lambda: model_of(Norm(name="n", axis=(1, 3)), (3, 2, 6)),
            {"to": "group"},
            ValueError,
            r"'n' cannot be converted.*along one axis.*axis=\(1, 3\)",
        ),
        (
            lambda: model_of(Norm(), (2, 6)),
            {"to": "group", "scale": False},
            ValueError,
            r"`scale` must stay True.*gamma",
        ),
        *(
            (build, {"to": "group"}, ValueError, rf"'{name}' .* a mask reaches .*layer")
            for build, name in ((_masked, "norm"), (_masked_behind_a_copy, "next"))
        ),
    ],
)
def test_bad_input(build, arguments, error, message):
    with pytest.raises(error, match=message):
        keras_bn.convert(build(), **arguments)
