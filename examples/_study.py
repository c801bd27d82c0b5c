"""What the studies have in common: the data's three parts, training runs, results.

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
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import keras
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress

import keras_bn
from _data import Dataset, digits, fashion_mnist

STAGES, STAGE_STEPS = 20, 10
"""In how many stages a learning rate falls, and how long each is at least."""
RESULTS = Path(__file__).parent / "results"
BLUE, VERMILION, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
"""Told apart by colour-blind readers."""
COLOURS = {"with batch norm": BLUE, "without": VERMILION}
"""The two arms of most studies, in every picture alike."""


@dataclass(frozen=True)
class Parts:
    """Labelled images in three parts: for training, for choices, for the last word."""

    title: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_validation: np.ndarray
    y_validation: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray

    @property
    def image_shape(self) -> tuple[int, ...]:
        return self.x_train.shape[1:]


def parts(data: Dataset, *, validation: int, halve: bool) -> Parts:
    """Set some training images aside for validation; halve the images' sides if asked.

    The test images are those that the data's authors set aside.
    """
    order = np.random.default_rng(0).permutation(len(data.x_train))
    aside, rest = order[:validation], order[validation:]
    x_train = _halved(data.x_train) if halve else data.x_train
    return Parts(
        title=data.title,
        x_train=x_train[rest],
        y_train=data.y_train[rest],
        x_validation=x_train[aside],
        y_validation=data.y_train[aside],
        x_test=_halved(data.x_val) if halve else data.x_val,
        y_test=data.y_val,
    )


def _halved(images: np.ndarray) -> np.ndarray:
    """The mean of each 2 x 2 pixels."""
    count, height, width, channels = images.shape
    pixels = images.reshape(count, height // 2, 2, width // 2, 2, channels)
    return pixels.mean(axis=(2, 4))


def load_parts(quick: bool, *, halve: bool = True) -> Parts:
    """Digits for a quick run, else Fashion-MNIST: at 14 x 14 unless asked otherwise."""
    if quick:
        return parts(digits(), validation=280, halve=False)
    return parts(fashion_mnist(), validation=5000, halve=halve)


class Trainer:
    """Trains one architecture again and again, compiled once.

    Runs of the same seed start from the same weights and see the same batches, also
    those of trainers of other architectures.

    Args:
        build: Makes the model, whose outputs are logits.
        data: What it trains on.
        batch_size: Images of a step.
    """

    def __init__(
        self, build: Callable[[], keras.Model], data: Parts, batch_size: int
    ) -> None:
        self.build, self.data, self.batch_size = build, data, batch_size
        self.model = build()
        self.model.compile(
            keras.optimizers.SGD(0.1, momentum=0.9),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        self.model.optimizer.build(self.model.trainable_variables)

    def restart(self, rate: float, seed: int) -> None:
        """Draw new weights and forget the optimizer's state."""
        keras.utils.set_random_seed(seed)
        self.model.set_weights(self.build().get_weights())
        for variable in self.model.optimizer.variables:
            variable.assign(np.zeros(variable.shape, variable.dtype))
        self.model.optimizer.learning_rate.assign(rate)

    def run(
        self,
        *,
        rate: float,
        seed: int,
        steps: int,
        every: int,
        advance: Callable[[int], None],
        falling: bool = False,
        patience: int | None = None,
        test: bool = False,
        begin: Callable[[keras.Model], None] = lambda model: None,
        measure: Callable[[keras.Model], None] = lambda model: None,
    ) -> dict[str, Any]:
        """Train for a number of steps and return the curves.

        Args:
            rate: Of SGD with momentum 0.9.
            seed: Of the weights and of the order of the images.
            steps: To train for. A loss that is not finite ends the run before.
            every: Steps between two measurements of the validation accuracy.
            advance: Told of the steps done.
            falling: Whether the rate falls towards zero over the run, in stages, so
                that the last accuracy is not that of one noisy moment.
            patience: Steps without a better validation accuracy that end the run.
            test: Whether to measure the accuracy on the test images at the end.
            begin: Called with the model before its first step.
            measure: Called with the model at each measurement.
        """
        self.restart(rate, seed)
        begin(self.model)
        curve: dict[str, Any] = {"steps": [], "loss": [], "accuracy": []}
        batches = self._batches(seed, steps)
        measured = {*range(every, steps, every), steps}
        stages = max(1, min(STAGES, steps // STAGE_STEPS)) if falling else 1
        lowered = {steps * i // stages for i in range(stages)}
        for start, end in pairwise(sorted(measured | lowered)):
            if falling:
                self.model.optimizer.learning_rate.assign(rate * (1 - start / steps))
            loss = self._fit(batches[start:end])
            advance(end - start)
            finite = bool(np.isfinite(loss))
            if finite and end not in measured:
                continue
            curve["steps"].append(end)
            curve["loss"].append(round(loss, 6) if finite else None)
            curve["accuracy"].append(
                self.accuracy(self.data.x_validation, self.data.y_validation)
            )
            measure(self.model)
            best = curve["steps"][int(np.argmax(curve["accuracy"]))]
            if not finite or (patience and end - best >= patience):
                advance(steps - end)
                break
        curve["diverged"] = curve["loss"][-1] is None
        if test:
            curve["test"] = self.accuracy(self.data.x_test, self.data.y_test)
        return curve

    def _fit(self, batches: np.ndarray) -> float:
        """Train on these batches; return their mean loss."""
        chosen = batches.ravel()
        history = self.model.fit(
            self.data.x_train[chosen],
            self.data.y_train[chosen],
            batch_size=self.batch_size,
            shuffle=False,
            verbose=0,
        )
        return float(history.history["loss"][0])

    def _batches(self, seed: int, steps: int) -> np.ndarray:
        """The images of each step: epoch after epoch, each in an order of its own."""
        rng = np.random.default_rng(seed)
        images, wanted = len(self.data.x_train), steps * self.batch_size
        epochs = [rng.permutation(images) for _ in range(-(-wanted // images))]
        return np.concatenate(epochs)[:wanted].reshape(steps, self.batch_size)

    def accuracy(self, images: np.ndarray, labels: np.ndarray) -> float:
        """The share of the images that the model gets right."""
        logits = self.model.predict(images, batch_size=500, verbose=0)
        # A model that diverged has no opinion, and does not get class 0 right.
        right = (logits.argmax(axis=-1) == labels) & np.isfinite(logits).all(axis=-1)
        return round(float(right.mean()), 5)


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
