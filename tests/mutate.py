"""Mutation testing: puts single faults into the package, and lists what no test sees.

    KERAS_BACKEND=torch python tests/mutate.py keras_bn/ops --sample 60 --seed 1

All tests that are near the files are traced once: which lines does each run, and how
long does it take. Then, for each fault, those that run its line are run on a copy of
the package with the fault in it, until one fails.

Each run is a process that is forked from this one, which has imported the framework and
pytest, but has computed nothing: threads do not survive a fork, and an import takes
longer than most tests that find a fault. What was done is kept, and not done again.

Faults that make no difference are listed in tests/mutants.md, each with its reason.
"""

import argparse
import collections
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from fnmatch import fnmatch
from pathlib import Path

# Triton reads this as it is imported: see conftest.py.
os.environ.setdefault("TRITON_INTERPRET", "1")

# What takes long to import, and does not import the package.
import hypothesis  # noqa: F401
import keras
import pytest

from mutation.faults import faults
from mutation.processes import ROOT, forked, run_pytest
from mutation.tracing import InOrder, Traces, likely

# As every test does: it imports TensorFlow, where that is installed.
keras.utils.set_random_seed(0)

KNOWN = ROOT / "tests/mutants.md"
# Without those of whole networks, which take longer than a fault is worth.
TOOLS = tuple(
    f"tests/tools/{one.name}"
    for one in sorted((ROOT / "tests/tools").glob("test_*.py"))
    if not re.search(
        "families|large|models_of_others|pretrained|quantization", one.name
    )
)
# The tests that a fault in a file is shown to, where no others are named.
NEAREST = {
    "keras_bn/backend/__init__.py": (
        *("tests/backend", "tests/ops", "tests/layers"),
        "tests/benchmark/test_benchmark.py",
    ),
    "keras_bn/backend/*_context.py": (
        *("tests/backend", "tests/ops", "tests/layers"),
        *("tests/test_training.py", "tests/test_transformations.py"),
    ),
    "keras_bn/backend/*_inference.py": ("tests/backend", "tests/test_export.py"),
    "keras_bn/backend/*_private.py": (
        *("tests/backend", "tests/ops", "tests/layers"),
        "tests/test_private_names.py",
    ),
    "keras_bn/backend/*_timing.py": ("tests/benchmark",),
    "keras_bn/backend/*_replicas.py": (
        *("tests/backend/test_context.py", "tests/synchronized", "tests/ops"),
    ),
    "keras_bn/backend/*_processes.py": (
        *("tests/backend", "tests/synchronized"),
        "tests/tools/test_average_statistics.py",
    ),
    "keras_bn/backend/*_vectorized.py": (
        "tests/backend",
        "tests/test_transformations.py",
    ),
    "keras_bn/backend/*": ("tests/backend", "tests/ops", "tests/layers"),
    "keras_bn/benchmark/*": ("tests/benchmark",),
    "keras_bn/layers/*": (
        *("tests/layers", "tests/ops"),
        *("tests/test_bad_input.py", "tests/test_contract.py"),
    ),
    "keras_bn/models/*": ("tests/models",),
    "keras_bn/ops/processes.py": ("tests/synchronized", "tests/tools"),
    "keras_bn/ops/*": ("tests/ops", "tests/layers", "tests/test_bad_input.py"),
    "keras_bn/tools/_statistics/*": (*TOOLS, "tests/test_callbacks.py"),
    # Of its own tests, those that import Flax run on JAX.
    "keras_bn/tools/from_flax.py": (
        *("tests/tools/test_from_flax.py", "tests/tools/test_from_haiku.py"),
    ),
    "keras_bn/tools/*": TOOLS,
    "keras_bn/callbacks.py": ("tests/test_callbacks.py",),
    "keras_bn/_keras.py": (*TOOLS, "tests/test_private_names.py"),
    "keras_bn/*": ("tests/test_cli.py", "tests/test_private_names.py"),
}


