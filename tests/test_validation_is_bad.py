"""docs/validation_is_bad: the notebook is the page, and runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import frameworks
from slow import slow

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.skipif(
    frameworks.KERAS < (3, 15),
    reason="GlobalAveragePooling1D of Keras 3.14 writes into what ReLU gave",
)
@slow("eight small trainings, to compile on JAX and TensorFlow", but_on="torch")
def test_the_notebook_runs():
    notebook = json.loads((DOCS / "validation_is_bad.ipynb").read_text())
    names = {"__name__": "notebook"}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    lag = names["cases"]["moving statistics lag"]
    assert lag[2] > 0.8 > lag[0]


@pytest.mark.once
def test_the_notebook_is_the_page():
    check = [sys.executable, str(DOCS / "validation.py"), "--check"]
    result = subprocess.run(check, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "")
