"""Batch normalization on TensorFlow: its fused operators on exact statistics.

The fused training operator adds up the values of a channel one after the other in
float32: 400k of them leave the variance four digits, and at mean 1e5 and std 10 the
output is thousands of roundings off. Its two halves are used instead. The inference
operator normalizes with statistics that were summed in runs; the gradient operator
takes them as saved. Where the mean is far from zero, both work on `x - centre`.

What is not served goes through the formulas with the gradient written out.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import tensorflow as tf

from keras_bn.backend import formulas, reference, tensorflow_inference
from keras_bn.backend.activations import LEAKY_RELU_SLOPE, activate
from keras_bn.backend.formulas import CentredMoments
from keras_bn.backend.interface import (
    Axes,
    Correction,
    Moments,
    Replicas,
    Service,
    Tensor,
    corrected,
)
from keras_bn.backend.tensorflow_context import compiled_by_xla
from keras_bn.backend.tensorflow_inference import as_image, fused_inference

# Up to mean² = 9 variances, E[x²] - mean² costs the variance ten roundings at most.
_PLAIN_WITHIN = 3.0**2
# Values that a product with ones adds up in a row: exact to 1e-6, and fast.
_RUN = 1024
# Elements (of a sample, where the batch is unknown) below which a few small operators
# take less time than a decision on the device.
_SMALL = 2**14

SERVICES = (
    Service(
        "training, feature axis last, no mask, up to float32, 16k elements or more",
        "tensorflow_kernels",
        "fused operators on exact statistics; saves the input alone",
    ),
    Service(
        "training, all else",
        "tensorflow_kernels",
        "the formulas, gradient written out; saves the input alone",
    ),
    *tensorflow_inference.SERVICES,
)


def train(
    x: Tensor,
    scale: Tensor,
    offset: Tensor,
    axes: Axes,
    epsilon: float,
    mask: Tensor | None,
    correction: Correction | None,
    activation: str | None,
    replicas: Replicas | None = None,
) -> tuple[Tensor, Moments]:
    """See `Kernels.train`."""
    small = _known_positions(x) * (x.shape[-1] or 1) < _SMALL
    fused = _fused_fits(x, axes) and mask is None and not small and replicas is None
    by_formula = _FormulaSteps(axes, epsilon, mask, replicas)
    steps: _Steps = _FusedSteps(axes, epsilon) if fused else by_formula
    centred = steps.moments(tf.stop_gradient(x))
    moments = centred.bookkeeping()
    scale, offset = corrected(scale, offset, moments, correction)

    @tf.custom_gradient
    def first_order(*inputs: Tensor) -> tuple[Any, Any]:
        def second_order(*upstream: Tensor) -> Any:
            # By the formulas, from x on: with the way through its moments.
            with tf.GradientTape() as tape:
                tape.watch(inputs)
                x, scale, offset, dy = inputs
                again = by_formula.moments(x)
                slopes = by_formula.gradients(x, scale, offset, again, dy, activation)
            return tape.gradient(slopes, inputs, upstream)

        x, scale, offset, dy = inputs
        slopes = steps.gradients(x, scale, offset, centred, dy, activation)
        return slopes, second_order

    @tf.custom_gradient
    def normalize(x: Tensor, scale: Tensor, offset: Tensor) -> tuple[Tensor, Any]:
        def gradients(dy: Tensor) -> tuple[Tensor, ...]:
            return first_order(x, scale, offset, dy)

        return steps.normalize(x, scale, offset, centred, activation), gradients

    return normalize(x, *map(tf.convert_to_tensor, (scale, offset))), moments


inference = tensorflow_inference.inference
usable = reference.usable


def _fused_fits(x: Tensor, axes: Axes) -> bool:
    return tensorflow_inference.channels_last(axes) and x.dtype != tf.float64


class _Steps(Protocol):
    """The parts of a training pass; `gradients` as in `formulas`."""

    def moments(self, x: Tensor) -> CentredMoments: ...

    def normalize(
        self,
        x: Tensor,
        scale: Tensor,
        offset: Tensor,
        centred: CentredMoments,
        activation: str | None,
    ) -> Tensor: ...

    def gradients(
        self,
        x: Tensor,
        scale: Tensor,
        offset: Tensor,
        centred: CentredMoments,
        dy: Tensor,
        activation: str | None,
    ) -> tuple[Tensor, ...]: ...


class _FormulaSteps(NamedTuple):
    """The formulas as they stand."""

    axes: Axes
    epsilon: float
    mask: Tensor | None
    replicas: Replicas | None

    def moments(self, x: Tensor) -> CentredMoments:
        values = formulas.widen(x)
        own = formulas.centred_moments(values, self.axes, self.mask, _settled)
        replicas = self.replicas
        return own if replicas is None else formulas.over_replicas(own, replicas)

    def normalize(
        self,
        x: Tensor,
        scale: Tensor,
        offset: Tensor,
        centred: CentredMoments,
        activation: str | None,
    ) -> Tensor:
        y = formulas.normalize(
            formulas.widen(x), scale, offset, centred, self.axes, self.epsilon
        )
        return tf.cast(activate(activation, y), x.dtype)

    def gradients(
        self,
        x: Tensor,
        scale: Tensor,
        offset: Tensor,
        centred: CentredMoments,
        dy: Tensor,
        activation: str | None,
    ) -> tuple[Tensor, ...]:
        return formulas.gradients(
            *(x, scale, offset, self.mask, centred, dy),
            *(self.axes, self.epsilon, activation, self.replicas),
        )


def _settled(centre: Tensor) -> Tensor:
    """See `formulas.centred_moments`."""
    if not compiled_by_xla():
        return centre
    integers = {tf.float32: tf.int32, tf.float64: tf.int64}[centre.dtype]
    bits = tf.bitcast(centre, integers)
    return tf.bitcast(tf.bitwise.bitwise_and(bits, -2), centre.dtype)


class _FusedSteps(NamedTuple):
    """The fused operators, on `x - centre` where the centre is not zero."""

    axes: Axes
    epsilon: float

    def moments(self, x: Tensor) -> CentredMoments:
        values = tf.cast(x, tf.float32)
        count = formulas.count_samples(values, self.axes, None)
        mean, variance = _plain_moments(values, count)
        zero = tf.zeros_like(mean)

        def shifted() -> tuple[Tensor, Tensor, Tensor]:
            return mean, *_plain_moments(values - mean, count)

        near = tf.reduce_all(mean * mean <= _PLAIN_WITHIN * variance)
        moments = tf.cond(near, lambda: (zero, mean, variance), shifted)
        return CentredMoments(count, *moments)

    def normalize(
        self,
        x: Tensor,
        scale: Tensor,
        offset: Tensor,
        centred: CentredMoments,
        activation: str | None,
    ) -> Tensor:
        def on(values: Tensor) -> Tensor:
            statistics = centred.residual, centred.variance
            y = fused_inference(
                *(values, *statistics, scale, offset),
                *(self.axes, self.epsilon, activation),
            )
            return tf.cast(y, x.dtype)

        return _on_deviation(x, centred.centre, on)

    def gradients(
        self,
        x: Tensor,
        scale: Tensor,
        offset: Tensor,
        centred: CentredMoments,
        dy: Tensor,
        activation: str | None,
    ) -> tuple[Tensor, ...]:
        if activation is not None:
            z = self.normalize(x, scale, offset, centred, None)
            dy = _activation_gradient(activation, dy, z)

        def on(values: Tensor) -> tuple[Tensor, ...]:
            dx, dscale, doffset, *_ = tf.raw_ops.FusedBatchNormGradV3(
                y_backprop=as_image(tf.cast(dy, values.dtype)),
                x=as_image(values),
                scale=scale,
                reserve_space_1=centred.residual,
                reserve_space_2=centred.variance,
                reserve_space_3=tf.zeros((0,)),
                epsilon=self.epsilon,
            )
            return tf.cast(tf.reshape(dx, tf.shape(x)), x.dtype), dscale, doffset

        return _on_deviation(x, centred.centre, on)


def _on_deviation(x: Tensor, centre: Tensor, function: Callable[[Tensor], Any]) -> Any:
    """`function(x - centre)`; without the subtraction where the centre is zero."""
    return tf.cond(
        tf.reduce_all(centre == 0),
        lambda: function(x),
        lambda: function(tf.cast(x, tf.float32) - centre),
    )


def _activation_gradient(name: str, dy: Tensor, z: Tensor) -> Tensor:
    """`dy` times the activation's derivative at `z`: one operator, one pass."""
    raw = tf.raw_ops
    gradients = {
        "relu": lambda: raw.ReluGrad(gradients=dy, features=z),
        "relu6": lambda: raw.Relu6Grad(gradients=dy, features=z),
        "leaky_relu": lambda: raw.LeakyReluGrad(
            gradients=dy, features=z, alpha=LEAKY_RELU_SLOPE
        ),
        "elu": lambda: raw.EluGrad(gradients=dy, outputs=tf.nn.elu(z)),
        "selu": lambda: raw.SeluGrad(gradients=dy, outputs=tf.nn.selu(z)),
        "sigmoid": lambda: raw.SigmoidGrad(y=tf.sigmoid(z), dy=dy),
        "tanh": lambda: raw.TanhGrad(y=tf.tanh(z), dy=dy),
    }
    return gradients[name]()


