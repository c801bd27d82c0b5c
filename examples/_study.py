"""What the studies have in common: command line, progress, results, pictures.

A study is a `main` around `Study`: it asks for runs by their settings, and writes a
JSON file after each of them, so that a second start goes on where the first one ended.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import keras
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress

import keras_bn

RESULTS = Path(__file__).parent / "results"
BLUE, VERMILION, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
"""Told apart by colour-blind readers."""
COLOURS = {"with batch norm": BLUE, "without": VERMILION}
"""The two arms of most studies, in every picture alike."""


class Study:
    """The command line, the progress bar and the files of one study.

    Args:
        name: Of the script, and of its JSON and PNG.
        story: What the command line says of it.
        arguments: The command line; that of the process by default.
        full: Settings, a dataclass, of the run whose results are in the repository.
        quick: Those of `--quick`.
    """

    def __init__(
        self, name: str, story: str, arguments: list[str] | None, full: Any, quick: Any
    ) -> None:
        parser = argparse.ArgumentParser(
            description=story, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        parser.add_argument("--quick", action="store_true", help="seconds, on digits")
        parser.add_argument(
            "--output",
            type=Path,
            help=f"a folder; default: {RESULTS}, or for --quick results/quick-BACKEND",
        )
        options = parser.parse_args(arguments)
        self.name, self.quick = name, options.quick
        self.settings = quick if self.quick else full
        self.title = "digits" if self.quick else "Fashion-MNIST"
        backend = keras.backend.backend()
        folder = Path("results", f"quick-{backend}") if self.quick else RESULTS
        self.folder = options.output or folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path = self.folder / f"{name}.json"
        self.console = Console()
        self.progress = Progress(console=self.console, transient=True)
        self.task = self.progress.add_task(name, total=None)
        self.document = {
            "study": name,
            "settings": json.loads(json.dumps(asdict(self.settings))),
            "machine": machine(),
            "runs": self._done_before(),
        }

    def _done_before(self) -> list[dict[str, Any]]:
        """The runs of a start that was cut short, if it had these settings."""
        if self.quick or not self.path.exists():
            return []
        before = json.loads(self.path.read_text())
        ours = json.loads(json.dumps(asdict(self.settings)))
        alike = before["settings"] == ours and before["machine"] == machine()
        return before["runs"] if alike else []

    def __enter__(self) -> "Study":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def expect(self, steps: int) -> None:
        """Say how many training steps the whole study has at most."""
        self.progress.update(self.task, total=steps)

    def advance(self, steps: int) -> None:
        """Move the progress bar."""
        self.progress.advance(self.task, steps)

    def run(self, train: Callable[[], dict[str, Any]], **key: Any) -> dict[str, Any]:
        """Return the run of this key: from the file if it is there, else a new one."""
        for run in self.document["runs"]:
            if all(run.get(name) == value for name, value in key.items()):
                return run
        start = time.perf_counter()
        run = {**key, **train(), "seconds": round(time.perf_counter() - start, 1)}
        self.document["runs"].append(run)
        self.write()
        settings = ", ".join(f"{name} {value}" for name, value in key.items())
        accuracy = f"{run['accuracy'][-1]:.3f}" if run.get("accuracy") else ""
        self.console.print(f"{settings}: {accuracy} ({run['seconds']} s)")
        return run

    def write(self) -> None:
        """Write the JSON: a line a run, whole at every moment."""
        runs = ",\n  ".join(json.dumps(run) for run in self.document["runs"])
        rest = {name: x for name, x in self.document.items() if name != "runs"}
        text = json.dumps(rest, indent=1)[:-2] + f',\n "runs": [\n  {runs}\n ]\n}}\n'
        partial = self.path.with_suffix(".part")
        partial.write_text(text)
        partial.replace(self.path)

    def finish(self, summary: dict[str, Any], figure: Figure) -> None:
        """Write the summary and the picture, and print the summary."""
        seconds = sum(run["seconds"] for run in self.document["runs"])
        self.document["summary"] = summary
        self.document["seconds"] = round(seconds, 1)
        self.write()
        figure.savefig(self.path.with_suffix(".png"), dpi=150)
        self.console.print_json(json.dumps(summary))
        self.console.print(f"Wrote {self.name}.json and .png in {self.folder}")


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    backend = keras.backend.backend()
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "keras": keras.__version__,
        "keras_bn": keras_bn.__version__,
        backend: getattr(sys.modules.get(backend), "__version__", "unknown"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(": ")[2] for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def spread(values: list[float]) -> dict[str, Any]:
    """Several seeds' values, their mean, and the sample's standard deviation."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {
        "mean": round(float(np.mean(values)), 5),
        "deviation": round(deviation, 5),
        "values": values,
    }


def figure_of(columns: int, *, height: float = 4.2) -> tuple[Figure, list[Axes]]:
    """A picture of panels side by side, in the style that all studies share."""
    figure = Figure(figsize=(1 + 4.6 * columns, height), layout="constrained")
    panels = list(np.ravel(figure.subplots(1, columns)))
    for axes in panels:
        axes.grid(color="0.9")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def as_percent(axes: Axes, low: float = 0, high: float = 1) -> None:
    """Show the vertical axis's shares as percentages."""
    axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.set_ylim(low, high)
