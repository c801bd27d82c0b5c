"""Makes what belongs to docs/validation_is_bad.md: table, charts and notebook.

    KERAS_BACKEND=torch python docs/validation.py          # all of it
    KERAS_BACKEND=torch python docs/validation.py --check  # is the notebook the page?

The page is the one source: its blocks are run in their order, the table and the charts
are made of what they find, and the notebook has the page's text and code.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
PAGE = DOCS / "validation_is_bad.md"
NOTEBOOK = PAGE.with_suffix(".ipynb")
CHARTS = DOCS / "charts"
START, END = (
    "<!-- validation: made by docs/validation.py -->",
    "<!-- validation end -->",
)
FENCED = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)
BEFORE, AFTER, THIRD = "#d55e00", "#0072b2", "#009e73"
"""Of the palette of charts.py, which the colour-blind tell apart."""


def notebook(text: str) -> str:
    """The page as a notebook: a cell a block, a cell the text between two."""
    cells = []
    for number, part in enumerate(FENCED.split(text)):
        source = re.sub(r"^<!--.*-->\n", "", part, flags=re.M).strip()
        code = number % 2 == 1
        if source:
            cell = {
                "cell_type": "code" if code else "markdown",
                "id": f"cell-{number}",
                "metadata": {},
                "source": source.splitlines(keepends=True),
            }
            if code:
                cell |= {"execution_count": None, "outputs": []}
            cells.append(cell)
    whole = {
        "cells": cells,
        "metadata": {"language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def run(text: str) -> dict[str, Any]:
    """The names that the page's blocks make."""
    names: dict[str, Any] = {"__name__": "docs"}
    for block in FENCED.findall(text):
        exec(compile(block, PAGE.name, "exec"), names)
    return names


def table(cases: dict[str, Any]) -> str:
    """A row a case: what was, what `inspect` said, what is."""
    lines = [
        "| case | validation accuracy | `inspect` finds | largest distance | after |",
        "|---|--:|---|--:|--:|",
    ]
    for name, (before, report, after) in cases.items():
        codes = dict.fromkeys(finding.code for finding in report.findings)
        distance = max(layer.distance for layer in report.layers)
        lines.append(
            f"| {name} | {before:.1%} | {', '.join(codes) or 'nothing'} | "
            f"{distance:.2f} | {after:.1%} |"
        )
    return "\n".join(lines)


def chart(cases: dict[str, Any]) -> Any:
    """An arrow a case, from the accuracy before to that after."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 1 + 0.4 * len(cases)))
    axes = figure.subplots()
    for place, (before, _, after) in enumerate(cases.values()):
        axes.plot([before, after], [place, place], color="0.75", linewidth=3, zorder=1)
        axes.plot(before, place, "o", color=BEFORE, markersize=9)
        axes.plot(after, place, "o", color=AFTER, markersize=9)
    axes.plot([], [], "o", color=BEFORE, label="as it was")
    axes.plot([], [], "o", color=AFTER, label="recalibrated")
    axes.set_yticks(range(len(cases)), cases)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.02)
    axes.set_xlabel("accuracy on validation images")
    axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=2)
    finish(axes, "x")
    return figure


def finish(axes: Any, percent: str) -> None:
    """A light grid, and accuracies as percent."""
    axis = getattr(axes, f"{percent}axis")
    axis.set_major_formatter("{x:.0%}")
    axes.grid(axis=percent, color="0.9")


def lag(names: dict[str, Any]) -> Any:
    """Accuracy against steps, by two momenta, and recalibrated."""
    from matplotlib.figure import Figure

    import keras_bn

    figure = Figure(figsize=(7, 3.6))
    axes = figure.subplots()
    x, y, x_val, y_val = (names[name] for name in ("x", "y", "x_val", "y_val"))
    curves = {
        "momentum 0.99": ([], BEFORE),
        "momentum 0.9": ([], AFTER),
        "0.99, recalibrated": ([], THIRD),
    }
    epochs = range(1, 26)
    for momentum in (0.99, 0.9):
        model = names["build"](momentum)
        for _ in epochs:
            model.fit(x, y, batch_size=64, verbose=0)
            found = names["accuracy"](model, x_val, y_val)
            curves[f"momentum {momentum}"][0].append(found)
            if momentum == 0.99:
                weights = model.get_weights()
                keras_bn.recalibrate(model, x, batch_size=400, verbose=0)
                found = names["accuracy"](model, x_val, y_val)
                curves["0.99, recalibrated"][0].append(found)
                model.set_weights(weights)
    steps = [epoch * -(-len(x) // 64) for epoch in epochs]
    for name, (values, colour) in curves.items():
        axes.plot(steps, values, color=colour, label=name)
    axes.set_xlabel("steps")
    axes.set_ylabel("accuracy on validation images")
    axes.set_ylim(0, 1.02)
    axes.legend(loc="lower right")
    finish(axes, "y")
    return figure


def filled(text: str, rows: str) -> str:
    """The page with this table in it."""
    start, end = text.index(START) + len(START), text.index(END)
    return f"{text[:start]}\n\n{rows}\n\n{text[end:]}"


def main() -> int:
    """Makes everything, or checks the notebook; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    text = PAGE.read_text()
    if parser.parse_args().check:
        current = NOTEBOOK.exists() and NOTEBOOK.read_text() == notebook(text)
        if not current:
            print(f"{NOTEBOOK.name} is not {PAGE.name}: python docs/validation.py")
        return 0 if current else 1
    names = run(text)
    text = filled(text, table(names["cases"]))
    PAGE.write_text(text)
    NOTEBOOK.write_text(notebook(text))
    import matplotlib
    from charts import STYLE

    with matplotlib.rc_context(STYLE):
        for name, figure in (("cases", chart(names["cases"])), ("lag", lag(names))):
            path = CHARTS / f"validation_{name}.svg"
            figure.savefig(path, metadata={"Date": None})
    return 0


if __name__ == "__main__":
    sys.exit(main())
