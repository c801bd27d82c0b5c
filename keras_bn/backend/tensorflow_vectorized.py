"""What `tf.vectorized_map` and `tape.jacobian` must know of our operators.

TensorFlow vectorizes operator by operator, each by a converter that is registered. It
has none for two of ours, one that wants a normalization's parameters to be the same for
all, and one that fails on no samples.
"""

from typing import Any

import tensorflow as tf

from keras_bn.backend.tensorflow_private import converters, wrap

# Without them, `tf.vectorized_map` of a layer is an error of TensorFlow's.
_converters: dict[str, Any] = converters or {}
_shared_parameters: Any = _converters.get("FusedBatchNormV3")
_not_empty: Any = _converters.get("FusedBatchNormGradV3")


def _device_index(given: Any) -> Any:
    """The same for all."""
    return wrap(given.op.outputs[0], False)


def _euclidean_norm(given: Any) -> Any:
    """Over axes that are one further now; negative ones are where they were."""
    axes = given.unstacked_input(1)
    axes += tf.cast(axes >= 0, axes.dtype)
    norm = tf.raw_ops.EuclideanNorm(
        input=given.stacked_input(0), axis=axes, keep_dims=given.get_attr("keep_dims")
    )
    return wrap(norm, True)


def _fused_batch_norm(given: Any) -> Any:
    """In plain operators where parameters differ; else as TensorFlow does it."""
    differ = any(given.input(i).is_stacked for i in range(1, given.num_inputs))
    layout = given.get_attr("data_format")
    if not differ or given.get_attr("is_training") or layout != b"NHWC":
        return _shared_parameters(given)
    given.stack_inputs()
    x, *parameters = (given.stacked_input(i) for i in range(given.num_inputs))
    scale, offset, mean, variance = (
        part[:, tf.newaxis, tf.newaxis, tf.newaxis, :] for part in parameters
    )
    factor = tf.math.rsqrt(variance + given.get_attr("epsilon")) * scale
    y = (tf.cast(x, factor.dtype) - mean) * factor + offset
    # The statistics of a batch, which nobody reads of a normalization by given ones.
    unused = wrap(tf.zeros_like(parameters[0][0]), False)
    return [wrap(tf.cast(y, x.dtype), True)] + [unused] * 5


def _fused_batch_norm_gradient(given: Any) -> Any:
    """As TensorFlow does it, with sums of the right shape where there is nothing to do.

    So it is in the branch of a `tf.cond` that none of the samples takes.
    """
    dx, dscale, doffset, *unused = _not_empty(given)
    shape = tf.shape(given.stacked_input(2))
    sums = [wrap(tf.reshape(one.t, shape), True) for one in (dscale, doffset)]
    return [dx, *sums, *unused]


def register() -> None:
    """Registers what is missing, once."""
    for name, convert in (
        ("DeviceIndex", _device_index),
        ("EuclideanNorm", _euclidean_norm),
    ):
        _converters.setdefault(name, convert)
    if _shared_parameters is not None:
        _converters["FusedBatchNormV3"] = _fused_batch_norm
    if _not_empty is not None:
        _converters["FusedBatchNormGradV3"] = _fused_batch_norm_gradient
