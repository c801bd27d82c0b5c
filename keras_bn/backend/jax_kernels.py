"""Batch normalization on JAX: the formulas, with the gradient written out.

The tangent and the gradient are each other's transpose (`jax_linear`), so that forward
mode, reverse mode and all orders of both come from one rule. XLA fuses the formulas by
itself. Off the CPU the moments are taken in one pass, about a sampled centre. On the
CPU three things go wrong by themselves:

- It would share `x - centre` between the forward and the backward pass: a second copy
  of the input in memory. A barrier keeps it from knowing that x is the same x.
- Its reductions take in products, but for a per-channel operand they first write a
  tensor as large as x. Where the mean of every channel is within a few deviations of
  zero, the sums of x, x² and g * x serve as well, and need none; elsewhere it is the
  centred sums.
- It would compute the output again for every reader, and in a network that means from
  block to block back to the first: convolutions read it through strided copies, which
  are slow enough as they are. What leaves a branch of a `cond` is in memory. (dx is so
  by the last operation of `derivatives.gradients`; a `cond` around it would leave other
  cores without work.)
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from keras_bn.backend import derivatives, formulas, reference
from keras_bn.backend.activations import SLOPES, activate
from keras_bn.backend.interface import (
    Axes,
    Correction,
    Moments,
    Service,
    Tensor,
    corrected,
)
from keras_bn.backend.jax_linear import linear
from keras_bn.backend.jax_replicas import ManualAxes, vary_alike, vary_over

# Up to mean² = 9 variances, E[x²] - mean² costs the variance ten roundings at most.
_PLAIN_WITHIN = 3.0**2
# Elements below which a branch takes longer than what it saves.
_SMALL = 2**14

# Activations that cost less than a look at what they gave.
_COMPARISONS = ("relu", "relu6", "leaky_relu")

# Where these two stand among the arguments that have gradients.
_WEIGHTS, _SHORTCUT = 3, 4

SERVICES = (
    Service(
        "training, every input",
        "jax_kernels",
        "the formulas under XLA, derivatives written out; saves the input alone",
    ),
    Service(
        "inference, weights that are constants while x is traced",
        "jax_kernels",
        "one product and one sum per element, which exporters fuse",
    ),
    Service("inference, all else", "reference", "keras.ops, fused by XLA"),
)

usable = reference.usable
moving_average = reference.moving_average
ensure_shape = reference.ensure_shape


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
    replicas: ManualAxes | None = None,
    shortcut: Tensor | None = None,
) -> tuple[Tensor, Moments]:
    """See `Kernels.train`."""
    x = vary_over(replicas, x)
    if correction is not None:
        # XLA finds that these moments and those of _train are the same computation.
        moments = _moments(jax.lax.stop_gradient(x), axes, mask, replicas).bookkeeping()
        scale, offset = corrected(scale, offset, moments, correction)
    scale, offset = vary_alike(x, scale, offset)
    if formulas.is_weights(mask):
        (mask,) = vary_alike(x, mask)
    if shortcut is not None:
        (shortcut,) = vary_alike(x, shortcut)
    options = (axes, epsilon, activation, replicas)
    y, moments = _train(*options, x, scale, offset, mask, shortcut)
    return y, Moments(*map(jax.lax.stop_gradient, moments))


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
    parameters = (mean, variance, scale, offset)
    # So it is in an export. No gradient then goes to the parameters, which is what the
    # mean must be subtracted first for: `sum(dy * x) - mean * sum(dy)` cancels.
    constant = not any(isinstance(one, jax.core.Tracer) for one in parameters)
    if not constant or not isinstance(x, jax.core.Tracer):
        return reference.inference(x, *parameters, axes, epsilon, activation)
    factor = jax.lax.rsqrt(variance + epsilon) * scale
    level = offset - mean * factor
    y = formulas.widen(x) * axes.broadcast(factor) + axes.broadcast(level)
    return activate(activation, y).astype(x.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2, 3))
def _normalize(
    axes: Axes,
    epsilon: float,
    activation: str | None,
    replicas: ManualAxes | None,
    x: Tensor,
    scale: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    shortcut: Tensor | None,
) -> tuple[Tensor, Moments]:
    options = (axes, epsilon, activation, replicas)
    return _forward(*options, x, scale, offset, mask, shortcut)[0]


def _forward(axes, epsilon, activation, replicas, x, scale, offset, mask, shortcut):
    centred = _moments(x, axes, mask, replicas)

    def normalized(x: Tensor, *rest: Tensor) -> Tensor:
        *added, centre = rest
        moments = centred._replace(centre=centre)
        y = formulas.normalize(x, scale, offset, moments, axes, epsilon)
        y = sum(map(formulas.widen, added), y)
        return activate(activation, y).astype(x.dtype)

    added = () if shortcut is None else (shortcut,)
    y = _about(centred.centre, normalized, x, *added)
    return (y, centred.bookkeeping()), centred


@functools.partial(_normalize.defjvp, symbolic_zeros=True)
def _differentiate(axes, epsilon, activation, replicas, primals, tangents):
    options = (axes, epsilon, activation, replicas)
    (y, moments), centred = _forward(*options, *primals)
    *primals, shortcut = primals
    # The activation's slope is had from what it was given, which x gives again; from
    # its output where a shortcut has a part in that, so that nobody keeps the shortcut.
    output = None if shortcut is None or activation is None else y
    # Of x, scale, offset, weights and shortcut what has a tangent: a zero would be a
    # tensor to keep.
    moving = [
        i
        for i, tangent in enumerate(tangents)
        if tangent is not None
        and not isinstance(tangent, SymbolicZero)
        and tangent.dtype != jax.dtypes.float0
    ]
    (ty,) = linear(
        functools.partial(_tangent, *options, moving),
        functools.partial(_gradients, *options, moving),
        (primals, centred, output),
        [tangents[i] for i in moving],
    )
    # No gradient flows through the moments that are returned.
    return (y, moments), (ty, jax.tree.map(jnp.zeros_like, moments))


def _tangent(axes, epsilon, activation, replicas, moving, saved, tangents):
    (x, scale, offset, mask), centred, output = saved
    given = dict(zip(moving, tangents, strict=True))
    along = (given.get(0), given.get(1), given.get(2), given.get(_WEIGHTS))
    options = (axes, epsilon, activation if output is None else None, replicas)
    ty = derivatives.tangent(x, scale, offset, mask, centred, along, *options)
    if _SHORTCUT in given:
        ty = ty + given[_SHORTCUT]
    return [ty if output is None else _sloped(activation, output, ty)]


def _sloped(activation: str, output: Tensor, slope: Tensor) -> Tensor:
    """`slope` times the activation's, where it gave `output`."""
    wide = formulas.widen(slope) * SLOPES[activation](formulas.widen(output))
    return wide.astype(slope.dtype)


