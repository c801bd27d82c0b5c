"""What XLA makes of the kernels on JAX, where a network's time hangs on it."""

import re

import keras
import numpy as np
import pytest

from keras_bn.ops import batch_norm_train

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="looks into what XLA compiled for JAX"
)

MOVES = {"bitcast", "constant", "copy", "pad", "parameter", "reverse", "transpose"}


def strided_copies(text):
    """Of each fused computation that transposes, the operations in it."""
    computations = re.findall(r"^%\S+ \(.*?\n(.*?)^}", text, re.MULTILINE | re.DOTALL)
    return [
        set(re.findall(r"= \S+ ([\w-]+)\(", body))
        for body in computations
        if " transpose(" in body
    ]


def test_convolutions_read_outputs_and_gradients_as_they_are():
    import jax

    def loss(kernels, x):
        for kernel in kernels:
            x = keras.ops.conv(x, kernel, padding="same", data_format="channels_last")
            x, _ = batch_norm_train(x, activation="relu")
        return (x * x).sum()

    rng = np.random.default_rng(0)
    kernels = [rng.normal(size=(3, 3, 8, 8)).astype("float32") for _ in range(3)]
    x = rng.normal(size=(16, 16, 16, 8)).astype("float32")
    compiled = jax.jit(jax.grad(loss)).lower(kernels, x).compile()
    copies = strided_copies(compiled.as_text())
    assert len(copies) >= 2 * len(kernels)  # of input and gradient, for each kernel
    # The first block's gradient has one reader, so that nothing is computed twice.
    assert sum(1 for operations in copies if operations - MOVES) <= 1
