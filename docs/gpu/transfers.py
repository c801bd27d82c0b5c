"""What the layer sends to a GPU and waits for at each call on PyTorch, as JSON.

Fake "cuda" tensors, no GPU: an upload and a wait are seen where they are asked for.

    KERAS_BACKEND=torch python docs/gpu/transfers.py
"""

import json
import os
import sys

import fake_cuda

os.environ["KERAS_BACKEND"] = "torch"
fake_cuda.load()

import torch  # noqa: E402
from launches import Count  # noqa: E402

import keras_bn  # noqa: E402

LAYERS = {
    "default": {},
    "scale=False": {"scale": False},
    "center=False": {"center": False},
    "scale=False, center=False": {"scale": False, "center": False},
    "relu": {"activation": "relu"},
    "renorm": {"renorm": True},
    "axis=1": {"axis": 1},
    "axis=(1, 3)": {"axis": (1, 3)},
    "bfloat16": {"dtype": "mixed_bfloat16"},
    "mask": {},
}
SHAPES = {"small": (4, 8, 8, 16), "large": (32, 56, 56, 64)}


def transfers(name: str, shape: tuple[int, ...], training: bool) -> dict:
    """The uploads and waits of one call, with its backward pass where it trains."""
    layer = keras_bn.BatchNormalization(**LAYERS[name])
    layer.build(shape)
    weights = [variable.value for variable in layer.trainable_variables]
    dtype = getattr(torch, layer.compute_dtype)
    x, dy = (torch.empty(shape, device="cuda", dtype=dtype) for _ in range(2))
    mask = {"mask": torch.ones(shape[:-1], dtype=torch.bool, device="cuda")}
    settings = {"training": training, **(mask if name == "mask" else {})}
    with Count() as count:
        if training:
            x.requires_grad_()
            torch.autograd.grad(layer(x, **settings), [x, *weights], dy)
        else:
            with torch.no_grad():
                layer(x, **settings)
    return {"uploads": count.uploads, "waits": count.waits}


def control() -> dict:
    """One of each, so that a count that sees nothing is found out."""
    with Count() as count:
        x = torch.empty(100, device="cuda")
        y = (x + 1).view(10, 10)
        half = torch.as_tensor(0.5, device="cuda")
        assert half.item() == 1.0  # What `Count` answers to any question.
        assert y.sum().shape == ()
    return {
        "uploads": count.uploads,
        "waits": count.waits,
        "kernels": count.kernels(),
        "bytes": round(count.passes(1)),
    }


def every() -> dict:
    """A row a layer, size and mode, and the control."""
    with fake_cuda.tensors():
        found = {"control": control()}
        for name in LAYERS:
            for size, shape in SHAPES.items():
                for mode in ("training", "inference"):
                    case = f"{name}, {size}, {mode}"
                    found[case] = transfers(name, shape, mode == "training")
    return found


if __name__ == "__main__":
    json.dump(every(), sys.stdout, indent=1)
