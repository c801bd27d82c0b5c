"""What `fold` leaves, and why: most of it is decided without a run."""

import re
import warnings

import keras
import numpy as np
import pytest
from keras import ops

import keras_bn
from cases_tools import images, layers_in, numpy, randomize, weights_of
from slow import slow

L, _Norm = keras.layers, keras_bn.BatchNormalization
# Next to nothing is run.
pytestmark = [
    pytest.mark.usefixtures("zero_kernels"),
    slow("graphs, which know no backend", but_on="torch"),
]


def _diamond():
    inputs = keras.Input((4,))
    x = L.Dense(4)(inputs)
    return keras.Model(inputs, L.Add()([keras_bn.BatchNormalization()(x), x]))


def _output():
    inputs = keras.Input((4,))
    x = L.Dense(4)(inputs)
    return keras.Model(inputs, [keras_bn.BatchNormalization()(x), x])


def _twice():
    inputs, norm = keras.Input((4,)), keras_bn.BatchNormalization()
    return keras.Model(inputs, norm(L.Dense(4)(norm(inputs))))


def _shared_dense():
    inputs, dense = keras.Input((4,)), L.Dense(4)
    return keras.Model(inputs, keras_bn.BatchNormalization()(dense(dense(inputs))))


def _training():
    inputs = keras.Input((4,))
    x = keras_bn.BatchNormalization()(L.Dense(4)(inputs), training=True)
    return keras.Model(inputs, x)


def _training_model():
    inner = keras.Sequential(
        [keras.Input((4,)), L.Dense(4), keras_bn.BatchNormalization()]
    )
    inputs = keras.Input((4,))
    return keras.Model(inputs, inner(inputs, training=True))


class OwnPart(keras_bn.BatchNormalization):
    def _parameter(self, *args, **kwargs):
        return super()._parameter(*args, **kwargs) + 1


def _subclass_of_parts():
    return keras.Sequential([keras.Input((4,)), L.Dense(4), OwnPart()])


class Own(keras_bn.BatchNormalization):
    def call(self, inputs, training=None, mask=None):
        return super().call(inputs, training=training, mask=mask) + 1


def _subclass():
    return keras.Sequential([keras.Input((4,)), L.Dense(4), Own()])


def _hidden():
    return keras.Sequential(
        [keras.Input((4, 3)), L.TimeDistributed(keras_bn.BatchNormalization())]
    )


def _not_finite():
    norm = keras_bn.BatchNormalization(epsilon=0.5)
    model = keras.Sequential([keras.Input((4,)), L.Dense(4), norm])
    model.layers[1].moving_mean.assign([np.nan, 1, 1, np.inf])
    model.layers[1].moving_variance.assign([1, -0.5, -1, 1])
    return model


def _of(call, *shape, **fixed):
    """Makes a functional model of one input and this call."""

    def build():
        inputs = keras.Input(*shape, **fixed)
        return keras.Model(inputs, call(inputs))

    return build


def _norm(x, axis=-1):
    return keras_bn.BatchNormalization(axis)(x)


def _shift(x):
    return keras_bn.BatchNormalization(beta_initializer="ones")(x)


def _dense(x, units=3):
    return L.Dense(units)(x)


