"""The pages in docs/: their examples run, in the order of the page."""

import re
import warnings
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
# docs/tools.md has a test of its own.
PAGES = ["training.md", "distributed.md", "deployment.md", "networks.md"]


def blocks(page):
    return re.findall(r"^```python\n(.*?)^```$", (DOCS / page).read_text(), re.M | re.S)


@pytest.mark.parametrize("page", PAGES)
def test_examples_run_and_print_what_they_promise(page, capsys):
    names = {"__name__": "docs"}
    for block in blocks(page):
        with warnings.catch_warnings():
            if page == "deployment.md":
                warnings.simplefilter("ignore")  # the exporters' own
            exec(compile(block, page, "exec"), names)
        promised = re.findall(r"^print\(.*\)  # (.*)$", block, re.M)
        assert capsys.readouterr().out.split("\n")[: len(promised)] == promised


@pytest.mark.parametrize("page", PAGES)
def test_there_are_examples(page):
    assert blocks(page)
