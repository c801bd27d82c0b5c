"""XLA's compiler for an H100, on a machine without one.

NVIDIA's plugin of JAX compiles for a GPU that is described to it (h100.txtpb). It must
be importable, and the CUDA toolkit installed: see passes.py.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Autotuning would run kernels. What it chooses among are convolutions.
os.environ.setdefault(
    "XLA_FLAGS",
    f"--xla_gpu_cuda_data_dir={os.environ.get('CUDA_HOME', '/usr/local/cuda')} "
    "--xla_gpu_autotune_level=0",
)

import jax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

_DESCRIPTION = Path(__file__).with_name("h100.txtpb")


def device() -> Any:
    """The H100 that is compiled for."""
    text = _DESCRIPTION.read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    topology = topologies.get_topology_desc(
        "", "cuda", target_config="\n".join(lines), topology="1x1x1"
    )
    return topology.devices[0]


def compiled(function: Callable[..., Any], *arguments: Any) -> Any:
    """`jax.jit(function)` compiled for arguments of these shapes and dtypes."""
    placed = SingleDeviceSharding(device())
    shapes = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=placed), arguments
    )
    traced = jax.jit(function).trace(*shapes)
    return traced.lower(lowering_platforms=("cuda",)).compile()


def compiled_text(hlo: str) -> str:
    """The scheduled program of one in HLO's text; private to JAX 0.10."""
    from jax._src import compiler
    from jax._src.interpreters import mlir
    from jax._src.lib.mlir import ir
    from jaxlib import _hlo, _jax

    module = _hlo.hlo_module_from_text(hlo)
    proto = module.as_serialized_hlo_module_proto()
    lowered = _jax.mlir.xla_computation_to_mlir_module(_hlo.XlaComputation(proto))
    target = device()
    options = compiler.get_compile_options(num_replicas=1, num_partitions=1)
    with mlir.make_ir_context():
        module = ir.Module.parse(lowered)
        devices = _jax.DeviceList((target,))
        executable = target.client.compile(module, devices, options)
    return executable.hlo_modules()[0].to_string()
