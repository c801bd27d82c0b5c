"""The pages in docs/: their examples run, in the order of the page."""

import re
import warnings
from pathlib import Path

import pytest

from slow import slow

DOCS = Path(__file__).parents[1] / "docs"
# docs/tools.md has a test of its own.
PAGES = [
    *("distributed.md", "deployment.md", "coming_from/keras.md"),
    *(
        pytest.param(
            page, marks=slow("compiles each of its networks on JAX", but_on="torch")
        )
        for page in ("training.md", "networks.md")
    ),
    pytest.param(
        "coming_from/tf_keras.md",
        marks=slow("one more fit to compile on JAX", but_on="tensorflow"),
    ),
    pytest.param(
        "coming_from/pytorch.md",
        marks=slow("imports a second framework, PyTorch", but_on="torch"),
    ),
    pytest.param(
        "coming_from/flax.md",
        marks=slow("imports a second framework, JAX", but_on="jax"),
    ),
]


def blocks(page):
    return re.findall(r"^```python\n(.*?)^```$", (DOCS / page).read_text(), re.M | re.S)


@pytest.mark.parametrize("page", PAGES)
def test_examples_run_and_print_what_they_promise(page, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "docs"}
    for block in blocks(page):
        with warnings.catch_warnings():
            if page == "deployment.md":
                warnings.simplefilter("ignore")  # the exporters' own
            exec(compile(block, page, "exec"), names)
        promised = re.findall(r"^print\(.*\)  # (.*)$", block, re.M)
        assert capsys.readouterr().out.split("\n")[: len(promised)] == promised


@pytest.mark.once
def test_every_page_with_examples_is_run():
    # These have tests of their own.
    others = {"tools.md", "quantization.md", "validation_is_bad.md"}
    pages = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}
    listed = {getattr(page, "values", (page,))[0] for page in PAGES}
    assert {page for page in pages if blocks(page)} == listed | others
