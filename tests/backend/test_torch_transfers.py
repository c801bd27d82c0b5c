"""On a GPU, a call sends nothing and waits for nothing: seen on fake tensors.

The fake device is loaded into PyTorch before it is imported, so the calls run in a
process of their own: see docs/gpu/transfers.py.
"""

import json
from pathlib import Path

import keras
import pytest

import fresh_process

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="PyTorch's way of waiting for a device"
)

SCRIPT = Path(__file__).parents[2] / "docs" / "gpu" / "transfers.py"
LAYERS = (
    *("default", "scale=False", "center=False", "scale=False, center=False"),
    *("relu", "renorm", "axis=1", "axis=(1, 3)", "bfloat16", "mask"),
)


@pytest.fixture(scope="module")
def found():
    import torch

    if torch.version.cuda:
        pytest.skip("a build for CUDA has a device where the fake one goes")
    return json.loads(fresh_process.run([SCRIPT], "torch"))


def test_what_is_counted_is_what_there_is(found):
    assert found["control"] == {
        "uploads": ["_to_copy"],
        "waits": ["_local_scalar_dense"],
        "kernels": 3,  # The sum of two, the number's upload, the sum of all.
        "bytes": (400 + 400) + (4 + 4) + (400 + 4),
    }


@pytest.mark.parametrize("mode", ["training", "inference"])
@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("layer", LAYERS)
def test_nothing_is_sent_and_nothing_waited_for(layer, size, mode, found):
    assert found[f"{layer}, {size}, {mode}"] == {"uploads": [], "waits": []}
