"""What PyTorch says of the running call: who follows it, and if it is a repetition."""

import keras
import torch
from torch.autograd import forward_ad

from keras_bn.backend import torch_private
from keras_bn.backend.interface import Tensor
from keras_bn.backend.stateless import collects_updates


def recomputing(update: Tensor, state: Tensor) -> bool:
    """See `keras_bn.backend.recomputing`: a forward pass within a backward pass.

    Raises:
        ValueError: A transformation of `torch.func` is around the call, which lets
            nothing out that is assigned within.
    """
    if torch_private.functorch_runs() and not collects_updates():
        raise ValueError(
            "Moving statistics cannot be updated within a transformation of torch.func "
            "(grad, vmap, jvp, ...) unless they come out as a result. Use "
            "`stateless_call`, which returns them, or call the layer within "
            "`keras_bn.no_update()`. Received: training=True"
        )
    return in_backward_pass()


def in_backward_pass() -> bool:
    """Whether autograd runs this call: it repeats one of the forward pass."""
    if torch.compiler.is_compiling():
        return False  # what is compiled is traced once
    return torch_private.backward_pass() != -1


def transformed(*tensors: Tensor) -> bool:
    """Whether more than reverse mode or a compiler follows what is done to `tensors`.

    A transformation of `torch.func` (grad, vmap, jvp, ...), dual numbers of forward
    mode, or `torch.jit.trace`. A written-out gradient would be without a rule for them.
    """
    return (
        torch_private.functorch_runs()
        or torch.jit.is_tracing()
        or (
            torch_private.dual_numbers()
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
        and torch_private.modes() == 0
    )


_PLAIN = (torch.Tensor, torch.nn.Parameter)


def readable(x: Tensor) -> bool:
    """See `keras_bn.backend.readable`."""
    return eager(x) and x.device.type == "cpu" and not transformed(x)


def exported() -> bool:
    """Whether the call is traced for `torch.export`, `torch.onnx` or `torch.jit`."""
    return torch.jit.is_tracing() or torch.compiler.is_exporting()


def same_device(x: Tensor, weight: keras.Variable) -> bool:
    """See `keras_bn.backend.same_device`: Keras moves what it is asked to convert."""
    if _CPU_ALONE and x.device.type == "cpu":
        return True  # Keras takes microseconds to say where a variable is
    return bool(x.device == weight.value.device)


_CPU_ALONE = not torch.accelerator.is_available()
