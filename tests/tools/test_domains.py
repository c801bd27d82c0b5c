"""`convert` to domains and back, and what the other tools make of such layers."""

import warnings

import keras
import numpy as np
import pytest

import keras_bn
from cases_copies import Backbone
from cases_tools import images, layers_in, numpy, randomize, weights_of
from keras_bn.tools._graphs.walk import any_graph, graph_in
from slow import slow

L = keras.layers
Norm = keras_bn.BatchNormalization


class Other(L.BatchNormalization):
    """Of which no tool knows what it does; it stays."""


def sequential():
    inner = keras.Sequential([L.Dense(3), Norm(name="inner")], name="block")
    layers = [keras.Input((4,)), L.Dense(3), L.BatchNormalization(), L.ReLU(), inner]
    return keras.Sequential([*layers, keras.Sequential([L.Dense(2)])], name="net")


def two_inputs():
    """A dictionary of inputs, and a norm that is called twice."""
    a, x = keras.Input((4,), name="a"), keras.Input((4,), name="x")
    norm = Norm(activation="relu", renorm=True)
    return keras.Model({"x": x, "a": a}, L.Add()([norm(a), 2 * norm(x)]))


def nested():
    """A functional block of two inputs that is called twice, and a norm that stays."""
    x, y = keras.Input((5, 4)), keras.Input((5, 4))
    block = keras.Model([x, y], Norm(axis=(1, 2))(x) - y, name="block")
    inputs = keras.Input((5, 4))
    return keras.Model(inputs, block([Other()(block([inputs, 2 * inputs])), inputs]))


def residual():
    """Summed within the calls of a norm, in a block that is a model too."""
    x = keras.Input((4,))
    block = keras.Model(x, Norm(activation="relu", name="sum")(x, residual=1 - x))
    inputs = keras.Input((4,))
    return keras.Model(inputs, Norm(name="last")(block(inputs), residual=inputs))


# A graph is put together anew, by Keras; what is in it has tests on every backend.
ON_TORCH = slow("models that JAX runs op by op", but_on="torch")
MODELS = [
    pytest.param(two_inputs, id="two inputs"),
    pytest.param(sequential, id="sequential", marks=ON_TORCH),
    pytest.param(nested, id="nested", marks=ON_TORCH),
]


def structure(model):
    return graph_in(model).input


def data(model, samples=6):
    return keras.tree.map_structure(
        lambda one: images(samples, *one.shape[1:]), structure(model)
    )


def with_domain(x, domains):
    return {**x, "domain": domains} if isinstance(x, dict) else [x, domains]


def domain_norms(model):
    return [
        one
        for one in layers_in(model)
        if isinstance(one, keras_bn.DomainBatchNormalization)
    ]


@pytest.mark.parametrize("make", MODELS)
def test_there_and_back(make):
    """Every domain is the model; the other domain stays when one is taken out."""
    model = randomize(make())
    before, x = weights_of(model), data(model)
    wanted = numpy(model(x))
    domains = np.arange(6, dtype="int32") % 2
    ours = keras_bn.convert(model, to="domain", domains=2)
    received = numpy(ours(with_domain(x, domains)))
    np.testing.assert_allclose(received, wanted, rtol=1e-5, atol=1e-5)
    assert weights_of(keras_bn.convert(ours, domain=1)) == before == weights_of(model)
    for layer in domain_norms(ours):
        layer.moving_mean.assign(
            layer.moving_mean
            + np.reshape([0, 1], (2, *[1] * (len(layer.moving_mean.shape) - 1)))
        )
    plain = keras_bn.convert(ours, domain=0)
    every = [{id(v) for v in one.variables} for one in (model, ours, plain)]
    assert len(set.union(*every)) == sum(map(len, every)), "a weight in two models"
    shapes = [
        keras.tree.map_structure(lambda one: str(one.shape), structure(one))
        for one in (model, plain)
    ]
    assert shapes[0] == shapes[1]
    np.testing.assert_allclose(numpy(plain(x)), wanted, rtol=1e-5, atol=1e-5)
    received = numpy(ours(with_domain(x, domains)))
    other = numpy(keras_bn.convert(ours, domain=1)(x))
    np.testing.assert_allclose(
        received[domains == 1], other[domains == 1], rtol=1e-5, atol=1e-5
    )
    assert np.abs(other - wanted).max() > 0.1


