"""What TensorFlow says of the running call: its replicas, if it is a repetition, XLA.

Replicas are those of the `tf.distribute` strategy that runs the call.
"""

import sys
from types import FrameType
from typing import NamedTuple

import tensorflow as tf
from tensorflow.python.framework import ops
from tensorflow.python.ops import control_flow_util

from keras_bn.backend.interface import Tensor


class StrategyReplicas(NamedTuple):
    """The replicas of a strategy; see `Replicas`."""

    context: tf.distribute.ReplicaContext

    def gather(self, values: Tensor) -> Tensor:
        """See `Replicas.gather`.

        Each replica adds its row to rows of zeros: one collective. TensorFlow's own
        `all_gather` takes two, because shapes might differ.
        """
        context = self.context
        index = context.replica_id_in_sync_group
        row = tf.one_hot(index, context.num_replicas_in_sync, dtype=values.dtype)
        # Not a product: zero times a NaN is a NaN in every row.
        values = tf.where(tf.cast(row[:, tf.newaxis], tf.bool), values, 0)
        return self.total(values)

    def total(self, values: Tensor) -> Tensor:
        """See `Replicas.total`."""
        return self.context.all_reduce(tf.distribute.ReduceOp.SUM, values)


def replicas() -> StrategyReplicas | None:
    """The replicas that the running function is one of; None if it runs alone.

    Raises:
        ValueError: A strategy whose replicas do not run in step.
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
    if context.num_replicas_in_sync == 1:
        return None
    return StrategyReplicas(context)


def recomputing(update: Tensor, state: Tensor) -> bool:
    """See `keras_bn.backend.recomputing`.

    `tf.recompute_grad` says nothing of itself, so this looks for it among the callers.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        code = frame.f_code
        if code.co_name == "inner_recompute_grad" and "tensorflow" in code.co_filename:
            return True
        frame = frame.f_back
    return False


def compiled_by_xla() -> bool:
    """Whether the running function is traced for `jit_compile=True`, here or outside.

    What is traced before, without it, and then called from such a function, is not.
    """
    return bool(control_flow_util.GraphOrParentsInXlaContext(ops.get_default_graph()))
