"""Fills the performance tables of the pages below, and draws the charts beside them.

The numbers are those of docs/measurements/*.json, which `make measure` writes, and
`make passes` those that are counted:

    python docs/fill_tables.py          # rewrites the tables, and what charts changed
    python docs/fill_tables.py --check  # fails if they are not up to date
"""

import argparse
import statistics
import sys
from pathlib import Path

import charts
from measured import (
    BACKENDS,
    NETWORKS,
    find,
    load,
    machine_line,
    machines,
    measured,
    one_line,
)

DOCS = Path(__file__).parent
PAGES = {
    DOCS.parent / "README.md": ("summary",),
    DOCS / "performance.md": ("networks",),
    DOCS / "measurements" / "README.md": ("full", "passes"),
    DOCS / "tools.md": ("folded", "large"),
}
IMAGES = ("image 56", "image 14", "image 112")
COUNTED = (
    *("kernels", "passes", "saved", "temporary"),
    *("uploads", "waits", "graph_breaks"),
)
NATIVE = {
    "torch": "torch.nn.BatchNorm2d",
    "jax": "flax.linen.BatchNorm",
    "tensorflow": "tf fused_batch_norm",
}


def over_images(rows: list[dict], way: str, mode: str, contender: str) -> float | None:
    """The median over the three image shapes of a contender's time over ours."""
    found = find(rows, way=way, mode=mode, contender=contender)
    ratios = [row["ratio"] for row in found if row["case"] in IMAGES]
    return statistics.median(ratios) if ratios else None


def summary() -> str:
    """A row a backend: how long the others take over ours, small enough for a phone."""
    lines = [
        "| backend | Keras's layer: training | inference | the framework's own: "
        "training | inference |",
        "|---|--:|--:|--:|--:|",
    ]
    for backend in BACKENDS:
        rows = load(backend)["rows"]
        way = rows[0]["way"]
        cells = [
            times(over_images(rows, way, mode, contender))
            for contender in ("keras", NATIVE[backend])
            for mode in ("training", "inference")
        ]
        lines.append(f"| {backend} ({way}) | {' | '.join(cells)} |")
    own = ", ".join(f"`{name}`" for name in NATIVE.values())
    machine = one_line([load(backend)["machine"] for backend in BACKENDS])
    return "\n".join(
        [*lines, "", f"The framework's own: {own}. Measured on: {machine}."]
    )


def times(ratio: float | None) -> str:
    """A ratio for a reader."""
    return "-" if ratio is None else f"{ratio:.2f}"


def full() -> str:
    """Every row that was measured, a table a backend."""
    parts = []
    for backend in BACKENDS:
        document = load(backend)
        parts += [
            f"### {backend}",
            machine_line(document["machine"]),
            "| case | dtype | mode | way | layer | median ms | quartiles | vs ours | "
            "vs limit | vs floor | saved |\n"
            "|---|---|---|---|---|--:|--:|--:|--:|--:|--:|\n"
            + "\n".join(map(line, document["rows"])),
        ]
    return "\n\n".join(parts)


def line(row: dict) -> str:
    """One measured row."""
    cells = (
        f"{row['case']} {row['shape']}",
        *(row[name] for name in ("dtype", "mode", "way", "contender")),
        f"{row['median_ms']:.2f}",
        f"{row['low_ms']:.2f} to {row['high_ms']:.2f}",
        f"{row['ratio']:.2f}",
        f"{row['median_ms'] / row['limit_ms']:.2f}",
        "" if row["floor_ms"] is None else f"{row['median_ms'] / row['floor_ms']:.2f}",
        "" if row["saved"] is None else f"{row['saved']:.2f}",
    )
    return f"| {' | '.join(cells)} |"


def folded() -> str:
    """A row a backend: inference of ResNet-20 folded, without norm, with it."""
    lines = [
        "| backend | folded, ms | built without norm | with keras_bn | with Keras's | "
        "speed of folded over without norm |\n|---|--:|--:|--:|--:|--:|"
    ]
    for backend in BACKENDS:
        rows = load(f"{backend}-fold")["rows"]
        cells = [f"{row['median_ms']:.0f}" for row in rows]
        (plain,) = find(rows, contender="no norm")
        lines.append(f"| {backend} | {' | '.join(cells)} | {plain['ratio']:.2f} |")
    return "\n".join([*lines, "", *machines("fold")])


