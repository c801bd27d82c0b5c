"""What TensorFlow says of the running call: repetition, XLA, tapes, device."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_bn.backend import tensorflow_private
from keras_bn.backend.interface import Tensor
from keras_bn.backend.stateless import collects_updates


def recomputing(update: Tensor, state: Tensor) -> bool:
    """See `keras_bn.backend.recomputing`.

    Raises:
        ValueError: The call is vectorized: of all that is assigned, one would remain.
    """
    for around in tensorflow_private.transformations():
        if around == "recompute_grad":
            return True
        if not collects_updates():
            raise ValueError(
                "Moving statistics cannot be updated within `tf.vectorized_map`, where "
                "all calls but one would be lost. Use `stateless_call`, which returns "
                "them, or call the layer within `keras_bn.no_update()`. "
                "Received: training=True"
            )
    return False


def compiled_by_xla() -> bool:
    """Whether the running function is traced for `jit_compile=True`, here or outside.

    What is traced before, without it, and then called from such a function, is not.
    """
    return tensorflow_private.within_xla()


def forward_mode(*tensors: Tensor) -> bool:
    """Whether a `tf.autodiff.ForwardAccumulator` follows one of the tensors.

    They must be tensors, not variables, of which TensorFlow cannot be asked. An
    accumulator has no use for a written-out gradient: within a `tf.function` it takes
    the derivatives of what the operators do one by one, as if nothing was written out.
    """
    return tensorflow_private.followed_forward(*tensors)


def recorded() -> bool:
    """Whether a `tf.GradientTape` may follow the running call."""
    return tensorflow_private.may_be_recorded()


def of_running_graph(*tensors: Tensor) -> list[Tensor]:
    """The tensors, as such of the graph that is built now; eagerly, themselves.

    A written-out gradient within a written-out gradient is traced into a graph, and its
    own gradient into a third one. TensorFlow finds what the third reads of the second,
    not of the first: forward mode through a `tf.function` would fail.
    """
    if tf.executing_eagerly():
        return list(tensors)
    return [tf.identity(tensor) for tensor in tensors]


def vector_jacobian_product(
    function: Callable[..., Any], inputs: Sequence[Tensor], upstream: Sequence[Tensor]
) -> Any:
    """The gradients of `sum(function(*inputs) * upstream)`; None where there is none.

    Not by a tape where a graph is built: TensorFlow may be differentiating a function
    then, with all tapes stopped, and the gradients would be None in silence.
    """
    inputs = of_running_graph(*inputs)
    if not tf.executing_eagerly():
        return tf.gradients(function(*inputs), inputs, upstream)
    with tf.GradientTape() as tape:
        tape.watch([tensor for tensor in inputs if tensor.dtype.is_floating])
        outputs = function(*inputs)
    return tape.gradient(outputs, inputs, upstream)


def where_run(on_cpu: Callable[[], Any], elsewhere: Callable[[], Any]) -> Any:
    """`on_cpu()` where a CPU runs the step, operator by operator, else `elsewhere()`.

    The device that runs a function may be another than any that its trace could see: a
    model is traced on one machine, saved, and trained on another. So both are traced,
    and `DeviceIndex` says which it is when the function is placed, or is compiled by
    XLA, which takes itself for another device than a CPU.
    """
    if compiled_by_xla():
        return elsewhere()
    index = tf.raw_ops.DeviceIndex(device_names=["CPU"])
    if tf.executing_eagerly():
        return (elsewhere if index else on_cpu)()

    def pinned() -> Any:
        # Operators of one function may be placed apart: a function's inputs stay where
        # they are, and `DeviceIndex` may go with them, and the rest to a GPU.
        with tf.device("/device:CPU:*"):
            return on_cpu()

    return tf.switch_case(index, (pinned, elsewhere))


def readable(x: Tensor) -> bool:
    """See `keras_bn.backend.readable`."""
    x = x.flat_values if isinstance(x, tf.RaggedTensor) else x
    return hasattr(x, "numpy") and "device:CPU" in x.device


def same_device(x: Tensor, weight: keras.Variable) -> bool:
    """See `keras_bn.backend.same_device`: TensorFlow copies what it needs."""
    return True
