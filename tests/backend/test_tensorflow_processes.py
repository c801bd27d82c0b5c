"""The workers of a strategy, and groups of them, without starting a cluster."""

import keras
import numpy as np
import pytest

from keras_bn.backend import copies, processes

if keras.backend.backend() != "tensorflow":
    pytest.skip("TensorFlow alone has these", allow_module_level=True)

import tensorflow as tf

WORKERS = {"worker": ["a:1", "b:1", "c:1"]}
# Neither trains along.
OTHERS = {"evaluator": ["d:1"], "ps": ["e:1"]}
CHIEF = {"chief": ["a:1"], "worker": ["b:1", "c:1"]}


class Cluster(tf.distribute.MultiWorkerMirroredStrategy):
    """A strategy of workers that are not there: what each replica has is known."""

    def __init__(self, jobs, job="worker", number=0, replicas=3):
        cluster = tf.train.ClusterSpec(jobs)
        self._resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
            cluster, task_type=job, task_id=number
        )
        self._rows = tf.constant([[10.0 * rank, 1.0] for rank in range(replicas)])

    cluster_resolver = property(lambda self: self._resolver)

    def run(self, function):
        return self._rows

    def experimental_local_results(self, value):
        return (value,)


def under(monkeypatch, *arguments, **more):
    strategy = Cluster(*arguments, **more)
    monkeypatch.setattr(tf.distribute, "get_strategy", lambda: strategy)


@pytest.mark.parametrize(
    ("jobs", "job", "number", "groups", "ranks"),
    [
        (WORKERS, "worker", 1, None, [0, 1, 2]),
        (WORKERS | OTHERS, "worker", 1, None, [0, 1, 2]),
        (WORKERS, "worker", 1, ((0, 2), (1,)), [1]),
        (WORKERS, "worker", 2, ((1,), (2, 0)), [2, 0]),
        # The chief comes first.
        (CHIEF, "chief", 0, None, [0, 1, 2]),
        (CHIEF, "chief", 0, ((0, 1), (2,)), [0, 1]),
        (CHIEF, "worker", 0, ((0, 1), (2,)), [0, 1]),
        (CHIEF, "worker", 1, ((0, 1), (2,)), [2]),
    ],
)
@pytest.mark.parametrize("local", [1, 2], ids="{} a worker".format)
def test_rows_of_a_group_s_workers(
    monkeypatch, jobs, job, number, groups, ranks, local
):
    under(monkeypatch, jobs, job, number, replicas=3 * local)
    found = processes(groups).gather(np.zeros(2))
    np.testing.assert_array_equal(found, [[10 * local * one, 1] for one in ranks])


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (("data",), r"lists of indices of workers here.*\['data'\]"),
        (((0,), (1,)), "replica 2, the one that runs, is in none"),
        (((0, 1), (2, 3)), "with replica 3"),
    ],
)
def test_groups_that_are_none_are_refused(monkeypatch, groups, message):
    under(monkeypatch, WORKERS, number=2)
    with pytest.raises(ValueError, match=f"`replica_groups` must.*{message}"):
        processes(groups)


@pytest.mark.parametrize("jobs", [{}, {"worker": ["a:1"]}, {"chief": ["a:1"]} | OTHERS])
def test_a_worker_that_is_alone(monkeypatch, jobs):
    under(monkeypatch, jobs, replicas=1)
    assert processes() is None


def test_devices_of_one_process_are_no_workers():
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        assert processes() is None


def test_a_copy_stays_when_the_variable_moves():
    variable = keras.Variable(np.ones(3, "float32"))
    (copy,) = copies(variable.value)
    variable.assign(np.zeros(3, "float32"))
    np.testing.assert_array_equal(copy, np.ones(3))
