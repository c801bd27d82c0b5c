"""Inference on TensorFlow, in operators that exporters fuse with a convolution.

LiteRT's converter and onnxruntime multiply a product and a sum of vectors into the
convolution before them, and a fused batch norm of four axes; with a reshape in between,
or a parameter of the shape `(1, 1, channels)`, they do not.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from keras_bn.backend import derivatives, formulas, tensorflow_ragged
from keras_bn.backend.activations import SLOPES, activate
from keras_bn.backend.interface import Axes, Service, Tensor
from keras_bn.backend.tensorflow_context import forward_mode, of_running_graph, recorded
from keras_bn.backend.tensorflow_cpu import as_image

# Elements from which the fused operator saves more than its gradient, which is ours,
# takes of Python's time.
_LARGE = 2**17

SERVICES = (
    Service(
        "inference, eagerly, below 131k elements",
        "tensorflow_inference",
        "few plain operators, the mean subtracted first",
    ),
    Service(
        "inference, feature axis last, up to float32, 131k elements or more",
        "tensorflow_inference",
        "fused operator: one multiply-add per element, half precision as it is",
    ),
    Service(
        "inference, all else",
        "tensorflow_inference",
        "plain operators, one product and one sum per element",
    ),
)


def inference(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    scale: Tensor,
    offset: Tensor,
    axes: Axes,
    epsilon: float,
    activation: str | None,
) -> Tensor:
    """See `Kernels.inference`."""
    if isinstance(x, tf.RaggedTensor):
        values = tensorflow_ragged.flat(x, axes)
        parameters = mean, variance, scale, offset
        y = inference(values.x, *parameters, values.axes, epsilon, activation)
        return x.with_flat_values(y)
    # A branch of a `tf.cond` may be given tensors of the graph around it, in which its
    # gradient does not look for them.
    x, mean, variance, scale, offset = of_running_graph(
        *map(tf.convert_to_tensor, (x, mean, variance, scale, offset))
    )
    eager = tf.executing_eagerly()
    large = (x.shape.num_elements() or 0) >= _LARGE
    fused = channels_last(axes) and x.dtype != tf.float64
    fused = fused and (large or axes.ndim == 4)
    if (eager and not large) or forward_mode(x, mean, variance, scale, offset):
        affine = _subtract_first
    elif recorded():
        affine = _with_gradient(fused_inference if fused else _multiply_add)
    elif not fused:
        affine = _multiply_add
    else:
        # Who traces this without a tape may export it, or differentiate it later.
        affine = fused_inference if eager else _fused_multiply_add
    return affine(x, mean, variance, scale, offset, axes, epsilon, activation)


def channels_last(axes: Axes) -> bool:
    """Whether the last axis, and it alone, keeps its statistics."""
    return axes.features == (axes.ndim - 1,)


def _with_gradient(affine: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`affine`, with the gradient that subtracts the mean first.

    The fused operator has none for mean and variance. For a product and a sum, autodiff
    takes `sum(dy * x) - mean * sum(dy)`, which at mean 1e4 keeps two digits.
    """

    def differentiable(
        x: Tensor,
        mean: Tensor,
        variance: Tensor,
        scale: Tensor,
        offset: Tensor,
        axes: Axes,
        epsilon: float,
        activation: str | None,
    ) -> Tensor:
        @tf.custom_gradient
        def apply(*inputs: Any) -> tuple[Tensor, Any]:
            def gradients(dy: Tensor) -> tuple[Tensor, ...]:
                dy = tf.convert_to_tensor(dy)  # what reads a part of y gives slices
                x, *parameters = inputs
                if activation is not None:
                    exact = formulas.widen(x), *parameters, axes, epsilon, activation
                    slope = SLOPES[activation](_subtract_first(*exact))
                    dy = formulas.widen(dy) * slope
                arguments = x, *parameters, dy, axes, epsilon
                return derivatives.inference_gradients(*arguments)

            # A forward accumulator would follow the operators too, into the one that
            # has no gradient for mean and variance.
            alone = map(tf.stop_gradient, inputs)
            return affine(*alone, axes, epsilon, activation), gradients

        return apply(x, mean, variance, scale, offset)

    return differentiable


def _subtract_first(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    scale: Tensor,
    offset: Tensor,
    axes: Axes,
    epsilon: float,
    activation: str | None,
) -> Tensor:
    factor = tf.math.rsqrt(variance + epsilon) * scale
    deviation = tf.cast(x, factor.dtype) - _spread(mean, axes)
    y = deviation * _spread(factor, axes) + _spread(offset, axes)
    return tf.cast(activate(activation, y), x.dtype)


def _multiply_add(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    scale: Tensor,
    offset: Tensor,
    axes: Axes,
    epsilon: float,
    activation: str | None,
) -> Tensor:
    factor = tf.math.rsqrt(variance + epsilon) * scale
    level = offset - mean * factor
    y = tf.cast(x, factor.dtype) * _spread(factor, axes) + _spread(level, axes)
    return tf.cast(activate(activation, y), x.dtype)


def _spread(parameter: Tensor, axes: Axes) -> Tensor:
    """`parameter`, so that it broadcasts against x: as it is, where it does.

    `Axes.broadcast` in TensorFlow's words: `keras.ops` takes as long as two operators.
    """
    if channels_last(axes) or len(axes.features) > 1:
        return parameter
    shape = [1] * axes.ndim
    shape[axes.features[0]] = -1
    return tf.reshape(parameter, shape)


def _fused_multiply_add(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    scale: Tensor,
    offset: Tensor,
    axes: Axes,
    epsilon: float,
    activation: str | None,
) -> Tensor:
    """`_multiply_add` by the fused operator, whose own gradient reaches all five.

    It has one for its scale and offset, none for its mean and variance. A gradient
    written out for them would leave OpenVINO more outputs than the model has.
    """
    factor = tf.math.rsqrt(variance + epsilon) * scale
    level = offset - mean * factor
    zeros = tf.zeros_like(factor)
    statistics = zeros, zeros + (1 - epsilon)
    return fused_inference(x, *statistics, factor, level, axes, epsilon, activation)


def fused_inference(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    scale: Tensor,
    offset: Tensor,
    axes: Axes,
    epsilon: float,
    activation: str | None,
) -> Tensor:
    """The fused operator, for channels that are the last of any number of axes."""
    image = axes.ndim == 4
    y = tf.raw_ops.FusedBatchNormV3(
        x=x if image else as_image(x, scale),
        scale=scale,
        offset=offset,
        mean=mean,
        variance=variance,
        epsilon=epsilon,
        is_training=False,
    ).y
    # TensorFlow makes one operator of the two where nothing stands between them.
    y = activate(activation, y)
    return y if image else tf.reshape(y, tf.shape(x))
