"""The processes of JAX's cluster, as one of four of them, without the other three."""

import keras
import numpy as np
import pytest

from keras_bn import backend

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="the cluster is JAX's"
)
# What each has, with more digits than float32.
ROWS = np.random.default_rng(0).normal(1e3, 1, (4, 5))


@pytest.fixture
def third_of_four(monkeypatch):
    """This process is the third; it hears of the others what they would send."""
    import jax
    import jax.numpy as jnp

    def gathered(row):
        sent = [one.view(row.dtype) for one in ROWS]
        sent[2] = row
        return np.stack([np.asarray(jnp.asarray(one)) for one in sent])

    monkeypatch.setattr(jax, "process_count", lambda: 4)
    monkeypatch.setattr(jax, "process_index", lambda: 2)
    path = "jax.experimental.multihost_utils.process_allgather"
    monkeypatch.setattr(path, gathered)


@pytest.mark.usefixtures("third_of_four")
@pytest.mark.parametrize(
    ("groups", "members"),
    [(None, range(4)), (((0, 3), (1, 2)), (1, 2)), (((0,), (1, 2, 3)), (1, 2, 3))],
)
def test_vectors_of_the_own_group_come_with_all_their_digits(groups, members):
    found = backend.processes(groups).gather(ROWS[2])
    assert found.dtype == "float64"
    np.testing.assert_array_equal(found, ROWS[[*members]])


@pytest.mark.usefixtures("third_of_four")
@pytest.mark.parametrize(
    ("groups", "match"),
    [
        (("data",), r"lists of indices of processes here. Received.*\['data'\]"),
        (((0, 1), (3,)), "replica 2, the one that runs, is in none, without replica 2"),
        (((0, 1), (2, 3, 4)), r"replicas here are \[0, 1, 2, 3\]. .*with replica 4"),
    ],
)
def test_groups_that_are_none_of_processes_are_refused(groups, match):
    with pytest.raises(ValueError, match=f"Argument `replica_groups` must.*{match}"):
        backend.processes(groups)


def test_a_process_alone_has_no_others():
    assert backend.processes(((0, 1), (2,))) is None


@pytest.mark.parametrize("kind", ["numpy", "jax"])
def test_a_copy_is_numpy_s_and_its_own(kind):
    value = np.arange(3.0, dtype="float32")
    given = value if kind == "numpy" else keras.ops.convert_to_tensor(value)
    (copy,) = backend.copies(given)
    assert isinstance(copy, np.ndarray)
    copy += 1
    np.testing.assert_array_equal(given, [0, 1, 2])
    np.testing.assert_array_equal(copy, [1, 2, 3])
