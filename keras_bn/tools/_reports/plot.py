"""The figure of an inspection. The only file that needs matplotlib."""

from typing import Any

import numpy as np

from keras_bn.tools._reports.findings import FAR, VERY_FAR

LINE, BAND, WARN, BAD = "#1f4e79", "#9dc3e6", "#e69f00", "#c0392b"
MOST_NAMES = 24


def plot_inspection(report: Any, path: Any) -> None:
    """Draws `report`; see `Inspection.plot`."""
    try:
        import matplotlib.figure
    except ImportError as error:
        raise ImportError(
            "`plot` needs matplotlib, which is an optional dependency: "
            "`pip install keras-bn[plot]`"
        ) from error
    rows = report.layers
    measured = any(row.distance is not None for row in rows)
    scaled = any(row.gamma is not None for row in rows)
    panels = [_distances] * measured + [_deviations] + [_gammas] * scaled
    width = np.clip(2.4 + 0.32 * len(rows), 6.4, 14)
    figure = matplotlib.figure.Figure(
        figsize=(width, 1.0 + 1.9 * len(panels)), layout="constrained"
    )
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axis, panel in zip(axes, panels, strict=True):
        panel(axis, rows)
        axis.grid(axis="y", color="0.9", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    _name_layers(axes[-1], rows)
    title = f"{report.model_name}: {report.verdict}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    figure.savefig(path, dpi=160)


def _name_layers(axis: Any, rows: list[Any]) -> None:
    axis.set_xlim(-0.6, len(rows) - 0.4)
    if len(rows) <= MOST_NAMES:
        names = [row.layer for row in rows]
        axis.set_xticks(range(len(rows)), names, rotation=40, ha="right", fontsize=8)
    else:
        axis.set_xlabel("batch norm layer, from input to output")


def _distances(axis: Any, rows: list[Any]) -> None:
    values = np.array([np.nan if r.distance is None else r.distance for r in rows])
    colours = [BAD if v >= VERY_FAR else WARN if v >= FAR else LINE for v in values]
    axis.bar(range(len(rows)), values, color=colours, width=min(0.7, 0.08 * len(rows)))
    top = max([1.15 * FAR, *(1.12 * values[np.isfinite(values)])])
    for level, colour, name in ((FAR, WARN, "warning"), (VERY_FAR, BAD, "error")):
        if level <= top:
            axis.axhline(level, color=colour, linewidth=1, linestyle="--")
            axis.text(
                1.0,
                level,
                f" {name}",
                color=colour,
                fontsize=8,
                va="center",
                transform=axis.get_yaxis_transform(),
            )
    axis.set_ylim(0, top)
    axis.set_ylabel("distance\n(moving stddevs)", fontsize=9)


def _spreads(axis: Any, spreads: list[Any], label: str) -> None:
    """Median as a point, smallest to largest as a bar, on a logarithmic axis."""
    from matplotlib.ticker import LogLocator, NullFormatter

    known = [(i, s) for i, s in enumerate(spreads) if s and np.isfinite(s).all()]
    axis.set_ylabel(label, fontsize=9)
    if not known:
        return
    place = [i for i, _ in known]
    # A logarithmic axis has no zero: such values stand at its foot.
    low, middle, high = np.maximum(np.array([s for _, s in known]).T, 1e-6)
    axis.vlines(place, low, high, color=BAND, linewidth=4, label="smallest to largest")
    axis.plot(place, middle, "o", color=LINE, markersize=4, label="median")
    axis.set_yscale("log")
    # A decade at least, so that a spread of a few percent looks like one.
    room = max(1.25, (10 / (high.max() / low.min())) ** 0.5)
    axis.set_ylim(low.min() / room, high.max() * room)
    wide = high.max() / low.min() > 100
    axis.yaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.yaxis.set_minor_formatter(NullFormatter())


def _deviations(axis: Any, rows: list[Any]) -> None:
    _spreads(axis, [row.stddev for row in rows], "moving\nstandard deviation")
    if not axis.lines:
        return
    axis.legend(
        frameon=False, fontsize=8, ncols=2, loc="lower right", bbox_to_anchor=(1, 0.96)
    )


def _gammas(axis: Any, rows: list[Any]) -> None:
    _spreads(axis, [row.gamma for row in rows], "|gamma|")
