"""The replicas on TensorFlow: those of the `tf.distribute` strategy that runs."""

from typing import NamedTuple

import tensorflow as tf

from keras_bn.backend import groups as grouping
from keras_bn.backend.groups import Groups
from keras_bn.backend.interface import Tensor

Indices = tuple[tuple[int, ...], ...]


class StrategyReplicas(NamedTuple):
    """The replicas of a strategy; see `Replicas`.

    Its collectives are of all of them. Of those of a group the others see rows of
    zeros, and sums are made of every group at once.
    """

    context: tf.distribute.ReplicaContext
    groups: Indices | None = None

    def gather(self, values: Tensor) -> Tensor:
        """See `Replicas.gather`; the rows of other groups are zeros.

        Each replica adds its row to rows of zeros: one collective. TensorFlow's own
        `all_gather` takes two, because shapes might differ.
        """
        index = self.context.replica_id_in_sync_group
        rows = self._sum(_row_of(values, index, self.context.num_replicas_in_sync))
        if self.groups is None:
            return rows
        of = tf.constant(grouping.group_of_each(self.groups))
        mine = tf.equal(of, of[index])
        return tf.where(mine[:, tf.newaxis], rows, 0)

    def total(self, values: Tensor) -> Tensor:
        """See `Replicas.total`."""
        if self.groups is None:
            return self._sum(values)
        of = tf.constant(grouping.group_of_each(self.groups))
        mine = of[self.context.replica_id_in_sync_group]
        return self._sum(_row_of(values, mine, len(self.groups)))[mine]

    def _sum(self, values: Tensor) -> Tensor:
        return self.context.all_reduce(tf.distribute.ReduceOp.SUM, values)


def _row_of(values: Tensor, index: Tensor, count: int) -> Tensor:
    """`count` rows of zeros, of which row `index` is `values`."""
    here = tf.reshape(tf.equal(tf.range(count), index), [-1] + [1] * len(values.shape))
    # Not a product: zero times a NaN is a NaN in every row.
    return tf.where(here, values, tf.zeros([], values.dtype))


def replicas(groups: Groups, batch: object, parameters: object) -> object | None:
    """See `keras_bn.backend.replicas`.

    Raises:
        ValueError: A strategy whose replicas do not run in step; groups that are not
            groups of its replicas.
    """
    context = tf.distribute.get_replica_context()
    if context is None or not tf.distribute.has_strategy():
        return None
    strategy = context.strategy
    if isinstance(strategy, tf.distribute.ParameterServerStrategy):
        raise ValueError(
            "Argument `synchronized` must be False under tf.distribute's "
            f"{type(strategy).__name__}: its workers do not run in step, so that they "
            "have no batch in common. Received: synchronized=True"
        )
    count = context.num_replicas_in_sync
    if groups is not None:
        if not grouping.listed(groups):
            grouping.refuse(groups, "lists of replica indices under tf.distribute")
        grouping.require_partition(groups, range(count))
        if len(groups) == count:
            return None
    return None if count == 1 else StrategyReplicas(context, groups)
