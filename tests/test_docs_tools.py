"""The examples in docs/tools.md, run in their order."""

import re
from pathlib import Path

from slow import slow

PAGE = Path(__file__).parents[1] / "docs" / "tools.md"


@slow("compiles each of its networks on JAX", but_on="torch")
def test_the_examples_run(tmp_path, monkeypatch):
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    assert len(blocks) == 13
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "docs"}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert (tmp_path / "inspect.png").stat().st_size > 1000
