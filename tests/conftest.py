"""Set-up for every test: one backend a process, fixed seeds, Keras's state restored."""

import collections
import gc
import os
import re
import sys
from types import SimpleNamespace

# Triton's kernels run in its interpreter, unless set otherwise: with a GPU, `make gpu`
# tests them as they are. Triton reads this as it is imported, by PyTorch.
os.environ.setdefault("TRITON_INTERPRET", "1")

import keras
import numpy as np
import pytest

# A third of what the collection costs would be a search for garbage among modules.
gc.disable()

if os.environ.get("KERAS_BACKEND") != keras.backend.backend():
    raise pytest.UsageError(
        "The tests run once per backend: set KERAS_BACKEND to tensorflow, jax or torch "
        "(`make test` does). An absent backend is a failure, not a skip."
    )


@pytest.fixture(autouse=True)
def _fresh_keras():
    with pytest.MonkeyPatch.context() as patch:
        # Keras seeds TensorFlow on every backend, and imports it for that: 2.5 s.
        if "tensorflow" not in sys.modules:
            absent = SimpleNamespace(available=False)
            patch.setattr("keras.src.utils.rng_utils.tf", absent)
        keras.utils.set_random_seed(0)
    policy = keras.config.dtype_policy()
    yield
    keras.config.set_dtype_policy(policy)


_ONCE = re.compile(r"^pytestmark = pytest\.mark\.once$", re.MULTILINE)


def pytest_ignore_collect(collection_path, config):
    """No process imports a file of which it runs nothing."""
    if not collection_path.name.startswith("test_"):
        return None
    wanted, text = config.getoption("markexpr"), collection_path.read_text()
    if wanted.endswith("and not once"):
        return bool(_ONCE.search(text)) or None
    if wanted.endswith("and once"):
        return "pytest.mark.once" not in text or None
    return None


def pytest_collection_finish():
    """What is there now stays, so that no later search looks at it."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    gc.enable()


@pytest.fixture
def float64():
    """Float64 switched on where a backend has a switch for it (JAX)."""
    import frameworks

    with frameworks.float64():
        yield


@pytest.fixture
def zero_kernels(monkeypatch):
    """Kernels of zeros: JAX compiles a generator of random ones for each shape."""
    monkeypatch.setattr(keras.initializers.VarianceScaling, "__call__", _zeros)


@pytest.fixture(scope="module")
def cheap_initial_weights():
    """The same for a module, of all that is random: these models get weights later."""
    with pytest.MonkeyPatch.context() as patch:
        kinds = ("VarianceScaling", "RandomNormal", "RandomUniform", "TruncatedNormal")
        for name in kinds:
            patch.setattr(getattr(keras.initializers, name), "__call__", _zeros)
        yield


def _zeros(self, shape, dtype=None):
    return np.zeros(shape, dtype or "float32")


_LEFT_OUT = collections.Counter()


def pytest_deselected(items):
    """Counts what is slow and left to `make test-all`, by the reasons."""
    marks = (item.get_closest_marker("slow") for item in items)
    _LEFT_OUT.update(mark.args[0] for mark in marks if mark)


def pytest_terminal_summary(terminalreporter):
    for reason, count in _LEFT_OUT.items():
        terminalreporter.write_line(f"left to `make test-all`: {count} ({reason})")