SOME, LINE, ANY = (4,), (6, 4), (None, 4)
# What is never run: the operation that is in the way, and why it is.
IN_THE_WAY = [
    (
        _of(lambda x: _dense(L.AveragePooling1D(2)(_norm(x, 1))), LINE),
        "moves positions",
    ),
    (
        _of(lambda x: _norm(ops.add(_dense(x), np.ones((2, 1, 3)))), SOME),
        "changes the shape",
    ),
    (
        _of(lambda x: _norm(_dense(x) + np.ones((2, 3))), batch_shape=(2, 4)),
        "differs from sample to sample",
    ),
    (
        _of(lambda x: _norm(ops.transpose(_dense(x))), batch_shape=(2, 4)),
        "moves the batch",
    ),
    (_of(lambda x: _norm(L.Reshape((-1, 3))(_dense(x, 6))), ANY), "axes of unknown"),
    (_of(lambda x: _norm(L.Reshape((12,))(_dense(x, 6))), ANY), "axes of unknown"),
    (_of(lambda x: _norm(ops.reshape(_dense(x, 6), (-1, 3))), LINE), "axes of unknown"),
    (
        _of(lambda x: _dense(ops.mean(_norm(x, 1), axis=1)), LINE),
        "joins positions that",
    ),
    (  # of two, the fewest that can be scaled apart
        _of(lambda x: _dense(ops.mean(_norm(x, 1), axis=1)), (2, 4)),
        "joins positions that",
    ),
    (
        _of(
            lambda x: _norm(ops.pad(_dense(x), ((1, 0), (0, 0)), "reflect")),
            batch_shape=(2, 4),
        ),
        "pads the batch",
    ),
    (
        _of(lambda x: _dense(ops.pad(_norm(x), ((0, 0), (1, 1)), "reflect")), SOME),
        "pads an axis that it scales",
    ),
    (
        _of(lambda x: _dense(ops.pad(_norm(x), ((0, 0), (1, 1)), "reflect")), (2,)),
        "pads an axis that it scales",
    ),
    (
        _of(
            lambda x: keras_bn.BatchNormalization(dtype="float16")(
                ops.cast(_dense(x), "float16")
            ),
            SOME,
        ),
        "changes the dtype",
    ),
    (
        _of(lambda x: _norm(_dense(x), -2), batch_shape=(2, 4)),
        "normalizes each sample of the batch by itself",
    ),
    (
        _of(lambda x: _norm(L.Concatenate(0)([_dense(x), _dense(x)])), SOME),
        "joins batches",
    ),
    (
        _of(lambda x: _dense(L.Concatenate(1)([_norm(x), x])), ANY),
        "joins axes of unknown size",
    ),
    (
        _of(lambda x: _norm(L.TimeDistributed(L.Dense(3))(x), 1), (2, 4)),
        "does the same to each step, which it scales apart",
    ),
    (
        _of(lambda x: _dense(L.TimeDistributed(L.ReLU())(_norm(x))), LINE),
        "(ReLU) is in the way",
    ),
    (
        _of(lambda x: L.Conv1D(3, 2, padding="causal")(_shift(x)), LINE),
        "pads with zeros (padding='causal')",
    ),
    (
        _of(
            lambda x: L.DepthwiseConv2D(2, strides=2, dilation_rate=2, padding="same")(
                _shift(x)
            ),
            (6, 6, 4),
        ),
        "pads with zeros (padding='same')",
    ),
    (_of(lambda x: L.Embedding(9, 3)(_norm(x)), SOME), "takes indices"),
    pytest.param(
        _of(lambda x: _norm(L.LayerNormalization(rms_scaling=True)(x)), SOME),
        "has no offset (rms_scaling=True)",
        marks=pytest.mark.filterwarnings("ignore:You passed `rms_scaling"),
    ),
]


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        *IN_THE_WAY,
        (_diamond, "what 'dense' gives is used by 'batch_normalization' and 'add'"),
        (_output, "the model's output"),
        (_twice, "called 2 times"),
        (_shared_dense, "'dense' is called 2 times"),
        (_training, "called with training=True"),
        (_training_model, "called with training=True"),
        (_subclass, "class Own may compute something else"),
        (_subclass_of_parts, "class OwnPart may compute something else"),
        (_hidden, "nothing comes before it in its model"),
        (_not_finite, "not finite"),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_what_stays_says_why(build, reason):
    keras.utils.clear_session(free_memory=False)
    model = build()
    folded, report = keras_bn.fold(model, explain=True)
    assert [row.into for row in report.rows] == [None]
    assert reason in report.rows[0].reason
    assert reason.split("'")[0] in " ".join(str(report).split())
    assert report.to_dict()["left"] == 1
    assert sum(hasattr(one, "moving_mean") for one in layers_in(folded)) == 1


def test_nothing_folded_is_said():
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        keras_bn.fold(_output())
    (word,) = (one for one in said if one.category is UserWarning)
    assert "None of the 1 " in str(word.message)
    assert "the model's output" in str(word.message)


def test_overflow_stays():
    model = keras.Sequential(
        [
            keras.Input((4,), dtype="float16"),
            L.Dense(4, dtype="float16"),
            keras_bn.BatchNormalization(dtype="float16"),
        ]
    )
    model.layers[0].kernel.assign(np.full((4, 4), 6e4))
    model.layers[1].gamma.assign(np.full(4, 9.0))
    _, report = keras_bn.fold(model, explain=True)
    assert "do not fit float16" in report.left[0].reason


