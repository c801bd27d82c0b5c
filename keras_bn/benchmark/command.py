"""The command line of the benchmark."""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
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
from keras_bn.benchmark.layer import CASES, PASSES, Case, Missing, Result, run_case
from keras_bn.benchmark.model import (
    DEFAULT,
    NETWORKS,
    Run,
    run_folded,
    run_model,
    speed_of_folded,
)
from keras_bn.benchmark.tools import run_tools

Job = tuple[str, Callable[[Callable[[], object]], Result]]
"""What to say of it, and what runs it, given a function to call after each round."""

_WIDTH = 140
_ROUNDS, _ROUNDS_OF_TOOLS = 25, 3
_LEGEND = (
    "vs ours: time over that of the first line, in bold, median of the rounds. vs "
    "limit: time over that of as many passes over memory as the arithmetic needs, at a "
    "copy's speed. vs floor: time over that of the reads and writes that no layer does "
    "without, as plain operators. saved: kept for the backward pass, in inputs. added "
    "ms: to the step without norm; the difference is taken in each round of turns, and "
    "its median over the rounds reported."
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
    rows: list[Any] = []
    missing: list[Missing] = []
    with Progress(console=console, transient=True) as progress:
        for found, not_found in _measure(options, progress):
            rows += found
            missing += not_found
            if options.json:  # A run that is cut short leaves what it has.
                _write(options, options.json, report.write_json, rows, missing)
    if options.tools:
        console.print(report.tools_table(rows))
        console.print(_TOOLS_LEGEND, style="dim")
    else:
        console.print(report.table(rows))
        console.print(_LEGEND, style="dim")
    for one in missing:
        console.print(f"{one.contender}, {one.case}, {one.way}: {one.reason}")
    if options.fold:
        console.print(
            f"The folded model is {speed_of_folded(rows):.2f} times as fast as the "
            "one built without norm."
        )
    elif options.model:
        for line in report.added_lines(rows):
            console.print(line)
    if options.plot:
        _write(options, options.plot, report.plot, rows)


def _write(
    options: argparse.Namespace, path: Path, save: Callable[..., None], *results: Any
) -> None:
    # What was there when the command began was looked at then.
    write(path, True, lambda target: save(*results, target))


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Ends with code 2 where arguments do not go together.

    Raises:
        Failure: An output exists, or cannot be written.
    """
    ways = _ways()
    if options.way is None:
        options.way = DEFAULT if options.model else ways[0]
    options.ways = ways if options.way == "all" else options.way.split(",")
    if options.model:
        ways = (DEFAULT, *ways)
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
    for name in ("rounds", "batch", "side"):
        given = getattr(options, name)
        if given is not None and given < 1:
            parser.error(
                f"Argument --{name} must be a whole number above 0. Received: {given}"
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


def _measure(
    options: argparse.Namespace, progress: Progress
) -> Iterator[tuple[Sequence[Any], Sequence[Missing]]]:
    """A `Result` a job; with --tools `ToolRow`s."""
    if options.tools:
        task = progress.add_task("tools", total=options.rounds)
        yield run_tools(options.rounds, lambda: progress.advance(task)), ()
        return
    jobs = list(_model_jobs(options) if options.model else _layer_jobs(options))
    task = progress.add_task("", total=len(jobs) * options.rounds)
    for description, job in jobs:
        progress.update(task, description=description)
        yield job(lambda: progress.advance(task))


def _model_jobs(options: argparse.Namespace) -> Iterator[Job]:
    run = Run(options.model, options.batch, options.rounds, options.side)
    if options.fold:
        yield options.model, partial(run_folded, run)
        return
    for way in options.ways:
        yield f"{options.model}, {way}", partial(run_model, run, way)


def _layer_jobs(options: argparse.Namespace) -> Iterator[Job]:
    for case in _cases(options):
        for mode in options.mode.split(","):
            for way in options.ways:
                job = partial(run_case, case, mode, way, options.rounds)
                yield f"{case.name}, {mode}, {way}", job


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
        help=f"how steps run, out of {', '.join(ways)}, or all; {ways[0]} by default, "
        "and with --model Keras's train_on_batch",
    )
    add("--rounds", type=int, help="how often each one runs (25; with --tools 3)")
    add("--model", choices=list(NETWORKS), help="whole training steps of it")
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
    add("--side", type=int, help="of the images for --model (32, of resnet50 224)")
    add("--json", type=Path, metavar="FILE", help="write the result as JSON")
    add("--plot", type=Path, metavar="FILE", help="write a picture (needs matplotlib)")
    add("--force", action="store_true", help="overwrite the outputs")
    return parser
