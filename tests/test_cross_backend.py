"""TensorFlow, JAX and PyTorch compute the same, and read each other's files."""

from itertools import combinations, permutations

import numpy as np
import pytest

import cross_backend_worker as worker
from slow import slow

pytestmark = [
    pytest.mark.once,
    slow(
        "starts each framework twice",
        witness="test_training_ends_as_on_the_other_backends",
    ),
]

PAIRS = list(combinations(worker.BACKENDS, 2))

# Relative to the largest magnitude of the two arrays, float32 throughout. A gradient
# is a difference of sums that nearly cancel, divided by the standard deviation.
TOLERANCE = {"gradient_x": 1e-4, "gradient_gamma": 1e-4, "gradient_beta": 1e-4}
DEFAULT_TOLERANCE = 1e-5
# What bfloat16 makes of a float32 is one rounding off where the float32 is a bit off.
BFLOAT16 = 2**-8

CALLS = [f"{name}/{entry}" for name in worker.CALLS for entry in worker.OF_A_CALL]
BRANCHES = worker.entries()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cross_backend")
    worker.run_everywhere("compute", folder)
    worker.run_everywhere("load", folder)
    return folder


@pytest.fixture(scope="module")
def computed(folder):
    return {name: dict(np.load(folder / f"{name}.npz")) for name in worker.BACKENDS}


@pytest.fixture(scope="module")
def loaded(folder):
    return {
        name: dict(np.load(folder / f"{name}_loaded.npz")) for name in worker.BACKENDS
    }


def close(one, other, tolerance):
    assert one.shape == other.shape
    assert one.dtype == other.dtype
    scale = max(np.abs(one).max(), np.abs(other).max())
    np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("entry", CALLS + BRANCHES)
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_two_backends_compute_the_same(computed, pair, entry):
    tolerance = TOLERANCE.get(entry.partition("/")[2], DEFAULT_TOLERANCE)
    if entry == "mixed_bfloat16/prediction":
        tolerance = BFLOAT16
    close(computed[pair[0]][entry], computed[pair[1]][entry], tolerance)


@pytest.mark.parametrize("name", worker.BRANCHES)
@pytest.mark.parametrize(
    ("saver", "loader"), list(permutations(worker.BACKENDS, 2)), ids=lambda name: name
)
def test_a_saved_model_predicts_the_same(computed, loaded, saver, loader, name):
    expected = computed[saver][f"{name}/prediction"]
    tolerance = BFLOAT16 * np.abs(expected).max() if "bfloat16" in name else 1e-5
    difference = np.abs(loaded[loader][f"{saver}/{name}"] - expected).max()
    assert difference <= tolerance


@pytest.mark.parametrize("backend", worker.BACKENDS)
def test_every_entry_is_compared_and_is_finite(computed, backend):
    assert set(computed[backend]) == set(CALLS + BRANCHES)
    flat = np.concatenate([array.ravel() for array in computed[backend].values()])
    assert np.isfinite(flat).all()


@pytest.mark.parametrize("backend", worker.BACKENDS)
def test_training_moved_the_statistics(computed, backend):
    assert np.abs(computed[backend]["dense/moving_mean"]).min() > 0
