"""The benchmark on small inputs: what it prints and writes, never how fast it is."""

import json

import keras
import pytest

from keras_bn.backend import timing
from keras_bn.benchmark import interleaved
from keras_bn.benchmark.command import main
from keras_bn.benchmark.layer import CASES
from keras_bn.benchmark.model import NORMS
from keras_bn.models import resnet

SMALL = ["--shape", "4x6x6x8", "--rounds", "2"]


def test_turns_are_interleaved():
    calls = []
    interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert "".join(calls) == "aabb" + "ab" * 3


def test_prints_and_writes_every_contender(tmp_path, capsys):
    file, picture = tmp_path / "result.json", tmp_path / "result.png"
    assert main([*SMALL, "--json", str(file), "--plot", str(picture)]) == 0
    document = json.loads(file.read_text())
    assert document["machine"]["backend"] == keras.backend.backend()
    assert document["machine"]["processor"]
    training = [row for row in document["rows"] if row["mode"] == "training"]
    names = [row["contender"] for row in training]
    assert names[:4] == ["keras_bn", "keras", "keras_bn + relu", "keras + relu"]
    assert all(row["median_ms"] > 0 and row["limit_ms"] > 0 for row in document["rows"])
    assert {row["mode"] for row in document["rows"]} == {"training", "inference"}
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "keras_bn" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_and_channels_first(dtype, tmp_path):
    file = tmp_path / "result.json"
    arguments = ["--shape", "4x8x6x6", "--axis", "1", "--dtype", dtype, "--rounds", "1"]
    assert main([*arguments, "--json", str(file)]) == 0
    rows = json.loads(file.read_text())["rows"]
    assert {row["dtype"] for row in rows} == {dtype}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--case", "nonsense"], "--case must be out of"),
        (["--way", "nonsense"], "--way must be out of"),
    ],
)
def test_unknown_names(arguments, message):
    with pytest.raises(SystemExit, match=message):
        main(arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "12"], "expected sizes with an x between"),
        (["--shape", "ax3"], "expected sizes with an x between"),
        (["--mode", "nonsense"], "expected out of training, inference"),
    ],
)
def test_unreadable_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


def test_cases_are_those_of_the_documentation():
    assert [case.name for case in CASES][:3] == ["image 56", "image 14", "image 112"]
    assert {case.dtype for case in CASES} == {"float32", "bfloat16", "float16"}


def test_norms_differ_in_nothing_else():
    # In such a scope variables have a shape and no value.
    with keras.StatelessScope(initialize_variables=False):
        models = {name: resnet(depth=20, norm=norm) for name, norm in NORMS.items()}
    kernels = {
        name: [weight.shape for weight in model.weights if weight.name == "kernel"]
        for name, model in models.items()
    }
    assert len(kernels["keras"]) == 20
    assert kernels["keras_bn"] == kernels["keras"] == kernels["no norm"]


def test_timing_offers_the_same_on_every_backend():
    assert {"WAYS", "copy", "inference", "native", "saved_bytes", "training"} <= set(
        dir(timing())
    )
