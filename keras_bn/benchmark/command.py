"""The command line of the benchmark."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from keras_bn.backend import timing
from keras_bn.benchmark import report
from keras_bn.benchmark.layer import CASES, PASSES, Case, Row, run_case
from keras_bn.benchmark.model import added_share, run_model

_WIDTH = 132


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    options = _parser().parse_args(argv)
    ways = timing().WAYS if options.way == "all" else options.way.split(",")
    unknown = set(ways) - set(timing().WAYS)
    if unknown:
        raise SystemExit(
            f"Argument --way must be out of {timing().WAYS} on this backend. "
            f"Received: {', '.join(sorted(unknown))}"
        )
    # Into a file or a pipe, as wide as the table; on a terminal, as wide as that is.
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    rows = _measure(options, ways, console)
    console.print(report.table(rows))
    console.print(
        "vs ours: time over keras_bn's, median of the rounds. vs limit: time over that "
        "of as many passes over memory as the arithmetic needs, at a copy's speed. "
        "saved: kept for the backward pass, in inputs.",
        style="dim",
    )
    if options.model:
        console.print(
            f"Normalization adds {added_share(rows):.2f} of what Keras's layer adds."
        )
    if options.json:
        report.write_json(rows, options.json)
    if options.plot:
        report.plot(rows, options.plot)
    return 0


def _measure(
    options: argparse.Namespace, ways: Sequence[str], console: Console
) -> list[Row]:
    with Progress(console=console, transient=True) as progress:
        if options.model:
            task = progress.add_task(options.model, total=options.rounds)
            return run_model(
                options.batch, options.rounds, lambda: progress.advance(task)
            )
        cases = _cases(options)
        jobs = [(c, m, w) for c in cases for m in options.mode.split(",") for w in ways]
        task = progress.add_task("", total=len(jobs) * options.rounds)
        rows: list[Row] = []
        for case, mode, way in jobs:
            progress.update(task, description=f"{case.name}, {mode}, {way}")
            rows += run_case(
                case, mode, way, options.rounds, lambda: progress.advance(task)
            )
        return rows


def _cases(options: argparse.Namespace) -> list[Case]:
    if options.shape:
        return [
            Case("given", shape, options.axis, options.dtype) for shape in options.shape
        ]
    known = {case.name: case for case in CASES}
    if not options.case:
        return list(CASES)
    missing = set(options.case) - set(known)
    if missing:
        raise SystemExit(
            f"Argument --case must be out of {sorted(known)}. "
            f"Received: {', '.join(sorted(missing))}"
        )
    return [known[name] for name in options.case]


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(size) for size in text.split("x"))
    except ValueError:
        shape = ()
    if len(shape) < 2 or min(shape) < 1:
        raise argparse.ArgumentTypeError(
            f"expected sizes with an x between, such as 32x56x56x64; received {text!r}"
        )
    return shape


def _modes(text: str) -> str:
    if set(text.split(",")) - set(PASSES):
        raise argparse.ArgumentTypeError(
            f"expected out of {', '.join(PASSES)}; received {text!r}"
        )
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m keras_bn.benchmark",
        description="Times this package's layer, Keras's and the framework's own, in "
        "turns, on the backend that KERAS_BACKEND names.",
    )
    add = parser.add_argument
    add("--case", action="append", help="a case by name (may be repeated); all if none")
    add("--shape", action="append", type=_shape, help="a shape of yours, 32x56x56x64")
    add("--axis", type=int, default=-1, help="the feature axis for --shape")
    add(
        "--dtype",
        default="float32",
        choices=["float32", "bfloat16", "float16"],
        help="the dtype for --shape",
    )
    add(
        "--mode",
        type=_modes,
        default="training,inference",
        help="training, inference or both (default)",
    )
    add(
        "--way",
        default=timing().WAYS[0],
        help=f"how steps run, out of {', '.join(timing().WAYS)}, or all; "
        f"{timing().WAYS[0]} by default",
    )
    add("--rounds", type=int, default=25, help="how often each one runs (25)")
    add("--model", choices=["resnet20"], help="whole training steps of this model")
    add("--batch", type=int, default=128, help="images a step for --model (128)")
    add("--json", type=Path, metavar="FILE", help="write the result as JSON")
    add("--plot", type=Path, metavar="FILE", help="write a picture (needs matplotlib)")
    return parser
