"""The processes of JAX's cluster, between calls of a model."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from keras_bn.backend import groups as grouping
from keras_bn.backend.groups import Groups


class JaxProcesses(NamedTuple):
    """See `keras_bn.backend.interface.Processes`."""

    members: Sequence[int]

    def gather(self, values: np.ndarray) -> np.ndarray:
        """See `Processes.gather`."""
        from jax.experimental import multihost_utils

        # As bytes: JAX makes float32 of float64, unless told otherwise.
        rows: np.ndarray = multihost_utils.process_allgather(values.view(np.uint8))
        return rows[list(self.members)].view(values.dtype)


def processes(groups: Groups) -> JaxProcesses | None:
    """See `keras_bn.backend.processes`."""
    count = jax.process_count()
    if count == 1:
        return None
    members: Sequence[int] = range(count)
    if groups is not None:
        if not grouping.listed(groups):
            grouping.refuse(groups, "lists of indices of processes here")
        grouping.require_partition(groups, members, jax.process_index())
        members = next(one for one in groups if jax.process_index() in one)
    return JaxProcesses(members)


def copies(value: jax.Array) -> list[np.ndarray]:
    """See `keras_bn.backend.copies`: what `shard_map` called the same may not be it."""
    if not isinstance(value, jax.Array) or not value.is_fully_replicated:
        return [np.array(value)]
    return [np.array(shard.data) for shard in value.addressable_shards]
