"""What `torch.compile` would launch on an H100 and move there, without one.

Inductor is told that there is an H100, schedules its kernels for it, and is stopped
there: the scheduler knows what each kernel reads and writes. All of this is private to
PyTorch, which is why it is a script's affair; written against PyTorch 2.13.

`fake_cuda.load()` comes first, and Triton must be importable.
"""

import types
from collections.abc import Callable
from typing import Any

import torch
import torch._dynamo.device_interface as device_interface
import torch._inductor.config
import torch._inductor.graph
import torch._inductor.scheduler
import torch._inductor.utils
import torch.cuda.random
import torch.utils._triton
from launches import launches_of
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._guards import detect_fake_mode
from torch._inductor.debug import DebugContext
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V

H100 = types.SimpleNamespace(
    name="NVIDIA H100",
    major=9,
    minor=0,
    multi_processor_count=132,
    total_memory=80 << 30,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    regs_per_multiprocessor=65536,
    warp_size=32,
    shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448,
    shared_memory_per_multiprocessor=233472,
    L2_cache_size=50 << 20,
    clock_rate=1980000,
    memory_clock_rate=2619000,
    memory_bus_width=5120,
)


def pretend() -> None:
    """Makes PyTorch believe in one H100."""
    answers = {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_properties": H100,
        "_get_device_properties": H100,
        "get_device_capability": (9, 0),
        "synchronize": None,
        "_lazy_init": None,
        "_is_in_bad_fork": False,
        "set_rng_state": None,
        "get_rng_state": torch.zeros(16, dtype=torch.uint8),
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, _always(answer))
    for name in ("_lazy_init", "get_rng_state", "set_rng_state"):
        setattr(torch.cuda.random, name, getattr(torch.cuda, name))
    torch.version.cuda = "13.0"
    for name in ("cuda", "cuda:0"):
        device_interface.register_interface_for_device(name, _Interface)
    has_triton = _always(True)
    torch.utils._triton.has_triton = has_triton
    torch.utils._triton.has_triton_package = has_triton
    for module in (
        torch._inductor.utils,
        torch._inductor.scheduler,
        torch._inductor.graph,
    ):
        for name in ("has_triton", "is_big_gpu"):
            if hasattr(module, name):
                setattr(module, name, has_triton)
    torch._inductor.utils.get_gpu_type = lambda: "cuda"
    torch._inductor.config.compile_threads = 1


def _always(answer: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: answer


class _Interface(device_interface.CudaInterface):
    class Worker(device_interface.CudaInterface.Worker):
        get_device_properties = staticmethod(_always(H100))
        current_device = staticmethod(_always(0))

    get_device_properties = staticmethod(_always(H100))
    get_compute_capability = staticmethod(_always((9, 0)))
    is_available = staticmethod(_always(True))
    is_bf16_supported = staticmethod(_always(True))
    is_triton_capable = staticmethod(_always(True))
    raise_if_triton_unavailable = staticmethod(_always(None))
    device_count = staticmethod(_always(1))
    current_device = staticmethod(_always(0))
    synchronize = staticmethod(_always(None))


class Compiled:
    """A backend for `torch.compile` that counts in the place of compiling.

    Attributes:
        forward: The forward graphs: of each kernel its launches and the bytes it moves.
        backward: The backward graphs, likewise.
    """

    def __init__(self) -> None:
        self.forward: list[list[tuple[int, int]]] = []
        self.backward: list[list[tuple[int, int]]] = []
        self.backend = aot_autograd(
            fw_compiler=self._counting(self.forward),
            bw_compiler=self._counting(self.backward),
            partition_fn=min_cut_rematerialization_partition,
            decompositions=select_decomp_table(),
        )

    def kernels(self) -> int:
        """All launches."""
        return sum(launches for launches, _ in self._all())

    def passes(self, unit: int) -> float:
        """What is read and written, in tensors of `unit` bytes."""
        return sum(moved for _, moved in self._all()) / unit

    def _all(self) -> list[tuple[int, int]]:
        return [kernel for graph in self.forward + self.backward for kernel in graph]

    def _counting(self, found: list[list[tuple[int, int]]]) -> Callable[..., Any]:
        def compiler(module: torch.fx.GraphModule, inputs: Any) -> Any:
            graph = GraphLowering(module, example_inputs=inputs, is_inference=False)
            with (
                V.set_graph_handler(graph),
                V.set_fake_mode(detect_fake_mode(inputs)),
                V.set_debug_handler(DebugContext()),
            ):
                graph.run(*inputs)
                graph._update_scheduler()
                kernels = [
                    (_launches(node), node.get_read_write_buffers_sizes())
                    for node in graph.scheduler.nodes
                ]
                # What moves nothing is an allocation.
                found.append([kernel for kernel in kernels if kernel[1] > 0])
            return make_boxed_func(module.forward)

        return compiler


def _launches(node: Any) -> int:
    """Of a node of the schedule: one, if it is no operator that launches several."""
    operator = getattr(getattr(node, "node", None), "op_overload", None)
    return 1 if operator is None else launches_of(operator)
