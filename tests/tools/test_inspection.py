"""The report of `inspect`: what is in it, in which order, and how it prints."""

import numpy as np
import pytest

from keras_bn import tools
from keras_bn.tools._reports.findings import Finding
from keras_bn.tools._reports.inspection import Inspection, LayerReport

pytestmark = pytest.mark.once
ROW = LayerReport(
    *("a[red]", "keras_bn", -1, 4, 0.9, 1e-3, True, None, (0.5, 1.0, 2.0), None, None)
)
FULL = ROW._replace(
    **{"layer": "b", "momentum": None, "updates": 7, "stddev": (1.0, 1.0, 1.0)},
    **{"gamma": (0.25, 0.5, 3.0), "distance": 0.12345},
)


def finding(layer, severity="note", verdict="it is so", code="one"):
    return Finding(layer, code, severity, verdict, "do it")


def lines(report, word):
    """The printed lines in which a word stands, one blank between the columns."""
    printed = [line for line in str(report).splitlines() if word in line]
    assert all(len(line) <= 120 for line in str(report).splitlines())
    return [" ".join(line.split()) for line in printed]


def test_layers_print_with_what_is_known():
    report = Inspection("net[x]", [ROW, FULL], [], None)
    (row,) = lines(report, "a[red]")  # brackets are no markup
    assert row == "a[red] keras_bn -1 4 0.9 ? 0.5 to 2 - -"
    (row,) = lines(report, "0.123")
    assert row == "b keras_bn -1 4 none 7 1 0.25 to 3 0.123"
    assert str(report).startswith("inspect net[x]: healthy: nothing found\n")
    assert (report.severity, report.verdict) == (None, "healthy: nothing found")


@pytest.mark.parametrize(
    ("report", "line"),
    [
        (
            Inspection("net", [ROW, FULL], [finding("b")], None),
            "Inspection(model='net', layers=2, findings=1, severity='note')",
        ),
        (
            tools.FoldReport(
                [tools.Folding("a", "b", ""), tools.Folding("c", None, "")]
            ),
            "FoldReport(folded=1, left=1)",
        ),
        (
            tools.RecalibrationReport("ema", 2, 9, [tools.Recalibrated("a", 9, 0.5)]),
            "RecalibrationReport(method='ema', batches=2, samples=9, layers=1)",
        ),
        (
            tools.AverageReport(3, [tools.Averaged("a", 0.5)]),
            "AverageReport(replicas=3, layers=1)",
        ),
        (tools.Matching([], ["a"]), "Matching(pairs=0, unmatched=1, unused=0)"),
    ],
)
def test_a_report_is_one_line_where_it_is_not_printed(report, line):
    assert repr(report) == line


def test_the_gravest_come_first():
    severities = ("note", "error", "warning", "note")
    found = [finding(name, one) for name, one in zip("abcd", severities, strict=True)]
    report = Inspection("net", [ROW], found, 0.1234)
    assert [one.layer for one in report.findings] == ["b", "c", "a", "d"]
    assert report.severity == "error"
    title = "do not use for inference as it is; outputs change by 12.3% in inference"
    assert title in str(report)
    assert "4 findings" in str(report)


def test_layers_of_one_finding_have_one_row():
    found = [finding(name) for name in ("a", "b", "c", "d")]
    report = Inspection("net", [], found, None)
    (row,) = lines(report, "it is so")
    assert row == "note one a, b, c, d it is so do it"
    more = Inspection("net", [], [*found, finding("e"), finding("f")], None)
    (row,) = lines(more, "it is so")
    assert row == "note one a, b, c, d and 2 more it is so do it"
    other = Inspection("net", [], [*found, finding("e", verdict="or so")], None)
    (row,) = lines(other, "it is so")
    assert row == "note one a, b, c, d and 1 more a: it is so do it"
    several = Inspection("net", [], [*found, finding("e", code="two")], None)
    assert len(lines(several, "it is so")) == 2


def test_what_is_not_finite_is_none_in_the_dictionary():
    row = FULL._replace(distance=np.inf, stddev=(np.nan,) * 3, axis=[1, 2])
    told = Inspection("net", [row], [finding("b")], 0.5).to_dict()
    (layer,) = told.pop("layers")
    assert (layer["distance"], layer["stddev"]) == (None, [None] * 3)
    assert (layer["axis"], layer["gamma"]) == ([1, 2], [0.25, 0.5, 3.0])
    assert told == {
        **{"model": "net", "verdict": "healthy, with notes", "severity": "note"},
        "output_change": 0.5,
        "findings": [finding("b")._asdict()],
    }


def test_the_text_is_plain_whatever_the_terminal(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b" not in str(Inspection("net", [ROW], [finding("a[red]")], None))
