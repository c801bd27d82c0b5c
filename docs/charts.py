"""The charts of the documentation, drawn out of docs/measurements/*.json.

They are SVG on white, which reads on a light page and on a dark one. Each holds the
numbers that it shows in its description: by these docs/fill_tables.py sees whether it
is up to date, while what matplotlib makes of them may change from version to version.
"""

import html
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt
from measured import BACKENDS, NETWORKS, find, load, measured

CHARTS = Path(__file__).parent / "charts"
OURS, KERAS, OWN = "keras_bn", "Keras's layer", "the framework's own"
# Of Okabe and Ito, which the colour-blind tell apart.
COLOURS = {OURS: "#0072b2", KERAS: "#d55e00", OWN: "#009e73"}
MODES = ("training", "inference")
HALVES = ("float32", "bfloat16")
STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "figure.constrained_layout.use": True,
    "legend.frameon": False,
    "svg.hashsalt": "keras_bn",
}
Numbers = dict[str, dict[str, float]]


def contender(name: str) -> str | None:
    """Whose layer a row is of; None for what no chart shows."""
    if name in ("empty layer", "bare passes", "no norm") or "," in name or "+" in name:
        return None
    return {"keras_bn": OURS, "keras": KERAS}.get(name, OWN)


def ratios(backend: str) -> Numbers:
    """By input: how long the others take over ours, in training and in inference."""
    shown: Numbers = {}
    for row in load(backend)["rows"]:
        who = contender(row["contender"])
        if who in (KERAS, OWN):
            case = shown.setdefault(f"{row['case']}\n{row['shape']}", {})
            case[f"{row['mode']}, {who}"] = round(row["ratio"], 2)
    return shown


def added() -> Numbers:
    """By network and backend: what a norm adds to a training step, in milliseconds."""
    shown = {}
    for network in NETWORKS:
        for backend in measured(network):
            rows = load(f"{backend}-{network}")["rows"]
            shown[f"{network}\n{backend}"] = {
                who: round(find(rows, contender=name)[0]["added_ms"], 1)
                for name, who in (("keras_bn", OURS), ("keras", KERAS))
            }
    return shown


def kept() -> Numbers:
    """By backend and dtype: what is kept for the backward pass, in inputs."""
    shown: Numbers = {}
    for backend in BACKENDS:
        for dtype in HALVES:
            case = {"float32": "image 56"}.get(dtype, dtype)
            rows = find(load(backend)["rows"], mode="training", case=case)
            counts = {contender(row["contender"]): row["saved"] for row in rows}
            if None not in (found := [counts.get(who) for who in COLOURS]):
                shown[f"{backend}\n{dtype}"] = {
                    who: round(count, 2)
                    for who, count in zip(COLOURS, found, strict=True)
                }
    return shown


def passes() -> Numbers:
    """By backend, way and dtype: the passes of a training step on a GPU, counted."""
    shown: Numbers = {}
    for backend in BACKENDS:
        for row in load(f"passes-{backend}")["rows"]:
            who = contender(row["contender"])
            if who and row.get("passes") is not None:
                case = f"{backend}, {row['way']}\n{row['dtype']}"
                shown.setdefault(case, {})[who] = round(row["passes"], 1)
    return shown


def draw_ratios(numbers: Numbers, axes: plt.Axes) -> None:
    """Two lines of marks a case: training above, filled; inference below, hollow."""
    for y, marks in enumerate(numbers.values()):
        for name, value in marks.items():
            mode, who = name.split(", ")
            axes.plot(
                *(value, y - 0.17 + 0.34 * MODES.index(mode)),
                marker="o" if who == KERAS else "D",
                fillstyle="full" if mode == "training" else "none",
                color=COLOURS[who],
                linestyle="none",
                label=name,
            )
    axes.axvline(1, color=COLOURS[OURS], linewidth=1.5)
    axes.set_xscale("log", base=2)
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 0.45), max(high, 2.2))
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}" if x >= 1 else f"1/{1 / x:g}")
    axes.grid(axis="x", color="#dddddd")
    axes.set_xlabel("time over that of keras_bn: right of 1, keras_bn is faster")
    _cases(numbers, axes)


def draw_bars(numbers: Numbers, axes: plt.Axes, label: str) -> None:
    """A group of bars a case, each with its number."""
    height = 0.8 / len(COLOURS)
    for y, bars in enumerate(numbers.values()):
        for i, (who, value) in enumerate(bars.items()):
            middle = y + (i - (len(bars) - 1) / 2) * height
            bar = axes.barh(middle, value, height, color=COLOURS[who], label=who)
            axes.bar_label(bar, fmt="{:g}", padding=3, fontsize=8)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.margins(x=0.12)
    axes.set_xlabel(label)
    _cases(numbers, axes)


def _cases(numbers: Numbers, axes: plt.Axes) -> None:
    axes.set_yticks(range(len(numbers)), list(numbers), fontsize=9)
    axes.set_ylim(len(numbers) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    handles = dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    columns = 2 if len(handles) > 3 else len(handles)
    place = {"loc": "outside upper left", "ncols": columns, "fontsize": 9}
    axes.figure.legend(handles.values(), handles.keys(), **place)


class Chart(NamedTuple):
    """A picture: its numbers, what draws them, and the inches that a case takes."""

    numbers: Callable[[], Numbers]
    draw: Callable[[Numbers, plt.Axes], None]
    inches: float = 0.42


DRAWN = {
    **{b: Chart(partial(ratios, b), draw_ratios) for b in BACKENDS},
    "networks": Chart(
        added, partial(draw_bars, label="added to a training step, ms: less is better")
    ),
    "kept": Chart(
        kept, partial(draw_bars, label="kept for the backward pass, in inputs"), 0.55
    ),
    "passes": Chart(
        passes, partial(draw_bars, label="passes over the input: counted, not timed")
    ),
}


def stale(name: str) -> bool:
    """Whether a chart is missing, or of other numbers than were measured."""
    path = CHARTS / f"{name}.svg"
    found = re.search("<dc:description>(.*?)</dc:description>", _text(path), re.S)
    return not found or json.loads(html.unescape(found[1])) != DRAWN[name].numbers()


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def draw(name: str) -> None:
    """Draws a chart into docs/charts/."""
    chart = DRAWN[name]
    numbers = chart.numbers()
    with plt.rc_context(STYLE):
        # As wide as a phone shows without making its letters too small.
        size = (5.6, 1.1 + chart.inches * len(numbers))
        figure, axes = plt.subplots(figsize=size)
        chart.draw(numbers, axes)
        CHARTS.mkdir(exist_ok=True)
        about = {"Date": None, "Description": json.dumps(numbers)}
        figure.savefig(CHARTS / f"{name}.svg", metadata=about)
        plt.close(figure)
