"""One training on every backend: what it ends at, and the files that each saves.

    python tests/golden/retrain.py

Like regenerate.py: after a change that is meant, and with a look at the difference.
"""

import sys
import tempfile
import zipfile
from pathlib import Path

FOLDER = Path(__file__).parent
NUMBERS = FOLDER / "trained.npz"


def file_of(backend):
    """The golden file that a backend has saved."""
    return FOLDER / f"trained_{backend}.keras"


def packed(source, target):
    """A copy of a `.keras` file, which Keras does not compress."""
    with (
        zipfile.ZipFile(source) as old,
        zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))


def main():
    sys.path[:0] = [str(FOLDER.parent), str(FOLDER.parents[1])]
    import numpy as np

    import cross_backend_worker as worker

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        worker.run_everywhere("compute", folder)
        found = [np.load(folder / f"{name}.npz") for name in worker.BACKENDS]
        # The mean of all three, which none is far from where no two are far apart.
        numbers = {
            entry: np.mean([one[entry].astype("float64") for one in found], axis=0)
            for entry in worker.entries()
        }
        for backend in worker.BACKENDS:
            packed(folder / f"{backend}.keras", file_of(backend))
    np.savez_compressed(NUMBERS, **numbers)


if __name__ == "__main__":
    main()
