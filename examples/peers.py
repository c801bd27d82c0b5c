"""What batch norm layers of others get wrong, shown on the spot.

    KERAS_BACKEND=torch python examples/peers.py          # all that shows on PyTorch
    KERAS_BACKEND=torch python examples/peers.py a_nan    # one case, by its name

Each case (`_faults.py`) is put to each layer of that framework that is installed
(`_peers.py`). The table has the answers that are not right, beside ours, which must be.
`--write` keeps them in docs/measurements/peers.json, of which docs/peers.md has its
table.
"""

import argparse
import importlib
import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import keras
from rich.console import Console
from rich.table import Table

from _faults import CASES
from _peers import OURS, PEERS

DOCS = Path(__file__).parents[1] / "docs"
RESULTS, PAGE = DOCS / "measurements" / "peers.json", DOCS / "peers.md"
START, END = "<!-- peers: made by examples/peers.py -->", "<!-- peers end -->"
BACKENDS = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}
Row = dict[str, Any]


def shown(names: list[str] | None = None) -> list[Row]:
    """What others answer and is not right, on this backend: a row each."""
    backend = keras.backend.backend()
    asked = [one for one in PEERS if backend in one.backends and installed(one.package)]
    rows = []
    for name in names or CASES:
        case = CASES[name]
        if backend not in case.backends:
            continue
        ours = case.answer(OURS)
        if not case.is_right(ours):
            raise AssertionError(f"{name}: keras_bn gives {ours}")
        for peer in asked:
            answer = None
            if peer.layer or not case.keras_layers:
                answer = case.answer(peer)
            if answer is not None and not case.is_right(answer):
                who = {"case": name, "library": peer.library, "layer": peer.name}
                rows.append({**who, "seen": plain(answer), "here": plain(ours)})
    return rows


def installed(package: str) -> bool:
    """Whether it can be imported."""
    return importlib.util.find_spec(package) is not None


def plain(answer: float | str) -> float | str:
    """What JSON has a way to write: words for NaN and infinity."""
    if isinstance(answer, str) or math.isfinite(answer):
        return answer
    return "NaN" if math.isnan(answer) else "infinite"


def words(answer: float | str) -> str:
    """Two digits of a number; of an error its class."""
    if isinstance(answer, str):
        return answer.split(":")[0]
    return f"{answer:,.0f}" if abs(answer) >= 100 else f"{answer:.2g}"


def versions() -> dict[str, str]:
    """Of the packages that were shown on this backend."""
    backend = keras.backend.backend()
    packages = {one.package for one in PEERS if backend in one.backends}
    modules = map(importlib.import_module, filter(installed, {backend, *packages}))
    return {module.__name__: module.__version__ for module in modules}


def write(rows: list[Row]) -> None:
    """Puts this backend's rows into the file, and the table into the page."""
    results: dict[str, Any] = {"versions": {}, "shown": {}}
    if RESULTS.exists():
        results = json.loads(RESULTS.read_text())
    results["versions"] |= versions()
    results["shown"][keras.backend.backend()] = rows
    RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    PAGE.write_text(filled(PAGE.read_text()))


def filled(page: str) -> str:
    """The page with the table of all backends in it."""
    start, end = page.index(START) + len(START), page.index(END)
    return f"{page[:start]}\n\n{table()}\n\n{page[end:]}"


def table() -> str:
    """A row a case, a column a library."""
    results = json.loads(RESULTS.read_text())
    rows = [
        {**row, "backend": backend}
        for backend in BACKENDS
        for row in results["shown"].get(backend, [])
    ]
    libraries = list(dict.fromkeys(peer.library for peer in PEERS))
    lines = [f"| case | here | {' | '.join(libraries)} |"]
    lines.append("|---" * (2 + len(libraries)) + "|")
    for name, case in CASES.items():
        several = [row for row in rows if row["case"] == name]
        if not several:
            continue
        cells = [
            cell([row for row in several if row["library"] == library])
            for library in libraries
        ]
        # Of numbers, which are errors or the same everywhere, the largest.
        here = words(max(row["here"] for row in several))
        lines.append(f"| `{name}`: {case.title} | {here} | {' | '.join(cells)} |")
    packages = ", ".join(f"{name} {one}" for name, one in results["versions"].items())
    return "\n".join([*lines, "", f"Seen with {packages}."])


def cell(rows: list[Row]) -> str:
    """The answers of a library, each with who gives it unless all do."""
    answers: dict[str, list[str]] = {}
    for row in rows:
        who = BACKENDS[row["backend"]] if row["library"] == "Keras" else row["layer"]
        answers.setdefault(words(row["seen"]), []).append(who)
    if not rows:
        return ""
    library = rows[0]["library"]
    layers = [peer for peer in PEERS if peer.library == library]
    asked = CASES[rows[0]["case"]].backends if library == "Keras" else layers
    if len(answers) == 1 and len(rows) == len(asked) and library != "others":
        return next(iter(answers))
    return "; ".join(f"{one} ({', '.join(who)})" for one, who in answers.items())


def main(arguments: list[str] | None = None) -> list[Row]:
    """Prints the table, and returns its rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="case", help=", ".join(CASES))
    parser.add_argument("--write", action="store_true", help="into docs/")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in CASES]
    if unknown:
        parser.error(f"case: expected one of {', '.join(CASES)}; received {unknown[0]}")
    rows = shown(options.names)
    printed = Table("case", "layer", "seen", "here")
    for row in rows:
        numbers = (row["seen"], row["here"])
        answers = [one if isinstance(one, str) else words(one) for one in numbers]
        title = f"{row['case']}: {CASES[row['case']].title}"
        printed.add_row(title, f"{row['library']}, {row['layer']}", *answers)
    console = Console()
    console.print(printed)
    console.print(", ".join(f"{name} {one}" for name, one in versions().items()))
    if options.write:
        write(rows)
    return rows


if __name__ == "__main__":
    main()
