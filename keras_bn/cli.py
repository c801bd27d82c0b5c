"""The `keras-bn` command: the tools, on files."""

import argparse
import ast
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from keras_bn import _exchange, tools
from keras_bn._files import (
    DONE,
    FOUND,
    UNREADABLE,
    UNWRITTEN,
    USAGE,
    Failure,
    check_model_output,
    check_output,
    import_first,
    load,
    load_data,
    served,
    warnings_as_lines,
    write,
    write_model,
)
from keras_bn.tools._graphs.walk import batch_norms, is_domain_norm, is_plain_batch_norm

BENCHMARK = "benchmark"

PLOTS = (".png", ".pdf", ".svg")

EPILOG = f"""exit codes:
  {DONE}  done
  {FOUND}  inspect: found something that makes inference wrong (severity "error")
  {USAGE}  the command line is wrong
  {UNREADABLE}  an input file cannot be read, or the tool cannot serve what is in it
  {UNWRITTEN}  the output exists (see --force) or cannot be written

Keras's backend is chosen as always, by the environment variable KERAS_BACKEND."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one subcommand.

    Args:
        arguments: What follows the command's name; `sys.argv[1:]` if None.

    Returns:
        The exit code; `keras-bn --help` lists them.

    Raises:
        SystemExit: With code 2 for a wrong command line, 0 after `--help`.

    Example:

    >>> from keras_bn.cli import main
    >>> main(["fold", "no-such-file.keras", "out.keras"])
    3
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments[:1] == [BENCHMARK]:
        from keras_bn.benchmark.command import main as benchmark

        return benchmark(arguments[1:], prog=f"keras-bn {BENCHMARK}")
    options = _parser().parse_args(arguments)
    try:
        with warnings_as_lines(options.command):
            for name in options.imports:
                import_first(name)
            return options.run(options)  # type: ignore[no-any-return]
    except Failure as failure:
        print(f"keras-bn {options.command}: {failure}", file=sys.stderr)
        return failure.code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="keras-bn",
        description="Tools for batch normalization in Keras models.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for command in COMMANDS:
        one = commands.add_parser(
            command.name,
            help=command.help,
            description=command.help,
            epilog=EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        one.add_argument(
            "--import",
            dest="imports",
            action="append",
            default=[],
            metavar="MODULE",
            help="import this first, for custom layers that it registers; may be "
            "repeated",
        )
        command.add_arguments(one)
        one.set_defaults(run=command.run)
    # Served by another module's command line; here for the list.
    commands.add_parser(BENCHMARK, help="Time the layer, or the tools.")
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="a .keras (or Keras .h5) file")


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", type=Path, help="the .keras file to write")
    _add_force(parser)


def _add_force(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--force", action="store_true", help="overwrite the output")


def _add_data(parser: argparse.ArgumentParser, required: bool, size: int) -> None:
    parser.add_argument(
        "--data",
        type=Path,
        required=required,
        help="inputs: a .npy, or a .npz with the array `x`, one array, or one for "
        "each input by its name",
    )
    parser.add_argument(
        "--steps", type=_above_zero, help="how many batches; default all"
    )
    parser.add_argument(
        "--batch-size",
        type=_above_zero,
        default=size,
        help=f"samples a batch; default {size}",
    )


def _above_zero(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(
            f"expected a whole number above 0; received {text!r}"
        )
    return int(text)


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    _add_data(parser, required=False, size=128)
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    parser.add_argument("--plot", type=Path, help=f"also draw it ({', '.join(PLOTS)})")
    _add_force(parser)


def _inspect(options: argparse.Namespace) -> int:
    if options.plot is not None:
        check_output(options.plot, options.force)
        if options.plot.suffix.lower() not in PLOTS:
            kinds = ", ".join(PLOTS)
            message = f"--plot must end in one of {kinds}. Received: {options.plot}"
            raise Failure(USAGE, message)
    model = load(options.model)
    data = None if options.data is None else load_data(options.data, model)
    settings = {"steps": options.steps, "batch_size": options.batch_size}
    report = served(tools.inspect, model, data, **settings)
    print(json.dumps(report.to_dict(), indent=2) if options.json else report)
    if options.plot is not None:
        write(options.plot, options.force, report.plot)
    return FOUND if report.severity == "error" else DONE


def _add_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--check",
        nargs="?",
        const=True,
        default=False,
        metavar="FILE",
        help="compare what both models compute, on inputs from a .npy or .npz, or made "
        "up",
    )


def _check(options: argparse.Namespace, model: Any) -> Any:
    if isinstance(options.check, bool):
        return options.check
    return load_data(Path(options.check), model, "--check")


def _add_fold(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    _add_output(parser)
    _add_check(parser)


def _fold(options: argparse.Namespace) -> int:
    check_model_output(options.output, options.force)
    model = load(options.model)
    check = _check(options, model)
    model, report = served(tools.fold, model, explain=True, check=check)
    write_model(options.output, options.force, model)
    print(report)
    return DONE


def _add_convert(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    _add_output(parser)
    _add_check(parser)
    parser.add_argument(
        "--to",
        choices=("keras_bn", "keras", "group", "layer", "domain"),
        default="keras_bn",
        help="whose batch norm, or group or layer norm in its place, or a batch norm "
        "for each of several domains (--set domains=2; back by --set domain=0)",
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an argument to set in every layer, its value in JSON or Python, such as "
        "momentum=0.9 or renorm=true; may be repeated",
    )


def _convert(options: argparse.Namespace) -> int:
    check_model_output(options.output, options.force)
    overrides = dict(_setting(text) for text in options.overrides)
    model = load(options.model)
    check = _check(options, model)
    copy = served(tools.convert, model, to=options.to, check=check, **overrides)
    write_model(options.output, options.force, copy)
    norms = batch_norms(model).values()
    layers = sum(is_plain_batch_norm(one) or is_domain_norm(one) for one in norms)
    print(f"convert: {layers} batch norm layers to {options.to}")
    return DONE


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    for read in (json.loads, ast.literal_eval):  # null and true; None and True
        try:
            if name and equals:
                return name, read(value)
        except (ValueError, SyntaxError):
            pass
    expected = "--set must be NAME=VALUE with a value in JSON or Python"
    raise Failure(USAGE, f"{expected}. Received: {text!r}")


def _add_recalibrate(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    _add_output(parser)
    _add_data(parser, required=True, size=32)
    parser.add_argument(
        "--method",
        choices=("population", "ema"),
        default="population",
        help="over all data alike (default), or the moving average, continued",
    )
    parser.add_argument(
        "--prior", type=float, help="keep the old statistics as so many samples"
    )
    parser.add_argument(
        "--layer-by-layer", action="store_true", help="one pass for each layer: exact"
    )
    parser.add_argument(
        "--include-frozen", action="store_true", help="also with trainable=False"
    )


def _recalibrate(options: argparse.Namespace) -> int:
    check_model_output(options.output, options.force)
    model = load(options.model)
    data = load_data(options.data, model)
    names = ("steps", "method", "prior", "batch_size", "layer_by_layer")
    settings = {name: getattr(options, name) for name in (*names, "include_frozen")}
    settings["verbose"] = sys.stdout.isatty()  # no bar into a file or a pipe
    report = served(tools.recalibrate, model, data, **settings)
    write_model(options.output, options.force, model)
    print(report)
    return DONE


class Command(NamedTuple):
    """One subcommand: what it is called, says, takes and does."""

    name: str
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


COMMANDS = (
    Command("inspect", "Say what is wrong with batch norm.", _add_inspect, _inspect),
    Command("fold", "Fold batch norm into linear layers.", _add_fold, _fold),
    Command(
        "convert", "Change whose norm a model has, or which.", _add_convert, _convert
    ),
    Command(
        "recalibrate",
        "Set the moving statistics to those of data.",
        _add_recalibrate,
        _recalibrate,
    ),
    Command(_exchange.NAME, _exchange.HELP, _exchange.add_arguments, _exchange.run),
)
