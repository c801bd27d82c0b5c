"""What `train.py` shows of its runs: tables for the terminal, a figure for a page."""

from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from rich.table import Table

COLOURS = ("#0072b2", "#d55e00")
"""Blue and vermilion: told apart by colour-blind readers, and in grey print."""


@dataclass(frozen=True)
class Run:
    """One training: validation accuracy after each of `steps`, and its seconds."""

    label: str
    steps: list[int]
    accuracy: list[float]
    seconds: float

    @property
    def best(self) -> float:
        """The highest validation accuracy of the run."""
        return max(self.accuracy)

    def steps_to(self, target: float) -> int | None:
        """Return the first measured step that reached `target`, or None."""
        reached = (
            step
            for step, accuracy in zip(self.steps, self.accuracy, strict=True)
            if accuracy >= target
        )
        return next(reached, None)

    def steps_taken(self, target: float) -> str:
        """Return `steps_to` as the table and the figure print it."""
        steps = self.steps_to(target)
        return f"more than {self.steps[-1]}" if steps is None else str(steps)


def runs_table(runs: list[Run], *, target: float, title: str, caption: str) -> Table:
    """Return a row a run: steps to the target, best accuracy, seconds."""
    table = Table(title=title, caption=caption)
    table.add_column("network")
    table.add_column(f"steps to {target:.0%}", justify="right")
    table.add_column("best accuracy", justify="right")
    table.add_column("seconds", justify="right")
    for run in runs:
        table.add_row(
            run.label,
            run.steps_taken(target),
            f"{run.best:.2%}",
            f"{run.seconds:.1f}",
        )
    return table


def differences_table(differences: dict[str, float], *, title: str) -> Table:
    """Return a row a comparison, with its largest absolute difference."""
    table = Table(title=title)
    table.add_column("compared with")
    table.add_column("largest difference", justify="right")
    for name, difference in differences.items():
        table.add_row(name, f"{difference:.1e}")
    return table


def plot_runs(runs: list[Run], path: Path, *, target: float, title: str) -> None:
    """Write a PNG of validation accuracy against training steps, a line a run."""
    figure = Figure(figsize=(7.2, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.axhline(target, color="0.55", linestyle="--", linewidth=1, zorder=1)
    for run, colour in zip(runs, COLOURS, strict=True):
        label = f"{run.label} ({target:.0%} in {run.steps_taken(target)} steps)"
        axes.plot(run.steps, run.accuracy, color=colour, linewidth=2, label=label)
    axes.set_title(title, fontsize=13)
    axes.set_xlabel("training step", fontsize=12)
    axes.set_ylabel("validation accuracy", fontsize=12)
    axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.set_xlim(0, max(run.steps[-1] for run in runs))
    axes.set_ylim(0, 1.02)
    axes.tick_params(labelsize=11)
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", fontsize=11, frameon=False)
    figure.savefig(path, dpi=200)
