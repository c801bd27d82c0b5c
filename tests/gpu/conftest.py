"""The tests that want a GPU, and on what they run: `make gpu`, or GPU_DRY=1 on the CPU.

All go through the public interface: they say what must hold on a device, not how.
"""

import os

import keras
import pytest

import frameworks

DRY = os.environ.get("GPU_DRY") == "1"
# What only PyTorch has: a file of another framework is not collected at all.
collect_ignore = [] if keras.backend.backend() == "torch" else ["test_torch_device.py"]


@pytest.fixture(autouse=True)
def device():
    """The kind of device under test, which must be one unless the run is a dry one."""
    kind = frameworks.platform()
    if (kind == "cpu") != DRY:
        raise RuntimeError(
            "The tests marked gpu run on a GPU, or with GPU_DRY=1 on the CPU. "
            f"Received: GPU_DRY={os.environ.get('GPU_DRY')} on the device {kind}"
        )
    return kind
