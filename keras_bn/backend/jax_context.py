"""What JAX says of the running call: its replicas, and whether it is checkpointed.

Replicas are the devices along the manual axes of `shard_map` and `pmap`. Under
`keras.distribution` and plain `jit` there are none to speak of: arrays are global
there, and so are statistics of them.
"""

import sys
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import jax
import keras

from keras_bn.backend.interface import Tensor
from keras_bn.backend.stateless import collects_updates


class ManualAxes(NamedTuple):
    """The devices along these axes of a mesh; see `Replicas`.

    Both results are of the type that does not vary from device to device, so that
    moving statistics may leave `shard_map` as `PartitionSpec()`.
    """

    names: tuple[str, ...]

    def gather(self, values: Tensor) -> Tensor:
        """See `Replicas.gather`."""
        return jax.lax.all_gather(values, self.names, to="invarying")

    def total(self, values: Tensor) -> Tensor:
        """See `Replicas.total`."""
        return jax.lax.psum(values, self.names)


def replicas() -> ManualAxes | None:
    """The replicas that the running function is one of; None if it runs alone."""
    names = tuple(jax.sharding.get_abstract_mesh().manual_axes)
    return ManualAxes(names) if names else None


def recomputing(update: Tensor, state: Tensor) -> bool:
    """See `keras_bn.backend.recomputing`: JAX traces a checkpointed call once.

    Raises:
        ValueError: The call is traced without its state: an update could not get out.
    """
    trace = getattr(update, "_trace", None)
    if trace is None or getattr(state, "_trace", None) == trace:
        return False
    traced = getattr(getattr(trace, "frame", None), "debug_info", None)
    checkpointed = getattr(traced, "traced_for", "") == "checkpoint / remat"
    if checkpointed and not _collects_updates_within("ad_checkpoint.py"):
        raise ValueError(
            "Moving statistics cannot be updated inside `keras.remat` or "
            "`jax.checkpoint` on JAX: what happens there can only come out as a "
            "result. Use `keras.RematScope` around single layers (this one then saves "
            "its input alone, and is not recomputed), or checkpoint a function of the "
            "state: `jax.checkpoint(model.stateless_call)`. Received: training=True"
        )
    source = Path(getattr(traced, "func_filename", None) or "")
    if source.parts[-5:] == ("keras", "src", "backend", "jax", "rnn.py"):
        raise ValueError(
            "Moving statistics cannot be updated inside the loop of `keras.layers.RNN` "
            "on JAX: it carries the states of the cell, and no others. Use "
            "`RNN(cell, unroll=True)`, or have the cell call the layer within "
            "`keras_bn.no_update()`. Received: training=True"
        )
    if not collects_updates():
        raise ValueError(
            "Moving statistics cannot be updated by a call that JAX traces (for `jit`, "
            "`vmap`, `scan`, ...) unless they come out as a result. Use "
            "`stateless_call`, which returns them, or call the layer within "
            "`keras_bn.no_update()`. Received: training=True"
        )
    return False


def _collects_updates_within(file: str) -> bool:
    """Whether what collects updates is nearer to this call than a function of `file`.

    A scope says nothing of the trace that it was opened in, so this looks for the two
    among the callers.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None and not frame.f_code.co_filename.endswith(file):
        if frame.f_code.co_name == "stateless_call":
            return True
        frame = frame.f_back
    return False


def vary_alike(x: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """`others`, each typed as varying over the manual axes that `x` varies over.

    Autodiff adds up over the devices what flows back through the cast; without it a
    written-out gradient would have to know what `shard_map` was told to check.
    """
    varying = jax.typeof(x).mat.varying

    def cast(one: Tensor) -> Tensor:
        missing = tuple(sorted(varying - jax.typeof(one).mat.varying))
        return jax.lax.pcast(one, missing, to="varying") if missing else one

    return tuple(cast(one) for one in others)


def readable(x: Tensor) -> bool:
    """See `keras_bn.backend.readable`."""
    return (
        not isinstance(x, jax.core.Tracer)
        and x.is_fully_addressable
        and all(device.platform == "cpu" for device in x.devices())
    )


def same_device(x: Tensor, weight: keras.Variable) -> bool:
    """See `keras_bn.backend.same_device`: JAX decides where it computes."""
    return True


def concrete(x: Tensor) -> bool:
    """See `keras_bn.backend.concrete`."""
    return not isinstance(x, jax.core.Tracer) and bool(x.is_fully_addressable)
