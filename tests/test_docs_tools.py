"""The examples in docs/tools.md, run in their order, and the script of its numbers."""

import re
from pathlib import Path

import repair

PAGE = Path(__file__).parents[1] / "docs" / "tools.md"


def test_the_examples_run(tmp_path, monkeypatch):
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    assert len(blocks) == 12
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "docs"}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert (tmp_path / "inspect.png").stat().st_size > 1000


def test_the_lag_is_found_and_repaired_and_the_shift_adapted_to(tmp_path, capsys):
    lag, shift = repair.main(
        ["--results", str(tmp_path), "--steps", "100", "--counts", "16"]
    )
    (_, before, report), (_, after, repaired), (_, folded, _) = lag
    assert {"lag", "far"} <= {finding.code for finding in report.findings}
    assert repaired.findings == []
    assert after > before + 0.3
    assert abs(folded - after) < 0.01
    assert shift[16, 4] > shift["none", None] + 0.1
    assert (tmp_path / "inspect.png").stat().st_size > 1000
    assert "images to adapt to" in capsys.readouterr().out
