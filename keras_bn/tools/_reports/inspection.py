"""What `inspect` returns: the report, and how it prints."""

import math
from collections import defaultdict
from typing import Any, NamedTuple

from keras_bn.tools._reports.findings import SEVERITIES, Finding
from keras_bn.tools._reports.table import Table

VERDICTS = {
    None: "healthy: nothing found",
    "note": "healthy, with notes",
    "warning": "look into the warnings",
    "error": "do not use for inference as it is",
}


class LayerReport(NamedTuple):
    """One batch norm layer.

    Attributes:
        layer: Its path in the model.
        kind: `keras_bn` or `keras`, or the name of a subclass, then the options on.
        axis: The feature axis, or axes.
        channels: How many statistics it keeps.
        momentum: The share of the moving average that is kept, by a schedule that of
            the next update; None for the plain average of all batches.
        epsilon: Added to the variance.
        trainable: Whether it trains; a frozen layer is in inference mode always.
        updates: How many updates it can have had: the optimizer's steps, 0 if the
            statistics are the initial ones, None where the model is not compiled.
        stddev: Smallest, median and largest moving standard deviation that is finite.
        gamma: The same of absolute gammas; None without any.
        distance: How far the data's statistics are from the moving ones, in moving
            standard deviations; None without data.
    """

    layer: str
    kind: str
    axis: int | list[int]
    channels: int
    momentum: float | None
    epsilon: float
    trainable: bool
    updates: int | None
    stddev: tuple[float, float, float]
    gamma: tuple[float, float, float] | None
    distance: float | None


class Inspection(Table):
    """What `inspect` found; `print` shows it as tables.

    Attributes:
        layers: One `LayerReport` a batch norm layer, in model order.
        findings: Every `Finding`, the gravest first.
        output_change: With data, how much the outputs change between training and
            inference mode: the norm of the difference over the norm in inference.
    """

    def __init__(
        self,
        model_name: str,
        layers: list[LayerReport],
        findings: list[Finding],
        output_change: float | None,
    ) -> None:
        self.model_name = model_name
        self.layers = layers
        self.findings = sorted(findings, key=lambda f: -SEVERITIES.index(f.severity))
        self.output_change = output_change

    @property
    def severity(self) -> str | None:
        """The gravest severity found: None, `"note"`, `"warning"` or `"error"`."""
        return self.findings[0].severity if self.findings else None

    @property
    def verdict(self) -> str:
        """The whole in a few words."""
        return VERDICTS[self.severity]

    def _counts(self) -> dict[str, Any]:
        return {
            "model": self.model_name,
            "layers": len(self.layers),
            "findings": len(self.findings),
            "severity": self.severity,
        }

    def to_dict(self) -> dict[str, Any]:
        """The report in plain Python types, ready for JSON: None for what is NaN."""
        report = {
            "model": self.model_name,
            "verdict": self.verdict,
            "severity": self.severity,
            "output_change": self.output_change,
            "layers": [row._asdict() for row in self.layers],
            "findings": [row._asdict() for row in self.findings],
        }
        return _without_nan(report)  # type: ignore[no-any-return]

    def plot(self, path: Any) -> None:
        """Draws distances, deviations and gammas by layer, as PNG, PDF or SVG.

        Args:
            path: The file to write; its suffix says in which format.

        Raises:
            ImportError: matplotlib is not there; `pip install keras-bn[plot]` adds it.
        """
        from keras_bn.tools._reports.plot import plot_inspection

        plot_inspection(self, path)

    def __rich__(self) -> Any:
        """What rich prints."""
        from rich.console import Group

        title = f"inspect {self.model_name}: {self.verdict}"
        if self.output_change is not None:
            title += f"; outputs change by {self.output_change:.1%} in inference mode"
        parts = [self.table(title, _COLUMNS, map(_cells, self.layers))]
        if self.findings:
            rows = _grouped(self.findings)
            columns = ("severity", "finding", "layers", "verdict", "advice")
            number = len(self.findings)
            title = f"{number} finding{'' if number == 1 else 's'}"
            parts.append(self.table(title, columns, rows))
        return Group(*parts)


_COLUMNS = (
    "layer",
    "kind",
    "axis",
    "channels",
    "momentum",
    "updates",
    "moving stddev",
    "|gamma|",
    "distance",
)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cells(row: LayerReport) -> tuple[str, ...]:
    return (
        row.layer,
        row.kind,
        str(row.axis),
        str(row.channels),
        "none" if row.momentum is None else f"{row.momentum:g}",
        "?" if row.updates is None else str(row.updates),
        _range(row.stddev),
        "-" if row.gamma is None else _range(row.gamma),
        "-" if row.distance is None else f"{row.distance:.3f}",
    )


def _range(spread: tuple[float, float, float]) -> str:
    low, high = f"{spread[0]:.2g}", f"{spread[2]:.2g}"
    return low if low == high else f"{low} to {high}"


def _grouped(findings: list[Finding]) -> list[tuple[str, ...]]:
    """One row for layers of which the same kind of thing is to be said."""
    kinds: dict[tuple[str, ...], list[Finding]] = defaultdict(list)
    for one in findings:
        kinds[(one.severity, one.code, one.advice)].append(one)
    rows: list[tuple[str, ...]] = []
    for (severity, code, advice), several in kinds.items():
        first = several[0].verdict
        if any(one.verdict != first for one in several):
            first = f"{several[0].layer}: {first}"
        rows.append((severity, code, _few([f.layer for f in several]), first, advice))
    return rows


def _few(paths: list[str]) -> str:
    shown = ", ".join(paths[:4])
    return shown if len(paths) <= 4 else f"{shown} and {len(paths) - 4} more"
