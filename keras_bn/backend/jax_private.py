"""What JAX says of the running call by names that are not public, all of them.

Where one is gone, what is refused here is refused by JAX, which says that a tracer has
leaked, and not from where.
"""

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import jax

from keras_bn._private import private

_trace = private(
    "jax.core:Tracer._trace",
    "an update in a trace of its own, as within `jax.checkpoint`, is an error of JAX's",
)
_varying = private(
    "jax.core:ShapedArray.mat",
    "every array counts as one that `shard_map` knows nothing of (check_vma=False)",
)
_CHECKPOINTED = "checkpoint / remat"
_CHECKPOINTS = "ad_checkpoint.py"


def leaves_its_trace(update: Any, state: Any) -> bool:
    """Whether `update` is traced, and `state`, which it is for, is not traced there."""
    if _trace is None:
        traced = isinstance(update, jax.core.Tracer)
        return traced and not isinstance(state, jax.core.Tracer)
    trace = getattr(update, "_trace", None)
    return trace is not None and getattr(state, "_trace", None) != trace


def of_checkpoint(update: Any) -> bool:
    """Whether the trace of `update` is that of `jax.checkpoint`."""
    return getattr(_traced(update), "traced_for", "") == _CHECKPOINTED


def of_loop_of_rnn(update: Any) -> bool:
    """Whether the trace of `update` is that of the loop of `keras.layers.RNN`."""
    source = Path(getattr(_traced(update), "func_filename", None) or "")
    return source.parts[-5:] == ("keras", "src", "backend", "jax", "rnn.py")


def _traced(x: Any) -> Any:
    """What a trace notes of the function that it is of."""
    frame = getattr(getattr(x, "_trace", None), "frame", None)
    return getattr(frame, "debug_info", None)


def collects_updates_within_checkpoint() -> bool:
    """Whether what collects updates is nearer to this call than `jax.checkpoint`.

    A scope says nothing of the trace that it was opened in, so this looks for the two
    among the callers.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None and not frame.f_code.co_filename.endswith(_CHECKPOINTS):
        if frame.f_code.co_name == "stateless_call":
            return True
        frame = frame.f_back
    return False


def varying_axes(x: Any) -> frozenset[str]:
    """The manual axes along which `x` varies, as far as its type says so."""
    return frozenset() if _varying is None else frozenset(jax.typeof(x).mat.varying)
