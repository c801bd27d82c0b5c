"""The replicas' processes, which are started once for all tests on their results."""

from pathlib import Path

import keras
import numpy as np
import pytest
import replica_cases as cases

import fresh_process


class Found:
    """What the replicas found, by rank, and what one process did."""

    def __init__(self, folder):
        self.replicas = [
            dict(np.load(folder / f"{rank}.npz")) for rank in range(cases.REPLICAS)
        ]
        self.of_four = [
            dict(np.load(folder / f"group {rank}.npz"))
            for rank in range(cases.GROUP_REPLICAS)
        ]
        self.alone = dict(np.load(folder / "alone.npz"))
        self.example = (folder / "example.txt").read_text()
        self.collectives = {
            k: int(v) for k, v in np.load(folder / "collectives.npz").items()
        }

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
    fresh_process.run([worker, folder], keras.backend.backend())
    return Found(folder)
