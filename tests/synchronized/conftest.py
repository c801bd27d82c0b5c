"""The replicas' processes, which are started once for all tests on their results."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import replica_cases as cases

TIMEOUT = 300


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def run_together(arguments, count, **variables):
    """Runs `python *arguments` in `count` processes that know of each other."""
    everyone = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(),
        "WORLD_SIZE": str(cases.REPLICAS),
        **variables,
    }
    processes = [
        subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            env={**everyone, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        outputs = [process.communicate(timeout=TIMEOUT)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert not any(process.returncode for process in processes), "\n".join(outputs)
    return outputs


class Found:
    """What the replicas found, by rank, and what one process did."""

    def __init__(self, folder, outputs):
        self.replicas = [
            dict(np.load(folder / f"{rank}.npz")) for rank in range(cases.REPLICAS)
        ]
        self.of_four = [
            dict(np.load(folder / f"group {rank}.npz"))
            for rank in range(cases.GROUP_REPLICAS)
        ]
        self.alone = dict(np.load(folder / "alone.npz"))
        self.collectives = {
            k: int(v) for k, v in np.load(folder / "collectives.npz").items()
        }
        self.outputs = outputs

    def of(self, case, name):
        """What each replica has for `name`."""
        four = len(case.sizes) == cases.GROUP_REPLICAS
        replicas = self.of_four if four else self.replicas
        return [one[f"{case.name}/{name}"] for one in replicas]


@pytest.fixture(scope="session")
def found(tmp_path_factory):
    """What the replicas found; they run once for all tests of this folder."""
    folder = tmp_path_factory.mktemp("replicas")
    worker = Path(__file__).with_name("replica_worker.py")
    return Found(folder, run_together([worker, folder], cases.STARTED))
