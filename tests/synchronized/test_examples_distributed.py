"""The scripts for two processes run as the README starts them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import keras

BACKEND = keras.backend.backend()
ROOT = Path(__file__).parents[2]
TIMEOUT = 300


def command():
    """The command of this backend in the README, with this environment's programs."""
    pattern = rf"^KERAS_BACKEND={BACKEND} ((?:python|torchrun) .*)$"
    (found,) = re.findall(pattern, (ROOT / "README.md").read_text(), re.M)
    program, *arguments = found.split()
    module = {"python": [], "torchrun": ["-m", "torch.distributed.run"]}[program]
    # Another port than torchrun's own, where another run may listen.
    free = {"python": [], "torchrun": ["--rdzv-endpoint=127.0.0.1:0"]}[program]
    return [sys.executable, *module, *free, *arguments]


def test_two_processes_train_as_one():
    result = subprocess.run(
        command(),
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), *sys.path])),
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    found = json.loads(re.search(r"{.*}", result.stdout, re.S).group())
    assert found["processes"] == 2
    assert found["largest difference of a weight or statistic"] < 1e-5
    assert found["test accuracy, all processes"] > 0.8
