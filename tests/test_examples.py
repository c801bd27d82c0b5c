"""The examples run on little data, and their readers refuse what is damaged."""

import contextlib
import gzip
import io
import json
import os
import struct
import sys

import keras
import numpy as np
import pytest

import _data
import _report
import batch_renorm
import keras_bn
import train
from slow import slow

# It starts another backend as well.
quick_run_on_one = slow("starts a framework in a new process", but_on="torch")
# Less TensorFlow, which takes long to start: tests/test_trained.py compares all three.
COMPARED = ("jax", "torch")
PIXELS = np.arange(24, dtype="uint8").reshape(2, 3, 4)


def idx_bytes(array, type_code=0x08):
    header = struct.pack(f">HBB{array.ndim}I", 0, type_code, array.ndim, *array.shape)
    return header + array.tobytes()


DAMAGED = {
    "not_gzip": (b"plain", "expected a whole gzip file"),
    "cut_gzip": (gzip.compress(idx_bytes(PIXELS))[:-12], "expected a whole gzip file"),
    "empty": (gzip.compress(b""), "received an empty file"),
    "wrong_magic": (gzip.compress(b"\x01" + idx_bytes(PIXELS)[1:]), "received 01 00"),
    "floats": (gzip.compress(idx_bytes(PIXELS, 0x0D)), "received 00 00 0d 03"),
    "cut_header": (gzip.compress(idx_bytes(PIXELS)[:9]), "within its 16-byte header"),
    "too_short": (
        gzip.compress(idx_bytes(PIXELS)[:-1]),
        r"expected 24 values for the shape \(2, 3, 4\), received 23",
    ),
    "too_long": (gzip.compress(idx_bytes(PIXELS) + b"\0"), "received 25"),
}


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory):
    """The folder that `train.py --quick` filled, and what it printed."""
    folder, printed = tmp_path_factory.mktemp("train"), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(train, "BACKENDS", COMPARED)
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        train.main(["--quick", "--output", str(folder)])
    return folder, printed.getvalue()


@pytest.fixture
def debian_folder(monkeypatch, tmp_path):
    """Debian's folder, with three images that train and two that validate."""
    for name, count in {"train": 3, "t10k": 2}.items():
        images = np.full((count, 28, 28), 255, "uint8")
        labels = np.arange(count, dtype="uint8")
        for kind, array in {"images-idx3": images, "labels-idx1": labels}.items():
            path = tmp_path / f"{name}-{kind}-ubyte.gz"
            path.write_bytes(gzip.compress(idx_bytes(array)))
    monkeypatch.setattr(_data, "DEBIAN_FOLDER", tmp_path)
    return tmp_path


@pytest.fixture
def no_network(monkeypatch):
    def fail():
        raise Exception("Name or service not known")

    monkeypatch.setattr(keras.datasets.fashion_mnist, "load_data", fail)


@quick_run_on_one
def test_quick_run_prints_its_tables(quick_run):
    _, printed = quick_run
    assert "steps to 95%" in printed
    assert "without batch normalization │ more than 10" in printed
    assert "The saved model on other backends" in printed
    assert "One image alone: predicted" in printed


@quick_run_on_one
def test_quick_run_writes_a_figure(quick_run):
    folder, _ = quick_run
    content = (folder / "curves.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", content[16:24]) == (1440, 900)


@quick_run_on_one
def test_quick_run_writes_both_curves(quick_run):
    folder, _ = quick_run
    runs = json.loads((folder / "results.json").read_text())["runs"]
    assert [run["steps"] for run in runs] == [[5, 10], [5, 10]]
    assert all(0 <= share <= 1 for run in runs for share in run["accuracy"])


@quick_run_on_one
def test_quick_run_agrees_with_another_backend_and_with_one_image(quick_run):
    folder, _ = quick_run
    results = json.loads((folder / "results.json").read_text())
    assert {*results["backends"], keras.backend.backend()} >= {*COMPARED}
    assert max(*results["backends"].values(), results["single_image"]) <= 1e-5


@quick_run_on_one
def test_quick_run_saves_a_model_that_loads(quick_run):
    folder, _ = quick_run
    model = keras.models.load_model(folder / "model.keras")
    norms = [x for x in model.layers if isinstance(x, keras_bn.BatchNormalization)]
    assert len(norms) == len(train.FILTERS)
    assert model.predict(np.zeros((1, 8, 8, 1)), verbose=0).shape == (1, 10)


