"""What the parts of a training pass on PyTorch's CPU operators keep to."""

import keras
import numpy as np
import pytest
from test_kernels import Inputs

import cases
import frameworks
import oracle
from keras_bn.ops import batch_norm_train

SERVED = keras.backend.backend() == "torch"
pytestmark = pytest.mark.skipif(not SERVED, reason="PyTorch's operators")
if SERVED:
    import torch

    from keras_bn.backend import torch_cpu


@pytest.mark.parametrize("samples", [63, 4096, 4097, 3**9, 64 * 4099, 16411])
def test_runs_are_equal_and_as_long_as_may_be(samples):
    """Others are added up in a way that takes several times as long."""
    lengths = [one for one in range(64, 4097) if samples % one == 0]
    assert samples // torch_cpu._runs(samples) == max(lengths, default=samples)


def test_a_mean_far_out_costs_no_digit():
    """From 10 deviations on, it is taken off before anything else."""
    x = np.random.default_rng(0).normal(18, 1, (8192, 8)).astype("float32")
    y, _ = batch_norm_train(frameworks.tensor(x))
    right = oracle.forward(x.astype("float64")).y
    np.testing.assert_allclose(frameworks.numpy(y), right, rtol=0, atol=4e-6)


@pytest.mark.parametrize("name", ["image", "first_image"])
def test_a_centre_beside_the_mean_changes_nothing(name):
    """As a mean does that was rounded: the residual says by how much it is off."""
    inputs = Inputs(cases.SHAPES[name], "float64")
    x, *vectors = inputs.tensors
    parts = torch_cpu.SmallParts(inputs.axes, 1e-3, "tanh")
    found, deviation = parts.moments(x)
    beside = found._replace(centre=found.centre + 0.25, residual=found.residual - 0.25)
    one, other = (
        (
            *moments.bookkeeping(),
            parts.normalize(x, values, *vectors, moments),
            *parts.gradients(x, *vectors, inputs.dy, moments, None, True),
        )
        for moments, values in ((found, deviation), (beside, deviation - 0.25))
    )
    torch.testing.assert_close(one, other)