@ON_TORCH
def test_residuals_become_sums_of_their_own():
    model = randomize(residual())
    x, domains = images(6, 4), np.arange(6, dtype="int32") % 2
    ours = keras_bn.convert(model, to="domain", domains=2)
    assert len(domain_norms(ours)) == 2
    for several in (ours([x, domains]), keras_bn.convert(ours, domain=1)(x)):
        np.testing.assert_allclose(
            numpy(several), numpy(model(x)), rtol=1e-5, atol=1e-5
        )


class Doubled(Norm):
    """Has a residual that no sum of its own would be."""

    def call(self, inputs, residual=None, training=None):
        return 2 * super().call(inputs, residual=residual, training=training)


@ON_TORCH
def test_residuals_of_a_subclass_are_its_own():
    inputs = keras.Input((4,))
    model = randomize(keras.Model(inputs, Doubled()(Norm()(inputs), residual=inputs)))
    x = images(6, 4)
    ours = keras_bn.convert(model, to="domain", domains=2)
    y = ours([x, np.zeros(6, "int32")])
    np.testing.assert_allclose(numpy(y), numpy(model(x)), rtol=1e-5, atol=1e-5)


@ON_TORCH
def test_flags_settings_and_the_loss_are_kept(tmp_path):
    model = sequential()
    model.layers[3].trainable = False
    model.layers[1].beta.trainable = False
    model.compile("sgd", "mae")
    model.optimizer.build(model.trainable_variables)
    model.optimizer.iterations.assign(7)
    ours = keras_bn.convert(
        model, to="domain", domains=3, share_affine=True, momentum=0.5
    )
    norm = ours.layers[3]
    assert isinstance(norm, keras_bn.DomainBatchNormalization)
    assert (norm.domains, norm.momentum, norm.share_affine) == (3, 0.5, True)
    assert not norm.beta.trainable
    assert not ours.get_layer("block").trainable
    assert not ours.get_layer("block").get_layer("inner").trainable
    assert (ours.loss, int(ours.optimizer.iterations)) == ("mae", 0)
    assert ours.input[1].name == "domain"
    ours.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    # Which has an input of the domain in each graph: they go with the domains.
    again.optimizer.iterations.assign(7)
    plain = keras_bn.convert(again, to="keras", domain=2)
    assert (plain.loss, int(plain.optimizer.iterations)) == ("mae", 0)
    assert plain.input_shape == (None, 4)
    assert plain.get_layer("block").input_shape == (None, 3)
    assert type(plain.layers[2]) is L.BatchNormalization


@ON_TORCH
def test_flags_in_what_is_frozen_are_kept():
    """The block is frozen, but not all that is in it, of which not every weight."""
    model = sequential()
    block = model.get_layer("block")
    block.trainable = False
    block.get_layer("inner").trainable = True
    block.get_layer("inner").beta.trainable = False

    def flags(model):
        return [
            (one.name, one.trainable) for one in (*layers_in(model), *model.variables)
        ]

    ours = keras_bn.convert(model, to="domain", domains=2)
    back = keras_bn.convert(ours, domain=1)
    assert flags(back) == flags(keras_bn.convert(model, momentum=0.9))
    theirs = [one for one in flags(ours) if one[0] not in ("net", "domain")]
    assert set(theirs) >= {one for one in flags(model) if one[0] != "net"}


class Mine(keras.Model):
    """Made of inputs and outputs, as `keras.Model` is."""


