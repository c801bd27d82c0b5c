"""What a PyTorch step would launch on a GPU, move there, and send and wait for.

Counts what the dispatcher is asked for, one launch an operator that is no view. What an
operator reads and writes are its tensors, once each; an operator that goes over its
input more than once stands in a table.
"""

from typing import Any, NamedTuple

import keras
import torch
from torch.utils._python_dispatch import TorchDispatchMode

# No launch: a view, an allocation, a question.
_FREE = {
    *("_unsafe_view", "alias", "as_strided", "detach", "expand", "lift_fresh"),
    *("permute", "reshape", "select", "slice", "split", "split_with_sizes", "squeeze"),
    *("t", "transpose", "unbind", "unsqueeze", "view", "view_as"),
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"),
}
# Values that the host asks for.
_ASKS = {"_local_scalar_dense", "nonzero"}
# Kernels that read their large inputs twice: first for sums, then for the result.
_TWICE = (
    *("native_batch_norm", "_native_batch_norm", "_batch_norm_with_update"),
    *("batch_norm_backward", "cudnn_batch_norm", "miopen_batch_norm"),
)
# Launches of this package's own operators, which are opaque here, where it is more than
# one: a kernel for the parts, and one that merges them.
_LAUNCHES = {"keras_bn::moments": 2, "keras_bn::slopes": 2}


class Launch(NamedTuple):
    """One operator: its name, its launches, and the bytes that it reads and writes."""

    name: str
    launches: int
    read: int
    written: int


class Count(TorchDispatchMode):
    """Records launches, uploads and waits of what runs inside `with Count() as count`.

    A number that the host asks for is a wait, and is answered with 1, so that the
    program goes on.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches: list[Launch] = []
        self.uploads: list[str] = []
        self.waits: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Runs the operator and takes note of it."""
        name = func.overloadpacket.__name__
        inputs = _tensors((args, kwargs))
        if name in _ASKS and any(tensor.is_cuda for tensor in inputs):
            self.waits.append(name)
            if name == "_local_scalar_dense":
                return _one(inputs[0].dtype)
        result = func(*args, **(kwargs or {}))
        outputs = _tensors(result)
        self._transfer(name, args, outputs)
        works = func.namespace != "prim" and name not in _FREE
        if works and any(tensor.is_cuda for tensor in (*inputs, *outputs)):
            self._launch(name, launches_of(func), inputs, outputs)
        return result

    def _transfer(self, name: str, args: Any, outputs: list[torch.Tensor]) -> None:
        if name == "copy_":
            target, source = args[:2]
        elif name == "_to_copy":
            (target,), source = outputs, args[0]
        else:
            return
        if target.is_cuda and not source.is_cuda:
            self.uploads.append(name)
        elif source.is_cuda and not target.is_cuda:
            self.waits.append(name)

    def _launch(
        self,
        name: str,
        launches: int,
        inputs: list[torch.Tensor],
        outputs: list[torch.Tensor],
    ) -> None:
        read, written = (sum(map(_bytes, tensors)) for tensors in (inputs, outputs))
        if name.startswith(_TWICE):
            largest = max(map(_bytes, inputs))
            read += sum(size for size in map(_bytes, inputs) if size == largest)
        self.launches.append(Launch(name, launches, read, written))

    def kernels(self) -> int:
        """All launches."""
        return sum(one.launches for one in self.launches)

    def passes(self, unit: int) -> float:
        """What is read and written, in tensors of `unit` bytes."""
        return sum(one.read + one.written for one in self.launches) / unit


def launches_of(operator: Any) -> int:
    """The launches of one call of an operator that is no view."""
    return _LAUNCHES.get(str(operator.overloadpacket).replace(".", "::"), 1)


def saved(function: Any, unit: int) -> float:
    """What `function()` keeps for the backward pass, in tensors of `unit` bytes."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return sum(kept.values()) / unit


def _tensors(values: Any) -> list[torch.Tensor]:
    """The tensors in it, once each."""
    found = {
        id(t): t for t in keras.tree.flatten(values) if isinstance(t, torch.Tensor)
    }
    return list(found.values())


def _bytes(tensor: torch.Tensor) -> int:
    """Its bytes in memory; an expanded tensor has those of what was expanded."""
    if 0 in tensor.stride():
        return tensor.untyped_storage().nbytes()
    return tensor.numel() * tensor.element_size()


def _one(dtype: torch.dtype) -> bool | int | float:
    if dtype == torch.bool:
        return True
    return 1.0 if dtype.is_floating_point else 1
