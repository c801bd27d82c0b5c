"""`make gpu`: its dry run, small on the CPU, does all that it would do on a device."""

import contextlib
import importlib.util
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import keras
import pytest

from keras_bn.backend import timing
from slow import slow

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "docs" / "gpu" / "measure.py"
BACKEND = keras.backend.backend()


def make(*arguments, out):
    environment = {
        **os.environ,
        # Not the jobs and settings of the `make test` that this may run under.
        "MAKEFLAGS": "",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "OUT": str(out),
        # A GPU that this machine has is not to be found.
        "CUDA_VISIBLE_DEVICES": "",
        "JAX_PLATFORMS": "cpu",
    }
    command = ["make", "gpu", f"PYTHON={sys.executable}", f"GPU_BACKENDS={BACKEND}"]
    return subprocess.run(
        [*command, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.fixture
def measure(tmp_path, monkeypatch):
    """What `make gpu` starts, in this process; only the tests are in another."""
    spec = importlib.util.spec_from_file_location("measure", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(command, **settings):
        printed = io.StringIO()
        if "--only-benchmark" in command:
            return SimpleNamespace(returncode=module.benchmark(BACKEND, dry=True))
        with contextlib.redirect_stdout(printed):
            exec(command[-1], {})
        return SimpleNamespace(returncode=0, stdout=printed.getvalue())

    there = {name: getattr(subprocess, name) for name in ("Popen", "PIPE", "STDOUT")}
    monkeypatch.setattr(module, "subprocess", SimpleNamespace(run=run, **there))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    monkeypatch.setenv("OUT", str(tmp_path))

    def main(*arguments):
        command = ["measure.py", *arguments, "--backend", BACKEND]
        monkeypatch.setattr(sys, "argv", command)
        return module.main()

    return main


# What it runs elsewhere, tests/ops and tests/benchmark run there.
@slow("tests in a new process", but_on="torch")
def test_tests_and_measurements_of_a_dry_run(measure, tmp_path):
    assert measure("--dry") == 0
    check_dry_run(tmp_path)


def test_where_no_backend_has_a_device(measure, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(timing(), "versions", dict)  # as without a GPU
    assert measure() == 3
    check_refusal(capsys.readouterr().err, tmp_path)


@slow(
    "make starts a framework two or three times",
    witness="test_tests_and_measurements_of_a_dry_run",
)
def test_make_s_dry_run_tests_and_measures(tmp_path):
    done = make("DRY=1", out=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    check_dry_run(tmp_path)


def check_dry_run(tmp_path):
    assert " passed" in (tmp_path / f"tests-{BACKEND}.txt").read_text()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary[0]["run"] == f"tests, {BACKEND}"
    assert [run["status"] for run in summary] == [0] * len(summary)
    documents = [json.loads(file.read_text()) for file in tmp_path.glob("*-*.json")]
    assert {document["machine"]["backend"] for document in documents} == {BACKEND}
    rows = [row for document in documents for row in document["rows"]]
    networks = {"step"} if BACKEND == "torch" else set()
    assert {row["mode"] for row in rows} == {"training", "inference"} | networks
    assert {row["dtype"] for row in rows} == {"float32", "bfloat16"}
    assert {"keras_bn", "keras"} <= {row["contender"] for row in rows}


@slow(
    "make starts a framework two or three times",
    witness="test_where_no_backend_has_a_device",
)
def test_without_a_device_make_says_so_and_ends_with_3(tmp_path):
    done = make(out=tmp_path)
    # What make itself exits with where a command fails is 2.
    assert done.returncode == 2
    assert "Error 3" in done.stderr
    check_refusal(done.stderr, tmp_path)


def check_refusal(told, tmp_path):
    sentences = [line for line in told.splitlines() if "none of" in line]
    assert len(sentences) == 1
    assert not list(tmp_path.iterdir())
