"""What the benchmark runs on PyTorch: steps of a layer, and the peers to compare."""

from collections.abc import Callable, Iterator
from typing import Any

import torch

Step = Callable[[], object]

WAYS = ("eager", "compiled")
"""How a step can run: as it is written, or through `torch.compile`."""


def versions() -> dict[str, str]:
    """The backend's name and version."""
    return {"backend": "torch", "torch": torch.__version__}


def copy(x: Any) -> Step:
    """Reads x and writes as much: two passes over the tensor."""
    return lambda: x + 1


def least(x: Any, dy: Any) -> Step:
    """The passes that a training step cannot do without, as plain operators.

    Read x; read it and write as much; read x and dy; read both and write as much.
    """
    flat, flat_dy = x.flatten(), dy.flatten()
    return lambda: (flat.sum(), x + 1, torch.dot(flat, flat_dy), x + dy)


def training(layer: Any, x: Any, dy: Any, way: str) -> Step:
    """Forward, backward for x, gamma and beta, and the moving statistics."""
    weights = [variable.value for variable in layer.trainable_variables]
    return _training(_in(way, lambda x: layer(x, training=True)), weights, x, dy)


def inference(layer: Any, x: Any, way: str) -> Step:
    """The layer's output by its moving statistics."""
    return _inference(_in(way, lambda x: layer(x, training=False)), x)


def native(
    x: Any, dy: Any, axis: int, momentum: float, epsilon: float, way: str
) -> Iterator[tuple[str, Step, Step]]:
    """The framework's own layer on its own best layout: name, training, inference."""
    if x.ndim not in (2, 4) or x.dtype != torch.float32:
        return
    # Channels last is the faster of the two layouts, and the one these data have.
    if x.ndim == 4 and axis in (-1, 3):
        x, dy = x.permute(0, 3, 1, 2), dy.permute(0, 3, 1, 2)
    kind = torch.nn.BatchNorm1d if x.ndim == 2 else torch.nn.BatchNorm2d
    layer = kind(x.shape[1], eps=epsilon, momentum=1 - momentum)
    fixed = kind(x.shape[1], eps=epsilon).eval()
    yield (
        f"torch.nn.{kind.__name__}",
        _training(_in(way, layer), list(layer.parameters()), x, dy),
        _inference(_in(way, fixed), x),
    )


def saved_bytes(layer: Any, x: Any) -> int | None:
    """The bytes that the forward pass keeps for the backward pass."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x.detach().requires_grad_(), training=True)
    return sum(kept.values())


def _in(way: str, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return function if way == "eager" else torch.compile(function)


def _training(
    function: Callable[[Any], Any], weights: list[Any], x: Any, dy: Any
) -> Step:
    x = x.detach().requires_grad_()

    def step() -> object:
        y = function(x)
        return _done((y, torch.autograd.grad(y, [x, *weights], dy)))

    return step


def _inference(function: Callable[[Any], Any], x: Any) -> Step:
    def step() -> object:
        with torch.no_grad():
            return _done(function(x))

    return step


def _done(result: Any) -> Any:
    """Waits for an accelerator; on CPU a call has ended when it returns."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return result
