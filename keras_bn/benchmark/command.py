"""The command line of the benchmark."""

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from keras_bn._files import (
    DONE,
    UNREADABLE,
    UNWRITTEN,
    USAGE,
    Failure,
    check_output,
    write,
)
from keras_bn.backend import timing
from keras_bn.benchmark import report
from keras_bn.benchmark.layer import CASES, PASSES, Case, Row, run_case
from keras_bn.benchmark.model import (
    added,
    run_folded,
    run_model,
    speed_of_folded,
)
from keras_bn.benchmark.tools import run_tools

_WIDTH = 132
_ROUNDS, _ROUNDS_OF_TOOLS = 25, 3
_LEGEND = (
    "vs ours: time over that of the first line, in bold, median of the rounds. vs "
    "limit: time over that of as many passes over memory as the arithmetic needs, at a "
    "copy's speed. vs floor: time over that of the reads and writes that no layer does "
    "without, as plain operators. saved: kept for the backward pass, in inputs."
)
_TOOLS_LEGEND = (
    "copies: memory at its highest in sizes of the model, the model itself included."
)


def main(
    argv: Sequence[str] | None = None, prog: str = "python -m keras_bn.benchmark"
) -> int:
    """Runs the benchmark.

    Args:
        argv: What follows the command's name; `sys.argv[1:]` if None.
        prog: The command's name, for its help.

    Returns:
        The exit code; `--help` lists them.

    Raises:
        SystemExit: With code 2 for a wrong command line, 0 after `--help`.
    """
    try:
        parser = _parser(prog)
        options = parser.parse_args(argv)
        _check(parser, options)
        _run(options)
    except Failure as failure:
        print(f"{prog}: {failure}", file=sys.stderr)
        return failure.code
    return DONE


def _run(options: argparse.Namespace) -> None:
    # Into a file or a pipe, as wide as the table; on a terminal, as wide as that is.
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    with Progress(console=console, transient=True) as progress:
        rows = _measure(options, progress)
    if options.tools:
        console.print(report.tools_table(rows))
        console.print(_TOOLS_LEGEND, style="dim")
    else:
        console.print(report.table(rows))
        console.print(_LEGEND, style="dim")
    if options.fold:
        console.print(
            f"The folded model is {speed_of_folded(rows):.2f} times as fast as the "
            "one built without norm."
        )
    elif options.model:
        ours, keras_s = added(rows)
        console.print(
            f"Normalization adds {ours:.0f} ms to the step without norm; Keras's layer "
            f"adds {keras_s:.0f} ms."
        )
    for path, save in ((options.json, report.write_json), (options.plot, report.plot)):
        if path:
            write(path, options.force, functools.partial(save, rows))


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Ends with code 2 where arguments do not go together.

    Raises:
        Failure: An output exists, or cannot be written.
    """
    ways = _ways()
    options.ways = ways if options.way == "all" else options.way.split(",")
    known = [case.name for case in CASES]
    for name, given, allowed in (
        ("--way", options.ways, ways),
        ("--case", options.case or (), sorted(known)),
    ):
        unknown = sorted(set(given) - set(allowed))
        if unknown:
            parser.error(
                f"Argument {name} must be out of {allowed} on this backend. "
                f"Received: {', '.join(unknown)}"
            )
    if options.rounds is None:
        options.rounds = _ROUNDS_OF_TOOLS if options.tools else _ROUNDS
    for name in ("rounds", "batch"):
        if getattr(options, name) < 1:
            parser.error(
                f"Argument --{name} must be a whole number above 0. "
                f"Received: {getattr(options, name)}"
            )
    if options.fold and not options.model:
        parser.error("Argument --fold needs --model, whose inference it times")
    if options.tools and (options.model or options.plot):
        parser.error("Argument --tools goes with --rounds, --json and --force only")
    for path in filter(None, (options.json, options.plot)):
        check_output(path, options.force)


def _ways() -> tuple[str, ...]:
    try:
        return tuple(timing().WAYS)
    except ValueError as error:
        raise Failure(UNREADABLE, str(error)) from error


def _measure(options: argparse.Namespace, progress: Progress) -> list[Any]:
    """`Row`s, or `ToolRow`s with --tools."""
    if options.model or options.tools:
        task = progress.add_task(options.model or "tools", total=options.rounds)

        def tick() -> None:
            progress.advance(task)

        if options.tools:
            return run_tools(options.rounds, tick)
        run = run_folded if options.fold else run_model
        return run(options.batch, options.rounds, tick)
    modes = options.mode.split(",")
    jobs = [(c, m, w) for c in _cases(options) for m in modes for w in options.ways]
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
    return [case for case in CASES if not options.case or case.name in options.case]


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


def _parser(prog: str) -> argparse.ArgumentParser:
    ways = _ways()
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Times this package's layer, Keras's and the framework's own, in "
        "turns, on the backend that KERAS_BACKEND names.",
        epilog=f"exit codes: {DONE} done, {USAGE} the command line is wrong, "
        f"{UNREADABLE} the backend does not train, {UNWRITTEN} an output exists (see "
        "--force) or cannot be written",
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
        default=ways[0],
        help=f"how steps run, out of {', '.join(ways)}, or all; {ways[0]} by default",
    )
    add("--rounds", type=int, help="how often each one runs (25; with --tools 3)")
    add("--model", choices=["resnet20"], help="whole training steps of this model")
    add(
        "--fold",
        action="store_true",
        help="with --model: its inference, folded, built without norm, and with it",
    )
    add(
        "--tools",
        action="store_true",
        help="convert, fold and inspect a model of 1,000 layers: time and memory",
    )
    add("--batch", type=int, default=128, help="images a step for --model (128)")
    add("--json", type=Path, metavar="FILE", help="write the result as JSON")
    add("--plot", type=Path, metavar="FILE", help="write a picture (needs matplotlib)")
    add("--force", action="store_true", help="overwrite the outputs")
    return parser
