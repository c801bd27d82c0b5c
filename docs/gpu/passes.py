"""Counts what a training step would do on a GPU, without one, and fills the tables.

    make passes

PyTorch's eager steps are counted by fake tensors and need a C++ compiler alone. The
other counts need tools that are no part of the tests' environment; each says how to
install it where it is missing, and the committed count stays as it is:

- `torch.compile`'s kernels: Triton, 400 MB.
- XLA's, for JAX and TensorFlow: NVIDIA's plugin of JAX, 478 MB, and a CUDA toolkit of
  which it takes ptxas and libdevice, in CUDA_HOME or /usr/local/cuda.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
# Where the tools are looked for, each in a folder of its own.
TOOLS = Path(os.environ.get("GPU_TOOLS") or ROOT / ".venv" / "gpu-tools")


class Tool(NamedTuple):
    """Packages in a folder of TOOLS, and a path in it that shows they are there."""

    folder: str
    packages: str
    shows: str

    def path(self) -> Path:
        """The folder."""
        return TOOLS / self.folder

    def missing(self) -> bool:
        """Whether it is not there."""
        return not (self.path() / self.shows).exists()

    def how(self) -> str:
        """The command that installs it."""
        return (
            f"{sys.executable} -m pip install --no-deps --target {self.path()} "
            f"{self.packages}"
        )


TRITON = Tool("triton", "triton==3.9.0", "triton")
PLUGIN = Tool(
    "jax",
    "jax-cuda12-pjrt==0.10.2 jax-cuda12-plugin==0.10.2",
    "jax_plugins/xla_cuda12",
)


class Count(NamedTuple):
    """A script that writes passes-NAME.json, with its tool, and if it runs without."""

    name: str
    tool: Tool
    runs_without: bool


COUNTS = (
    Count("torch", TRITON, True),
    Count("jax", PLUGIN, False),
    Count("tensorflow", PLUGIN, False),
)


def run(count: Count) -> int:
    """Runs a count if it can; its exit status, 0 where the committed one stays."""
    if count.tool.missing():
        left = "the compiled rows" if count.runs_without else "all rows"
        print(
            f"{count.name}: {left} stay as committed. They need {count.tool.packages}:"
            f"\n    {count.tool.how()}"
        )
        if not count.runs_without:
            return 0
    print(f"== Counting {count.name}", flush=True)
    path = os.pathsep.join(
        filter(None, (str(ROOT), str(count.tool.path()), os.environ.get("PYTHONPATH")))
    )
    file = ROOT / "docs" / "measurements" / f"passes-{count.name}.json"
    return subprocess.run(
        [sys.executable, HERE / f"count_{count.name}.py", "--json", file],
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    ).returncode


def main() -> int:
    """Runs all counts, then fills the tables."""
    failed = [count.name for count in COUNTS if run(count)]
    if failed:
        print(f"These counts failed: {', '.join(failed)}", file=sys.stderr)
        return 1
    fill = [sys.executable, ROOT / "docs" / "fill_tables.py"]
    return subprocess.run(fill, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
