"""What PyTorch says of the running call: its replicas, and if it is a repetition.

Replicas are the processes of `torch.distributed`.
"""

import functools
import warnings
from typing import Any, NamedTuple

import keras
import torch
import torch.distributed as dist
from torch.autograd import forward_ad
from torch.nn.parallel import DistributedDataParallel

from keras_bn.backend.interface import Tensor
from keras_bn.backend.stateless import collects_updates


class ProcessGroup(NamedTuple):
    """The processes of a group, None being all of them; see `Replicas`."""

    group: Any

    def gather(self, values: Tensor) -> Tensor:
        """See `Replicas.gather`."""
        replicas = dist.get_world_size(self.group)
        rows = values.new_empty(replicas * values.numel())
        self._served(dist.all_gather_into_tensor, rows, values.contiguous())
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
    """See `keras_bn.backend.recomputing`: a forward pass within a backward pass.

    Raises:
        ValueError: A transformation of `torch.func` is around the call, which lets
            nothing out that is assigned within.
    """
    if torch._C._are_functorch_transforms_active() and not collects_updates():
        raise ValueError(
            "Moving statistics cannot be updated within a transformation of torch.func "
            "(grad, vmap, jvp, ...) unless they come out as a result. Use "
            "`stateless_call`, which returns them, or call the layer within "
            "`keras_bn.no_update()`. Received: training=True"
        )
    return _in_backward_pass()


def _in_backward_pass() -> bool:
    if torch.compiler.is_compiling():
        return False  # what is compiled is traced once
    # `torch.utils.checkpoint` itself tells backward passes apart by this number.
    return bool(torch._C._current_graph_task_id() != -1)


def transformed(*tensors: Tensor) -> bool:
    """Whether more than reverse mode or a compiler follows what is done to `tensors`.

    A transformation of `torch.func` (grad, vmap, jvp, ...), dual numbers of forward
    mode, or `torch.jit.trace`. A written-out gradient would be without a rule for them.
    """
    return (
        torch._C._are_functorch_transforms_active()
        or torch.jit.is_tracing()
        or (
            forward_ad._current_level >= 0
            and any(forward_ad.unpack_dual(one).tangent is not None for one in tensors)
        )
    )


def eager(x: Tensor) -> bool:
    """Whether x has numbers that may be looked at, and sizes that are just numbers.

    Not within torch.compile and torch.export, under a mode that records operators, and
    where x is of a class of its own (fake, functional, distributed tensors).
    """
    return (
        type(x) in _PLAIN
        and not torch.compiler.is_compiling()
        and torch._C._len_torch_dispatch_stack() == 0
    )


_PLAIN = (torch.Tensor, torch.nn.Parameter)


def readable(x: Tensor) -> bool:
    """See `keras_bn.backend.readable`."""
    return eager(x) and x.device.type == "cpu" and not transformed(x)


def exported() -> bool:
    """Whether the call is traced for `torch.export`, `torch.onnx` or `torch.jit`."""
    return torch.jit.is_tracing() or torch.compiler.is_exporting()


def warn_outside_of_ddp(*tensors: Tensor) -> None:
    """Warns, once, of training in several processes whose gradients nobody averages.

    Of `tensors` one wants a gradient, or nothing is trained.
    """
    if torch.compiler.is_compiling() or not any(one.requires_grad for one in tensors):
        return
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


def same_device(x: Tensor, weight: keras.Variable) -> bool:
    """See `keras_bn.backend.same_device`: Keras moves what it is asked to convert."""
    if _CPU_ALONE and x.device.type == "cpu":
        return True  # Keras takes microseconds to say where a variable is
    return bool(x.device == weight.value.device)


def concrete(x: Tensor) -> bool:
    """See `keras_bn.backend.concrete`."""
    return eager(x) and not transformed(x)


_CPU_ALONE = not torch.accelerator.is_available()
