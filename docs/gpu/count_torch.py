"""Counts a training step on PyTorch for CUDA, eager and compiled, without a GPU.

    python docs/gpu/count_torch.py --json docs/measurements/passes-torch.json

The compiled rows need Triton, in a folder on PYTHONPATH: see docs/gpu/passes.py.
"""

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import fake_cuda

os.environ["KERAS_BACKEND"] = "torch"
fake_cuda.load()

import keras  # noqa: E402
import torch  # noqa: E402
from counted import SHAPE, row, write  # noqa: E402
from launches import Count, saved  # noqa: E402

import keras_bn  # noqa: E402

EPSILON, MOMENTUM = 1e-3, 0.99
DTYPES = ("float32", "bfloat16")


class Contender(NamedTuple):
    """A function of x, and what it differentiates besides x."""

    name: str
    function: Callable[[torch.Tensor], torch.Tensor]
    weights: list[torch.Tensor]


def contenders(dtype: str) -> Iterator[Contender]:
    """Ours, Keras's and PyTorch's, alone and with a ReLU; ours in harder cases too."""
    policy = None if dtype == "float32" else f"mixed_{dtype}"
    options = {"epsilon": EPSILON, "momentum": MOMENTUM, "dtype": policy}
    mask = torch.ones(SHAPE[:-1], dtype=torch.bool, device="cuda")
    ours, theirs = keras_bn.BatchNormalization, keras.layers.BatchNormalization
    for name, kind, arguments, call, after in (
        ("keras_bn", ours, {}, {}, None),
        ("keras", theirs, {}, {}, None),
        ("keras_bn + relu", ours, {"activation": "relu"}, {}, None),
        ("keras + relu", theirs, {}, {}, torch.relu),
        ("keras_bn, mask", ours, {}, {"mask": mask}, None),
        ("keras_bn, axis=(1, 3)", ours, {"axis": (1, 3)}, {}, None),
        ("keras_bn, renorm", ours, {"renorm": True}, {}, None),
    ):
        layer = kind(**options, **arguments)
        layer.build(SHAPE)
        weights = [variable.value for variable in layer.trainable_variables]
        yield Contender(name, _call(layer, call, after), weights)
    yield from _natives()


def _call(
    layer: keras.Layer, arguments: dict[str, Any], after: Callable[..., Any] | None
) -> Callable[[torch.Tensor], torch.Tensor]:
    def call(x: torch.Tensor) -> torch.Tensor:
        y = layer(x, training=True, **arguments)
        return y if after is None else after(y)

    return call


def _natives() -> Iterator[Contender]:
    """`torch.nn.BatchNorm2d`, as it calls the operator; it cannot be made fake."""
    channels = SHAPE[-1]
    weights = [torch.ones(channels, device="cuda", requires_grad=True) for _ in "gb"]
    statistics = [torch.ones(channels, device="cuda") for _ in "mv"]
    batches = torch.zeros((), dtype=torch.int64, device="cuda")

    def norm(x: torch.Tensor) -> torch.Tensor:
        batches.add_(1)
        return torch.nn.functional.batch_norm(
            *(x.permute(0, 3, 1, 2), *statistics, *weights),
            *(True, 1 - MOMENTUM, EPSILON),
        )

    yield Contender("torch.nn.BatchNorm2d", norm, weights)
    yield Contender("torch.nn.BatchNorm2d + relu", lambda x: norm(x).relu(), weights)


def eager(contender: Contender, dtype: str) -> dict[str, Any]:
    """The operators of one step."""
    unit, step = _step(contender, dtype)
    with Count() as count:
        step(contender.function)
    x = _input(dtype).requires_grad_()
    return row(
        "eager",
        contender.name,
        dtype,
        kernels=count.kernels(),
        passes=count.passes(unit),
        saved=saved(lambda: contender.function(x), unit),
        uploads=len(count.uploads),
        waits=len(count.waits),
    )


def compiled(contender: Contender, dtype: str) -> dict[str, Any]:
    """The kernels that Inductor would make of one step."""
    from inductor import Compiled

    torch.compiler.reset()
    unit, step = _step(contender, dtype)
    count = Compiled()
    function = torch.compile(contender.function, backend=count.backend)
    step(function)
    return row(
        "compiled",
        contender.name,
        dtype,
        kernels=count.kernels(),
        passes=count.passes(unit),
        saved=saved(lambda: function(_input(dtype).requires_grad_()), unit),
        # Under a `Count`, torch.compile would not compile. A look at a value breaks the
        # graph; what is sent stands in no graph.
        uploads=None,
        waits=None,
        graph_breaks=len(count.forward) - 1,
    )


def _input(dtype: str) -> torch.Tensor:
    return torch.empty(SHAPE, device="cuda", dtype=getattr(torch, dtype))


def _step(contender: Contender, dtype: str) -> tuple[int, Callable[..., Any]]:
    """The bytes of the input, and a training step that takes the function."""
    x, seed = _input(dtype).requires_grad_(), _input(dtype)

    def step(function: Callable[[torch.Tensor], torch.Tensor]) -> object:
        y = function(x)
        dy = seed if y.shape == seed.shape else seed.permute(0, 3, 1, 2)
        return torch.autograd.grad(y, [x, *contender.weights], dy)

    return x.numel() * x.element_size(), step


def counted(way: Callable[[Contender, str], dict[str, Any]]) -> list[dict[str, Any]]:
    """All rows of a way."""
    rows = []
    with fake_cuda.tensors():
        for dtype in DTYPES:
            for contender in contenders(dtype):
                # Renorm's limits are numbers made tensors, which Dynamo would make on
                # the device that is not there.
                if way is compiled and "renorm" in contender.name:
                    continue
                rows.append(way(contender, dtype))
                print(json.dumps(rows[-1]), file=sys.stderr)
    return rows


def _pretend_that_triton_serves() -> None:
    """As on a device, where the smallest of the kernels is tried first."""
    from keras_bn.backend import torch_cuda, torch_cuda_operators

    assert torch_cuda_operators.usable is not None
    torch_cuda._reason = lambda device: None


def main() -> int:
    """Counts all rows, and prints or writes them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the rows there")
    path = parser.parse_args().json
    triton = importlib.util.find_spec("triton") is not None
    if triton:
        _pretend_that_triton_serves()
    rows = counted(eager)
    if triton:
        from inductor import pretend

        pretend()
        rows += counted(compiled)
    else:
        print("No Triton, so no compiled rows: see passes.py", file=sys.stderr)
    write(rows, {"torch": torch.__version__, "keras": keras.__version__}, path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
