"""The parts of a training pass on TensorFlow, and which of them a device runs."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import tensorflow as tf

from keras_bn.backend import (
    derivatives,
    formulas,
    tensorflow_cpu,
    tensorflow_inference,
)
from keras_bn.backend.activations import LEAKY_RELU_SLOPE, activate
from keras_bn.backend.formulas import CentredMoments
from keras_bn.backend.interface import Axes, Replicas, Tensor
from keras_bn.backend.tensorflow_context import compiled_by_xla, where_run
from keras_bn.backend.tensorflow_cpu import on_deviation


class TrainingParts(Protocol):
    """The parts of a training pass, for one input."""

    def moments(self, x: Tensor) -> CentredMoments:
        """The moments of x, of all replicas."""

    def normalize(
        self,
        x: Tensor,
        scale: Tensor,
        offset: Tensor,
        centred: CentredMoments,
        activation: str | None,
    ) -> Tensor:
        """The output, of the shape and dtype of x."""

    def gradients(
        self,
        x: Tensor,
        scale: Tensor,
        offset: Tensor,
        centred: CentredMoments,
        dy: Tensor,
        activation: str | None,
    ) -> tuple[Tensor, ...]:
        """The gradients for x, scale, offset, and weights for a mask.

        See `derivatives.gradients`.
        """


class FormulaParts(NamedTuple):
    """The formulas as they stand."""

    axes: Axes
    epsilon: float
    mask: Tensor | None
    replicas: Replicas | None

    def moments(self, x: Tensor) -> CentredMoments:
        """See `TrainingParts.moments`."""
        values = formulas.widen(x)
        about = formulas.sample(x, self.axes) if self.mask is None else None
        own = formulas.centred_moments(
            *(values, self.axes, self.mask, _settled, about),
            squares=lambda deviation: _no_product(tf.square(deviation)),
        )
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
        """See `TrainingParts.normalize`."""
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
        """See `TrainingParts.gradients`."""
        return derivatives.gradients(
            *(x, scale, offset, self.mask, centred, dy),
            *(self.axes, self.epsilon, activation, self.replicas),
            about=_total_about,
            of_weights=formulas.is_weights(self.mask),
        )


def _settled(centre: Tensor) -> Tensor:
    """See `formulas.centred_moments`."""
    if not compiled_by_xla():
        return centre
    integers = {tf.float32: tf.int32, tf.float64: tf.int64}[centre.dtype]
    bits = tf.bitcast(centre, integers)
    return tf.bitcast(tf.bitwise.bitwise_and(bits, -2), centre.dtype)


def _total_about(values: Tensor, x: Tensor, centre: Tensor, axes: Axes) -> Tensor:
    """See `derivatives.gradients`."""
    return formulas.total(_no_product(values * (x - axes.broadcast(centre))), axes)


def _no_product(values: Tensor) -> Tensor:
    """The values, which are products, so that XLA does not see it when it sums them.

    It would make a dot product of that, and for that it lays both factors out anew on a
    CPU: fifteen times as slow. A sum of the larger ones of two numbers is none.
    """
    return tf.maximum(values, values.dtype.min) if compiled_by_xla() else values


class FusedParts(NamedTuple):
    """The fused operators, on `x - centre` where the centre is not zero."""

    axes: Axes
    epsilon: float

    def moments(self, x: Tensor) -> CentredMoments:
        """See `TrainingParts.moments`."""
        return tensorflow_cpu.moments(x, self.axes)

    def normalize(
        self,
        x: Tensor,
        scale: Tensor,
        offset: Tensor,
        centred: CentredMoments,
        activation: str | None,
    ) -> Tensor:
        """See `TrainingParts.normalize`."""

        def on(values: Tensor) -> Tensor:
            statistics = centred.residual, centred.variance
            y = tensorflow_inference.fused_inference(
                *(values, *statistics, scale, offset),
                *(self.axes, self.epsilon, activation),
            )
            return tf.cast(y, x.dtype)

        return on_deviation(x, centred.centre, on)

    def gradients(
        self,
        x: Tensor,
        scale: Tensor,
        offset: Tensor,
        centred: CentredMoments,
        dy: Tensor,
        activation: str | None,
    ) -> tuple[Tensor, ...]:
        """See `TrainingParts.gradients`."""
        if activation is not None:
            z = self.normalize(x, scale, offset, centred, None)
            dy = _activation_gradient(activation, dy, z)
        return tensorflow_cpu.gradients(x, scale, centred, dy, self.epsilon)


class PartsByDevice(NamedTuple):
    """The parts of a training pass, chosen by the device that will run them."""

    on_cpu: TrainingParts
    elsewhere: TrainingParts

    def moments(self, x: Tensor) -> CentredMoments:
        """See `TrainingParts.moments`."""
        return self._choose(lambda parts: parts.moments(x))

    def normalize(self, *arguments: Any) -> Tensor:
        """See `TrainingParts.normalize`."""
        return self._choose(lambda parts: parts.normalize(*arguments))

    def gradients(self, *arguments: Any) -> tuple[Tensor, ...]:
        """See `TrainingParts.gradients`."""
        return self._choose(lambda parts: parts.gradients(*arguments))

    def _choose(self, part: Callable[[TrainingParts], Any]) -> Any:
        return where_run(lambda: part(self.on_cpu), lambda: part(self.elsewhere))


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
