"""Set-up for every test: one backend a process, fixed seeds, Keras's state restored."""

import os

import keras
import pytest

if os.environ.get("KERAS_BACKEND") != keras.backend.backend():
    raise pytest.UsageError(
        "The tests run once per backend: set KERAS_BACKEND to tensorflow, jax or torch "
        "(`make test` does). An absent backend is a failure, not a skip."
    )


@pytest.fixture(autouse=True)
def _fresh_keras():
    keras.utils.set_random_seed(0)
    policy = keras.config.dtype_policy()
    yield
    keras.config.set_dtype_policy(policy)


@pytest.fixture
def float64():
    """Float64 switched on where a backend has a switch for it (JAX)."""
    import frameworks

    with frameworks.float64():
        yield
