"""The callbacks: right statistics when they are needed, training undisturbed."""

import csv

import keras
import numpy as np
import pytest

import keras_bn
from cases_tools import images, numpy
from keras_bn import callbacks
from keras_bn.callbacks import Monitor, Recalibrate
from slow import slow

L = keras.layers
X = (3 + 2 * images(64, 4)).astype("float32")
Y = X[:, :1]


def _fit(callbacks=(), epochs=3, **optimizer):
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            L.Dense(5),
            keras_bn.BatchNormalization(momentum=0.9, name="norm"),
            L.Dense(1),
        ]
    )
    model.compile(keras.optimizers.Adam(0.05, **optimizer), "mse")
    history = model.fit(
        X,
        Y,
        validation_data=(X, Y),
        epochs=epochs,
        batch_size=16,
        callbacks=list(callbacks),
        verbose=0,
        shuffle=False,
    )
    return model, history.history


def _distance(model):
    return keras_bn.inspect(model, X, batch_size=64).layers[0].distance


EMA = {"use_ema": True, "ema_momentum": 0.9}
SETTINGS = {
    "plain": ({}, lambda: [], ("validation", "end")),
    "ema": (EMA, lambda: [], ("validation", "end")),
    "swap": (EMA, lambda: [keras.callbacks.SwapEMAWeights()], ("validation", "end")),
    "swap on epoch": (
        EMA,
        lambda: [keras.callbacks.SwapEMAWeights(swap_on_epoch=True)],
        ("validation", "epoch", "end"),
    ),
}


class AtValidation(keras.callbacks.Callback):
    """Notes the distance while a validation runs, and at the end of each epoch."""

    def __init__(self):
        super().__init__()
        self.in_validation = []
        self.at_epoch_end = []

    def on_test_begin(self, logs=None):
        self.in_validation.append(_distance(self.model))

    def on_epoch_end(self, epoch, logs=None):
        self.at_epoch_end.append(_distance(self.model))


@pytest.mark.parametrize(
    "setting",
    [
        # Averaged weights, swapped where the callback is asked too; and nothing of it.
        *("plain", "swap on epoch"),
        *(
            pytest.param(name, marks=slow("two more networks to fit", but_on="torch"))
            for name in ("ema", "swap")
        ),
    ],
)
def test_statistics_fit_the_weights_and_training_is_undisturbed(setting):
    optimizer, others, when = SETTINGS[setting]
    without, plain = _fit(others(), **optimizer)
    seen = AtValidation()
    callback = Recalibrate(X, when=when, batch_size=64)
    model, history = _fit([*others(), callback, seen], **optimizer)
    # Without the callback, the statistics lag behind the weights.
    assert _distance(without) > 0.1
    assert _distance(model) < 1e-5
    assert max(seen.in_validation) < 1e-5
    assert (max(seen.at_epoch_end) < 1e-5) == ("epoch" in when)
    assert history["loss"] == plain["loss"]
    for old, new in zip(
        without.trainable_weights, model.trainable_weights, strict=True
    ):
        np.testing.assert_array_equal(numpy(old), numpy(new))


def test_training_statistics_come_back_after_a_validation():
    without, _ = _fit(epochs=2)
    model, _ = _fit([Recalibrate(X, when="validation", batch_size=64)], epochs=2)
    for old, new in zip(without.weights, model.weights, strict=True):
        np.testing.assert_array_equal(numpy(old), numpy(new))


