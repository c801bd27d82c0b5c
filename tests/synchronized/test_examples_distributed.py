"""The scripts for two processes: two train as one, as docs/distributed.md promises."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import keras
import pytest
import replica_cases as cases

from slow import slow

BACKEND = keras.backend.backend()
ROOT = Path(__file__).parents[2]
TIMEOUT = 300


def command():
    """The command of this backend in that page, with this environment's programs."""
    pattern = rf"^    KERAS_BACKEND={BACKEND} ((?:python|torchrun) .*)$"
    (found,) = re.findall(pattern, (ROOT / "docs/distributed.md").read_text(), re.M)
    program, *arguments = found.split()
    module = {"python": [], "torchrun": ["-m", "torch.distributed.run"]}[program]
    # A port of its own: another run may listen on the default one.
    free = {"python": [], "torchrun": ["--standalone"]}[program]
    return [sys.executable, *module, *free, *arguments]


def check(printed):
    found = json.loads(re.search(r"^{$.*?^}$", printed, re.S | re.M).group())
    assert found["processes"] == 2
    assert found["largest difference of a weight or statistic"] < 1e-5
    assert found["test accuracy, all processes"] > 0.8


def test_two_processes_train_as_one(found):
    check(found.example)


@slow(
    "three new processes, each with a framework",
    witness="test_two_processes_train_as_one",
)
def test_the_command_of_the_page_trains_as_one():
    process = subprocess.Popen(
        command(),
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), *sys.path])),
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "OMP_NUM_THREADS": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        printed, _ = process.communicate(timeout=TIMEOUT)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # and whatever it has started
    assert process.returncode == 0, printed
    check(printed)


def test_the_page_starts_the_script_that_was_run():
    (script,) = (ROOT / one for one in command()[1:] if one.endswith(".py"))
    assert script.is_file()
    assert script.stem == cases.EXAMPLE


@pytest.mark.once
def test_the_worst_exit_code_of_the_processes_is_the_scripts_own(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples" / "distributed")
    import _digits

    code = "import os, sys; sys.exit(int(os.environ['CODE']))"
    monkeypatch.setattr(sys, "argv", ["-c", code])
    with pytest.raises(SystemExit) as ended:
        _digits.start_processes({"CODE": one} for one in "031")
    assert ended.value.code == 3
