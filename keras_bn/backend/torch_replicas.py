"""The replicas on PyTorch: the processes of `torch.distributed`."""

import functools
import sys
import warnings
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from keras_bn._keras import tensor_of, torch_parameters
from keras_bn.backend import groups as grouping
from keras_bn.backend import torch_private
from keras_bn.backend.groups import Groups
from keras_bn.backend.interface import Tensor
from keras_bn.backend.torch_context import in_backward_pass

Indices = tuple[tuple[int, ...], ...]


class ProcessGroup(NamedTuple):
    """The processes of a group, None being all of them; see `Replicas`."""

    group: Any

    def gather(self, values: Tensor) -> Tensor:
        """See `Replicas.gather`."""
        replicas = dist.get_world_size(self.group)
        rows = values.new_empty(replicas * values.numel())
        self._served(dist.all_gather_single, rows, values.contiguous())
        return rows.view(replicas, -1)

    def total(self, values: Tensor) -> Tensor:
        """See `Replicas.total`."""
        values = values.clone()
        self._served(dist.all_reduce, values)
        return values

    def _served(self, collective: Any, *tensors: Any) -> None:
        device = tensors[-1].device.type
        engine = dist.get_backend_config(self.group)
        if f"{device}:" not in engine:
            raise ValueError(
                "Argument `synchronized` must be False, or the process group of "
                "torch.distributed have a backend for the inputs' device. Received: "
                f"synchronized=True, inputs on {device!r} and a group with {engine!r}"
            )
        collective(*tensors, group=self.group)


def replicas(groups: Groups, batch: object, parameters: object) -> ProcessGroup | None:
    """See `keras_bn.backend.replicas`.

    Without groups, inside `DistributedDataParallel`, it is that model's group, else
    all processes.

    Raises:
        ValueError: Groups that are not groups of these processes.
    """
    if not dist.is_available() or not dist.is_initialized():
        return None
    model = torch_private.active_ddp()
    group = None if model is None else model.process_group
    if groups is not None:
        group = _chosen(groups, group)
        if group is None:
            return None
    return ProcessGroup(group) if dist.get_world_size(group) > 1 else None


def _chosen(groups: Groups, everyone: Any) -> Any:
    """The group that this process is in; None where it is alone in it."""
    if grouping.named_axes(groups):
        grouping.refuse(
            groups, "a process group, or lists of ranks, under torch.distributed"
        )
    if not grouping.listed(groups):
        return groups
    world = dist.get_world_size()
    if everyone is not None and dist.get_world_size(everyone) < world:
        grouping.refuse(
            groups,
            "a process group where DistributedDataParallel has one of its own: lists "
            "are made into groups by all processes together",
        )
    grouping.require_partition(groups, range(world), dist.get_rank())
    made = _GROUPS.get(groups)
    if made is None or made[0] is not dist.group.WORLD:
        return _make(groups)
    return made[1]


# A compiler runs it while it traces: all processes trace alike.
@torch.compiler.assume_constant_result
def _make(groups: Indices) -> Any:
    """Makes all groups, in every process, as PyTorch asks.

    With `use_local_synchronization` only members would have to; but then PyTorch names
    a group by how many each of them has, and waits for ever where these differ.
    """
    mine = None
    for ranks in groups:
        if len(ranks) > 1:
            made = dist.new_group(list(ranks))
            mine = made if dist.get_rank() in ranks else mine
    _GROUPS[groups] = (dist.group.WORLD, mine)
    return mine


_GROUPS: dict[Indices, tuple[Any, Any]] = {}
"""This process's group of those that were made, and of which world they are."""


def group_ranks(value: Any) -> list[int] | None:
    """The ranks of a process group; None of what is none.

    Raises:
        ValueError: This process is not in the group, or it is no more.
    """
    if not dist.is_available():
        return None
    if value is dist.GroupMember.NON_GROUP_MEMBER:
        grouping.refuse(
            value,
            "a process group that this process is in, not what "
            "`torch.distributed.new_group` gives to the others",
        )
    if not isinstance(value, dist.ProcessGroup):
        return None
    try:
        ranks = list(dist.get_process_group_ranks(value))
    except (ValueError, KeyError, RuntimeError):
        grouping.refuse(value, "a process group that has not been destroyed")
    return ranks


def require_own_weights(layer: Any) -> None:
    """See `keras_bn.backend.require_own_weights`: `fully_shard` replaces parameters.

    Keras keeps the ones that it made, which would then be trained by nobody.
    """
    if (
        not dist.is_available()
        or not dist.is_initialized()
        or torch.compiler.is_compiling()
    ):
        return
    held = torch_parameters(layer)
    for variable in layer.variables:
        tensor = tensor_of(variable)
        if held.get(variable.path, tensor) is not tensor:
            raise ValueError(
                f"Layer '{layer.name}' has weights that PyTorch has replaced, as "
                "`fully_shard` does, where Keras would go on with those it made. Shard "
                "a module that holds the weights itself and calls the model by "
                "`stateless_call`: see `Sharded` in docs/distributed.md. Received: "
                f"{variable.path} of type {type(held[variable.path]).__name__}"
            )


def warn_outside_of_ddp(*tensors: Tensor) -> None:
    """Warns, once, of training in several processes whose gradients nobody averages.

    Of `tensors` one wants a gradient, or nothing is trained.
    """
    if torch.compiler.is_compiling() or not any(one.requires_grad for one in tensors):
        return
    if not torch_private.ddp_is_known() or torch_private.active_ddp() is not None:
        return
    if not in_backward_pass() and not _seen_within_fsdp():
        _warn_once()


def _seen_within_fsdp() -> bool:
    """Whether a module that `fully_shard` was applied to is around this call.

    Once there was one, nobody looks for it again.
    """
    global _within_fsdp
    fsdp = sys.modules.get("torch.distributed.fsdp")  # or nobody uses it
    if fsdp and not _within_fsdp:
        kinds = (fsdp.FSDPModule, fsdp.FullyShardedDataParallel)
        _within_fsdp = torch_private.called_within(kinds)
    return _within_fsdp


_within_fsdp = False


@functools.cache
def _warn_once() -> None:
    warnings.warn(
        "A layer with synchronized=True trains in one of "
        f"{dist.get_world_size()} processes outside DistributedDataParallel: "
        "statistics are those of all processes, but gradients are this one's. Wrap the "
        "model in torch.nn.parallel.DistributedDataParallel, unless you average the "
        "gradients in another way.",
        UserWarning,
        stacklevel=2,
    )
