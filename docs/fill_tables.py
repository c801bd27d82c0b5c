"""Fills the performance tables of README.md, docs/performance.md and docs/tools.md.

The numbers are those of docs/measurements/*.json, which `make measure` writes, and
`make passes` those that are counted:

    python docs/fill_tables.py          # rewrites the tables
    python docs/fill_tables.py --check  # fails if they are not up to date
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

DOCS = Path(__file__).parent
PAGES = {
    DOCS.parent / "README.md": ("summary",),
    DOCS / "performance.md": ("networks", "passes", "full"),
    DOCS / "tools.md": ("folded", "large"),
}
BACKENDS = ("torch", "jax", "tensorflow")
IMAGES = ("image 56", "image 14", "image 112")
NETWORKS = ("resnet20", "resnet20-projected", "resnet50")
COUNTED = (
    *("kernels", "passes", "saved", "temporary"),
    *("uploads", "waits", "graph_breaks"),
)
NATIVE = {
    "torch": "torch.nn.BatchNorm2d",
    "jax": "flax.linen.BatchNorm",
    "tensorflow": "tf fused_batch_norm",
}


def load(name: str) -> dict:
    """One file of measurements."""
    return json.loads((DOCS / "measurements" / f"{name}.json").read_text())


def find(rows: list[dict], **wanted: str) -> list[dict]:
    """The rows that have these values."""
    return [row for row in rows if all(row[k] == v for k, v in wanted.items())]


def machine_line(machine: dict) -> str:
    """What the numbers were measured on, in one line."""
    names = ("device", "processor", "cores", "python", "keras", *BACKENDS)
    return ", ".join(f"{name} {machine[name]}" for name in names if name in machine)


def over_images(rows: list[dict], way: str, mode: str, contender: str) -> float | None:
    """The median over the three image shapes of a contender's time over ours."""
    found = find(rows, way=way, mode=mode, contender=contender)
    ratios = [row["ratio"] for row in found if row["case"] in IMAGES]
    return statistics.median(ratios) if ratios else None


def summary() -> str:
    """A row a backend: how much longer the peers take, and what is kept in memory."""
    lines = [
        "| backend | training: Keras's layer takes | the framework's own takes | "
        "inference: Keras's, own | kept for the backward pass: ours, Keras's | "
        "added to a ResNet-20 step without norm: by ours, by Keras's (the step) |",
        "|---|---|---|---|---|---|",
    ]
    for backend in BACKENDS:
        rows = load(backend)["rows"]
        way, native = rows[0]["way"], NATIVE[backend]
        cells = [
            over_images(rows, way, mode, contender)
            for mode in ("training", "inference")
            for contender in ("keras", native)
        ]
        train_keras, train_native, infer_keras, infer_native = map(times, cells)
        saved = [
            find(rows, contender=name)[0]["saved"] for name in ("keras_bn", "keras")
        ]
        kept = (
            "not counted"
            if None in saved
            else "{:.2f} and {:.2f} inputs".format(*saved)
        )
        lines.append(
            f"| {backend} ({way}) | {train_keras} | {train_native} ({native}) | "
            f"{infer_keras}, {infer_native} | {kept} | {added(backend)} |"
        )
    machines = {machine_line({**load(b)["machine"]}): None for b in BACKENDS}
    return "\n".join([*lines, "", *(f"- {line}" for line in machines)])


def times(ratio: float | None) -> str:
    """A ratio for a reader."""
    return "-" if ratio is None else f"{ratio:.2f} times"


def added(backend: str) -> str:
    """What our layer and Keras's add to the ResNet-20 step without norm."""
    rows = load(f"{backend}-resnet20")["rows"]
    ours, keras = (
        find(rows, contender=name)[0]["added_ms"] for name in ("keras_bn", "keras")
    )
    (none,) = find(rows, contender="no norm")
    return f"{ours:+.0f} ms, {keras:+.0f} ms ({none['median_ms']:.0f} ms)"


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


def measured(name: str) -> list[str]:
    """The backends that there is a file of this name for."""
    folder = DOCS / "measurements"
    return [b for b in BACKENDS if (folder / f"{b}-{name}.json").exists()]


def machines(name: str) -> list[str]:
    """What each backend's file of this name was measured on, once each."""
    lines = (machine_line(load(f"{b}-{name}")["machine"]) for b in measured(name))
    return [f"- {line}" for line in dict.fromkeys(lines)]


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
    """Rewrites the pages, or with --check says whether they would change."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = [
        page for page, names in PAGES.items() if filled(page, names) != page.read_text()
    ]
    for page in stale:
        if check:
            print(f"{page.name} is not up to date: run python docs/fill_tables.py")
        else:
            page.write_text(filled(page, PAGES[page]))
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
