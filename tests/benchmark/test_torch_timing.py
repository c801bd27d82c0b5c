"""What the benchmark asks of a GPU on PyTorch, without one."""

import contextlib
import types

import keras
import pytest

from keras_bn.backend import timing

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="how PyTorch times a device"
)


class Device:
    """Stands in for `torch.cuda`: notes in turn what is asked of it, and where."""

    def __init__(self):
        self.asked, self.mode, self.on = [], "default", "main"

    @contextlib.contextmanager
    def _on(self, where):
        before, self.on = self.on, where
        try:
            yield
        finally:
            self.on = before

    def stream(self, stream):
        return self._on(stream.name)

    def graph(self, graph):
        return self._on("graph")

    def Stream(self):
        return self._stream("side")

    def current_stream(self):
        return self._stream(self.on)

    def _stream(self, name):
        return types.SimpleNamespace(
            name=name,
            wait_stream=lambda other: self.asked.append(f"{name} waits: {other.name}"),
        )

    def CUDAGraph(self):
        return types.SimpleNamespace(replay=lambda: self.asked.append("replay"))

    def get_sync_debug_mode(self):
        return self.mode

    def set_sync_debug_mode(self, mode):
        self.mode = mode

    def get_device_name(self):
        return "a device"

    def step(self):
        """A step, which says where it ran."""
        self.asked.append(f"{self.on}, {self.mode}")
        return len(self.asked)


@pytest.fixture
def device(monkeypatch):
    """A device for `torch_timing`; its tensors are abstract."""
    import torch

    found = Device()
    monkeypatch.setattr(torch, "cuda", found)
    monkeypatch.setattr(timing(), "_device", lambda: torch.device("meta"))
    monkeypatch.setattr(
        *(torch.accelerator, "synchronize", lambda: found.asked.append("wait"))
    )
    return found


def test_a_graph_is_captured_once_and_replayed(device):
    run = timing()._captured("graph", device.step)
    first, *warm_up, last, capture = device.asked
    assert (first, last) == ("side waits: main", "main waits: side")
    assert set(warm_up) == {"side, error"}
    assert capture == "graph, default"
    size = len(device.asked)
    assert [run(), run()] == [size, size]
    assert device.asked[size:] == ["replay", "replay"]


def test_a_step_that_waits_is_not_captured(device):
    def step():
        if device.mode == "error":
            raise RuntimeError("called a synchronizing operation\nand more")

    with pytest.raises(NotImplementedError, match=r"CUDA graph: called a sync.*tion$"):
        timing()._captured("graph", step)
    assert (device.mode, device.on) == ("default", "main")


def test_a_device_is_named_waited_for_and_flushed(device, monkeypatch):
    assert timing().wait("result") == "result"
    assert device.asked == ["wait"]
    flushed = timing().flush()()
    assert flushed.is_meta
    assert 5 * 50e6 <= flushed.nbytes < 1e9  # an H100's cache is of 50 MB
    assert "device" not in timing().versions()
    monkeypatch.setattr(timing(), "_device", lambda: types.SimpleNamespace(type="cuda"))
    found = timing().versions()
    assert found["device"] == "a device"
    assert {"cuda", "cudnn", "torch", "backend"} <= {*found}
    assert all(isinstance(one, str) for one in found.values())
