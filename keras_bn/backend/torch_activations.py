"""Activations on PyTorch, in place, and their gradients: one operator, one pass."""

import torch

from keras_bn.backend.activations import LEAKY_RELU_SLOPE, SELU_ALPHA, SELU_SCALE
from keras_bn.backend.interface import Tensor


def activate_(name: str | None, x: Tensor) -> Tensor:
    """The activation, in place: `x` is a fresh output that nothing else has seen."""
    functional = torch.nn.functional
    if name is None:
        return x
    if name == "relu6":
        return functional.hardtanh_(x, 0.0, 6.0)
    if name == "leaky_relu":
        return functional.leaky_relu_(x, LEAKY_RELU_SLOPE)
    in_place = {
        "relu": torch.relu_,
        "elu": functional.elu_,
        "selu": torch.selu_,
        "sigmoid": torch.sigmoid_,
        "tanh": torch.tanh_,
    }
    return in_place[name](x)


def activation_gradient(name: str, dy: Tensor, z: Tensor) -> Tensor:
    """`dy` times the activation's derivative at `z`, in the memory of `z`."""
    aten = torch.ops.aten
    if name == "relu":
        aten.threshold_backward.grad_input(dy, z, 0, grad_input=z)
    elif name == "relu6":
        aten.hardtanh_backward.grad_input(dy, z, 0.0, 6.0, grad_input=z)
    elif name == "leaky_relu":
        slope = LEAKY_RELU_SLOPE
        aten.leaky_relu_backward.grad_input(dy, z, slope, False, grad_input=z)
    elif name == "elu":
        aten.elu_backward.grad_input(dy, 1.0, 1.0, 1.0, False, z, grad_input=z)
    elif name == "selu":
        constants = (SELU_ALPHA, SELU_SCALE, 1.0)
        aten.elu_backward.grad_input(dy, *constants, False, z, grad_input=z)
    elif name == "sigmoid":
        aten.sigmoid_backward.grad_input(dy, z.sigmoid_(), grad_input=z)
    elif name == "tanh":
        aten.tanh_backward.grad_input(dy, z.tanh_(), grad_input=z)
    else:
        raise NotImplementedError(name)
    return z