class Experiment:
    """Puts faults into a copy of the package, and lets tests look for them."""

    def __init__(self, package, traces, options, killed):
        self._package, self._traces = package, traces
        self._options, self._killed = options, killed

    def run(self, file, fault):
        """What came of a fault, as it is kept."""
        tests = self._options.tests or next(
            tests for part, tests in NEAREST.items() if fnmatch(file, part)
        )
        chosen, seconds = likely(
            *(self._traces.of(tests), file, fault.lines),
            *(self._killed, self._options.budget),
        )
        path, begun = Path(self._package, file), time.monotonic()
        source = path.read_text()
        path.write_text(fault.applied(source))
        try:
            # Of a fixture that starts processes, the first test's seconds alone know.
            by = forked(lambda: self._look(chosen), int(60 + 4 * seconds))
        finally:
            path.write_text(source)
        self._killed[by] += 1
        return {
            "outcome": "survived" if by is None else "killed",
            "by": by,
            "tests": len(chosen),
            "seconds": round(time.monotonic() - begun, 1),
        }

    def _look(self, chosen):
        """The test that fails, or what went wrong; None if nothing did."""
        if not chosen:
            return None
        plugin = InOrder(chosen)
        files = dict.fromkeys(name.partition("::")[0] for name in chosen)
        status = run_pytest(self._package, ["-x", "--tb=no", *files], plugin)
        # What did not run has seen nothing: tests may have changed since the trace.
        fine = (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
        return plugin.failed or (None if status in fine else f"pytest: {status!s}")


def known():
    """The faults listed as making no difference: file, new line, old line or None."""
    found, file = set(), None
    for line in KNOWN.read_text().splitlines() if KNOWN.exists() else ():
        if heading := re.match(r"#+ `?(keras_bn/[\w/.]+)", line):
            file = heading[1]
        elif fault := re.match(r"- (?:`(.+?)` -> )?`(.*?)`:", line):
            found.add((file, fault[2], fault[1]))
    return found


def sample(options):
    """The faults to try: by a name, the file, the fault and the lines that differ."""
    every = {}
    for one in _files(options.files):
        file, source = str(one.relative_to(ROOT)), one.read_text()
        for fault in faults(source):
            old, new = fault.difference(source)
            every[f"{file} {fault.start} {old} -> {new}"] = file, fault, old, new
    size = min(options.sample or len(every), len(every))
    return {n: every[n] for n in random.Random(options.seed).sample([*every], size)}


def _files(paths):
    """The files, and those in the folders but for what only other backends import."""
    others = {"jax", "tensorflow", "torch"} - {keras.backend.backend()}
    for path in map(ROOT.joinpath, paths):
        if not path.is_dir():
            yield path
            continue
        for one in sorted(path.rglob("*.py")):
            if one.name.partition("_")[0] not in others:
                yield one


def report(results):
    """Prints what survives, and a table; returns the share that should not have."""
    equivalent, table = known(), collections.defaultdict(collections.Counter)
    for one in results:
        outcome = one["outcome"]
        names = {(one["file"], one["new"], old) for old in (one["old"], None)}
        if outcome == "survived" and names & equivalent:
            outcome = "equivalent"
        if outcome == "survived":
            print(f"{one['file']}:{one['line']}\n  - {one['old']}\n  + {one['new']}")
        table[os.path.dirname(one["file"])][outcome] += 1
    for folder, row in table.items():
        counts = ", ".join(f"{count} {outcome}" for outcome, count in row.items())
        print(f"{folder}: {row.total()} faults, {counts}")
    every = sum(table.values(), collections.Counter())
    share = every["survived"] / max(every["survived"] + every["killed"], 1)
    print(f"{share:.1%} survive, without those known to make no difference")
    return share


def main():
    """Runs the command; the exit status says whether too many faults survived."""
    options = _options()
    os.nice(options.nice)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # not without the child
    options.results.mkdir(parents=True, exist_ok=True)
    backend = keras.backend.backend()
    path = options.results / f"{backend}.json"
    done = json.loads(path.read_text()) if path.exists() else {}
    chosen = sample(options)
    with tempfile.TemporaryDirectory() as package:
        shutil.copytree(ROOT / "keras_bn", Path(package, "keras_bn"))
        traces = Traces(options.results / f"{backend}-traces.json", package)
        killed = collections.Counter(one["by"] for one in done.values())
        experiment = Experiment(package, traces, options, killed)
        for number, (name, (file, fault, old, new)) in enumerate(chosen.items(), 1):
            if name in done and done[name]["outcome"] not in options.again:
                continue
            found = experiment.run(file, fault)
            lines = {"file": file, "line": fault.lines[0], "old": old, "new": new}
            done[name] = lines | found
            path.write_text(json.dumps(done, indent=1))
            print(f"{number}/{len(chosen)} {found['outcome']} {name}", flush=True)
    return report([done[name] for name in chosen]) > options.allowed


def _options():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    option = parser.add_argument
    option("files", nargs="+", help="files and folders to put faults into")
    option("--sample", type=int, help="how many faults; all of them by default")
    option("--seed", type=int, default=0, help="which sample")
    option("--tests", nargs="+", help="test files and folders; by default those near")
    option("--budget", type=float, default=12, help="seconds of tests for a fault")
    option("--again", nargs="*", default=(), help="outcomes to try again: survived")
    option("--allowed", type=float, default=0.05, help="the share that may survive")
    option("--nice", type=int, default=10, help="how far to stand back for others")
    option("--results", type=Path, default=ROOT / "results/mutants")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
