"""The rows that the counting scripts write, and docs/fill_tables.py reads."""

import json
import math
import sys
from pathlib import Path
from typing import Any

SHAPE = (32, 56, 56, 64)
BYTES = {"float32": 4, "bfloat16": 2}


def unit(dtype: str) -> int:
    """The bytes of the input: passes and what is saved are counted in it."""
    return math.prod(SHAPE) * BYTES[dtype]


def row(way: str, contender: str, dtype: str, **counts: float | None) -> dict[str, Any]:
    """One row. A count that is None is one that the way has no number of.

    Args:
        way: How the step runs.
        contender: Whose layer.
        dtype: Of the input.
        counts: kernels, passes, saved, uploads, waits and what else there is.
    """
    rounded = {
        name: round(count, 2) if isinstance(count, float) else count
        for name, count in counts.items()
    }
    return {"way": way, "contender": contender, "dtype": dtype, **rounded}


def write(rows: list[dict[str, Any]], versions: dict[str, str], path: Path | None):
    """Writes rows and versions as JSON to `path`, or prints them.

    Rows in the file of a way that was not counted now, for want of a tool, stay.
    """
    ways = {row["way"] for row in rows}
    if path is not None and path.exists():
        before = json.loads(path.read_text())["rows"]
        rows = rows + [row for row in before if row["way"] not in ways]
    document = {
        "input": "x".join(map(str, SHAPE)),
        "versions": versions,
        "rows": rows,
    }
    text = json.dumps(document, indent=1) + "\n"
    if path is None:
        sys.stdout.write(text)
    else:
        path.write_text(text)
