"""`make gpu`: its dry run, small on the CPU, does all that it would do on a device."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest

from slow import slow

ROOT = Path(__file__).parents[1]
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


# What it runs elsewhere, tests/ops and tests/benchmark run there.
@slow("tests and benchmark in new processes", but_on="torch")
def test_a_dry_run_tests_and_measures(tmp_path):
    done = make("DRY=1", out=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
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


@pytest.mark.skipif(
    BACKEND != "torch", reason="one backend will do, and this one is asked in seconds"
)
def test_without_a_device_it_says_so_and_ends_with_3(tmp_path):
    done = make(out=tmp_path)
    # What make itself exits with where a command fails is 2.
    assert done.returncode == 2
    assert "Error 3" in done.stderr
    sentences = [line for line in done.stderr.splitlines() if "make gpu: none" in line]
    assert len(sentences) == 1
    assert not list(tmp_path.iterdir())
