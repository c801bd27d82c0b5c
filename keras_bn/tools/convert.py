"""From one batch normalization layer to another, or to a norm of one sample."""

import warnings
from functools import partial
from typing import Any

import keras

from keras_bn.layers import BatchNormalization, DomainBatchNormalization
from keras_bn.tools._copies.carry import carry_compile
from keras_bn.tools._copies.check import check_outputs
from keras_bn.tools._copies.converted import (
    arguments_of,
    check_calls,
    check_nothing_is_lost,
    check_overrides,
    converted,
    copy_batch_norm,
    following,
)
from keras_bn.tools._copies.domains import with_domains, without_domains
from keras_bn.tools._copies.rebuild import Replacement, adder, rebuild
from keras_bn.tools._copies.residual import with_sums
from keras_bn.tools._copies.sample_norm import (
    SAMPLE_NORMS,
    check_groups,
    copy_parameters,
    sample_norm,
    warn_of_dropped,
    warn_of_unread_groups,
)
from keras_bn.tools._graphs.walk import (
    Layer,
    batch_norms,
    is_conditional,
    is_domain_norm,
    is_plain_batch_norm,
    why_not_plainly,
)

TARGETS: dict[str, Any] = {
    "keras_bn": BatchNormalization,
    "keras": keras.layers.BatchNormalization,
    "domain": DomainBatchNormalization,
    **SAMPLE_NORMS,
}


def convert(
    model: Any,
    to: str = "keras_bn",
    *,
    domain: int | None = None,
    check: Any = False,
    **overrides: Any,
) -> Any:
    """A copy of `model` with every batch normalization layer of the chosen class.

    The copy has the names, weights, random states, `trainable` flags and, where the
    model is compiled, the loss, metrics and optimizer with its state. Shared layers
    stay shared. `model` is left as it was.

    Both layers compute

        y = gamma * (x - moving_mean) / sqrt(moving_variance + epsilon) + beta

    so that predictions agree to float32 rounding, and a model that was converted
    there and back gives the same bits.

    `to="group"` and `to="layer"` are for batches of a few samples and for gradients a
    sample. They put Keras's norms of one sample in the place of batch norm,

        y = gamma * (x - mean) / sqrt(variance + epsilon) + beta

    with the statistics of the very sample: over all its positions and the channels of
    one group, or over the channels of one position. Gamma, beta, epsilon, axis, dtype
    and `trainable` are kept. What is about statistics of a batch is dropped, the moving
    statistics too (with a warning, where there are any): train on, for the outputs are
    others. A sample without positions (inputs of rank 2, or of one pixel) gets layer
    norm from `to="group"` as well, since a group of one channel would be 0. Layer norm
    over all positions and channels is `to="group", groups=1`.

    `to="domain"` gives each of `domains=k` domains the weights and statistics of the
    layer, in a `keras_bn.DomainBatchNormalization`. The model gets another input for
    it, the last, with the name "domain" and one integer a sample; a Sequential model
    becomes a functional one. `domain=d` is the way back, of one domain: plain layers
    with its weights, and no input for it. Either way the optimizer is a fresh one.

    A residual that a layer is called with is added by a layer of its own, as is the
    activation, where the target has no such argument.

    Layers are found in Functional and Sequential models at any depth, in wrappers
    such as `TimeDistributed`, and in layers and models of classes of your own. The copy
    is of the same classes. Where such a class makes its layers in its constructor, a
    saved file says what was put in their place; `import keras_bn` before you load it.
    Subclasses of a batch normalization layer are copied as they are: what their `call`
    does is not known.

    Args:
        model: A built Keras model.
        to: The class to use: `"keras_bn"` for `keras_bn.BatchNormalization`; of
            `keras.layers`, `"keras"` for `BatchNormalization`, `"group"` for
            `GroupNormalization`, `"layer"` for `LayerNormalization`; `"domain"` for
            `keras_bn.DomainBatchNormalization`, which needs `domains=k`.
        domain: The domain to take out of layers that have several.
        check: Whether to compare what model and copy compute on a batch: True for
            made-up inputs, or data as for `recalibrate`. Only where the copy is to
            compute the same, for `"keras_bn"` and `"keras"`.
        **overrides: Arguments of that class to set in every layer, such as
            `renorm=True` or `momentum=0.9`. Renorm statistics that a layer did not
            have start at its moving statistics. With `momentum=None` the next batch
            replaces averages of which no layer has counted the values; with
            `zero_debias=True` they are kept, unless they are the initial ones;
            schedules start at step 0. `groups` is, where it is not given, the largest
            divisor of the channels up to 32 whose groups have two channels or more.

    Returns:
        The new model.

    Raises:
        TypeError: `model` is not a Keras model; an override that the class does not
            take, or of a wrong type.
        ValueError: `to` is unknown, or does not go with `domain`; an override out of
            its range, which Keras's classes do not all check; the model is not
            built, has no batch norm or is quantized; a layer that the target class
            cannot express (for `"group"`: of several axes, or that a mask reaches; for
            `"domain"`, with `virtual_batch_size`, or in a class whose `call` passes no
            domain on; for all but `"keras_bn"`, called with `weights`); `groups` that
            do not divide the channels of a layer; a `domain` out of range; the outputs
            differ, if `check` is given.

    Warns:
        UserWarning: There is nothing to convert; the compile state cannot be carried; a
            saved file will not have the model's class, or the layers that were put in;
            moving statistics are dropped; `groups` that a layer has no use for.

    Reference:
        [Ioffe and Szegedy, 2015](https://arxiv.org/abs/1502.03167);
        [Ba et al., 2016](https://arxiv.org/abs/1607.06450);
        [Wu and He, 2018](https://arxiv.org/abs/1803.08494).

    Example:

    >>> import keras, keras_bn
    >>> model = keras.Sequential([
    ...     keras.Input((4,)), keras.layers.Dense(3), keras.layers.BatchNormalization()
    ... ])
    >>> ours = keras_bn.convert(model, momentum=0.9)
    >>> type(ours.layers[1]).__module__, ours.layers[1].momentum
    ('keras_bn.layers.batch_normalization', 0.9)
    >>> keras_bn.convert(model, to="group").layers[1].__class__.__name__
    'LayerNormalization'
    """
    if not isinstance(to, str) or to not in TARGETS:
        raise ValueError(
            f"Argument `to` must be one of {sorted(TARGETS)}. Received: to={to!r}"
        )
    target = TARGETS[to]
    norms = batch_norms(model)
    comparable = to in ("keras_bn", "keras") and domain is None
    if not comparable and check is not False:
        raise ValueError(
            "Argument `check` must be False where the copy is not to compute what the "
            f"model does. Received: to={to!r}, domain={domain!r}"
        )
    if domain is not None:
        return _of_one_domain(model, to, domain, overrides)
    _check_overrides(target, overrides)
    of_samples = to in SAMPLE_NORMS
    if to not in ("keras_bn", "domain"):
        _check_is_expressed(norms, to)
    plain = {path: one for path, one in norms.items() if is_plain_batch_norm(one)}
    kinds = {type(layer) for layer in plain.values()}
    if not plain or (not overrides and kinds == {target}):
        warnings.warn(
            f"Nothing to convert in model '{model.name}': each of its {len(norms)} "
            f"batch normalization layers is of {to} already, or a subclass whose "
            "`call` may do anything. The copy has the same layers.",
            UserWarning,
            stacklevel=2,
        )

    for layer in plain.values() if target is not BatchNormalization else ():
        check_calls(layer, to)

    def replace(layer: Layer) -> Replacement | None:
        if not is_plain_batch_norm(layer):
            return None
        if of_samples:
            check_nothing_is_lost(layer, {**layer.get_config(), **overrides})
            norm = sample_norm(layer, to, overrides)
            return Replacement(norm, following(layer), adder(layer))
        return converted(layer, target, overrides)

    if to == "domain" and plain:
        make = partial(_domain_layer, overrides)
        copy = with_domains(with_sums(model), make, copy_batch_norm)
        carry_compile(model, copy, slots=False)
        return copy
    copy = rebuild(model, replace, copy_parameters if of_samples else copy_batch_norm)
    check_outputs(model, copy, check)
    carry_compile(model, copy, slots=True)
    if of_samples:
        warn_of_unread_groups(model, plain, overrides)
        warn_of_dropped(model, plain, target)
    return copy


