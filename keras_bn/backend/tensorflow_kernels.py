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

from typing import Any

import tensorflow as tf

from keras_bn.backend import (
    formulas,
    reference,
    tensorflow_inference,
    tensorflow_ragged,
    tensorflow_vectorized,
)
from keras_bn.backend.activations import activate
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
    forward_mode,
    of_running_graph,
    vector_jacobian_product,
)
from keras_bn.backend.tensorflow_cpu import known_positions, sums_exactly
from keras_bn.backend.tensorflow_parts import (
    FormulaParts,
    FusedParts,
    PartsByDevice,
    TrainingParts,
)

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
        "tensorflow_parts",
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
    shortcut: Tensor | None = None,
) -> tuple[Tensor, Moments]:
    """See `Kernels.train`."""
    if shortcut is not None:
        # Nothing but the result is kept for these two either (of leaky_relu the sum),
        # and XLA makes one pass of them.
        y, moments = train(
            *(x, scale, offset, axes, epsilon, mask, correction, None, replicas)
        )
        return activate(activation, _plus(y, shortcut, x)), moments
    if isinstance(x, tf.RaggedTensor):
        values = tensorflow_ragged.flat(x, axes, mask)
        y, moments = train(
            *(values.x, scale, offset, values.axes, epsilon, values.mask),
            *(correction, activation, replicas),
        )
        return x.with_flat_values(y), moments
    # Of a variable, which people have for an input that they optimize, its value:
    # `forward_mode` cannot ask otherwise.
    x = tf.convert_to_tensor(x)
    by_formula = FormulaParts(axes, epsilon, mask, replicas)
    return _train(x, scale, offset, by_formula, correction, activation)


def _train(
    x: Tensor,
    scale: Tensor,
    offset: Tensor,
    by_formula: FormulaParts,
    correction: Correction | None,
    activation: str | None,
) -> tuple[Tensor, Moments]:
    """`train` of a tensor without a shortcut, its gradients written out."""
    mask = by_formula.mask
    # A branch of a `tf.cond` may be given tensors of the graph around it, in which its
    # gradient does not look for them. A mask has been given its axes in the branch.
    x, scale, offset = of_running_graph(x, scale, offset)
    weights = [mask] if formulas.is_weights(mask) else []
    unwatched = by_formula._replace(mask=_alone(mask)[0]) if weights else by_formula
    parts = _best(unwatched, x)
    x_alone = tf.stop_gradient(x)  # see `_alone`
    centred = parts.moments(x_alone)
    moments = centred.bookkeeping()
    scale, offset = map(
        tf.convert_to_tensor, corrected(scale, offset, moments, correction)
    )
    if forward_mode(x, scale, offset, *weights):
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
        slopes = parts.gradients(x_alone, scale, offset, centred, dy, activation)
        return slopes, second_order

    @tf.custom_gradient
    def normalize(
        x: Tensor, scale: Tensor, offset: Tensor, *weights: Tensor
    ) -> tuple[Tensor, Any]:
        def gradients(dy: Tensor) -> tuple[Tensor, ...]:
            dy = tf.convert_to_tensor(dy)  # what reads a part of y gives slices
            inputs = (x, scale, offset, dy, *([] if mask is None else [mask]))
            if forward_mode(*inputs):
                return from_x_on(*inputs)
            return first_order(*of_running_graph(*inputs))

        alone = (x_alone, *_alone(scale, offset))
        return parts.normalize(*(*alone, centred, activation)), gradients

    return normalize(x, scale, offset, *weights), moments


def _best(by_formula: FormulaParts, x: Tensor) -> TrainingParts:
    """The steps by formula, or others that do the same, faster, for such an input."""
    axes, epsilon, mask, replicas = by_formula
    if mask is None and replicas is None and _fused_fits(x, axes, _SMALL):
        return PartsByDevice(FusedParts(axes, epsilon), by_formula)
    return by_formula


def _alone(*tensors: Tensor) -> list[Tensor]:
    """The tensors, as the operators of a pass get them that have no gradient to add.

    So a tape does not keep for them what it would need to differentiate each.
    """
    return [tf.stop_gradient(tensor) for tensor in tensors]


def _plus(y: Tensor, shortcut: Tensor, x: Tensor) -> Tensor:
    """`y + shortcut`, which must have as x has them what sizes are not known yet.

    Else a batch of one would be added to each of another batch, without a word.
    """
    if isinstance(x, tf.RaggedTensor) or x.shape.is_fully_defined():
        return y + shortcut
    # It broadcasts nothing. Before a sum that does, Grappler leaves out a reshape.
    return tf.add_n([y, shortcut])


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
    large = known_positions(x) * (x.shape[-1] or 1) >= least
    return last and large and sums_exactly(x)
