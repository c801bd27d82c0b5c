"""The benchmark on small inputs: what it prints and writes, never how fast it is."""

import functools
import itertools
import json
import unittest.mock

import keras
import pytest

import frameworks
from keras_bn.backend import timing
from keras_bn.backend.peer import Peer
from keras_bn.benchmark import interleaved
from keras_bn.benchmark.command import main
from keras_bn.benchmark.layer import CASES
from keras_bn.benchmark.model import NETWORKS, NORMS, Network
from keras_bn.benchmark.tools import TOOLS
from keras_bn.models import plain_cnn, resnet
from slow import slow

SMALL = ["--shape", "4x6x6x8", "--rounds", "2"]


@pytest.fixture
def shallow(monkeypatch):
    """A network among the benchmark's that compiles in a second."""
    build = functools.partial(plain_cnn, depth=3, filters=(4,), classes=10)
    monkeypatch.setitem(NETWORKS, "shallow", Network(build, 8, 10))


compiled_deep = slow("compiles ResNet-20 three times", but_on="torch")
DEEP = [
    pytest.param(name, marks=compiled_deep)
    for name in ("resnet20", "resnet20-projected")
]
BY_NETWORK = pytest.mark.parametrize("network", ["shallow", *DEEP])


def test_turns_are_interleaved():
    calls = []
    steps = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    interleaved(steps, 3, turn=0.0)
    assert "".join(calls) == "aabb" + "ab" * 3


def test_turns_of_quick_steps_are_several_calls():
    calls = []
    steps = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    interleaved(steps, 3, turn=60.0)
    assert "".join(calls) == "aabb" + ("a" * 50 + "b" * 50) * 3


def test_prints_and_writes_every_contender(tmp_path, capsys):
    file, picture = tmp_path / "result.json", tmp_path / "result.png"
    assert main([*SMALL, "--json", str(file), "--plot", str(picture)]) == 0
    document = json.loads(file.read_text())
    assert document["machine"]["backend"] == keras.backend.backend()
    assert document["machine"]["processor"]
    training = [row for row in document["rows"] if row["mode"] == "training"]
    names = [row["contender"] for row in training]
    assert names[:4] == ["keras_bn", "keras", "keras_bn + relu", "keras + relu"]
    for name in ("median_ms", "limit_ms"):
        assert all(row[name] > 0 for row in document["rows"])
    assert all(row["floor_ms"] > 0 for row in training)
    assert {row["mode"] for row in document["rows"]} == {"training", "inference"}
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "keras_bn" in capsys.readouterr().out


@pytest.mark.parametrize(
    "dtype",
    [
        "bfloat16",
        pytest.param("float16", marks=slow("as dear as the other", but_on="torch")),
    ],
)
def test_half_precision_and_channels_first(dtype, tmp_path):
    file = tmp_path / "result.json"
    arguments = ["--shape", "4x8x6x6", "--axis", "1", "--dtype", dtype, "--rounds", "1"]
    assert main([*arguments, "--json", str(file)]) == 0
    rows = json.loads(file.read_text())["rows"]
    assert {row["dtype"] for row in rows} == {dtype}


@BY_NETWORK
@pytest.mark.usefixtures("shallow")
def test_folded_and_not(network, tmp_path, capsys):
    file = tmp_path / "result.json"
    arguments = ["--model", network, "--fold", "--batch", "1", "--rounds", "1"]
    assert main([*arguments, "--json", str(file)]) == 0
    rows = json.loads(file.read_text())["rows"]
    assert [row["contender"] for row in rows] == [
        "folded",
        "no norm",
        "keras_bn",
        "keras",
    ]
    assert rows[0]["ratio"] == 1
    out = capsys.readouterr().out
    assert f"folded model is {rows[1]['ratio']:.2f} times as fast" in out


def test_added_is_the_median_of_differences_in_the_same_round():
    seconds = [0, 3, 0, 1, 0, 90, 0, 88, 0, 5, 0, 4]  # 3 - 1, 90 - 88, 5 - 4
    clock = itertools.accumulate(map(float, seconds))
    with unittest.mock.patch("time.perf_counter", side_effect=clock):
        timings = interleaved({"one": int, "none": int}, 3, warm_up=0)
    assert timings["one"].added == 2000
    assert timings["none"].added == 0


def test_the_flush_is_timed_in_the_same_round_and_taken_off():
    # A turn of "one" and of "flush": start and end. One round of 7 - 4, one of 9 - 1.
    seconds = [0, 7, 0, 4, 0, 9, 0, 1]
    clock = itertools.accumulate(map(float, seconds))
    calls = []
    with unittest.mock.patch("time.perf_counter", side_effect=clock):
        timings = interleaved(
            {"one": lambda: calls.append("one")},
            2,
            warm_up=0,
            flush=lambda: calls.append("flush"),
        )
    assert timings["one"].median == pytest.approx(1e3 * (3 + 8) / 2)
    assert calls == ["flush", "one", "flush"] * 2


