"""On the device, what PyTorch alone has: memory formats, autocast, graphs, compiler."""

import contextlib
import os

import numpy as np
import pytest
import torch

import frameworks
import keras_bn

pytestmark = pytest.mark.gpu

DRY = os.environ.get("GPU_DRY") == "1"
SHAPE = (16, 12, 12, 16) if DRY else (16, 32, 32, 64)
LAYERS = {
    "default": {},
    "relu": {"activation": "relu"},
    "scale=False": {"scale": False},
    "channels first": {"axis": 1},
    "axis=(1, 3)": {"axis": (1, 3)},
    "renorm": {"renorm": True},
}


def made(options, dtype="float32"):
    """The layer, x, dy and all that is differentiated for."""
    layer = keras_bn.BatchNormalization(**LAYERS[options], dtype=dtype)
    layer.build(SHAPE)
    rng = np.random.default_rng(0)
    x, dy = (
        frameworks.tensor(rng.normal(size=SHAPE).astype("float32")).to(
            getattr(torch, layer.compute_dtype)
        )
        for _ in range(2)
    )
    x.requires_grad_()
    return layer, x, dy, [x, *(one.value for one in layer.trainable_variables)]


def step_of(call, x, dy, inputs):
    """A training step: the output and the gradients."""

    def step():
        y = call(x)
        return y, *torch.autograd.grad(y, inputs, dy)

    return step


def close(found, expected, tolerance=1e-4):
    for one, other in zip(found, expected, strict=True):
        one, other = one.detach().double(), other.detach().double()
        assert float((one - other).norm()) <= tolerance * float(other.norm())


@pytest.fixture
def capture(device):
    """Turns a step into its replay from a CUDA graph; the step itself on a CPU."""
    if device == "cpu":
        return lambda step: step

    def captured(step):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = step()

        def replay():
            graph.replay()
            return results

        return replay

    return captured


@pytest.fixture
def compiler(device):
    """The backend of torch.compile; on a CPU the one that needs no C++ compiler."""
    return "aot_eager" if device == "cpu" else "inductor"


@pytest.fixture
def watched(device):
    """A block in which a wait for the device is an error, where there is one."""
    if device == "cpu":
        return contextlib.nullcontext

    @contextlib.contextmanager
    def block():
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return block


@pytest.mark.parametrize("options", LAYERS)
def test_a_captured_step_is_the_step(options, capture):
    layer, x, dy, inputs = made(options)
    step = step_of(lambda x: layer(x, training=True), x, dy, inputs)
    expected = [one.detach().clone() for one in step()]
    replay = capture(step)
    before = layer.moving_mean.value.detach().clone()
    found = replay()
    if options != "renorm":  # Whose output depends on the moving statistics.
        close(found, expected)
    assert not torch.equal(layer.moving_mean.value, before)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", LAYERS)
def test_nothing_waits(options, training, watched):
    layer, x, dy, inputs = made(options)
    layer(x, training=training)  # What is settled at the first call may wait.
    with watched():
        y = layer(x, training=training)
        if training:
            torch.autograd.grad(y, inputs, dy)


# Each takes seconds to compile, and on the CPU shows no more than the first.
COMPILED = ["default"] if DRY else ["default", "relu", "channels first"]


@pytest.mark.parametrize("options", COMPILED)
def test_compiled(options, compiler):
    torch.compiler.reset()
    layer, x, dy, inputs = made(options)
    step = step_of(lambda x: layer(x, training=True), x, dy, inputs)
    expected = step()
    call = torch.compile(
        lambda x: layer(x, training=True),
        fullgraph=frameworks.WHOLE_GRAPHS,
        backend=compiler,
    )
    close(step_of(call, x, dy, inputs)(), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(device, dtype):
    """A float32 layer takes what a convolution gives there: half precision."""
    layer, x, dy, inputs = made("default")
    expected = step_of(lambda x: layer(x, training=True), x, dy, inputs)()
    with torch.autocast(device, dtype=dtype):
        y = layer(x.to(dtype), training=True)
    found = y, *torch.autograd.grad(y, inputs, dy.to(y.dtype))
    close(found, expected, 2e-2)


@pytest.mark.parametrize("options", ["default", "relu"])
def test_channels_last_memory(options):
    """Channels first in shape, last in memory, as convolutions on a GPU like it."""
    layer = keras_bn.BatchNormalization(**LAYERS[options], axis=1)
    reference, x, dy, inputs = made(options)
    expected = step_of(lambda x: reference(x, training=True), x, dy, inputs)()
    x = x.detach().permute(0, 3, 1, 2).requires_grad_()
    layer.build(tuple(x.shape))
    weights = [one.value for one in layer.trainable_variables]
    y, dx, *rest = step_of(
        lambda x: layer(x, training=True), x, dy.permute(0, 3, 1, 2), [x, *weights]
    )()
    assert y.is_contiguous(memory_format=torch.channels_last)
    close([one.permute(0, 2, 3, 1) for one in (y, dx)], expected[:2])
    close(rest, expected[2:])


@pytest.mark.parametrize("options", ["default", "relu"])
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_keeps_one_input_for_the_backward_pass(options, dtype):
    layer, x, _, _ = made(options, dtype)
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x, training=True)
    assert sum(kept.values()) <= 1.05 * x.numel() * x.element_size()
