"""Counts a training step on TensorFlow as XLA compiles it for an H100, without one.

    python docs/gpu/count_tensorflow.py --json docs/measurements/passes-tensorflow.json

TensorFlow traces the step, and the compiler of JAX's NVIDIA plugin takes it from there:
see docs/gpu/passes.py for the plugin.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

import hlo
from counted import row, unit, write
from xla_h100 import compiled_text


def main() -> int:
    """Counts all rows, and prints or writes them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the rows there")
    path = parser.parse_args().json
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tracer = Path(__file__).with_name("tensorflow_hlo.py")
        subprocess.run([sys.executable, tracer, folder], check=True)
        outside = json.loads((folder / "waits.json").read_text())
        for name, waits in outside.items():
            dtype, contender = name.split(" ", 1)
            found = hlo.counts(compiled_text((folder / f"{name}.hlo").read_text()))
            # TensorFlow has no public count of what its tape keeps.
            rows += [
                row(
                    "XLA",
                    contender,
                    dtype,
                    kernels=found.kernels,
                    passes=found.passes(unit(dtype)),
                    saved=None,
                    uploads=0,
                    waits=0,
                ),
                row(
                    "graph",
                    contender,
                    dtype,
                    kernels=None,
                    passes=None,
                    saved=None,
                    uploads=None,
                    waits=waits,
                ),
            ]
            print(*map(json.dumps, rows[-2:]), sep="\n", file=sys.stderr)
        version = (folder / "version").read_text()
    write(rows, {"tensorflow": version}, path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