def _gradients(axes, epsilon, activation, replicas, moving, saved, cotangents):
    (x, scale, offset, mask), centred, output = saved
    (dy,) = cotangents
    if output is not None:
        dy, activation = _sloped(activation, output, dy), None
    x = _again(x, activation)
    if mask is None and replicas is None:
        # A constant, by which the compiler does not divide.
        count = formulas.count_samples(formulas.widen(x), axes, None)
        centred = centred._replace(count=count)
    slopes = derivatives.gradients(
        *(x, scale, offset, mask, centred, dy, axes, epsilon, activation),
        replicas=replicas,
        about=_total_about,
        again=None if activation is None else _read_again,
        of_weights=_WEIGHTS in moving,
    )
    found = {**dict(enumerate(slopes)), _SHORTCUT: dy}
    return [found[i] for i in moving]


# Compiled as one also where the caller is not: eagerly, the branches of a `cond` are
# new functions at every call, and XLA would compile them each time (90 ms). Inlined, it
# changes nothing for a caller that is compiled.
_train = jax.jit(_normalize, static_argnums=(0, 1, 2, 3), inline=True)


def _moments(
    x: Tensor, axes: Axes, mask: Tensor | None, replicas: ManualAxes | None
) -> formulas.CentredMoments:
    own = _own_moments(x, axes, mask)
    return own if replicas is None else formulas.over_replicas(own, replicas)