def _plain_moments(x: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance as E[x] and E[x²] - E[x]²; zero variance at the least.

    Added up in runs of moderate length, which is exact.
    """
    rows = tf.reshape(x, (-1, _run(x), x.shape[-1]))
    divisor = tf.maximum(count, 1.0)
    first, second = _total(rows) / divisor, _total_squares(rows) / divisor
    return first, tf.maximum(second - first * first, 0.0)


def _total(rows: Tensor) -> Tensor:
    """Sums over all but the channels, as products with ones: the quickest there is."""
    ones = tf.ones((tf.shape(rows)[0], 1, rows.shape[1]))
    return tf.reduce_sum(tf.matmul(ones, rows), (0, 1))


def _total_squares(rows: Tensor) -> Tensor:
    if compiled_by_xla():
        return _total(tf.square(rows))
    # The one operator that sums squares without writing them; XLA does not have it.
    norms = tf.raw_ops.EuclideanNorm(input=rows, axis=1)
    return tf.reduce_sum(tf.square(norms), 0)


def _known_positions(x: Tensor) -> int:
    """How many positions there are; how many a sample has, if that is all we know."""
    leading = x.shape[:-1]
    if leading.num_elements() is not None:
        return int(leading.num_elements())
    return int(leading[1:].num_elements() or 1)


def _run(x: Tensor) -> int:
    """The longest run, of at most `_RUN` values, into which x can be cut evenly."""
    positions = _known_positions(x)
    return max((n for n in range(1, _RUN + 1) if positions % n == 0), default=1)
