"""What JAX says of the running call: whether it is checkpointed, or loses updates."""

import jax
import keras

from keras_bn.backend import jax_private
from keras_bn.backend.interface import Tensor
from keras_bn.backend.stateless import collects_updates


def recomputing(update: Tensor, state: Tensor) -> bool:
    """See `keras_bn.backend.recomputing`: JAX traces a checkpointed call once.

    Raises:
        ValueError: The call is traced without its state: an update could not get out.
    """
    if not jax_private.leaves_its_trace(update, state):
        return False
    collected = jax_private.collects_updates_within_checkpoint
    if jax_private.of_checkpoint(update) and not collected():
        raise ValueError(
            "Moving statistics cannot be updated inside `keras.remat` or "
            "`jax.checkpoint` on JAX: what happens there can only come out as a "
            "result. Use `keras.RematScope` around single layers (this one then saves "
            "its input alone, and is not recomputed), or checkpoint a function of the "
            "state: `jax.checkpoint(model.stateless_call)`. Received: training=True"
        )
    if jax_private.of_loop_of_rnn(update):
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