def _own_moments(x: Tensor, axes: Axes, mask: Tensor | None) -> formulas.CentredMoments:
    def centred(x: Tensor, about: Tensor | None = None) -> formulas.CentredMoments:
        values = formulas.widen(x)
        return formulas.centred_moments(values, axes, mask, _settled, about)

    def about_a_sample(x: Tensor) -> formulas.CentredMoments:
        return centred(x, formulas.sample(x, axes))

    def plain_if_near_zero(x: Tensor) -> formulas.CentredMoments:
        x = formulas.widen(x)
        count = formulas.count_samples(x, axes, None)
        mean = formulas.total(x, axes) / count
        variance = formulas.total(x * x, axes) / count - mean * mean
        plain = formulas.CentredMoments(count, jnp.zeros_like(mean), mean, variance)
        near = jnp.all(mean * mean <= _PLAIN_WITHIN * variance)
        found = jax.lax.cond(
            near, lambda: plain, lambda: centred(x, axes.broadcast(mean))
        )
        return found._replace(count=count)

    if mask is not None or _is_small(x):
        return centred(x)
    return jax.lax.platform_dependent(x, cpu=plain_if_near_zero, default=about_a_sample)


def _is_small(x: Tensor) -> bool:
    """Whether a branch takes longer than what it saves. Unknown sizes are not small."""
    return isinstance(x.size, int) and x.size < _SMALL


def _again(x: Tensor, activation: str | None) -> Tensor:
    """`x`, such that the compiler does not know it for the forward pass's x.

    For a GPU it is to know it where the activation takes more than a comparison, which
    it would have two kernels compute, and in half precision, where it does right as is.
    """
    shared = activation not in _COMPARISONS or x.dtype.itemsize < 4
    return jax.lax.platform_dependent(
        x,
        cpu=jax.lax.optimization_barrier,
        default=(lambda x: x) if shared else jax.lax.optimization_barrier,
    )


def _read_again(x: Tensor) -> Tensor:
    """`x`, such that the compiler for a GPU does not know it for the same x.

    It would write down, for dx, where the activation was at work: half a tensor of half
    precision, to save some operations on values that it reads anyway.
    """
    return jax.lax.platform_dependent(
        x, cpu=lambda x: x, default=jax.lax.optimization_barrier
    )


def _settled(centre: Tensor) -> Tensor:
    """See `formulas.centred_moments`."""
    bits = jnp.finfo(centre.dtype)
    return jax.lax.reduce_precision(centre, bits.nexp, bits.nmant - 1)


def _about(centre: Tensor, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """`function(*tensors, centre)`; on CPU as what leaves a branch of a `cond`.

    It is so for two reasons: the compiler leaves a centre out that it knows to be zero,
    and computes nothing again that is behind a `cond`. See the top of this file.
    """

    def without_centre_at_zero(*tensors: Tensor) -> Tensor:
        return jax.lax.cond(
            jnp.all(centre == 0),
            lambda: function(*tensors, jnp.zeros_like(centre)),
            lambda: function(*tensors, centre),
        )

    if _is_small(tensors[0]):
        return function(*tensors, centre)
    return jax.lax.platform_dependent(
        *tensors,
        cpu=without_centre_at_zero,
        default=lambda *tensors: function(*tensors, centre),
    )


def _total_about(values: Tensor, x: Tensor, centre: Tensor, axes: Axes) -> Tensor:
    def total(values: Tensor, x: Tensor, centre: Tensor) -> Tensor:
        return derivatives.total_about(values, x, centre, axes)

    return _about(centre, total, values, x)