def _of_one_domain(model: Any, to: str, domain: int, overrides: dict[str, Any]) -> Any:
    """The model with one domain of its layers, then converted as any other."""
    if to == "domain" or not any(map(is_domain_norm, batch_norms(model).values())):
        raise ValueError(
            "Argument `domain` must be None unless one domain is taken out of a model "
            "with DomainBatchNormalization layers; how many there are to be is "
            f"`domains`. Received: domain={domain!r}, to={to!r} and model "
            f"'{model.name}'"
        )
    copy = without_domains(model, domain)
    carry_compile(model, copy, slots=False)
    return convert(copy, to, **overrides) if to != "keras_bn" or overrides else copy


def _domain_layer(overrides: dict[str, Any], layer: Layer) -> Layer:
    """What does for each of several domains what `layer` does."""
    own = arguments_of(DomainBatchNormalization) - arguments_of(BatchNormalization)
    others = {name: value for name, value in overrides.items() if name not in own}
    plain: Any = converted(layer, BatchNormalization, others).layer
    if plain.virtual_batch_size is not None:
        raise ValueError(
            f"Layer '{layer.name}' cannot be converted: the model is to say the domain "
            "of each sample, and `virtual_batch_size` makes groups of samples by their "
            "position, which would mix domains. Take it out, as in `convert(..., "
            "virtual_batch_size=None)`. Received: "
            f'to="domain", virtual_batch_size={plain.virtual_batch_size}'
        )
    given = {name: value for name, value in overrides.items() if name in own}
    return DomainBatchNormalization.from_config({**plain.get_config(), **given})


def _check_is_expressed(norms: dict[str, Layer], to: str) -> None:
    """Refuses layers of this package that the target has nothing for."""
    for path, layer in norms.items():
        if is_domain_norm(layer) or is_conditional(layer):
            raise ValueError(
                f"Layer '{path}' cannot be converted: {why_not_plainly(layer)}. "
                f"Received: to={to!r} and a {type(layer).__name__}"
            )


def _check_overrides(target: type, overrides: dict[str, Any]) -> None:
    # A name or a feature axis of its own is what one layer has, not all of them.
    allowed = arguments_of(target) - {"axis"} | {"dtype", "trainable"}
    for name in overrides:
        if name not in allowed:
            raise TypeError(
                f"`{name}` is not an argument that can be set in every "
                f"{target.__module__.split('.')[0]} {target.__name__}. Expected one "
                f"of {sorted(allowed)}. Received: {name}={overrides[name]!r}"
            )
    if target not in (BatchNormalization, DomainBatchNormalization):
        check_overrides(overrides)
    if target in SAMPLE_NORMS.values():
        check_groups(overrides)
    if target is DomainBatchNormalization and "domains" not in overrides:
        raise ValueError(
            'Argument `domains` must be given with to="domain": how many there are. '
            f"Received: {overrides}"
        )
    # Keras wraps what a constructor raises within `from_config` in other words.
    target(**overrides)
