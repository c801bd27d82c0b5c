"""What PyTorch says of the running call by names that are not public, all of them."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from torch.autograd import forward_ad
from torch.nn.parallel import DistributedDataParallel

from keras_bn._private import private, warn_of_missing

_TASK = "torch._C:_current_graph_task_id"
_DDP = "torch.nn.parallel:DistributedDataParallel._get_active_ddp_module"


def _no_task() -> int:
    warn_of_missing(_TASK)
    return -1


backward_pass: Callable[[], int] = (
    private(
        _TASK,
        "a pass that activation checkpointing repeats looks like any other: moving "
        "statistics move twice there",
    )
    or _no_task
)
"""The number of the backward pass that runs this call, -1 where none does.

`torch.utils.checkpoint` itself tells backward passes apart by it.
"""

functorch_runs: Callable[[], bool] = private(
    "torch._C:_are_functorch_transforms_active",
    "training within `torch.func` is an error of PyTorch's",
) or (lambda: False)
"""Whether a transformation of `torch.func` is around this call."""

modes: Callable[[], int] = private(
    "torch._C:_len_torch_dispatch_stack",
    "no call is taken for an eager one, and training goes by the formulas, slower",
) or (lambda: 1)
"""How many modes record or replace what operators do, as that of fake tensors does."""

_knows_level = private(
    "torch.autograd.forward_ad:_current_level",
    "each tensor is asked whether it is a dual number, which takes longer",
)
_knows_ddp = private(
    _DDP,
    "the process group of a DistributedDataParallel is not known: where it is not the "
    "group of all processes, give it to the layer as `replica_groups`",
)
private(
    "torch.nn:Module._call_impl",
    "training under FSDP warns that nobody averages gradients",
)


def dual_numbers() -> bool:
    """Whether there may be dual numbers, of forward mode."""
    return _knows_level is None or bool(forward_ad._current_level >= 0)


def active_ddp() -> Any:
    """The DistributedDataParallel that runs this call; None where there is none."""
    if _knows_ddp is None:
        warn_of_missing(_DDP)
        return None
    return DistributedDataParallel._get_active_ddp_module()


def ddp_is_known() -> bool:
    """Whether `active_ddp` can tell that there is none."""
    return _knows_ddp is not None


def called_within(kinds: tuple[type, ...]) -> bool:
    """Whether the call of a module of these classes is around this one.

    PyTorch does not say, so this looks among the callers.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "_call_impl" and isinstance(
            frame.f_locals.get("self"), kinds
        ):
            return True
        frame = frame.f_back
    return False
