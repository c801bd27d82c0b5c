"""Fake "cuda" tensors in a PyTorch without CUDA: shapes and dtypes, no values.

PyTorch's fake tensors run a program without its data, on any device that the build
knows. A build for the CPU knows CUDA by name only, and its autograd asks a device for
its streams: `load` gives it one that does nothing (fake_cuda.cpp).
"""

import ctypes
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_suffix(".cpp")


def load() -> None:
    """Builds the device and loads it. To be called before `import torch`.

    Takes a C++ compiler and three seconds.

    Raises:
        RuntimeError: PyTorch is imported already, or is a build for CUDA, or the
            compiler fails.
    """
    if "torch" in sys.modules:
        raise RuntimeError("The fake device must be loaded before PyTorch is imported")
    torch = Path(importlib.util.find_spec("torch").origin).parent
    if (torch / "lib" / "libtorch_cuda.so").exists():
        raise RuntimeError("The fake device wants a build of PyTorch for the CPU")
    for library in ("libgomp.so*", "libc10.so", "libtorch_cpu.so"):
        for path in sorted((torch / "lib").glob(library)):
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "fake_cuda.so"
        _compile(built, torch / "include")
        ctypes.CDLL(str(built), mode=ctypes.RTLD_GLOBAL)
    # Where Keras puts its tensors; it would ask CUDA itself otherwise.
    os.environ["KERAS_TORCH_DEVICE"] = "cuda"


def tensors() -> Any:
    """A context in which PyTorch makes fake tensors, of every device."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode(allow_non_fake_inputs=True)


def _compile(built: Path, include: Path) -> None:
    compiler = os.environ.get("CXX", "g++")
    command = [compiler, "-w", "-O0", "-std=c++20", "-shared", "-fPIC"]
    try:
        subprocess.run(
            [*command, f"-I{include}", "-o", built, SOURCE],
            check=True,
            capture_output=True,
            text=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        message = getattr(error, "stderr", None) or str(error)
        raise RuntimeError(
            f"The fake device needs a C++ compiler (CXX={compiler}): {message}"
        ) from error
