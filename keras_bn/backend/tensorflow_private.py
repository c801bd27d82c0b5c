"""What TensorFlow says of the running call by names that are not public, all of them.

Neither `tf.recompute_grad` nor `tf.vectorized_map` says anything of itself: they are
looked for among the callers.
"""

import sys
from collections.abc import Iterator
from types import CodeType, FrameType
from typing import Any

import tensorflow as tf

from keras_bn._private import private

_RECOMPUTES = "inner_recompute_grad"

_could_record = private(
    "tensorflow.python.eager.record:could_possibly_record",
    "inference always has its gradient written out, as if a tape followed it",
)
_pack_tangents = private(
    "tensorflow.python.eager.forwardprop_util:pack_tangents",
    "all calls go by the formulas, which keep more for the backward pass: a forward "
    "accumulator may follow them",
)
_in_xla = private(
    "tensorflow.python.ops.control_flow_util:GraphOrParentsInXlaContext",
    "all calls go by what XLA wants, which on a CPU is slower",
)
_vectorizer = private(
    "tensorflow.python.ops.parallel_for.control_flow_ops:_pfor_impl",
    "an update within `tf.vectorized_map` is not refused where a scope collects none",
)
wrap: Any = private(
    "tensorflow.python.ops.parallel_for.pfor:wrap",
    "`tf.vectorized_map` and `tape.jacobian` of a layer are errors of TensorFlow's",
)
converters: dict[str, Any] | None = private(
    "tensorflow.python.ops.parallel_for.pfor:_pfor_converter_registry",
    "`tf.vectorized_map` and `tape.jacobian` of a layer are errors of TensorFlow's",
)
_vectorizes = "_pfor_impl" if _vectorizer is None else _vectorizer.__name__


def followed_forward(*tensors: Any) -> bool:
    """Whether a `tf.autodiff.ForwardAccumulator` follows one of the tensors."""
    return _pack_tangents is None or bool(_pack_tangents(tensors).tangents)


def may_be_recorded() -> bool:
    """Whether a `tf.GradientTape` may follow the running call."""
    return _could_record is None or bool(_could_record())


def within_xla() -> bool:
    """Whether the graph that is built, or one around it, is for XLA."""
    return _in_xla is None or bool(_in_xla(tf.compat.v1.get_default_graph()))


def transformations() -> Iterator[str]:
    """What is around this call, the nearest first: "recompute_grad", "vectorized_map".

    The former only where it is the pass that repeats another.

    Raises:
        NotImplementedError: A `tf.recompute_grad` whose passes cannot be told apart.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        name, file = frame.f_code.co_name, frame.f_code.co_filename
        if name == _RECOMPUTES and "tensorflow" in file:
            yield "recompute_grad"
        if name == _vectorizes and "parallel_for" in file:
            yield "vectorized_map"
        if not _tells_passes_apart and _of_recompute_grad(frame.f_code):
            raise NotImplementedError(
                "Moving statistics cannot be updated within `tf.recompute_grad` or "
                f"`keras.remat` on TensorFlow {tf.__version__}: which of two passes "
                f"runs is known by a function `{_RECOMPUTES}`, which it has no more. "
                "Use `keras.RematScope` around single layers, or call the layer within "
                "`keras_bn.no_update()`. Received: training=True"
            )
        frame = frame.f_back


def _functions_in(code: CodeType) -> Iterator[CodeType]:
    yield code
    for one in code.co_consts:
        if isinstance(one, CodeType):
            yield from _functions_in(one)


_of_recompute = tuple(_functions_in(tf.recompute_grad.__code__))
_tells_passes_apart = any(one.co_name == _RECOMPUTES for one in _of_recompute)


def _of_recompute_grad(code: CodeType) -> bool:
    return code in _of_recompute
