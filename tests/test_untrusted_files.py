"""What SECURITY.md says of files: nothing in one is run when it is loaded."""

import json
import pickle
import zipfile

import keras
import numpy as np
import pytest

import keras_bn
from keras_bn import cli

# Keras's saving and loading is the same on every backend.
pytestmark = pytest.mark.once


@pytest.fixture
def trap(tmp_path):
    """A layer whose lambda leaves a file behind when it runs, and that file."""
    sprung = tmp_path / "sprung"
    # The path stands in its code, as a stranger would write it.
    layer = keras.layers.Lambda(
        eval(f"lambda x: (open({str(sprung)!r}, 'w').close(), x)[1]"),
        output_shape=(3,),
    )
    layer(np.zeros((1, 3)))
    sprung.unlink()
    return layer, sprung


def model(*layers):
    return keras.Sequential([keras.Input((3,)), *layers])


@pytest.mark.parametrize("end", ["keras", "h5"])
def test_the_command_runs_no_lambda(tmp_path, trap, end, capsys):
    layer, sprung = trap
    path = tmp_path / f"model.{end}"
    model(layer, keras_bn.BatchNormalization()).save(path)
    sprung.unlink(missing_ok=True)
    assert cli.main(["inspect", str(path)]) == 3
    assert "safe_mode" in capsys.readouterr().err
    assert not sprung.exists()


def in_lasting(lambda_layer):
    """As the place of a layer in a layer of a user's class."""
    config = {"layer": lambda_layer, "replaced": []}
    return {"module": None, "class_name": "Lasting", "config": config} | {
        "registered_name": "keras_bn>Lasting"
    }


def as_schedule(lambda_layer):
    """As the function of the step that a momentum is."""
    layer = keras_bn.BatchNormalization()
    config = keras.saving.serialize_keras_object(layer)
    config["config"]["momentum"] = lambda_layer
    return config


def as_quantized(lambda_layer):
    """As one of the layers that are quantized together."""
    config = {"name": "one", "layers": [lambda_layer]}
    return {"module": None, "class_name": "QuantizedLinear", "config": config} | {
        "registered_name": "keras_bn>QuantizedLinear"
    }


@pytest.mark.parametrize("place", [in_lasting, as_schedule, as_quantized])
def test_a_lambda_in_a_config_of_ours_is_refused(tmp_path, trap, place):
    layer, sprung = trap
    path = tmp_path / "model.keras"
    model(keras_bn.BatchNormalization()).save(path)
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(files["config.json"])
    config["config"]["layers"][1] = place(keras.saving.serialize_keras_object(layer))
    files["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    with pytest.raises((ValueError, TypeError), match="safe_mode"):
        keras.saving.load_model(path)
    assert not sprung.exists()


class Trap:
    """When unpickled, it leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_data_with_objects_in_them_are_refused(tmp_path, capsys):
    path, sprung = tmp_path / "model.keras", tmp_path / "sprung"
    model(keras_bn.BatchNormalization()).save(path)
    np.save(tmp_path / "x.npy", np.array([Trap(sprung)], dtype=object))
    assert cli.main(["inspect", str(path), "--data", str(tmp_path / "x.npy")]) == 3
    assert "allow_pickle=False" in capsys.readouterr().err
    assert not sprung.exists()
    # The trap is one: who unpickles it springs it.
    pickle.loads(pickle.dumps(Trap(sprung))).close()
    assert sprung.exists()
