"""One training ends alike on every backend, and each reads the files of the others.

The numbers and files are those that golden/retrain.py had from all three.
"""

import json
import zipfile

import keras
import numpy as np
import pytest
from packaging.version import Version

import cross_backend_worker as worker
from golden import retrain

MESSAGE = (
    "Training ends at other numbers. If that is meant, run "
    "`python tests/golden/retrain.py` and commit the difference."
)


def close(received, entry):
    """Within half of what two backends may differ by, so that any two keep to it."""
    expected = np.load(retrain.NUMBERS)[entry]
    assert received.shape == expected.shape
    tolerance = 2**-8 if entry == "mixed_bfloat16/prediction" else 5e-6
    scale = np.abs(expected).max()
    np.testing.assert_allclose(
        received, expected, rtol=0, atol=tolerance * scale, err_msg=MESSAGE
    )


@pytest.fixture(scope="module")
def trained():
    return worker.trained(worker.build())


@pytest.mark.parametrize("entry", worker.entries())
def test_training_ends_as_on_the_other_backends(trained, entry):
    close(trained[entry], entry)


def test_golden_numbers_are_of_these_entries_and_no_others():
    assert list(np.load(retrain.NUMBERS)) == worker.entries(), MESSAGE


def test_training_moved_the_statistics(trained):
    assert np.abs(trained["dense/moving_mean"]).min() > 0


@pytest.fixture(scope="module", params=worker.BACKENDS)
def predictions(request):
    """Of the model that a backend has saved."""
    path = retrain.file_of(request.param)
    with zipfile.ZipFile(path) as file:
        saved_with = json.loads(file.read("metadata.json"))["keras_version"]
    if Version(keras.__version__) < Version(saved_with):
        pytest.skip(f"Keras before {saved_with} does not promise to read its files")
    model = keras.models.load_model(path, compile=False)
    return model(worker.inputs(), training=False)


@pytest.mark.parametrize("name", worker.BRANCHES)
def test_the_model_of_a_file_predicts_as_where_it_was_saved(predictions, name):
    y = keras.ops.cast(predictions[name], "float32")
    close(keras.ops.convert_to_numpy(y), f"{name}/prediction")
