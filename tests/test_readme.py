"""What README.md shows: its Python runs, and its tables are what was measured."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
# The links of README.md are absolute: tests/test_site.py.
PAGES = [
    *("CONTRIBUTING.md", "examples/README.md"),
    *(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")),
]


def python_blocks():
    return re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_there_is_python_to_run():
    assert python_blocks()


@pytest.mark.parametrize("number", range(len(python_blocks())))
def test_python_runs(number, capsys):
    exec(compile(python_blocks()[number], "README.md", "exec"), {})
    promised = re.findall(r"print\(.*\)\s*# (.*)", python_blocks()[number])
    assert capsys.readouterr().out.split("\n")[: len(promised)] == promised


@pytest.mark.once
def test_tables_are_what_was_measured():
    check = [sys.executable, str(ROOT / "docs" / "fill_tables.py"), "--check"]
    result = subprocess.run(check, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "")


@pytest.mark.once
@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    # Less its code, where an item of a list may be called.
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.M | re.S)
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", text)
    missing = [link for link in links if not ((ROOT / page).parent / link).exists()]
    assert missing == []
