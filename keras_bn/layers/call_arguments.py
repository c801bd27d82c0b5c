"""What may come along with the inputs of a call: mask, weights and residual."""

from typing import Any

from keras_bn.ops import _arguments, _counts

Shape = tuple[int | None, ...]


def check_shapes(
    shape: Shape, axes: Any, mask: Any, weights: Any, residual: Any
) -> None:
    """Raises where what comes along does not fit inputs of this shape."""
    if mask is not None:
        _counts.mask_lacks(mask, shape, axes)
    if weights is not None:
        _counts.weights_lack(weights, shape, axes)
    if residual is not None:
        _arguments.residual_fits(residual, shape)


class AsItIs:
    """A tensor among the arguments of a call, for Keras to leave alone.

    It would round weights to the compute dtype (257 samples are 256 in bfloat16), and,
    of several tensors, not know which the mask of the inputs is for.
    """

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor


def as_it_was(argument: Any) -> Any:
    """The argument as the caller gave it."""
    return argument.tensor if isinstance(argument, AsItIs) else argument
