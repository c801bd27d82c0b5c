"""The command `keras-bn from-torch`: the weights of a PyTorch model's file."""

import argparse
from pathlib import Path

from keras_bn import tools
from keras_bn._files import (
    DONE,
    UNREADABLE,
    USAGE,
    Failure,
    check_model_output,
    load,
    served,
    write_model,
)

NAME = "from-torch"
HELP = "Put the weights of a PyTorch model into one of Keras."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what the command takes."""
    parser.add_argument("model", type=Path, help="a .keras (or Keras .h5) file")
    parser.add_argument(
        "weights",
        type=Path,
        help="a .safetensors file, or one that torch.save wrote (needs PyTorch), of "
        "which nothing but tensors is read",
    )
    parser.add_argument("output", type=Path, help="the .keras file to write")
    parser.add_argument("--force", action="store_true", help="overwrite the output")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the pairs, and write nothing"
    )
    parser.add_argument(
        "--epsilon", type=float, help="eps of the PyTorch layers; 1e-5 is its default"
    )
    parser.add_argument(
        "--momentum",
        type=float,
        help="momentum of the PyTorch layers: the share that is replaced",
    )
    parser.add_argument(
        "--map",
        dest="mapping",
        action="append",
        default=[],
        metavar="LAYER=PREFIX",
        help="which weights a layer gets; may be repeated",
    )
    parser.add_argument(
        "--layers",
        choices=("norms", "all"),
        default="norms",
        help="all: also the kernels and biases of convolutions and dense layers",
    )
    parser.add_argument(
        "--no-strict",
        dest="strict",
        action="store_false",
        help="leave out layers and weights without a counterpart by name",
    )
    parser.add_argument("--key", help="where in a checkpoint the weights are: ema, ...")
    parser.add_argument(
        "--count",
        type=int,
        help="values of a channel in a training batch, to make the variances biased",
    )
    parser.add_argument(
        "--flatten",
        choices=("channels_first", "channels_last"),
        help="in which order the PyTorch model flattens images",
    )


def run(options: argparse.Namespace) -> int:
    """Runs the command; its exit code."""
    if not options.dry_run:
        check_model_output(options.output, options.force)
    mapping = dict(_pair(text) for text in options.mapping)
    if not options.weights.is_file():
        raise Failure(
            UNREADABLE, f"the weights' file must exist. Received: {options.weights}"
        )
    model = load(options.model)
    settings = {name: getattr(options, name) for name in ("layers", "strict", "key")}
    files = (model, options.weights, mapping)
    print(served(tools.match_torch, *files, **settings))
    if options.dry_run:
        return DONE
    names = ("epsilon", "momentum", "count", "flatten")
    settings |= {name: getattr(options, name) for name in names}
    model = served(tools.from_torch, *files, **settings)
    write_model(options.output, options.force, model)
    return DONE


def _pair(text: str) -> tuple[str, str]:
    layer, equals, prefix = text.partition("=")
    if not equals:
        raise Failure(USAGE, f"--map must be LAYER=PREFIX. Received: {text!r}")
    return layer, prefix