def test_a_device_has_a_cache_to_flush():
    """On a CPU the cache is the case."""
    assert (timing().flush() is None) == (frameworks.platform() == "cpu")


def test_every_result_is_waited_for():
    waited = []
    interleaved({"one": lambda: "result"}, 2, warm_up=1, turn=0.0, wait=waited.append)
    assert waited == ["result"] * 3


@BY_NETWORK
@pytest.mark.usefixtures("shallow")
def test_a_network_s_steps_are_paired(network, tmp_path, capsys):
    file = tmp_path / "result.json"
    way = timing().WAYS[0]
    arguments = ["--model", network, "--batch", "1", "--side", "8", "--rounds", "2"]
    assert main([*arguments, "--way", way, "--json", str(file)]) == 0
    document = json.loads(file.read_text())
    rows = document["rows"]
    assert [row["contender"] for row in rows] == ["keras_bn", "keras", "no norm"]
    assert {(row["case"], row["way"], row["rounds"]) for row in rows} == {
        (network, way, 2)
    }
    assert rows[-1]["added_ms"] == 0
    if keras.backend.backend() != "tensorflow":  # Which has no count.
        assert rows[0]["saved"] < rows[1]["saved"]
    assert "medians of 2 paired rounds" in capsys.readouterr().out


def test_the_projected_network_has_relu_layers_apart_and_convolutions_as_shortcuts():
    with keras.StatelessScope(initialize_variables=False):
        layers = NETWORKS["resnet20-projected"].build(norm=NORMS["keras_bn"]).layers
    names = [layer.name for layer in layers]
    assert "stage2_block1_shortcut_norm" in names
    assert "stage2_block1_conv1_activation" in names
    assert {layer.activation.__name__ for layer in layers if "norm" in layer.name} == {
        "linear"
    }


def test_a_contender_that_does_not_run_that_way_is_named(monkeypatch, tmp_path, capsys):
    def refuse(*arguments):
        raise NotImplementedError("it waits")

    monkeypatch.setattr(timing(), "native", lambda *a: [Peer("peer", refuse, refuse)])
    file = tmp_path / "result.json"
    assert main([*SMALL, "--mode", "training", "--json", str(file)]) == 0
    document = json.loads(file.read_text())
    assert "peer" not in [row["contender"] for row in document["rows"]]
    (missing,) = document["missing"]
    assert (missing["contender"], missing["reason"]) == ("peer", "it waits")
    assert "peer, given, " in capsys.readouterr().out


# Copies and their weights, whose time is Keras's.
@slow("compiles the models that it times", but_on="torch")
def test_tools_on_a_small_deep_model(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("keras_bn.benchmark.tools._BLOCKS", 1)
    monkeypatch.setattr("keras_bn.benchmark.tools._TRIPLES", 2)
    file = tmp_path / "result.json"
    assert main(["--tools", "--rounds", "1", "--json", str(file)]) == 0
    rows = json.loads(file.read_text())["rows"]
    assert [row["tool"] for row in rows] == list(TOOLS)
    # Input, block, last; in the block an input and twice three.
    assert {row["layers"] for row in rows} == {3 + 1 + 2 * 3}
    assert all(row["seconds"] > 0 for row in rows)
    assert "convert" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--case", "nonsense"], "--case must be out of"),
        (["--way", "nonsense"], "--way must be out of"),
        (["--shape", "12"], "expected sizes with an x between"),
        (["--shape", "ax3"], "expected sizes with an x between"),
        (["--mode", "nonsense"], "expected out of training, inference"),
        (["--rounds", "0"], "--rounds must be a whole number above 0"),
        (["--fold"], "--fold needs --model"),
        (["--tools", "--model", "resnet20"], "--tools goes with"),
    ],
)
def test_a_wrong_command_line_is_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_an_output_that_exists_is_kept_without_force(tmp_path, capsys):
    file = tmp_path / "result.json"
    file.write_text("precious")
    command = [*SMALL, "--mode", "inference", "--json", str(file)]
    assert main(command) == 4
    assert "result.json exists: --force overwrites it" in capsys.readouterr().err
    assert file.read_text() == "precious"
    assert main([*command, "--force"]) == 0
    assert json.loads(file.read_text())["rows"]


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
    assert {
        *("WAYS", "copy", "flush", "inference", "least", "model_training", "native"),
        *("saved_bytes", "training", "versions", "wait"),
    } <= set(dir(timing()))
