"""Counts what a training step would do on a GPU, without one, and fills the tables.

    make passes

PyTorch's steps are counted by fake tensors, which need a C++ compiler, and its Triton
kernels are compiled for an H100, without spills. The counts of XLA, for JAX and
TensorFlow, need what is no part of the tests' environment: NVIDIA's plugin of JAX,
478 MB, and a CUDA toolkit of which it takes ptxas and libdevice, in CUDA_HOME or
/usr/local/cuda. Where the plugin is missing, this says how to install it, and the
committed count stays as it is.
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


PLUGIN = Tool(
    "jax",
    "jax-cuda12-pjrt==0.10.2 jax-cuda12-plugin==0.10.2",
    "jax_plugins/xla_cuda12",
)


# The scripts that write passes-NAME.json, and the tool that each needs, if any.
COUNTS = {"torch": None, "jax": PLUGIN, "tensorflow": PLUGIN}


def run(name: str, tool: Tool | None) -> int:
    """Runs a count if it can; its exit status, 0 where the committed one stays."""
    if tool is not None and tool.missing():
        print(
            f"{name}: all rows stay as committed. They need {tool.packages}:"
            f"\n    {tool.how()}"
        )
        return 0
    print(f"== Counting {name}", flush=True)
    folders = [str(ROOT), tool and str(tool.path()), os.environ.get("PYTHONPATH")]
    file = ROOT / "docs" / "measurements" / f"passes-{name}.json"
    return subprocess.run(
        [sys.executable, HERE / f"count_{name}.py", "--json", file],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, folders))},
        check=False,
    ).returncode


def compile_kernels() -> int:
    """Compiles the Triton kernels for an H100; 1 if one of them spills."""
    print("== Compiling the Triton kernels", flush=True)
    script = [sys.executable, HERE / "compile_sm90.py"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "KERAS_BACKEND": "torch"}
    return subprocess.run(script, env=environment, check=False).returncode


def main() -> int:
    """Runs all counts, then fills the tables."""
    failed = [name for name, tool in COUNTS.items() if run(name, tool)]
    if compile_kernels():
        failed.append("the Triton kernels' compilation")
    if failed:
        print(f"These counts failed: {', '.join(failed)}", file=sys.stderr)
        return 1
    fill = [sys.executable, ROOT / "docs" / "fill_tables.py"]
    return subprocess.run(fill, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
