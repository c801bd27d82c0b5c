"""What PyTorch says of the running call: its replicas, and if it is a repetition.

Replicas are the processes of `torch.distributed`.
"""

import functools
import warnings
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from keras_bn.backend.interface import Tensor


class ProcessGroup(NamedTuple):
    """The processes of a group, None being all of them; see `Replicas`."""

    group: Any

    def gather(self, values: Tensor) -> Tensor:
        """See `Replicas.gather`."""
        values = values.contiguous()
        rows = [
            torch.empty_like(values) for _ in range(dist.get_world_size(self.group))
        ]
        self._served(dist.all_gather, rows, values)
        return torch.stack(rows)

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


def replicas() -> ProcessGroup | None:
    """The group that the running process is one of; None if it runs alone.

    Inside `DistributedDataParallel` it is that model's group, else all processes.
    """
    if not dist.is_available() or not dist.is_initialized():
        return None
    model = DistributedDataParallel._get_active_ddp_module()
    group = None if model is None else model.process_group
    if dist.get_world_size(group) == 1:
        return None
    return ProcessGroup(group)


def recomputing(update: Tensor, state: Tensor) -> bool:
    """See `keras_bn.backend.recomputing`: a forward pass within a backward pass."""
    return _in_backward_pass()


def _in_backward_pass() -> bool:
    if torch.compiler.is_compiling():
        return False  # what is compiled is traced once
    # `torch.utils.checkpoint` itself tells backward passes apart by this number.
    return bool(torch._C._current_graph_task_id() != -1)


def warn_outside_of_ddp() -> None:
    """Warns, once, of training in several processes whose gradients nobody averages."""
    wrapped = DistributedDataParallel._get_active_ddp_module() is not None
    if not wrapped and not _in_backward_pass():
        _warn_once()


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
