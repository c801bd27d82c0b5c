"""What the benchmark runs on PyTorch: steps of a layer, and the peers to compare."""

from collections.abc import Callable, Iterator
from typing import Any

import keras
import torch

from keras_bn.backend.peer import Peer, Step

_FLUSHED = 256 << 20
"""Bytes to overwrite so that nothing is left of a cache: five times an H100's."""


def _device() -> torch.device:
    """Where Keras makes its tensors."""
    return keras.ops.convert_to_tensor(0.0).device


WAYS = ("eager", "compiled", *(["graph"] if _device().type == "cuda" else []))
"""How a step can run: as it is written, through `torch.compile`, and on CUDA as a
graph that was captured once and is launched as a whole."""


def versions() -> dict[str, str]:
    """The backend's name and version, and those of the device where there is one."""
    found = {"backend": "torch", "torch": torch.__version__}
    if _device().type != "cuda":
        return found
    return {
        **found,
        "device": torch.cuda.get_device_name(),
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),
    }


def wait(result: Any) -> Any:
    """Waits for an accelerator; on CPU a call has ended when it returns."""
    if _device().type != "cpu":
        torch.accelerator.synchronize()
    return result


def flush() -> Step | None:
    """What overwrites the device's cache; None on CPU, where the cache is the case."""
    if _device().type == "cpu":
        return None
    return torch.empty(_FLUSHED, dtype=torch.int8, device=_device()).zero_


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
    return _training(lambda x: layer(x, training=True), _weights(layer), x, dy, way)


def inference(layer: Any, x: Any, way: str) -> Step:
    """The layer's output by its moving statistics."""
    return _inference(lambda x: layer(x, training=False), x, way)


def model_training(model: Any, x: Any, labels: Any, way: str) -> Step:
    """The gradients of the mean cross-entropy for all weights, without an update."""
    weights = _weights(model)

    def loss(x: Any) -> Any:
        return torch.nn.functional.cross_entropy(model(x, training=True), labels.long())

    compiled = _compiled(way, loss)
    return _captured(way, lambda: torch.autograd.grad(compiled(x), weights))


def native(
    x: Any, dy: Any, axis: int, momentum: float, epsilon: float, way: str
) -> Iterator[Peer]:
    """The framework's own layer on its own best layout, with weights as it wants them.

    In half precision these are float32, as under autocast.
    """
    if x.ndim not in (2, 4):
        return
    # Channels last is the faster of the two layouts, and the one these data have.
    if x.ndim == 4 and axis in (-1, 3):
        x, dy = x.permute(0, 3, 1, 2), dy.permute(0, 3, 1, 2)
    kind = torch.nn.BatchNorm1d if x.ndim == 2 else torch.nn.BatchNorm2d
    placed = {
        "device": x.device,
        "dtype": torch.promote_types(x.dtype, torch.float32),
    }
    layer = kind(x.shape[1], eps=epsilon, momentum=1 - momentum, **placed)
    fixed = kind(x.shape[1], eps=epsilon, **placed).eval()
    yield Peer(
        f"torch.nn.{kind.__name__}",
        lambda: _training(layer, list(layer.parameters()), x, dy, way),
        lambda: _inference(fixed, x, way),
        lambda: _saved_bytes(layer, x),
    )


def saved_bytes(layer: Any, x: Any) -> int | None:
    """The bytes that the forward pass keeps for the backward pass."""
    return _saved_bytes(lambda x: layer(x, training=True), x)


def _saved_bytes(function: Callable[[Any], Any], x: Any) -> int:
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function(x.detach().requires_grad_())
    return sum(kept.values())


def _weights(layer: Any) -> list[Any]:
    return [variable.value for variable in layer.trainable_variables]


def _training(
    function: Callable[[Any], Any], weights: list[Any], x: Any, dy: Any, way: str
) -> Step:
    x = x.detach().requires_grad_()
    function = _compiled(way, function)

    def step() -> object:
        y = function(x)
        return y, torch.autograd.grad(y, [x, *weights], dy)

    return _captured(way, step)


def _inference(function: Callable[[Any], Any], x: Any, way: str) -> Step:
    function = _compiled(way, function)

    @torch.no_grad()
    def step() -> object:
        return function(x)

    return _captured(way, step)


def _compiled(way: str, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return torch.compile(function) if way == "compiled" else function


def _captured(way: str, step: Step) -> Step:
    """The step, on the way "graph" as one CUDA graph.

    Raises:
        NotImplementedError: The step waits for the device, which a graph cannot.
    """
    if way != "graph":
        return step
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    # A capture that fails leaves the device's memory in a state of its own; so what
    # would make it fail is looked for outside.
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.stream(stream):
            for _ in range(3):  # cuDNN and the allocator settle, as PyTorch advises.
                step()
    except RuntimeError as error:
        raise NotImplementedError(
            f"Not captured as a CUDA graph: {str(error).splitlines()[0]}"
        ) from error
    finally:
        torch.cuda.set_sync_debug_mode(before)
        torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        # The results keep their memory as long as this does.
        result = step()

    def replay() -> object:
        graph.replay()
        return result

    return replay
