"""`recalibrate`: the moments of the whole data, or the model as it was."""

import sys
from fractions import Fraction

import keras
import numpy as np
import pytest

import keras_bn
from cases_tools import InTraining, images, numpy, randomize, weights_of
from keras_bn.tools._statistics import probe
from keras_bn.tools._statistics.batching import input_names, length
from keras_bn.tools._statistics.moments import RunningMoments
from keras_bn.tools._statistics.run import Run
from slow import slow

L = keras.layers
Norm = keras_bn.BatchNormalization
# Batches are added up in NumPy; what a layer is observed by is seen on every backend.
ON_TORCH = slow("layers that JAX runs op by op", but_on="torch")


def _model(norm=Norm, **arguments):
    return randomize(
        keras.Sequential(
            [
                keras.Input((4, 4, 3)),
                norm(**arguments),
                L.Dropout(0.5),
                L.Conv2D(2, 3),
                norm(**arguments),
            ]
        )
    )


def _check(layer, inputs, rtol=1e-6, atol=1e-7):
    """The statistics of `layer` are those of `inputs`, taken at once in float64."""
    axes = tuple(range(inputs.ndim - 1))
    np.testing.assert_allclose(
        numpy(layer.moving_mean), inputs.mean(axes), rtol=rtol, atol=atol
    )
    np.testing.assert_allclose(
        numpy(layer.moving_variance), inputs.var(axes), rtol=rtol
    )


