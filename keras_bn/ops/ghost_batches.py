"""Ghost batches: a batch in groups of samples, each normalized by its own statistics.

A group is one more feature axis: the batch `(samples, ...)` is seen as
`(groups, size, ...)`, and no kernel knows of it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from keras import ops

from keras_bn.backend import replicas
from keras_bn.backend.formulas import CentredMoments, over_replicas, over_rows
from keras_bn.backend.groups import Groups
from keras_bn.backend.interface import Axes, Moments, Tensor
from keras_bn.ops._settings import positive_integer
from keras_bn.ops.batch_norm import Prepared, train
from keras_bn.ops.merge import merge_moments


def ghost_batch_size(value: Any, axis: int | tuple[int, ...], renorm: Any) -> Any:
    """`value`, the size of a ghost batch or None, that goes with the other two."""
    if value is None:
        return None
    size = positive_integer("virtual_batch_size", value)
    if renorm:
        raise ValueError(
            "Arguments `virtual_batch_size` and `renorm` cannot go together: renorm "
            "takes out of a batch what sets it apart from the moving statistics, which "
            "is what groups are for. Received: "
            f"virtual_batch_size={size}, renorm={renorm}"
        )
    if axis == 0 or (isinstance(axis, tuple) and 0 in axis):
        refuse_samples_as_features(axis, size)
    return size


def refuse_samples_as_features(axis: Any, size: int) -> NoReturn:
    """Raises: groups are made of the samples, which are axis 0."""
    raise ValueError(
        "Argument `virtual_batch_size` makes groups of samples, which must be axis 0 "
        f"and no feature axis. Received: virtual_batch_size={size}, axis={axis}"
    )


def fewest_samples(given: Prepared, size: int | None) -> int | None:
    """Values behind a statistic of the smallest group; None where not yet known."""
    shape = tuple(given.x.shape)
    if size is not None and isinstance(shape[0], int) and shape[0]:
        shape = (shape[0] % size or size, *shape[1:])
    return given.axes.samples(shape)


def train_ghost_batches(
    given: Prepared,
    gamma: Tensor,
    beta: Tensor,
    epsilon: float,
    mask: Tensor | None,
    size: int,
    activation: Callable[[Tensor], Tensor],
    synchronized: bool,
    replica_groups: Groups = None,
    residual: Tensor | None = None,
) -> tuple[Tensor, Moments]:
    """`train`, by groups of `size` samples that follow each other in the batch.

    With the mean and the biased variance of the group g that a sample is in:

        y = gamma * (x - mean[g]) / sqrt(variance[g] + epsilon) + beta

    The samples that are left over are a group of their own. The moments are those of
    all groups merged, with the spread of their means, which are those of the batch; if
    `synchronized`, of all replicas' batches. A group never reaches beyond one replica.

    Args:
        given: The inputs, whose first axis is that of the samples.
        gamma: Of the parameter shape, as `beta`.
        beta: See gamma.
        epsilon: Added to the variances.
        mask: Or weights, of the rank of the inputs, as in `Kernels.train`, or None.
        size: Samples of a group.
        activation: Applied to y.
        synchronized: Whether the moments are merged over replicas.
        replica_groups: Over which of them; see `batch_norm_train`.
        residual: Added before the activation, as `train` takes it.

    Raises:
        ValueError: The inputs are ragged.

    Reference:
        [Hoffer et al., 2017](https://arxiv.org/abs/1705.08741).
    """
    if hasattr(given.x, "ragged_rank"):
        raise ValueError(
            "Argument `virtual_batch_size` must be None for ragged inputs, which have "
            f"no groups of one shape. Received: virtual_batch_size={size} and inputs "
            f"of shape {given.x.shape}"
        )
    settings = _Settings(gamma, beta, epsilon, activation)
    samples = given.x.shape[0]
    known = isinstance(samples, int)
    if not known:
        samples = ops.shape(given.x)[0]
    if mask is not None and not (known and mask.shape[0] == samples):
        mask = ops.broadcast_to(mask, (samples, *ops.shape(mask)[1:]))
    groups = samples // size
    whole = groups * size
    found = []
    if not known or groups:
        found.append(_groups(given, mask, groups, size, settings, residual))
    if not known or whole < samples or not groups:
        rest = given._replace(x=given.x[whole:])
        along = (None if one is None else one[whole:] for one in (mask, residual))
        found.append(settings.train(rest, *along))
    (y, moments), *remainder = found
    for rest_of_y, rest_of_moments in remainder:
        y = ops.concatenate([y, rest_of_y])
        moments = merge_moments(moments, rest_of_moments)
    batch = (given.x,) if mask is None else (given.x, mask)
    together = replicas(replica_groups, batch, (gamma, beta)) if synchronized else None
    if together is not None:
        moments = over_replicas(_centred(moments), together).bookkeeping()
    return y, moments


class _Settings(NamedTuple):
    gamma: Tensor
    beta: Tensor
    epsilon: float
    activation: Callable[[Tensor], Tensor]

    def train(
        self, given: Prepared, mask: Tensor | None, residual: Tensor | None
    ) -> tuple[Tensor, Moments]:
        parameters = (self.gamma, self.beta, self.epsilon, mask, None)
        return train(
            given, *parameters, self.activation, synchronized=False, residual=residual
        )


def _groups(
    given: Prepared,
    mask: Tensor | None,
    groups: Any,
    size: int,
    settings: _Settings,
    residual: Tensor | None,
) -> tuple[Tensor, Moments]:
    """The first `groups * size` samples, and their moments of the parameter shape."""
    x, axes = given.x[: groups * size], given.axes
    shape = ops.shape(x)

    def split(tensor: Tensor) -> Tensor:
        return ops.reshape(tensor, (groups, size, *ops.shape(tensor)[1:]))

    def for_each(parameter: Tensor) -> Tensor:
        parameter = axes.broadcast(parameter)
        wide = (groups, *ops.shape(parameter))
        return ops.broadcast_to(ops.expand_dims(parameter, 0), wide)

    inner = Axes(
        (0, *(one + 1 for one in axes.features)),
        tuple(one + 1 for one in axes.reduction),
    )
    y, each = settings._replace(
        gamma=for_each(settings.gamma), beta=for_each(settings.beta)
    ).train(
        given._replace(x=split(x), axes=inner),
        *(
            None if one is None else split(one[: groups * size])
            for one in (mask, residual)
        ),
    )
    # Without a mask the count is one for all channels, and here for all groups.
    count, one_for_all = each.count, len(each.count.shape) == 0
    if one_for_all:
        count = ops.broadcast_to(count, (groups, *[1] * axes.ndim))
    merged = over_rows(_centred(each._replace(count=count))).bookkeeping()
    expected = tuple(settings.gamma.shape)
    return ops.reshape(y, shape), Moments(
        ops.reshape(merged.count, () if one_for_all else expected),
        ops.reshape(merged.mean, expected),
        ops.reshape(merged.variance, expected),
    )


def _centred(moments: Moments) -> CentredMoments:
    residual = ops.zeros_like(moments.mean)
    return CentredMoments(moments.count, moments.mean, residual, moments.variance)
