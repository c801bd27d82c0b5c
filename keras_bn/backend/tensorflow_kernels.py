"""Batch normalization on TensorFlow: its fused operators on exact statistics.

The fused training operator adds up the values of a channel one after the other in
float32: 400k of them leave the variance four digits, and at mean 1e5 and std 10 the
output is thousands of roundings off. On a CPU its two halves are used instead. The
inference operator normalizes with statistics that were summed in runs; the gradient
operator takes them as saved. Where the mean is far from zero, both work on
`x - centre`.

What is not served goes through the formulas, and so does every step that a GPU runs or
XLA compiles. The gradient is written out, and its own gradient by the formulas, which
TensorFlow differentiates further.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import tensorflow as tf

from keras_bn.backend import (
    formulas,
    reference,
    tensorflow_cpu,
    tensorflow_inference,
    tensorflow_ragged,
    tensorflow_vectorized,
)
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
from keras_bn.backend.tensorflow_context import (
    compiled_by_xla,
    forward_mode,
    of_running_graph,
    vector_jacobian_product,
    where_run,
)
from keras_bn.backend.tensorflow_cpu import known_positions, on_deviation

# Elements (of a sample, where the batch is unknown) below which a few small operators
# take less time than a decision on the device.
_SMALL = 2**14

tensorflow_vectorized.register()

SERVICES = (
    Service(
        "training, feature axis last, no mask, up to float32, 16k elements or more, "
        "run by a CPU without XLA",
        "tensorflow_cpu",
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
    if isinstance(x, tf.RaggedTensor):
        values = tensorflow_ragged.flat(x, axes, mask)
        y, moments = train(
            *(values.x, scale, offset, values.axes, epsilon, values.mask),
            *(correction, activation, replicas),
        )
        return x.with_flat_values(y), moments
    # A branch of a `tf.cond` may be given tensors of the graph around it, in which its
    # gradient does not look for them.
    x, scale, offset = of_running_graph(x, scale, offset)
    if mask is not None:
        (mask,) = of_running_graph(mask)
    by_formula = _FormulaSteps(axes, epsilon, mask, replicas)
    steps = _best(by_formula, x)
    x_alone = tf.stop_gradient(x)  # see `_alone`
    centred = steps.moments(x_alone)
    moments = centred.bookkeeping()
    scale, offset = map(
        tf.convert_to_tensor, corrected(scale, offset, moments, correction)
    )
    if forward_mode(x, scale, offset):
        again = by_formula.moments(x)
        return by_formula.normalize(x, scale, offset, again, activation), moments

    def from_x_on(x: Tensor, scale: Tensor, offset: Tensor, dy: Tensor, *mask: Tensor):
        # The gradients with the way through the moments: to differentiate further.
        formula = by_formula._replace(mask=mask[0] if mask else None)
        again = formula.moments(x)
        return formula.gradients(x, scale, offset, again, dy, activation)

    @tf.custom_gradient
    def first_order(*inputs: Tensor) -> tuple[Any, Any]:
        def second_order(*upstream: Tensor) -> Any:
            return vector_jacobian_product(from_x_on, inputs, upstream)

        _, scale, offset, dy = _alone(*inputs[:4])
        slopes = steps.gradients(x_alone, scale, offset, centred, dy, activation)
        return slopes, second_order

    @tf.custom_gradient
    def normalize(x: Tensor, scale: Tensor, offset: Tensor) -> tuple[Tensor, Any]:
        def gradients(dy: Tensor) -> tuple[Tensor, ...]:
            dy = tf.convert_to_tensor(dy)  # what reads a part of y gives slices
            inputs = (x, scale, offset, dy, *([] if mask is None else [mask]))
            if forward_mode(*inputs):
                return from_x_on(*inputs)
            return first_order(*of_running_graph(*inputs))

        alone = (x_alone, *_alone(scale, offset))
        return steps.normalize(*(*alone, centred, activation)), gradients

    return normalize(x, scale, offset), moments


def _best(by_formula: "_FormulaSteps", x: Tensor) -> "_Steps":
    """The steps by formula, or others that do the same, faster, for such an input."""
    axes, epsilon, mask, replicas = by_formula
    if mask is None and replicas is None and _fused_fits(x, axes, _SMALL):
        return _StepsByDevice(_FusedSteps(axes, epsilon), by_formula)
    return by_formula


def _alone(*tensors: Tensor) -> list[Tensor]:
    """The tensors, as the operators of a pass get them that have no gradient to add.

    So a tape does not keep for them what it would need to differentiate each.
    """
    return [tf.stop_gradient(tensor) for tensor in tensors]


def ensure_shape(x: Tensor, shape: tuple[int | None, ...]) -> Tensor:
    """See `Kernels.ensure_shape`."""
    return tf.ensure_shape(x, shape)


inference = tensorflow_inference.inference
usable = reference.usable
moving_average = reference.moving_average


def services() -> tuple[Service, ...]:
    """See `Kernels.services`."""
    return SERVICES


def _fused_fits(x: Tensor, axes: Axes, least: int) -> bool:
    last = axes.features == (axes.ndim - 1,) and x.dtype != tf.float64
    return last and known_positions(x) * x.shape[-1] >= least


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
            about=_total_about,
        )


def _settled(centre: Tensor) -> Tensor:
    """See `formulas.centred_moments`."""
    if not compiled_by_xla():
        return centre
    integers = {tf.float32: tf.int32, tf.float64: tf.int64}[centre.dtype]
    bits = tf.bitcast(centre, integers)
    return tf.bitcast(tf.bitwise.bitwise_and(bits, -2), centre.dtype)


def _total_about(values: Tensor, x: Tensor, centre: Tensor, axes: Axes) -> Tensor:
    """See `formulas.gradients`."""
    return formulas.total(_no_product(values * (x - axes.broadcast(centre))), axes)


def _no_product(values: Tensor) -> Tensor:
    """The values, which are products, so that XLA does not see it when it sums them.

    It would make a dot product of that, and for that it lays both factors out anew on a
    CPU: fifteen times as slow. A sum of the larger ones of two numbers is none.
    """
    return tf.maximum(values, values.dtype.min) if compiled_by_xla() else values


class _FusedSteps(NamedTuple):
    """The fused operators, on `x - centre` where the centre is not zero."""

    axes: Axes
    epsilon: float

    def moments(self, x: Tensor) -> CentredMoments:
        return tensorflow_cpu.moments(x, self.axes)

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
        if activation is not None:
            z = self.normalize(x, scale, offset, centred, None)
            dy = _activation_gradient(activation, dy, z)
        return tensorflow_cpu.gradients(x, scale, centred, dy, self.epsilon)


class _StepsByDevice(NamedTuple):
    """The parts of a training pass, chosen by the device that will run them."""

    on_cpu: _Steps
    elsewhere: _Steps

    def moments(self, x: Tensor) -> CentredMoments:
        return self._choose(lambda steps: steps.moments(x))

    def normalize(self, *arguments: Any) -> Tensor:
        return self._choose(lambda steps: steps.normalize(*arguments))

    def gradients(self, *arguments: Any) -> tuple[Tensor, ...]:
        return self._choose(lambda steps: steps.gradients(*arguments))

    def _choose(self, part: Callable[[_Steps], Any]) -> Any:
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