@pytest.mark.parametrize(
    ("norm", "batch_size"),
    # Whose layer it is says what is measured, not how batches are added up.
    [
        (Norm, 7),
        *(
            pytest.param(norm, size, marks=ON_TORCH)
            for norm, size in (
                *((Norm, size) for size in (1, 19, 40)),
                (L.BatchNormalization, 7),
            )
        ),
    ],
)
def test_any_split_gives_the_moments_of_all_data(norm, batch_size):
    model = _model(norm)
    x = (2 + 3 * images(19, 4, 4, 3)).astype("float32")
    report = keras_bn.recalibrate(
        model, x, batch_size=batch_size, layer_by_layer=True, verbose=0
    )
    first, _, conv, second = model.layers
    _check(first, x.astype("float64"))
    _check(second, numpy(conv(first(x))), rtol=2e-6, atol=1e-6)
    assert (report.samples, report.batches) == (19, -(-19 // batch_size))
    assert [row.values for row in report.rows] == [19 * 16, 19 * 4]


def test_one_pass_normalizes_by_the_batch():
    model = _model()
    x = images(16, 4, 4, 3)
    keras_bn.recalibrate(model, x, batch_size=16, verbose=0)
    first, _, conv, second = model.layers
    # In one batch, batch and population are the same, so one pass has no bias.
    _check(first, x.astype("float64"))
    _check(second, numpy(conv(first(x))), rtol=1e-5, atol=1e-6)


def test_mask():
    inputs = keras.Input((5, 2))
    model = keras.Model(inputs, Norm()(L.Masking()(inputs)))
    x = images(9, 5, 2)
    x[2:, 3:] = 0
    keras_bn.recalibrate(model, x, batch_size=4, verbose=0)
    kept = x[np.any(x != 0, axis=-1)].astype("float64")
    _check(model.layers[-1], kept)


@pytest.mark.parametrize(
    "dtype",
    [
        "mixed_bfloat16",
        *(pytest.param(one, marks=ON_TORCH) for one in ("bfloat16", "float16")),
    ],
)
def test_low_precision_inputs_keep_exact_statistics(dtype):
    model = keras.Sequential([keras.Input((3,), dtype="float32"), Norm(dtype=dtype)])
    x = (10 + images(64, 3)).astype("float32")
    rounded = numpy(keras.ops.cast(x, model.layers[0].compute_dtype))
    keras_bn.recalibrate(model, x, batch_size=10, verbose=0)
    _check(model.layers[0], rounded)


def test_synchronized_layers():
    model = keras.Sequential([keras.Input((3,)), Norm(synchronized=True)])
    x = (5 + images(30, 3)).astype("float32")
    keras_bn.recalibrate(model, x, batch_size=7, verbose=0)
    _check(model.layers[0], x.astype("float64"))


class OneProcess:
    """Stands for the processes that share out the data: there is this one."""

    def gather(self, row):
        return row[None]


@ON_TORCH
@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("groups", [False, None, [[0]]])
def test_a_layer_is_observed_with_others_as_it_trains(monkeypatch, groups, alone):
    """But by itself where the processes go through parts of the data."""
    given, train = [], probe.batch_norm_train

    def note(*arguments, synchronized, replica_groups, **more):
        given.append((synchronized, replica_groups))
        return train(*arguments, **more)

    monkeypatch.setattr(probe, "batch_norm_train", note)
    settings = {} if groups is False else {"replica_groups": groups}
    norm, x = Norm(synchronized=groups is not False, **settings), images(4, 3)
    model = keras.Sequential([keras.Input((3,)), norm])
    run = Run(model, x, 4, None, 0, OneProcess() if alone else None)
    layers = {"norm": norm}
    assert run.order(layers) == ["norm"]
    found = run.through(layers, {"norm": RunningMoments()}, by_batch=True)
    np.testing.assert_allclose(found["norm"].mean, x.mean(0), rtol=1e-6)
    settings = {"alone": True} if alone else {}
    with probe.observed(layers, None, by_batch=True, **settings):
        norm(x)
    others = groups is not False and not alone
    assert given == [(others, norm.replica_groups if others else None)] * 3


@ON_TORCH
def test_frozen_statistics_stay_unless_asked_for():
    layers = [Norm(freeze_statistics=True), Norm()]
    model = keras.Sequential([keras.Input((3,)), *layers])
    x = (5 + images(30, 3)).astype("float32")
    keras_bn.recalibrate(model, x, verbose=0)
    np.testing.assert_array_equal(numpy(layers[0].moving_mean), 0)
    keras_bn.recalibrate(model, x, include_frozen=True, verbose=0)
    _check(layers[0], x.astype("float64"))


@ON_TORCH
def test_shared_layers_and_time_distributed():
    inputs, norm = keras.Input((3, 2)), Norm()
    x = L.TimeDistributed(norm)(inputs)
    model = keras.Model(inputs, x)
    data = images(8, 3, 2)
    keras_bn.recalibrate(model, data, batch_size=3, verbose=0)
    _check(norm, data.reshape(-1, 2).astype("float64"))


@ON_TORCH
def test_a_layer_that_is_called_again_infers_layer_by_layer():
    inputs, norm = keras.Input((2,)), Norm()
    model = randomize(keras.Model(inputs, norm(norm(inputs))))
    x = images(8, 2)
    seen = np.concatenate([x, numpy(norm(x))])
    keras_bn.recalibrate(model, x, layer_by_layer=True, verbose=0)
    _check(norm, seen)


@pytest.mark.parametrize("frozen", [False, pytest.param(True, marks=ON_TORCH)])
def test_a_call_in_training_mode_gives_what_it_would(frozen):
    """By the batch, though the next layer's pass is in inference mode."""
    first, last = InTraining(freeze_statistics=frozen), Norm()
    model = randomize(keras.Sequential([keras.Input((3,)), first, last]))
    x = (1 + 3 * images(16, 3)).astype("float32")
    with keras_bn.no_update():
        parts = [numpy(first(part)) for part in np.split(x, 4)]
    keras_bn.recalibrate(model, x, batch_size=4, layer_by_layer=True, verbose=0)
    _check(last, np.concatenate(parts), atol=1e-6)
    assert keras_bn.inspect(model, x, batch_size=4).layers[-1].distance < 1e-5


@ON_TORCH
def test_fused_activations_are_applied_on_the_way():
    layers = [Norm(activation="relu"), L.Dense(2), Norm()]
    model = randomize(keras.Sequential([keras.Input((3,)), *layers]))
    x = images(32, 3)
    keras_bn.recalibrate(model, x, layer_by_layer=True, verbose=0)
    _check(layers[2], numpy(layers[1](layers[0](x))), atol=1e-6)


@ON_TORCH
def test_residuals_are_added_on_the_way():
    inputs, first, last = keras.Input((3,)), Norm(activation="relu"), Norm()
    model = randomize(keras.Model(inputs, last(first(inputs, residual=inputs))))
    x = images(32, 3)
    keras_bn.recalibrate(model, x, layer_by_layer=True, verbose=0)
    _check(last, numpy(first(x, residual=x)), atol=1e-6)


class Own(Norm):
    def call(self, inputs, **more):
        return super().call(inputs, **more) + 1


@ON_TORCH
def test_subclasses_are_left_and_alone_are_an_error():
    x, own, norm = images(8, 3), Own(), Norm()
    report = keras_bn.recalibrate(
        keras.Sequential([keras.Input((3,)), own, norm]), x, verbose=0
    )
    assert [row.layer for row in report.rows] == [norm.name]
    alone = keras.Sequential([keras.Input((3,)), own])
    with pytest.raises(ValueError, match=r"as the base class does.*of class Own: its"):
        keras_bn.recalibrate(alone, x, verbose=0)


class Named(keras.Model):
    """Says nothing of its inputs, which it takes by name."""

    def __init__(self):
        super().__init__()
        self.norm = Norm()

    def call(self, inputs):
        return self.norm(inputs["x"])


@ON_TORCH
def test_a_dictionary_for_a_model_that_does_not_say_its_inputs():
    model, x = Named(), images(24, 3)
    model({"x": x})
    report = keras_bn.recalibrate(model, {"x": x, "id": x}, batch_size=8, verbose=0)
    assert report.batches == 3
    _check(model.norm, x.astype("float64"))


class Half(keras.Model):
    """Has two norms of one name, and calls one of them."""

    def __init__(self):
        super().__init__()
        self.norm, self.other = Norm(name="norm"), Norm(name="norm")
        for norm in (self.norm, self.other):
            norm.build((None, 3))

    def call(self, x):
        return self.norm(x)


@ON_TORCH
@pytest.mark.parametrize("layer_by_layer", [False, True])
def test_a_layer_that_is_not_called_is_named(layer_by_layer):
    model, x = Half(), images(8, 3)
    model(x)
    before = weights_of(model)
    settings = {"layer_by_layer": layer_by_layer, "verbose": 0}
    with pytest.raises(ValueError, match=r"does not call \['norm#2'\] on these data"):
        keras_bn.recalibrate(model, x, **settings)
    assert weights_of(model) == before
    report = keras_bn.inspect(model, x)
    assert [row.layer for row in report.layers] == ["norm#1", "norm#2"]
    assert [row.distance is None for row in report.layers] == [False, True]


@ON_TORCH
def test_what_was_done_is_told():
    model = keras.Sequential([keras.Input((1,)), Norm(epsilon=0.5, name="norm")])
    x = 3 + 2 * images(33, 1)
    report = keras_bn.recalibrate(model, x, verbose=0)
    # In deviations of what was there, mean 0 and variance 1.
    stddev = (x.var() + 0.5) ** 0.5
    moved = ((x.mean() ** 2 + (stddev - 1.5**0.5) ** 2) / 1.5) ** 0.5
    told = report.to_dict()
    (row,) = told.pop("layers")
    assert told == {"method": "population", "batches": 2, "samples": 33}
    assert row.pop("moved") == pytest.approx(moved, rel=1e-5)
    assert row == {"layer": "norm", "values": 33}
    assert f"{moved:.3g}" in str(report)


@ON_TORCH
def test_keras_s_layer_may_have_no_epsilon():
    def model(epsilon):
        first, last = (L.BatchNormalization(epsilon=epsilon, name=n) for n in "ab")
        return keras.Sequential([keras.Input((2,)), first, last])

    x = images(32, 2)
    x[:, 1] = 5  # which never varies: it would be 0 / 0
    without = model(0.0)
    keras_bn.recalibrate(without, x, batch_size=32, verbose=0)
    last = without.layers[-1]
    np.testing.assert_allclose(numpy(last.moving_mean), [0, 0], atol=1e-6)
    np.testing.assert_allclose(numpy(last.moving_variance), [1, 0], rtol=1e-4)
    x = images(32, 2)
    keras_bn.recalibrate(without, x, layer_by_layer=True, verbose=0)
    distances = [row.distance for row in keras_bn.inspect(without, x).layers]
    np.testing.assert_allclose(distances, 0, atol=1e-4)
    for epsilon in (-1.0, np.inf):
        broken = model(epsilon)
        with pytest.raises(ValueError, match=f"Layer 'a' must have .*{epsilon}"):
            keras_bn.recalibrate(broken, x, verbose=0)
        assert "call" not in broken.layers[0].__dict__


def test_renorm_statistics_follow():
    model = keras.Sequential([keras.Input((3,)), Norm(renorm=True)])
    keras_bn.recalibrate(model, images(32, 3), verbose=0)
    norm = model.layers[0]
    stddev = np.sqrt(numpy(norm.moving_variance) + norm.epsilon)
    np.testing.assert_allclose(numpy(norm.renorm_stddev), stddev, rtol=1e-6)
    np.testing.assert_array_equal(numpy(norm.renorm_mean), numpy(norm.moving_mean))


@ON_TORCH
def test_prior_counts_as_so_many_samples():
    model = keras.Sequential([keras.Input((4, 4, 1)), Norm(epsilon=1e-6)])
    old, new = images(30, 4, 4, 1), (5 + 2 * images(10, 4, 4, 1, seed=1)).astype("f4")
    keras_bn.recalibrate(model, old, verbose=0)
    keras_bn.recalibrate(model, new, prior=Fraction(30), verbose=0)
    both = np.concatenate([old, new]).astype("float64")
    _check(model.layers[0], both)


@ON_TORCH
def test_one_sample_is_enough_with_a_prior():
    model = keras.Sequential([keras.Input((2,)), Norm()])
    keras_bn.recalibrate(model, np.ones((1, 2), "float32"), prior=3, verbose=0)
    np.testing.assert_allclose(numpy(model.layers[0].moving_mean), 0.25, rtol=1e-6)


@ON_TORCH
def test_ema_goes_by_the_present_step_and_moves_on_every_batch():
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([0], [0.5, 0.9])
    model = keras.Sequential(
        [keras.Input((3,)), Norm(momentum=schedule, accumulation_steps=2)]
    )
    x = images(8, 3)
    keras_bn.recalibrate(model, x, method="ema", batch_size=4, verbose=0)
    expected = 0.25 * x[:4].mean(0) + 0.5 * x[4:].mean(0)
    found = numpy(model.layers[0].moving_mean)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("debias", [False, pytest.param(True, marks=ON_TORCH)])
def test_ema_is_what_training_does(debias):
    x = images(24, 4, 4, 3)
    settings = {"momentum": 0.8, "zero_debias": debias}
    model, twin = (
        keras.Sequential([keras.Input((4, 4, 3)), Norm(**settings)]) for _ in range(2)
    )
    keras_bn.recalibrate(model, x, method="ema", batch_size=8, verbose=0)
    for start in (0, 8, 16):
        twin(x[start : start + 8], training=True)
    for name in ("moving_mean", "moving_variance"):
        np.testing.assert_allclose(
            numpy(getattr(model.layers[0], name)),
            numpy(getattr(twin.layers[0], name)),
            rtol=1e-5,
            atol=1e-6,
        )


class Endless(keras.utils.PyDataset):
    num_batches = None

    def __init__(self, x):
        super().__init__()
        self.x = x

    def __getitem__(self, index):
        return self.x[8 * index : 8 * index + 8]


class Batches(keras.utils.PyDataset):
    def __init__(self, x):
        super().__init__()
        self.x = x

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return self.x[8 * index : 8 * index + 8], np.zeros(8)


FORMS = {
    "array": lambda x: x,
    "tuple": lambda x: (x, np.zeros(24)),
    "dictionary": lambda x: {"x": x},
    "list of batches": lambda x: [x[:8], x[8:16], x[16:]],
    "list of lists": lambda x: [[x[:8]], [x[8:16]], [x[16:]]],
    "list of pairs": lambda x: [[x[:8], 1], [x[8:16], 1], [x[16:], 1]],
    "generator": lambda x: ((x[i : i + 8], 0, 1) for i in (0, 8, 16)),
    "dataset": Batches,
    "list with an empty batch": lambda x: [x[:8], x[:0], x[8:16], x[16:]],
}


@pytest.mark.parametrize(
    "form",
    [
        "array",
        *(pytest.param(form, marks=ON_TORCH) for form in FORMS if form != "array"),
    ],
)
def test_forms_of_data(form):
    inputs = keras.Input((3,), name="x")
    model = keras.Model(
        {"x": inputs} if form == "dictionary" else inputs, Norm()(inputs)
    )
    x = images(24, 3)
    report = keras_bn.recalibrate(model, FORMS[form](x), batch_size=8, verbose=0)
    _check(model.layers[-1], x.astype("float64"))
    assert (report.batches, report.samples) == (3, 24)


@ON_TORCH
@pytest.mark.parametrize("form", ["whole", "batches", "lists with labels"])
def test_steps_and_several_inputs(form):
    inputs = [keras.Input((3,)), keras.Input((2,))]
    model = keras.Model(inputs, [Norm()(one) for one in inputs])
    x = [images(24, 3), images(24, 2)]
    parts = [[one[i : i + 8] for one in x] for i in (0, 8, 16)]
    labelled = [[part, np.zeros(8), np.ones(8)] for part in parts]
    data = {"whole": x, "batches": iter(parts), "lists with labels": labelled}[form]
    keras_bn.recalibrate(model, data, steps=np.int64(2), batch_size=8, verbose=0)
    _check(model.layers[-2], x[0][:16].astype("float64"))
    _check(model.layers[-1], x[1][:16].astype("float64"))
    with pytest.raises(ValueError, match=r"of one number .*inputs of \[23, 24\]"):
        keras_bn.recalibrate(model, [x[0][1:], x[1]], verbose=0)


@ON_TORCH
@pytest.mark.parametrize(
    ("data", "steps", "expected"),
    [
        (images(17, 3), None, 3),
        (images(16, 3), 3, 2),
        ((images(17, 3), np.zeros(17)), 1, 1),
        (Batches(images(24, 3)), 9, 3),
        ([images(24, 3)], None, 1),
        ((one for one in [images(24, 3)]), 1, None),
    ],
)
def test_how_many_batches_a_bar_is_told(data, steps, expected):
    model = keras.Sequential([keras.Input((3,)), Norm()])
    assert length(model, data, 8, steps) == expected


@ON_TORCH
def test_a_sample_may_be_one_number():
    model = keras.Sequential([keras.Input(()), L.Reshape((1,)), Norm()])
    x = images(24)
    keras_bn.recalibrate(model, x, verbose=0)
    _check(model.layers[-1], x[:, None].astype("float64"))


@ON_TORCH
def test_data_without_an_end():
    model = keras.Sequential([keras.Input((3,)), Norm()])
    x = images(24, 3)
    keras_bn.recalibrate(model, Endless(x), steps=2, verbose=0)
    _check(model.layers[0], x[:16].astype("float64"))


@ON_TORCH
@pytest.mark.parametrize(
    "structure", [list, tuple, dict, lambda one: [one[:1], one[1]]]
)
def test_inputs_by_name_come_in_the_order_of_the_model(structure):
    features = keras.Input((3,), name="features")
    count = keras.Input((), name="count")
    pairs = [("features", features), ("count", count)]
    inputs = dict(pairs) if structure is dict else structure([features, count])
    model = keras.Model(inputs, Norm()(features, weights=count))
    x = images(6, 3)
    data = {"features": x, "count": np.array([1, 2, 0, 1, 3, 1], "float32")}
    repeated = np.repeat(x, data["count"].astype(int), axis=0).astype("float64")
    more = {**data, "id": 0}  # which is no input
    keras_bn.recalibrate(model, ((one, 0) for one in [more]), verbose=0)
    _check(model.layers[-1], repeated)
    assert keras_bn.inspect(model, data).layers[0].distance < 1e-5
    before = weights_of(model)
    with pytest.raises(ValueError, match=r"of \['features'\], without \['count'\]"):
        keras_bn.recalibrate(model, {"features": x}, verbose=0)
    assert weights_of(model) == before


@ON_TORCH
def test_frozen_layers_only_on_request():
    model = _model()
    model.layers[0].trainable = False
    before = numpy(model.layers[0].moving_mean)
    x = images(8, 4, 4, 3)
    report = keras_bn.recalibrate(model, x, verbose=0)
    assert [row.layer for row in report.rows] == [model.layers[-1].name]
    np.testing.assert_array_equal(numpy(model.layers[0].moving_mean), before)
    keras_bn.recalibrate(model, x, include_frozen=True, verbose=0)
    _check(model.layers[0], x.astype("float64"))


class Untrained(L.Layer):
    """In training, unless a call says otherwise, and then an error."""

    def call(self, x, training=True):
        assert not training
        return x

    def compute_output_shape(self, shape):
        return shape


@pytest.mark.parametrize("layer_by_layer", [False, pytest.param(True, marks=ON_TORCH)])
def test_nothing_but_statistics_changes(layer_by_layer):
    model = _model()
    model.add(Untrained())
    moving = {
        id(v) for one in (0, -2) for v in model.layers[one].non_trainable_variables
    }
    kept = [v for v in model.variables if id(v) not in moving]
    before = [numpy(v).tobytes() for v in kept]
    calls = [layer.call for layer in model.layers]
    settings = {"layer_by_layer": layer_by_layer, "verbose": 0}
    keras_bn.recalibrate(model, images(8, 4, 4, 3), **settings)
    assert [numpy(v).tobytes() for v in kept] == before
    assert [layer.call for layer in model.layers] == calls


@ON_TORCH
def test_progress_bar(capsys):
    keras_bn.recalibrate(_model(), images(8, 4, 4, 3), batch_size=4)
    out = capsys.readouterr().out
    assert "1/2" in out
    assert "2/2" in out
    assert "s/batch" in out
    keras_bn.recalibrate(_model(), images(8, 4, 4, 3), batch_size=4, verbose=2)
    out = capsys.readouterr().out
    assert ("1/2" in out, "2/2" in out) == (False, True)
    keras_bn.recalibrate(_model(), images(8, 4, 4, 3), verbose=0)
    assert capsys.readouterr().out == ""


@ON_TORCH
def test_the_bar_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    keras_bn.recalibrate(_model(), (images(4, 4, 4, 3) for _ in range(3)))
    out = capsys.readouterr().out
    assert (out.count("\n"), out[-1]) == (1, "\n")


def _failing():
    yield images(4, 4, 4, 3)
    raise RuntimeError("the disk is gone")


def _interrupted():
    yield images(4, 4, 4, 3)
    raise KeyboardInterrupt


NAN = np.full((4, 4, 4, 3), np.nan, "float32")
LARGE = (1e30 * images(4, 4, 4, 3)).astype("float32")  # its variance is infinite


def _texts():
    return ["text"]


EVERYWHERE = [(_failing, {}), (_interrupted, {}), (_texts, {})]
FAILURES = [
    (
        lambda: images(0, 4, 4, 3),
        {},
        ValueError,
        r"`data` must have at least one batch",
    ),
    (lambda: [], {}, ValueError, r"`data` must have at least one batch"),
    (
        lambda: images(4, 4, 4, 3),
        {"steps": 3},
        ValueError,
        r"have 3 batches.*Received: 1",
    ),
    (
        lambda: [np.zeros((0, 4, 4, 3))],
        {},
        ValueError,
        r"at least one batch.*Received: 0",
    ),
    (
        lambda: images(4, 4, 4, 2),
        {},
        ValueError,
        r"shape .*\(None, 4, 4, 3\).*\(4, 4, 4, 2\)",
    ),
    (
        lambda: [images(4, 4, 4, 3), images(4, 3)],
        {},
        ValueError,
        r"Received: .*\(4, 3\)",
    ),
    (lambda: NAN, {}, ValueError, r"has a NaN or an infinity"),
    (lambda: NAN, {"method": "ema"}, ValueError, r"has a NaN or an infinity"),
    (lambda: 3, {}, TypeError, r"`data` must be an array.*int"),
    (_texts, {}, TypeError, r"`data` must hold arrays of numbers"),
    (lambda: np.zeros((4, 4, 4, 3), "M8[s]"), {}, TypeError, r"must hold arrays of nu"),
    (_failing, {}, RuntimeError, r"the disk is gone"),
    (_failing, {"method": "ema"}, RuntimeError, r"the disk is gone"),
    (_interrupted, {}, KeyboardInterrupt, None),
    (_failing, {"layer_by_layer": True}, ValueError, r"more than once.*generator"),
    (lambda: images(4, 4, 4, 3), {"method": "mean"}, ValueError, r"`method` must be"),
    (
        lambda: images(4, 4, 4, 3),
        {"synchronized": "no"},
        TypeError,
        r"`synchronized` must be True or False.*'no'",
    ),
    (lambda: images(4, 4, 4, 3), {"prior": 0}, ValueError, r"`prior` must be"),
    (lambda: images(4, 4, 4, 3), {"prior": np.inf}, ValueError, r"`prior` must be"),
    (lambda: images(4, 4, 4, 3), {"prior": "3"}, ValueError, r"`prior` must be"),
    (lambda: images(4, 4, 4, 3), {"prior": True}, ValueError, r"`prior` must be"),
    (lambda: LARGE, {}, ValueError, r"has a NaN or an infinity"),
    (
        lambda: images(4, 4, 4, 3),
        {"prior": 1, "method": "ema"},
        ValueError,
        r"`prior` needs",
    ),
    (lambda: images(4, 4, 4, 3), {"steps": 0}, ValueError, r"`steps` must be"),
    *(
        (lambda: images(4, 4, 4, 3), {name: value}, error, f"`{name}` must be.*{name}=")
        for name, value, error in (
            ("batch_size", 1.5, ValueError),
            ("steps", True, ValueError),
            ("verbose", "no", ValueError),
            ("verbose", -1, ValueError),
            ("layer_by_layer", "no", TypeError),
            ("include_frozen", "no", TypeError),
            ("synchronized", "no", TypeError),
        )
    ),
    (lambda: images(4, 4, 4, 3) * 1j, {}, TypeError, r"`data` must hold real.*complex"),
]


# On every backend those that come when a batch has been seen; texts can be tensors.
@pytest.mark.parametrize(
    ("data", "arguments", "error", "message"),
    [
        pytest.param(*one, marks=() if one[:2] in EVERYWHERE else ON_TORCH)
        for one in FAILURES
    ],
)
def test_failures_leave_the_model_as_it_was(data, arguments, error, message):
    model = _model()
    before = weights_of(model)
    calls = [layer.call for layer in model.layers]
    with pytest.raises(error, match=message):
        keras_bn.recalibrate(model, data(), **{"verbose": 0, **arguments})
    assert weights_of(model) == before
    assert [layer.call for layer in model.layers] == calls


class Breaks:
    """Data that can be gone through again, but not for so many times."""

    def __init__(self, error, most=3):
        self.times, self.most = 0, most
        self.error = error

    def __iter__(self):
        self.times += 1
        yield images(4, 4, 4, 3)
        if self.times == self.most:
            raise self.error("gone")


@ON_TORCH
@pytest.mark.parametrize("most", [1, 3])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_between_layers_restores_the_first(error, most):
    model = _model()
    before = weights_of(model)
    with pytest.raises(error, match="gone"):
        keras_bn.recalibrate(model, Breaks(error, most), layer_by_layer=True, verbose=0)
    assert weights_of(model) == before


@ON_TORCH
def test_a_failure_restores_statistics_that_are_trainable():
    model = _model()
    model.layers[0].moving_mean.trainable = True
    before = weights_of(model)
    with pytest.raises(RuntimeError, match="gone"):
        keras_bn.recalibrate(
            model, Breaks(RuntimeError), layer_by_layer=True, verbose=0
        )
    assert weights_of(model) == before


@ON_TORCH
def test_one_value_per_channel_is_too_little():
    model = keras.Sequential([keras.Input((2,)), Norm()])
    with pytest.raises(ValueError, match=r"at least 2 values.*Received: 1 for layer"):
        keras_bn.recalibrate(model, np.ones((1, 2), "float32"), verbose=0)


@ON_TORCH
@pytest.mark.parametrize(("prior", "least"), [(None, 2), (3, 1)])
def test_every_channel_needs_values(prior, least):
    """Of a step that is masked in all samples there are none."""
    inputs = keras.Input((5, 2))
    model = keras.Model(inputs, Norm(axis=(1, 2))(L.Masking()(inputs)))
    x = images(9, 5, 2)
    x[:, 3] = 0
    with pytest.raises(ValueError, match=rf"at least {least} values.*Received: 0 for"):
        keras_bn.recalibrate(model, x, prior=prior, verbose=0)


@ON_TORCH
def test_a_model_of_frozen_layers_is_an_error():
    model = _model()
    model.trainable = False
    with pytest.raises(ValueError, match="all frozen"):
        keras_bn.recalibrate(model, images(4, 4, 4, 3), verbose=0)


@pytest.mark.once
def test_merge_is_exact_where_float32_sums_are_not():
    rng = np.random.default_rng(0)
    x = rng.normal(1e6, 1e-2, (999, 2))
    moments = RunningMoments()
    for part in np.split(x, [1, 1, 10, 500]):
        if len(part):
            moments.add(len(part), part.mean(0), part.var(0))
    np.testing.assert_allclose(moments.mean, x.mean(0), rtol=1e-14)
    np.testing.assert_allclose(moments.variance, x.var(0), rtol=1e-6)


@pytest.mark.once
def test_names_of_inputs_are_a_list():
    inputs = {name: keras.Input((2,), name=name) for name in "ab"}
    model = keras.Model(inputs, L.Add()(list(inputs.values())))
    assert input_names(model) == ["a", "b"]
