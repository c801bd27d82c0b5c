"""The kernels in plain `keras.ops`: complete, and the same on every Keras backend.

Gradients come from the framework's autodiff. Every other kernel file is measured
against this one.
"""

from keras import ops

from keras_bn.backend import formulas
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

SERVICES = (
    Service(
        "training, every input",
        "reference",
        "keras.ops, and the backend's autodiff where it has one",
    ),
    Service("inference, every input", "reference", "keras.ops"),
)


def services() -> tuple[Service, ...]:
    """See `Kernels.services`."""
    return SERVICES


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
    # No autodiff passes through every engine's collectives: the kernel files that have
    # replicas write the gradient out.
    assert replicas is None
    # Widened once, so that the parts of the gradient for x are added up before they
    # are rounded to half precision.
    values = formulas.widen(x)
    centred = formulas.centred_moments(values, axes, mask)
    moments = centred.bookkeeping()
    scale, offset = corrected(scale, offset, moments, correction)
    y = formulas.normalize(values, scale, offset, centred, axes, epsilon)
    if shortcut is not None:
        y = y + formulas.widen(shortcut)
    return ops.cast(activate(activation, y), x.dtype), moments


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
    factor = ops.rsqrt(variance + epsilon) * scale
    y = formulas.affine(formulas.widen(x), mean, factor, offset, axes)
    return ops.cast(activate(activation, y), x.dtype)


def ensure_shape(x: Tensor, shape: tuple[int | None, ...]) -> Tensor:
    """See `Kernels.ensure_shape`: nothing is traced with sizes unknown."""
    return x


def usable(moments: Moments) -> Tensor | bool:
    """See `Kernels.usable`."""
    # One of the two is not finite exactly where their sum is not: variances are >= 0.
    return ops.isfinite(moments.mean + moments.variance) & (moments.count > 0)


def moving_average(
    average: Tensor, value: Tensor, momentum: float | Tensor, where: Tensor | bool
) -> Tensor:
    """See `Kernels.moving_average`."""
    moved = average * momentum + value * (1.0 - momentum)
    return moved if where is True else ops.where(where, moved, average)