def large() -> str:
    """A row a tool: seconds on a model of 1,000 layers, and memory, by backend."""
    documents = [load(f"{backend}-tools")["rows"] for backend in measured("tools")]
    first = documents[0][0]
    head = " | ".join(f"{backend}, s | copies" for backend in measured("tools"))
    lines = [
        f"{first['layers']} layers, {first['megabytes']:.0f} MB of weights:",
        "",
        f"| tool | {head} |",
        "|---" + "|--:" * 2 * len(documents) + "|",
    ]
    for rows in zip(*documents, strict=True):
        cells = [
            f"{row['seconds']:.1f} | "
            + ("-" if row["copies"] is None else f"{row['copies']:.2f}")
            for row in rows
        ]
        lines.append(f"| {rows[0]['tool']} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *machines("tools")])


def networks() -> str:
    """A row a network and backend: what normalization adds to a training step."""
    lines = [
        "| network | backend | step without norm, ms | keras_bn adds, ms | "
        "Keras's layer adds, ms | ours over Keras's | paired rounds |\n"
        "|---|---|--:|--:|--:|--:|--:|"
    ]
    found = [(name, b) for name in NETWORKS for b in measured(name)]
    for name, backend in found:
        rows = load(f"{backend}-{name}")["rows"]
        (none,) = find(rows, contender="no norm")
        ours, keras = (
            find(rows, contender=one)[0]["added_ms"] for one in ("keras_bn", "keras")
        )
        # Below 0, a part of the other says nothing.
        share = f"{ours / keras:.2f}" if ours > 0 and keras > 0 else "-"
        lines.append(
            f"| {name} | {backend} | {none['median_ms']:.0f} | {ours:+.1f} | "
            f"{keras:+.1f} | {share} | {none.get('rounds', '-')} |"
        )
    names = dict.fromkeys(name for name, _ in found)
    lines.append("")
    lines += dict.fromkeys(line for name in names for line in machines(name))
    return "\n".join(lines)


def passes() -> str:
    """What a training step would do on a GPU: counted, not measured."""
    lines = [
        "Each cell: float32, bfloat16.",
        "",
        "| backend | way | layer | kernels | passes | saved, inputs | "
        "temporary, inputs | sent | waits | graph breaks |\n"
        "|---|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    versions = {}
    for backend in BACKENDS:
        document = load(f"passes-{backend}")
        versions |= document["versions"]
        for way, contender in dict.fromkeys(
            (row["way"], row["contender"]) for row in document["rows"]
        ):
            rows = find(document["rows"], way=way, contender=contender)
            cells = [pair(rows, name) for name in COUNTED]
            lines.append(f"| {backend} | {way} | {contender} | {' | '.join(cells)} |")
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    return "\n".join([*lines, "", f"Input {document['input']}; {named}."])


def pair(rows: list[dict], name: str) -> str:
    """A count in float32 and in bfloat16, in one cell; empty where there is none."""
    counts = [find(rows, dtype=dtype)[0].get(name) for dtype in ("float32", "bfloat16")]
    if None in counts:
        return ""
    return ", ".join(f"{n:.2f}" if isinstance(n, float) else str(n) for n in counts)


TABLES = {
    "summary": summary,
    "full": full,
    "folded": folded,
    "large": large,
    "networks": networks,
    "passes": passes,
}


def filled(page: Path, names: tuple[str, ...]) -> str:
    """The page's text with the tables between its markers made anew."""
    text = page.read_text()
    for name in names:
        start, end = (
            f"<!-- {name}: made by docs/fill_tables.py -->",
            f"<!-- {name} end -->",
        )
        head, rest = text.split(start)
        table = TABLES[name]()
        text = f"{head}{start}\n\n{table}\n\n{end}{rest.split(end)[1]}"
    return text


def main() -> int:
    """Rewrites pages and charts, or with --check says whether they would change."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = [
        page for page, names in PAGES.items() if filled(page, names) != page.read_text()
    ]
    old = [name for name in charts.DRAWN if charts.stale(name)]
    if check:
        for name in [page.name for page in stale] + [f"{name}.svg" for name in old]:
            print(f"{name} is not up to date: run python docs/fill_tables.py")
        return int(bool(stale or old))
    for page in stale:
        page.write_text(filled(page, PAGES[page]))
    for name in old:
        charts.draw(name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