def test_both_networks_start_alike():
    plain = train.build_cnn((8, 8, 1), 10, batch_norm=False)
    normalized = train.build_cnn((8, 8, 1), 10, batch_norm=True)
    train.copy_weights(plain, normalized)
    expected = {x.name: x.get_weights() for x in plain.layers if x.weights}
    copied = {name: normalized.get_layer(name).get_weights() for name in expected}
    assert len(expected) == len(train.FILTERS) + 1
    keras.tree.map_structure(np.testing.assert_array_equal, copied, expected)


@pytest.mark.parametrize(("batches", "steps"), [(4, [2, 4]), (5, [2, 4, 5]), (1, [1])])
def test_curve_measures_every_few_steps_and_at_the_end(batches, steps):
    data = _data.digits().head(train=batches, val=2)
    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
    model.add(keras.layers.Dense(10))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    curve = train.ValidationCurve(data, every=2)
    model.fit(data.x_train, data.y_train, batch_size=1, callbacks=[curve], verbose=0)
    assert curve.steps == steps
    assert len(curve.accuracy) == len(steps)


@slow("compiles two networks on JAX", but_on="torch")
def test_batch_renorm_goes_up_its_ramp_across_a_save(capsys):
    found = batch_renorm.main(["--steps", "16", "--norms", "batch renorm"])
    assert "batch renorm" in capsys.readouterr().out
    norm = found["batch renorm"][1].layers[1]
    assert int(norm.moving_step.value) == 16
    limits = {
        key: [float(ramp(np.float32(step))) for step in (0, 2, 4, 6, 10)]
        for key, ramp in norm.renorm_clipping.items()
    }
    assert limits == {"rmax": [1, 1, 1.5, 2, 3], "dmax": [0, 0, 2.5, 5, 5]}


@pytest.mark.once
def test_steps_to_the_target():
    run = _report.Run("a run", [5, 10, 15], [0.1, 0.95, 0.9], 1.0)
    assert run.best == 0.95
    assert run.steps_taken(0.95) == "10"
    assert run.steps_taken(0.96) == "more than 15"


@pytest.mark.once
def test_digits_are_scaled_and_split():
    data = _data.digits()
    assert (data.x_train.shape, data.x_val.shape) == ((1437, 8, 8, 1), (360, 8, 8, 1))
    assert (data.x_train.min(), data.x_train.max()) == (0, 1)


@pytest.mark.once
def test_read_idx(tmp_path):
    path = tmp_path / "pixels.gz"
    path.write_bytes(gzip.compress(idx_bytes(PIXELS)))
    np.testing.assert_array_equal(_data.read_idx(path), PIXELS)


@pytest.mark.once
@pytest.mark.parametrize("case", DAMAGED)
def test_read_idx_refuses_a_damaged_file(case, tmp_path):
    content, message = DAMAGED[case]
    path = tmp_path / "damaged.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"damaged.gz: .*{message}"):
        _data.read_idx(path)


@pytest.mark.once
@pytest.mark.usefixtures("debian_folder", "no_network")
def test_fashion_mnist_from_debian():
    data = _data.fashion_mnist()
    np.testing.assert_array_equal(data.x_train, np.ones((3, 28, 28, 1), "float32"))
    np.testing.assert_array_equal(data.y_val, [0, 1])


@pytest.mark.once
def test_fashion_mnist_from_keras(monkeypatch, debian_folder):
    (debian_folder / "t10k-labels-idx1-ubyte.gz").unlink()
    part = np.zeros((4, 28, 28), "uint8"), np.zeros(4, "uint8")
    monkeypatch.setattr(keras.datasets.fashion_mnist, "load_data", lambda: (part, part))
    assert len(_data.fashion_mnist().x_val) == 4


@pytest.mark.once
@pytest.mark.usefixtures("no_network")
def test_fashion_mnist_nowhere_names_both_ways(monkeypatch, tmp_path):
    monkeypatch.setattr(_data, "DEBIAN_FOLDER", tmp_path / "nowhere")
    message = (
        r"(?s)keras\.datasets downloads it .*Name or service not known.*"
        r"install the package dataset-fashion-mnist, which puts it in .*nowhere"
    )
    with pytest.raises(SystemExit, match=message):
        train.main(["--dataset", "fashion_mnist"])


@pytest.mark.once
@pytest.mark.parametrize("option", ["--epochs", "--batch-size"])
def test_counts_are_at_least_one(option, capsys):
    with pytest.raises(SystemExit):
        train.parse([option, "0"])
    assert f"{option}: expected at least 1, received 0" in capsys.readouterr().err
