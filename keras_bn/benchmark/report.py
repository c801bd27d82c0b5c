"""The benchmark's result as a table, a JSON file and a picture."""

import json
import os
import platform
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import keras
from rich.table import Table

import keras_bn
from keras_bn.backend import timing
from keras_bn.benchmark.layer import KERAS, OURS, Missing, Row
from keras_bn.benchmark.model import added
from keras_bn.benchmark.tools import ToolRow


def machine() -> dict[str, str]:
    """What the numbers were measured on."""
    return {
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0)))
        if hasattr(os, "sched_getaffinity")
        else str(os.cpu_count()),
        "python": platform.python_version(),
        "keras_bn": keras_bn.__version__,
        "keras": keras.__version__,
        **timing().versions(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.machine()


def table(rows: Sequence[Row]) -> Table:
    """One line a contender; cases apart."""
    result = _titled()
    for name in ("case", "mode", "way", "layer"):
        result.add_column(name)
    numbers = ["vs ours", "vs limit", "vs floor", "saved"]
    if any(row.mode == "step" for row in rows):
        numbers = ["vs ours", "added ms", "saved"]
    for name in ("median ms", "quartiles", *numbers):
        result.add_column(name, justify="right")
    for (case, shape, dtype, mode, way), lines in groupby(rows, lambda row: row[:5]):
        for i, row in enumerate(lines):
            head = [f"{case}\n{shape} {dtype}", mode, way] if i == 0 else ["", "", ""]
            result.add_row(
                *head,
                row.contender,
                f"{row.median_ms:.2f}",
                f"{row.low_ms:.2f} to {row.high_ms:.2f}",
                "" if i == 0 else f"{row.ratio:.2f}",
                *_further(row),
                style="bold" if i == 0 else None,
            )
        result.add_section()
    return result


def _further(row: Row) -> list[str]:
    """What the last columns hold."""
    saved = "" if row.saved is None else f"{row.saved:.2f}"
    if row.mode == "step":
        return ["" if row.added_ms is None else f"{row.added_ms:+.2f}", saved]
    return [
        f"{row.median_ms / row.limit_ms:.2f}" if row.limit_ms else "",
        f"{row.median_ms / row.floor_ms:.2f}" if row.floor_ms else "",
        saved,
    ]


def added_lines(rows: Sequence[Row]) -> list[str]:
    """A sentence a way: what normalization adds to the step without norm."""
    lines = []
    for way, group in groupby(rows, lambda row: row.way):
        found = list(group)
        by = added(found)
        line = f"{found[0].case}, {way}: normalization adds {by[OURS]:.2f} ms"
        if KERAS in by:
            line += f", Keras's layer {by[KERAS]:.2f} ms"
        lines.append(f"{line} (medians of {found[0].rounds} paired rounds).")
    return lines


def tools_table(rows: Sequence[ToolRow]) -> Table:
    """One line a tool."""
    result = _titled()
    for name in ("tool", "layers", "weights MB", "seconds", "quartiles", "copies"):
        result.add_column(name, justify="left" if name == "tool" else "right")
    for row in rows:
        result.add_row(
            row.tool,
            str(row.layers),
            f"{row.megabytes:.0f}",
            f"{row.seconds:.2f}",
            f"{row.low:.2f} to {row.high:.2f}",
            "" if row.copies is None else f"{row.copies:.2f}",
        )
    return result


def _titled() -> Table:
    title = ", ".join(f"{key} {value}" for key, value in machine().items())
    return Table(title=title, title_justify="left")


def write_json(
    rows: Sequence[Row] | Sequence[ToolRow], missing: Sequence[Missing], path: Path
) -> None:
    """Writes machine and rows, and which rows there could not be."""
    document: dict[str, Any] = {
        "machine": machine(),
        "rows": [row._asdict() for row in rows],
    }
    if missing:
        document["missing"] = [one._asdict() for one in missing]
    path.write_text(json.dumps(document, indent=1) + "\n")


def plot(rows: Sequence[Row], path: Path) -> None:
    """Bars: time of each contender over ours; a panel a mode, a group a case."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "Argument `--plot` needs matplotlib: pip install 'keras-bn[plot]'"
        ) from error
    names = list(dict.fromkeys(row.contender for row in rows))
    modes = list(dict.fromkeys((row.mode, row.way) for row in rows))
    handles: dict[str, Any] = {}
    figure = Figure(figsize=(12, 3.6 * len(modes)), layout="constrained")
    for axes, (mode, way) in zip(
        figure.subplots(len(modes), squeeze=False)[:, 0], modes, strict=True
    ):
        shown = [row for row in rows if (row.mode, row.way) == (mode, way)]
        handles.update(_bars(axes, shown, names))
        axes.set_title(f"{mode} ({way})", loc="left")
    backend = machine()
    figure.suptitle(
        f"Batch normalization on {backend['backend']}, "
        f"{backend.get('device', backend['processor'])}"
    )
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=120)


def _bars(axes: Any, rows: Sequence[Row], names: Sequence[str]) -> dict[str, Any]:
    """Draws the rows, in one colour a name; the bars by name."""
    present = [name for name in names if any(row.contender == name for row in rows)]
    bars = {}
    cases = list(dict.fromkeys((row.case, row.shape) for row in rows))
    width = 0.8 / len(present)
    for i, name in enumerate(present):
        shift = (i - (len(present) - 1) / 2) * width
        ratios = {
            (row.case, row.shape): row.ratio for row in rows if row.contender == name
        }
        heights = [ratios.get(case, float("nan")) for case in cases]
        places = [place + shift for place in range(len(cases))]
        colour = f"C{names.index(name)}"
        bars[name] = axes.bar(places, heights, width, label=name, color=colour)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks(range(len(cases)), map("\n".join, cases), fontsize=8)
    axes.set_ylabel("time, ours = 1")
    axes.spines[["top", "right"]].set_visible(False)
    return bars
