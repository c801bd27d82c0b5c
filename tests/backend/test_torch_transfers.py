"""What a GPU is asked for, without one: no call sends or awaits, and kernels compile.

The fake device is loaded into PyTorch before it is imported, and Triton before that has
chosen to interpret, so this is in a process of its own: see docs/gpu/transfers.py and
docs/gpu/compile_sm90.py.
"""

import json
from pathlib import Path

import keras
import pytest

import fresh_process

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="PyTorch's way of waiting for a device"
)

SCRIPTS = Path(__file__).parents[2] / "docs" / "gpu"
# Both layouts, and of the activations those with a constant and one made of others.
KERNELS = [
    *(("last", "float32", activation) for activation in ("selu", "tanh")),
    ("first", "bfloat16", "leaky_relu"),
    ("last, 3 channels", "float32", "None"),
]
QUESTIONS = f"""
import json, sys
sys.path.append({str(SCRIPTS)!r})
import transfers, compile_sm90
chosen = [one for one in compile_sm90.calls() if one[0] in {KERNELS}]
(_, x, *rest), *_ = chosen
chosen.append((("again",) * 3, x[:1], *rest, 1))
kernels = list(compile_sm90.compiled(chosen))
print(json.dumps({{"calls": transfers.every(), "kernels": kernels}}))
"""
LAYERS = (
    *("default", "scale=False", "center=False", "scale=False, center=False"),
    *("relu", "renorm", "axis=1", "axis=(1, 3)", "bfloat16", "mask"),
)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    import torch

    if torch.version.cuda:
        pytest.skip("a build for CUDA has a device where the fake one goes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "0")
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        return json.loads(fresh_process.run(["-c", QUESTIONS], "torch"))


def test_what_is_counted_is_what_there_is(found):
    assert found["calls"]["control"] == {
        "uploads": ["_to_copy"],
        "waits": ["_local_scalar_dense"],
        "kernels": 3,  # The sum of two, the number's upload, the sum of all.
        "bytes": (400 + 400) + (4 + 4) + (400 + 4),
    }


@pytest.mark.parametrize("mode", ["training", "inference"])
@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("layer", LAYERS)
def test_nothing_is_sent_and_nothing_waited_for(layer, size, mode, found):
    call = found["calls"][f"{layer}, {size}, {mode}"]
    assert call == {"uploads": [], "waits": []}


def test_kernels_compile_and_keep_to_registers(found):
    """Triton's interpreter takes what its compiler does not."""
    names = {row["kernel"] for row in found["kernels"]}
    assert names == {
        *("moments", "merge", "normalize", "slopes", "merge_slopes", "input_gradient"),
        *("usable", "moving_average"),
    }
    assert {row["stack"] for row in found["kernels"]} == {0}
    # What lies in rows of a multiple of 16 is loaded 16 bytes at once.
    passes = ("moments", "normalize", "slopes", "input_gradient")
    loads = {
        row["loads"].partition("x")[0]
        for row in found["kernels"]
        if row["kernel"] in passes and "3 channels" not in row["input"]
    }
    assert loads == {"16"}


def test_kernels_are_compiled_once(found):
    """Not anew for another batch, for vectors that lie otherwise, or more of them."""
    assert "again" not in {row["input"] for row in found["kernels"]}
    names = [row["kernel"] for row in found["kernels"]]
    assert names.count("usable") == 1
    assert names.count("moving_average") == 2  # with a guard, and without