def test_statistics_are_computed_from_those_of_training(capsys):
    """Whatever state the callback is in: `prior` keeps a share of what it finds."""
    model = keras.Sequential([keras.Input((4,)), keras_bn.BatchNormalization()])
    callback = Recalibrate(X, when=callbacks.MOMENTS, prior=64)
    callback.set_model(model)
    training = model.get_weights()
    callback.on_epoch_end(0)
    recalibrated = model.get_weights()
    callback.on_test_begin()  # of an `evaluate` after the epoch
    np.testing.assert_equal(model.get_weights(), recalibrated)
    callback.on_test_end()
    np.testing.assert_equal(model.get_weights(), training)
    callback.on_epoch_end(1)
    callback.on_epoch_begin(2)
    np.testing.assert_equal(model.get_weights(), training)
    callback.on_epoch_end(2)
    callback.on_train_end()
    np.testing.assert_equal(model.get_weights(), recalibrated)
    callback.on_epoch_begin(0)  # of the next `fit`
    np.testing.assert_equal(model.get_weights(), recalibrated)
    assert not capsys.readouterr().out


@slow("two more networks to fit", but_on="torch")
def test_averaged_weights_without_recalibration_are_worse():
    swap = keras.callbacks.SwapEMAWeights
    _, without = _fit([swap()], epochs=1, **EMA)
    _, repaired = _fit([swap(), Recalibrate(X, batch_size=64)], epochs=1, **EMA)
    assert without["val_loss"] != repaired["val_loss"]


def test_defaults():
    assert Recalibrate(X).when == {"validation", "end"}
    assert Recalibrate(X, when="epoch").when == {"epoch"}
    monitor = Monitor(X)
    assert monitor.model is Recalibrate(X).model is None  # as of all callbacks
    model = keras.Sequential([keras.Input((4,)), keras_bn.BatchNormalization()])
    monitor.set_model(model)
    with pytest.raises(UserWarning, match="inference lags behind"):  # from 0.3 on
        monitor.on_epoch_end(0)


@pytest.mark.parametrize("when", ["never", (), ("end", "start"), None])
def test_when_must_be_known(when):
    with pytest.raises(ValueError, match="`when` must be one or several of"):
        Recalibrate(X, when=when)


def test_monitor_is_in_the_logs_and_warns_once(tmp_path, recwarn):
    path = tmp_path / "log.csv"
    monitor = Monitor(X, batch_size=64)
    model, history = _fit([monitor, keras.callbacks.CSVLogger(str(path))])
    assert history["bn_distance"] == history["bn_distance/norm"]
    assert history["bn_distance"][-1] == pytest.approx(_distance(model), rel=1e-5)
    rows = list(csv.DictReader(path.open()))
    assert [float(row["bn_distance"]) for row in rows] == history["bn_distance"]
    lagging = [w for w in recwarn if "inference lags behind" in str(w.message)]
    assert len(lagging) == 1
    assert "'norm'" in str(lagging[0].message)


@pytest.mark.parametrize(
    ("settings", "told"),
    [({}, (None, 128)), ({"steps": 2, "batch_size": 8}, (2, 8))],
    ids=["default", "told"],
)
def test_monitor_measures_as_told_and_warns_from_the_threshold_on(
    monkeypatch, settings, told
):
    norms = [keras_bn.BatchNormalization(name=name) for name in ("far", "near")]
    model = keras.Sequential([keras.Input((4,)), *norms])
    seen, logs = [], {}

    def measure(*arguments):
        seen.append(arguments)
        return {"near": 0.05 * len(seen), "far": 0.1 * len(seen)}, 0.0

    monkeypatch.setattr(callbacks, "measure", measure)
    monitor = Monitor(X, threshold=0.2, **settings)
    monitor.set_model(model)
    monitor.on_epoch_end(0)
    with pytest.raises(UserWarning, match=r"After epoch 2, .*layer 'far' are 0.20"):
        monitor.on_epoch_end(1)
    monitor.on_epoch_end(2, logs)  # it has been said
    names = ("bn_distance", "bn_distance/far", "bn_distance/near")
    assert [round(logs[name], 9) for name in names] == [0.3, 0.3, 0.15]
    assert seen == [(model, X, *told)] * 3


