"""Tests and measures keras_bn on this machine's GPU, with the Python that runs this.

    python docs/gpu/measure.py          # `make gpu`
    python docs/gpu/measure.py --dry    # `make gpu DRY=1`: on the CPU, small

For each of PyTorch, JAX and TensorFlow that is installed and finds a GPU: the tests
that are marked gpu, then the benchmark. Each result is written as it comes, into the
folder $OUT, or results/gpu, so that a run that is cut short leaves what it had.

Exit codes: 0 all passed, 1 a test or a measurement failed, 3 there is no GPU.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
BACKENDS = ("torch", "jax", "tensorflow")
FAILED, NO_DEVICE = 1, 3
SHAPES = {
    False: (
        *("256x56x56x64", "256x14x14x256", "64x112x112x32"),
        *("128x32x32x16", "128x8x8x64"),
    ),
    True: ("4x8x8x16", "4x4x4x32"),
}
# The ways that need no long compilation, and the one that does.
WAYS = {"torch": ("eager,graph", "compiled"), "jax": ("jit",), "tensorflow": ("xla",)}
DRY_WAYS = {"torch": ("eager",), "jax": ("jit",), "tensorflow": ("graph",)}
ASK = """
from keras_bn.backend import timing
print(timing().versions().get("device", ""))
"""


def out() -> Path:
    """The folder of the results."""
    folder = Path(os.environ.get("OUT") or ROOT / "results" / "gpu")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def environment(backend: str, dry: bool) -> dict[str, str]:
    """Of a process that runs Keras on `backend`, on the device or the CPU."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    found = {**os.environ, "PYTHONPATH": path, "KERAS_BACKEND": backend}
    if dry:
        on_cpu = {
            "GPU_DRY": "1",
            "KERAS_TORCH_DEVICE": "cpu",
            "JAX_PLATFORMS": "cpu",
            "CUDA_VISIBLE_DEVICES": "",
        }
        return {**found, **on_cpu}
    # TensorFlow and JAX would take most of the memory at once.
    memory = {
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
    }
    return {**found, **memory}


def device(backend: str) -> str:
    """The name of the GPU that the backend finds; empty without one."""
    if importlib.util.find_spec(backend) is None:
        return ""
    asked = subprocess.run(
        [sys.executable, "-c", ASK],
        env=environment(backend, dry=False),
        capture_output=True,
        text=True,
        check=False,
    )
    if asked.returncode:
        print(f"{backend} does not start here:\n{asked.stderr}", file=sys.stderr)
        return ""
    return asked.stdout.strip().rpartition("\n")[2]


def jobs(backend: str, dry: bool) -> Iterator[tuple[str, list[str]]]:
    """Name and command line of each run of the benchmark, the most wanted first."""
    shapes = [part for shape in SHAPES[dry] for part in ("--shape", shape)]
    rounds = ["--rounds", "1" if dry else "15"]
    small = ["--batch", "2", "--side", "8"] if dry else ["--batch", "128"]
    large = ["--batch", "1", "--side", "32"] if dry else ["--batch", "64"]
    networks = {
        "resnet20": small,
        "resnet20-projected": small,
        "resnet50": large,
    }
    if dry:  # One, where it need not be compiled, which takes XLA half a minute.
        networks = {"resnet20": small} if backend == "torch" else {}
    for ways in (DRY_WAYS if dry else WAYS)[backend]:
        for dtype in ("float32", "bfloat16"):
            run = ["--mode", "training", "--dtype", dtype, "--way", ways]
            yield f"layer {dtype} {ways}", [*shapes, *run, *rounds]
        for network, sizes in networks.items():
            run = ["--model", network, "--way", ways]
            yield f"{network} {ways}", [*run, *sizes, *rounds]
        run = ["--mode", "inference", "--way", ways]
        yield f"layer inference {ways}", [*shapes, *run, *rounds]
    for network, sizes in networks.items():
        if not dry:
            yield f"{network} fit", ["--model", network, *sizes, *rounds]


class Summary:
    """What has run, in summary.json, written anew after each."""

    def __init__(self) -> None:
        self.path = out() / "summary.json"

    def add(self, name: str, status: int, seconds: float, message: str = "") -> None:
        """Takes note of one run."""
        found = json.loads(self.path.read_text()) if self.path.exists() else []
        found.append(
            {
                "run": name,
                "status": status,
                "seconds": round(seconds, 1),
                "message": message,
            }
        )
        self.path.write_text(json.dumps(found, indent=1) + "\n")

    def failed(self) -> bool:
        """Whether any run has failed."""
        return any(run["status"] for run in json.loads(self.path.read_text()))


def test(backend: str, dry: bool) -> None:
    """Runs the tests marked gpu; what they print goes into a file too."""
    start = time.monotonic()
    command = [sys.executable, "-m", "pytest", "tests/gpu", "-m", "gpu", "-q"]
    # On a machine that is at hand, versions are what they are, and warn.
    command += ["-W", "default", "-p", "no:cacheprovider"]
    with (
        (out() / f"tests-{backend}.txt").open("w") as file,
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(backend, dry),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process,
    ):
        for line in process.stdout:
            print(line, end="", flush=True)
            file.write(line)
            file.flush()
    seconds = time.monotonic() - start
    Summary().add(f"tests, {backend}", process.returncode, seconds)


def benchmark(backend: str, dry: bool) -> int:
    """Runs the benchmark in this process, job after job; one that fails is noted."""
    sys.path.insert(0, str(ROOT))
    from keras_bn.benchmark.command import main as measure

    for name, arguments in jobs(backend, dry):
        start = time.monotonic()
        file = f"{backend} {name}".replace(" ", "-").replace(",", "-")
        path = str(out() / f"{file}.json")
        print(f"== {backend}, {name}", flush=True)
        message = ""
        try:
            status = measure([*arguments, "--json", path, "--force"])
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            status, message = FAILED, f"{type(error).__name__}: {error}"
        seconds = time.monotonic() - start
        Summary().add(f"{name}, {backend}", status, seconds, message)
    return 0


def main() -> int:
    """Tests, then measures, on every backend that has a device."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry", action="store_true", help="on the CPU, small")
    parser.add_argument("--backend", action="append", choices=BACKENDS)
    parser.add_argument("--only-benchmark", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    wanted = options.backend or BACKENDS
    if options.only_benchmark:
        return benchmark(wanted[0], options.dry)
    if options.dry:
        devices = {one: "the CPU" for one in wanted if importlib.util.find_spec(one)}
    else:
        devices = {one: found for one in wanted if (found := device(one))}
    if not devices:
        print(
            f"make gpu: none of {', '.join(wanted)} finds a GPU with {sys.executable}; "
            "make gpu DRY=1 runs the same on the CPU.",
            file=sys.stderr,
        )
        return NO_DEVICE
    (out() / "summary.json").unlink(missing_ok=True)
    for backend, name in devices.items():
        print(f"== {backend} on {name}: the tests", flush=True)
        test(backend, options.dry)
    for backend in devices:
        start = time.monotonic()
        command = [sys.executable, __file__, "--only-benchmark", "--backend", backend]
        status = subprocess.run(
            [*command, *(["--dry"] if options.dry else [])],
            env=environment(backend, options.dry),
            check=False,
        ).returncode
        if status:
            Summary().add(f"benchmark, {backend}", status, time.monotonic() - start)
    print(f"The results are in {out()}")
    return FAILED if Summary().failed() else 0


if __name__ == "__main__":
    sys.exit(main())