def test_none_of_several_layers_changes_where_one_would_overflow():
    inputs, half = keras.Input((4,), dtype="float16"), {"dtype": "float16"}
    every = [L.Dense(4, **half)(inputs) for _ in range(2)]
    y = keras_bn.BatchNormalization(**half)(L.Concatenate(**half)(every))
    model = randomize(keras.Model(inputs, y))
    kernels = [one.kernel for one in model.layers if hasattr(one, "kernel")]
    kernels[1].assign(np.full((4, 4), 6e4))
    model.layers[-1].gamma.assign(np.full(8, 9.0))
    folded, report = keras_bn.fold(model, explain=True)
    assert "do not fit float16" in report.left[0].reason
    assert weights_of(folded) == weights_of(model)


@pytest.mark.parametrize(
    ("layers", "into"),
    [
        (lambda: [L.Dense(3, name="one"), _Norm(), L.Dense(3, name="two")], ["one"]),
        (lambda: [L.ReLU(), _Norm(), _Norm(), L.Dense(3, name="two")], ["two"] * 2),
    ],
    ids=["before rather than after", "no norm where there is a linear layer"],
)
def test_into_which_layer_a_norm_goes(layers, into):
    _, report = keras_bn.fold(
        keras.Sequential([keras.Input((4,)), *layers()]), explain=True
    )
    assert [row.into for row in report.rows] == into


def test_an_activation_goes_where_only_other_norms_stood_between():
    norms = [_Norm(), _Norm(activation="relu")]
    model = keras.Sequential([keras.Input((4,)), L.Dense(3), *norms])
    folded = keras_bn.fold(randomize(model))
    (dense,) = folded.layers
    assert dense.activation is keras.activations.relu
    x = images(3, 4)
    np.testing.assert_allclose(numpy(folded(x)), numpy(model(x)), atol=1e-5)


def test_a_norm_that_took_another_in_goes_with_it():
    model = keras.Sequential(
        [
            *(keras.Input((6, 4)), L.ReLU(), _Norm(name="one"), _Norm(name="other")),
            *(L.MaxPooling1D(2), L.Dense(3, name="dense")),
        ]
    )
    randomize(model)
    # Only together have they a scale that is not negative.
    for name in ("one", "other"):
        model.get_layer(name).gamma.assign([-1.0, 2.0, -0.5, -3.0])
    folded, report = keras_bn.fold(model, explain=True)
    assert [row.into for row in report.rows] == ["dense", "one"]
    x = images(3, 6, 4)
    np.testing.assert_allclose(numpy(folded(x)), numpy(model(x)), atol=1e-5)


PADS = {
    "layer": (lambda x: L.ZeroPadding2D(1)(x), ["conv"]),
    "operation": (lambda x: ops.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), ["conv"]),
    "ones": (
        lambda x: ops.pad(
            x, ((0, 0), (1, 1), (1, 1), (0, 0)), "constant", constant_values=1.0
        ),
        [None],
    ),
}


@pytest.mark.parametrize(("pad", "into"), PADS.values(), ids=PADS)
def test_offset_free_norm_passes_zero_padding(pad, into):
    norm = keras_bn.BatchNormalization(center=False)
    inputs = keras.Input((4, 4, 3))
    x = pad(norm(inputs))
    model = keras.Model(inputs, L.Conv2D(2, 3, name="conv")(x))
    randomize(model)
    norm.moving_mean.assign(np.zeros(3))
    folded, report = keras_bn.fold(model, explain=True)
    assert [row.into for row in report.rows] == into
    x = images(2, 4, 4, 3)
    np.testing.assert_allclose(numpy(folded(x)), numpy(model(x)), atol=1e-6)


EXTREMES = {
    "pooling": lambda x, _: L.MaxPooling2D(2)(x),
    "all": lambda x, _: L.GlobalMaxPooling2D()(x),
    "operation": lambda x, _: ops.max_pool(x, 2),
    "axis": lambda x, _: ops.max(x, axis=1),
    "layer": lambda x, inputs: L.Maximum()([x, L.Conv2D(3, 1)(inputs)]),
}


@pytest.mark.parametrize("gamma", [0.0, -1.0])
@pytest.mark.parametrize("extreme", EXTREMES)
def test_negative_gamma_does_not_pass_a_maximum(extreme, gamma):
    inputs = keras.Input((4, 4, 3))
    x = EXTREMES[extreme](L.Conv2D(3, 1)(inputs), inputs)
    norm = keras_bn.BatchNormalization()
    model = keras.Model(inputs, norm(x))
    norm.gamma.assign([1.0, gamma, 1.0])
    _, report = keras_bn.fold(model, explain=True)
    assert len(report.folded) == (gamma == 0)
    for row in report.left:
        assert re.search("takes (maxima|extremes), and a scale is neg", row.reason)
