"""The workers of a `tf.distribute` strategy, between calls of a model."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_bn.backend import groups as grouping
from keras_bn.backend.groups import Groups
from keras_bn.backend.tensorflow_replicas import StrategyReplicas


class Workers(NamedTuple):
    """See `keras_bn.backend.interface.Processes`."""

    strategy: tf.distribute.Strategy
    members: tuple[int, ...]

    def gather(self, values: np.ndarray) -> np.ndarray:
        """See `Processes.gather`: the first replica of each worker speaks for it."""
        row = tf.constant(values)

        def rows() -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            return StrategyReplicas(context).gather(row)

        gathered = self.strategy.run(tf.function(rows))
        found = self.strategy.experimental_local_results(gathered)[0].numpy()
        local = len(found) // _count(self.strategy)
        return np.stack([found[local * one] for one in self.members])


def _count(strategy: tf.distribute.Strategy) -> int:
    jobs = strategy.cluster_resolver.cluster_spec().as_dict()
    return sum(len(jobs.get(job, ())) for job in ("chief", "worker")) or 1


def processes(groups: Groups) -> Workers | None:
    """See `keras_bn.backend.processes`.

    Raises:
        ValueError: Groups that are not groups of the workers.
    """
    strategy = tf.distribute.get_strategy()
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return None
    count = _count(strategy)
    if count == 1:
        return None
    resolver = strategy.cluster_resolver
    # The chief, where there is one, comes before the workers.
    others = "chief" in resolver.cluster_spec().as_dict()
    this = resolver.task_id + (others and resolver.task_type == "worker")
    members = tuple(range(count))
    if groups is not None:
        if not grouping.listed(groups):
            grouping.refuse(groups, "lists of indices of workers here")
        grouping.require_partition(groups, members, this)
        members = next(one for one in groups if this in one)
    return Workers(strategy, members)


def copies(value: tf.Variable) -> list[np.ndarray]:
    """See `keras_bn.backend.copies`: one for each replica of a strategy, here."""
    strategy = getattr(value, "distribute_strategy", None)
    if strategy is None:
        return [np.array(value)]
    return [one.numpy() for one in strategy.experimental_local_results(value)]
