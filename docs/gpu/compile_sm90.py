"""Compiles the Triton kernels for an H100 (sm_90), without one: no kernel may spill.

    KERAS_BACKEND=torch python docs/gpu/compile_sm90.py [--json FILE]

Every operator is called on inputs of several layouts and dtypes, and what it would
launch is compiled instead. Prints a thread's registers, its bytes on the stack, and the
widths of its loads and stores: `16x8` is eight of 16 bytes. Exit status 1 if a
kernel needs the stack, which is where registers are spilled to.

Needs Triton (`pip install triton`), which brings NVIDIA's assembler.
"""

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "0"

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from keras_bn.backend import torch_cuda_operators as operators
from keras_bn.backend.activations import SLOPES

DTYPES = ("float32", "bfloat16", "float16")
# Name, shape, feature axis: both layouts, and sizes that are no multiple of 16 bytes.
INPUTS = [
    ("last", (32, 56, 56, 64), 3),
    ("last, 2048 channels", (32, 7, 7, 2048), 3),
    ("last, 16 channels", (128, 32, 32, 16), 3),
    ("last, 3 channels", (8, 32, 32, 3), 3),
    ("last, 513 rows of 1 part", (513, 4096), 1),
    ("first", (32, 64, 56, 56), 1),
    ("first, 7x7", (32, 2048, 7, 7), 1),
    ("first, 14x14", (32, 256, 14, 14), 1),
    ("first, one image", (1, 32, 512, 512), 1),
]


class Device:
    """Stands in for the driver of a device that is not there."""

    def __init__(self, capability):
        self.target = GPUTarget("cuda", capability, 32)
        self.get_current_target = lambda: self.target
        self.get_current_device = lambda: 0
        self.get_current_stream = lambda device: 0


@contextlib.contextmanager
def compiled_only():
    """Compiles what would be launched, and gives it by its hash."""
    kernels = {}
    run = JITFunction.run

    def compile_only(self, *arguments, warmup, **constants):
        kernel = run(self, *arguments, warmup=True, **constants)
        kernels[kernel.hash] = kernel

    JITFunction.run = compile_only
    try:
        yield kernels
    finally:
        JITFunction.run = run


def launch_all(x, channel, activation, gap=0):
    """Calls every operator once, on vectors that lie `gap` values apart in memory."""
    size = x.shape[channel]
    count, *vectors = torch.ones(()), *torch.ones(5, size + gap)[:, gap:].unbind()
    rest = (channel, 1e-3, activation)
    row = operators.moments(x, channel)
    operators.merged(row.expand(4, -1))
    operators.normalize(x, *vectors, *rest)
    sums = operators.slopes(x, x, *vectors, *rest)
    operators.input_gradient(x, x, sums, count, *vectors, *rest)
    found = operators.usable(vectors[0], vectors[1], count)
    operators.moving_average(vectors[0], vectors[1], 0.99, found)
    operators.moving_average(vectors[0], vectors[1], 0.99, None)


def resources(kernel):
    """Registers, bytes on the stack (which is where registers spill to), and widths."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as binary:
        binary.write(kernel.asm["cubin"])
        binary.flush()
        said = subprocess.run(
            [knobs.nvidia.cuobjdump.path, "-res-usage", binary.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", said).groups()
    return {
        "registers": int(registers),
        "stack": int(stack),
        "loads": widths(r"ld\.global", kernel.asm["ptx"]),
        "stores": widths(r"st\.global", kernel.asm["ptx"]),
    }


def widths(instruction, ptx):
    """Bytes that one access moves, each with how many there are: `16x8 4x2`."""
    counts = {}
    for vector, bits in re.findall(
        rf"{instruction}[\w:.]*?(?:\.v(\d))?\.[busf](\d+)\b", ptx
    ):
        size = int(vector or 1) * int(bits) // 8
        counts[size] = counts.get(size, 0) + 1
    return " ".join(f"{size}x{counts[size]}" for size in sorted(counts, reverse=True))


def calls():
    """Inputs, in words and as tensors, with their feature axis and an activation."""
    for name, shape, channel in INPUTS:
        for dtype in DTYPES:
            x = torch.empty(shape, dtype=getattr(torch, dtype))
            for activation in (None, *SLOPES) if name in ("last", "first") else (None,):
                yield (name, dtype, str(activation)), x, channel, activation


def compiled(chosen, capability=90):
    """Compiles what some `calls` would launch, and gives a row a kernel."""
    driver.set_active(Device(capability))
    known = set()
    for words, *call in chosen:
        with compiled_only() as kernels:
            launch_all(*call)
        for key in kernels.keys() - known:
            known.add(key)
            yield {
                "kernel": kernels[key].metadata.name,
                **dict(zip(("input", "dtype", "activation"), words, strict=True)),
                **resources(kernels[key]),
            }


def main(arguments=None):
    """Compiles, prints a row per kernel, and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--capability", type=int, default=90)
    parser.add_argument("--json", type=Path, help="write the rows there, too")
    options = parser.parse_args(arguments)
    rows = []
    for row in compiled(calls(), options.capability):
        rows.append(row)
        print(*(f"{value!s:16}" for value in row.values()), flush=True)
    spilled = sum(row["stack"] > 0 for row in rows)
    print(f"Triton {triton.__version__}: {len(rows)} kernels, {spilled} spill")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    return 1 if spilled or not rows else 0


if __name__ == "__main__":
    warnings.simplefilter("error")
    sys.exit(main())