@pytest.mark.parametrize(
    "alike",
    [
        {"trainable": False},
        {"freeze_statistics": True},
        {"inference_statistics": "batch"},
    ],
)
def test_monitor_leaves_out_what_training_and_inference_do_alike(alike):
    model = keras.Sequential(
        [keras.Input((4,)), keras_bn.BatchNormalization(**alike), L.Dense(1)]
    )
    model.compile("sgd", "mse")
    monitor = Monitor(X, threshold=1e-6)
    history = model.fit(X, Y, callbacks=[monitor], verbose=0)  # and does not warn
    assert set(history.history) == {"loss"}


@pytest.mark.parametrize(
    ("callback", "arguments", "error", "message"),
    [
        (Monitor, {"batch_size": 0}, ValueError, "`batch_size` must be an integer ab"),
        (Monitor, {"threshold": 0}, ValueError, "`threshold` must be a number above 0"),
        (Monitor, {"threshold": "a"}, TypeError, "`threshold` must be a number.*'a'"),
        (Recalibrate, {"stepz": 3}, TypeError, "`stepz` is not an .*'steps'.*stepz=3"),
        (Recalibrate, {"model": 3}, TypeError, "`model` is not an argument"),
        (Recalibrate, {"method": "mean"}, ValueError, "`method` must be one of"),
        (Recalibrate, {"batch_size": 0}, ValueError, "`batch_size` must be an int"),
        (Recalibrate, {"synchronized": "no"}, TypeError, "`synchronized` must be True"),
    ],
)
def test_settings_are_checked_at_once(callback, arguments, error, message):
    with pytest.raises(error, match=message):
        callback(X, **arguments)


@pytest.mark.parametrize("callback", [Recalibrate, Monitor])
@pytest.mark.parametrize("data", [None, 3, "data.npy", np.float32(3)])
def test_what_is_no_data_is_said_before_training(callback, data):
    with pytest.raises(TypeError, match=r"`data` must be an array.*Received: data of"):
        callback(data)


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (Recalibrate(X[:, :2]), r"`data` must give batches .*\(None, 4\).*\(32, 2\)"),
        (Monitor(X[:, :2]), r"`data` must give batches .*\(None, 4\).*\(64, 2\)"),
        (Recalibrate(X[:0]), "`data` must have at least one batch"),
        (Recalibrate(X, steps=3), "`data` must have 3 batches.*Received: 2"),
        (Recalibrate(iter([X]), layer_by_layer=True), "`data` must .*more than once"),
    ],
)
def test_what_does_not_fit_the_model_is_said_before_training(callback, message):
    norm = keras_bn.BatchNormalization()
    model = keras.Sequential([keras.Input((4,)), norm])
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match=message):
        model.fit(X, X, callbacks=[callback], verbose=0)
    assert int(model.optimizer.iterations) == 0


@pytest.mark.parametrize(
    "callback",
    [
        Recalibrate(X[:0], synchronized=True),  # a process's part
        Recalibrate(iter([X])),
        Recalibrate(X, steps=2),
    ],
)
def test_what_may_yet_fit_is_no_error_before_training(callback):
    model = keras.Sequential([keras.Input((4,)), keras_bn.BatchNormalization()])
    model.trainable = False
    callback.set_model(model)
    callback.on_train_begin()


def test_a_model_without_batch_norm_is_an_error_before_training():
    callback = Recalibrate(X)
    callback.set_model(keras.Sequential([keras.Input((4,)), L.Dense(1)]))
    with pytest.raises(ValueError, match="must have a batch normalization layer"):
        callback.on_train_begin()


@pytest.mark.parametrize("callback", [Recalibrate(X), Monitor(X), Monitor({"x": X})])
@pytest.mark.parametrize("norm", [keras_bn.BatchNormalization, L.BatchNormalization])
def test_a_model_may_be_built_by_its_first_batch(norm, callback):
    callback.set_model(keras.Sequential([norm()]))
    callback.on_train_begin()