class Chain(keras.Sequential):
    """Made of layers, whatever the arguments are called."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)


def mine():
    x = keras.Input((4,))
    return Mine(x, Norm()(x))


@ON_TORCH
@pytest.mark.parametrize("make", [mine, sequential])
def test_a_class_is_kept_where_it_takes_inputs_and_outputs(make):
    model = make()
    ours = keras_bn.convert(model, to="domain", domains=2)
    assert isinstance(ours, Mine) == isinstance(model, Mine)
    assert isinstance(keras_bn.convert(ours, domain=0), Mine) == isinstance(model, Mine)


@ON_TORCH
@pytest.mark.parametrize(
    "make",
    [lambda: Backbone(3), lambda: Chain([keras.Input((4,)), Norm()])],
    ids=["functional", "sequential"],
)
def test_a_class_that_takes_others_is_lost_with_a_warning(make):
    model = randomize(make())
    message = f"is of class {type(model).__name__}, whose constructor does not take"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ours = keras_bn.convert(model, to="domain", domains=2)
    assert message in " ".join(str(one.message) for one in caught)
    assert type(ours) is type(any_graph())
    x = images(3, 4)
    np.testing.assert_allclose(
        numpy(ours([x, np.zeros(3, "int32")])), numpy(model(x)), rtol=1e-5, atol=1e-5
    )


@ON_TORCH
def test_a_graph_without_norms_gets_no_domain():
    ours = domains()
    assert ours.layers[-1].input_shape == (None, 3)
    assert ours.get_layer("block").input_shape == [(None, 3), (None,)]


@ON_TORCH
def test_to_domains_where_there_is_nothing_to_convert():
    inputs = keras.Input((4,)), keras.Input((), dtype="int32")
    model = keras.Model(inputs, keras_bn.DomainBatchNormalization(2)(*inputs))
    with pytest.raises(UserWarning, match="Nothing to convert"):
        keras_bn.convert(model, to="domain", domains=3)  # warnings are errors here


@ON_TORCH
def test_an_input_that_says_more_than_the_domain_stays():
    x = keras.Input((4,), name="x")
    domain = keras.Input((), dtype="int32", name="which")
    y = keras_bn.DomainBatchNormalization(2)(x, domain)
    y = L.Concatenate()([y, L.Reshape((1,))(keras.ops.cast(domain, "float32"))])
    plain = keras_bn.convert(keras.Model([x, domain], y), domain=0)
    assert [one.name for one in plain.inputs] == ["x", "which"]


@ON_TORCH
def test_one_input_of_a_list_is_left_alone_and_several_are_a_list():
    x, y = keras.Input((4,), name="x"), keras.Input((4,), name="y")
    which = keras.Input((), dtype="int32", name="which")
    outputs = keras_bn.DomainBatchNormalization(2)(x, which)
    alone = keras_bn.convert(keras.Model([which, x], outputs), domain=0)
    assert alone.input.name == "x"
    model = keras.Model([y, which, x], L.Add()([y, outputs]))
    several = keras_bn.convert(model, domain=0)
    assert [one.name for one in several.input] == ["y", "x"]


def conditional():
    inputs = keras.Input((4,)), keras.Input((), dtype="int32")
    return keras.Model(
        inputs,
        keras_bn.ConditionalBatchNormalization(2)(L.Dense(3)(inputs[0]), inputs[1]),
    )


class Own(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm = Norm()

    def call(self, x):
        return self.norm(x)


def subclassed():
    model = Own()
    model(images(2, 4))
    return model


def wrapped():
    return keras.Sequential([keras.Input((5, 4)), L.TimeDistributed(Norm())])


def named_domain():
    x = keras.Input((4,), name="domain")
    return keras.Model(x, Norm()(x))


def weighted():
    x = keras.Input((4,))
    return keras.Model(x, Norm(name="counted")(x, weights=x[:, 0]))


def ghosts():
    return keras.Sequential(
        [keras.Input((4,)), Norm(virtual_batch_size=2, name="ghost")]
    )


def domains():
    return keras_bn.convert(sequential(), to="domain", domains=2)


WRONG = {
    "no number": (sequential, {"to": "domain"}, "`domains` must be given"),
    "no domains": (sequential, {"to": "domain", "domains": 0}, "`domains` must be an"),
    "none to take out": (sequential, {"domain": 0}, "`domain` must be None unless"),
    "both": (domains, {"to": "domain", "domain": 0}, "`domain` must be None unless"),
    "out of range": (domains, {"domain": 2}, r"`domain` must be in the range \[0, 1\]"),
    "to Keras": (domains, {"to": "keras"}, "'batch_.*statistics for each domain"),
    "to groups": (domains, {"to": "group"}, "'batch_.*statistics for each domain"),
    "a condition": (conditional, {"to": "keras"}, "gamma and beta are other ones"),
    "subclass": (
        subclassed,
        {"to": "domain", "domains": 2},
        "`model` must be a Functional or Sequential",
    ),
    "wrapper": (
        wrapped,
        {"to": "domain", "domains": 2},
        "'time_dist.*' cannot be converted: it is called inside a class",
    ),
    "weights": (
        weighted,
        {"to": "domain", "domains": 2},
        "'counted' cannot be converted: it is called with `weights`",
    ),
    "ghost batches": (
        ghosts,
        {"to": "domain", "domains": 2},
        "'ghost' cannot be converted.*`virtual_batch_size`",
    ),
    "name": (
        named_domain,
        {"to": "domain", "domains": 2},
        "must not have an input named 'domain'",
    ),
}


@ON_TORCH
@pytest.mark.parametrize(("make", "arguments", "match"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_done_is_said(make, arguments, match):
    model = make()
    before = weights_of(model)
    with pytest.raises(ValueError, match=match):
        keras_bn.convert(model, **arguments)
    assert weights_of(model) == before


@ON_TORCH
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (domains, "take one out by `convert(model, domain=...)`"),
        (conditional, "its gamma and beta are other ones for each sample"),
    ],
    ids=["domains", "condition"],
)
def test_fold_leaves_them_and_says_why(make, reason):
    folded, report = keras_bn.fold(make(), explain=True)
    assert all(reason in row.reason for row in report.rows)
    assert len(report.left) == len(report.rows) > 0
    assert folded.count_params() > 0


@ON_TORCH
def test_one_domain_folds():
    ours = randomize(domains())
    x, domain = images(5, 4), np.ones(5, "int32")
    plain = keras_bn.convert(ours, domain=1)
    folded = keras_bn.fold(plain)
    assert not any(isinstance(one, Norm) for one in layers_in(folded))
    np.testing.assert_allclose(
        numpy(folded(x)), numpy(ours([x, domain])), rtol=1e-4, atol=1e-5
    )


@ON_TORCH
def test_recalibrate_leaves_domains_and_says_why():
    model = domains()
    data = [images(6, 4), np.arange(6, dtype="int32") % 2]
    with pytest.raises(ValueError, match=r"cannot be recalibrated.*each domain"):
        keras_bn.recalibrate(model, (data,), verbose=0)
    one = keras_bn.convert(model, domain=1)
    keras_bn.recalibrate(one, data[0], verbose=0)


def test_standing_statistics_of_a_conditional_norm():
    """Recalibrated by samples of all classes; the layer after sees its output."""
    inputs = keras.Input((4,)), keras.Input((), dtype="int32")
    norm = keras_bn.ConditionalBatchNormalization(2, activation="relu")
    last = Norm()
    model = randomize(keras.Model(inputs, last(norm(*inputs))))
    x, labels = images(8, 4), np.arange(8, dtype="int32") % 2
    report = keras_bn.recalibrate(model, ([x, labels],), verbose=0)
    assert len(report.rows) == 2
    np.testing.assert_allclose(numpy(norm.moving_mean), x.mean(0), atol=1e-6)
    np.testing.assert_allclose(numpy(norm.moving_variance), x.var(0), atol=1e-6)
    y = numpy(norm(x, labels))  # one batch: inference is what training was
    np.testing.assert_allclose(numpy(last.moving_mean), y.mean(0), atol=1e-5)
    assert {row.distance is None for row in keras_bn.inspect(model).layers} == {True}
    seen = keras_bn.inspect(model, ([x, labels],))
    assert max(row.distance for row in seen.layers) < 1e-3


@ON_TORCH
@pytest.mark.parametrize(
    ("make", "reason"),
    [(domains, "take one out by"), (conditional, "other ones for each sample")],
    ids=["domains", "condition"],
)
def test_other_libraries_have_no_such_layers(make, reason):
    with pytest.raises(ValueError, match=f"(?s)that other libraries have.*{reason}"):
        keras_bn.to_torch(make())
    with pytest.raises(ValueError, match=f"(?s)that other libraries have.*{reason}"):
        keras_bn.from_torch(make(), {"n.running_mean": np.zeros(3)}, epsilon=1e-3)


@ON_TORCH
def test_inspect_shows_them():
    rows = keras_bn.inspect(domains()).layers
    assert [(row.kind, row.channels) for row in rows] == [
        ("DomainBatchNormalization", 6)
    ] * 2
