"""Keras's own tests of its layer, which its wheel holds, pass with ours put in."""

import json
import re

import keras
import pytest

import fresh_process

KERAS_TESTS = "keras.src.layers.normalization.batch_normalization_test"
VERSION = tuple(int(number) for number in re.findall(r"\d+", keras.__version__)[:3])

pytestmark = pytest.mark.skipif(
    VERSION < (3, 15, 1), reason="Keras wheels before 3.15.1 lack the test file"
)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """What the plugin wrote, and the output of the run for the message of a failure."""
    folder = tmp_path_factory.mktemp("keras_own")
    path = folder / "report.json"
    # Settings of its own: Keras's tests raise warnings that are errors in ours.
    settings = folder / "pytest.ini"
    settings.write_text("[pytest]\n")
    command = [
        "-m",
        "pytest",
        "-p",
        "keras_own_plugin",
        "--report",
        path,
        "-c",
        settings,
    ]
    command += ["-p", "no:cacheprovider", "-q", "--pyargs", KERAS_TESTS]
    try:
        output = fresh_process.run(command, keras.backend.backend())
    except RuntimeError as error:
        output = str(error)
    assert path.exists(), output
    return {**json.loads(path.read_text()), "output": output}


def test_all_33_pass(report):
    passed = report["outcomes"].pop("passed", [])
    assert report["outcomes"] == {}, report["output"]
    # Later versions of Keras may add to the 33 of 3.15.1.
    assert len(passed) == 33 or (len(passed) > 33 and VERSION > (3, 15, 1))


def test_the_class_under_test_is_ours(report):
    assert list(report["calls"]) == ["keras_bn.layers.batch_normalization"]
    assert report["calls"]["keras_bn.layers.batch_normalization"] > 100
