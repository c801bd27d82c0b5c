"""The replicas on JAX: the devices along the manual axes of `shard_map` and `pmap`.

Under `keras.distribution` and plain `jit` there are none to speak of: arrays are global
there, and so are statistics of them.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import keras
import numpy as np

from keras_bn.backend import groups as grouping
from keras_bn.backend.groups import Groups
from keras_bn.backend.interface import Tensor
from keras_bn.backend.jax_private import varying_axes

Indices = tuple[tuple[int, ...], ...]


class ManualAxes(NamedTuple):
    """The devices along these axes of a mesh; see `Replicas`.

    Both results are of the type that does not vary from device to device along them,
    so that moving statistics may leave `shard_map` as `PartitionSpec()`. Those of
    groups do vary.
    """

    names: tuple[str, ...]
    groups: Indices | None = None

    def gather(self, values: Tensor) -> Tensor:
        """See `Replicas.gather`; of a smaller group, the rows of others are zeros."""
        if self.groups is None:
            return jax.lax.all_gather(values, self.names, to="invarying")
        if len({len(group) for group in self.groups}) == 1:
            return jax.lax.all_gather(values, self.names, axis_index_groups=self.groups)
        # XLA gathers among equals only.
        of = np.asarray(grouping.group_of_each(self.groups))
        mine = jnp.asarray(of == of[:, None])[jax.lax.axis_index(self.names)]
        rows = jax.lax.all_gather(values, self.names)
        return jnp.where(mine[(...,) + (None,) * values.ndim], rows, 0)

    def total(self, values: Tensor) -> Tensor:
        """See `Replicas.total`."""
        if self.groups is None:
            return jax.lax.psum(_varying(values, self.names), self.names)
        # `psum` knows groups only where `shard_map` checks nothing.
        return self.gather(values).sum(0)


def replicas(
    groups: Groups, batch: Sequence[Tensor], parameters: Sequence[Tensor]
) -> ManualAxes | None:
    """See `keras_bn.backend.replicas`.

    Raises:
        ValueError: The manual axes do not say what the batch is split over, and
            `groups` do not either; or `groups` are not groups of them.
    """
    manual: tuple[str, ...] = jax.sharding.get_abstract_mesh().manual_axes
    if not manual:
        _require_no_groups(groups)
        return None
    if groups is None:
        names = _batch_axes(manual, batch, parameters)
        return ManualAxes(names) if names else None
    if grouping.named_axes(groups):
        if not set(groups) <= set(manual):
            grouping.refuse(groups, f"names of manual axes here, out of {manual}")
        return ManualAxes(groups)
    count = math.prod(jax.lax.axis_size(name) for name in manual)
    grouping.require_partition(groups, range(count))
    if len(groups) == 1:
        return ManualAxes(manual)
    return None if len(groups) == count else ManualAxes(manual, groups)


def _batch_axes(
    manual: tuple[str, ...], batch: Sequence[Tensor], parameters: Sequence[Tensor]
) -> tuple[str, ...]:
    """The axes that the batch is split over, if that can be known.

    Where `shard_map` checks, types say along which axes tensors vary: along others the
    batch is the same. An axis along which gamma varies may shard the channels.
    """
    names = manual
    if _checked(manual[0]):
        along = set().union(*map(varying_axes, batch))
        names = tuple(name for name in manual if name in along)
        of_parameters = set().union(*map(varying_axes, parameters)) & set(names)
        if of_parameters:
            _refuse_to_guess(
                f"the manual axes {manual}, of which gamma or beta varies along "
                f"{sorted(of_parameters)}"
            )
    if len(names) > 1:
        _refuse_to_guess(f"the manual axes {names}")
    return names


def _refuse_to_guess(received: str) -> None:
    raise ValueError(
        "Argument `replica_groups` must name the manual axes that the batch is split "
        "over, as in replica_groups='data', where another may shard the channels, "
        f"whose statistics must not be mixed. Received: replica_groups=None and "
        f"{received}"
    )


def _require_no_groups(groups: Groups) -> None:
    """Where the batch is global, there is none of a group's."""
    if grouping.listed(groups) and keras.distribution.distribution() is not None:
        grouping.refuse(
            groups,
            "None under `keras.distribution` on JAX, where a batch is that of all "
            "devices. Groups are for `shard_map` and `pmap`",
        )
    if grouping.named_axes(groups):
        for name in groups:
            try:
                jax.lax.axis_size(name)
            except NameError:
                continue
            grouping.refuse(
                groups,
                "names of manual axes, of `shard_map` or `pmap`; an axis of `vmap` is "
                "none",
            )


def _checked(name: str) -> bool:
    """Whether types say what varies along manual axes (`check_vma=True`)."""
    return bool(varying_axes(jax.lax.axis_index(name)))


def _varying(x: Tensor, names: Iterable[str]) -> Tensor:
    """`x`, typed as varying along the manual axes `names`, where types say so."""
    missing = tuple(sorted(set(names) - varying_axes(x)))
    if not missing or not _checked(missing[0]):
        return x
    return jax.lax.pcast(x, missing, to="varying")


def vary_over(replicas: ManualAxes | None, x: Tensor) -> Tensor:
    """`x`, typed as varying along all the axes that its statistics will vary along."""
    if replicas is None or replicas.groups is None:
        return x
    return _varying(x, replicas.names)


def vary_alike(x: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """`others`, each typed as varying over the manual axes that `x` varies over.

    Autodiff adds up over the devices what flows back through the cast; without it a
    written-out gradient would have to know what `shard_map` was told to check.
    """
    return tuple(_varying(one, varying_axes(x)) for one in others)
