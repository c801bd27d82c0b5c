"""Puts the weights of another library's model into a copy of a Keras model."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_bn._keras import trained_variables
from keras_bn.layers import BatchNormalization
from keras_bn.ops import _settings
from keras_bn.tools._copies.carry import carry_compile, made_like
from keras_bn.tools._copies.converted import set_renorm_statistics
from keras_bn.tools._copies.rebuild import Replacement, rebuild
from keras_bn.tools._foreign.layouts import (
    MIXED,
    flattened,
    is_linear,
    reordered,
    squeezed,
    their_shape,
    to_ours,
)
from keras_bn.tools._foreign.pairs import warn_of_order
from keras_bn.tools._foreign.weights import (
    CUMULATIVE,
    Foreign,
    Options,
    matched,
    takers,
)
from keras_bn.tools._graphs.walk import Layer, sublayers
from keras_bn.tools._statistics.averaging import made_of_data

NEUTRAL = {"gamma": 1.0, "beta": 0.0, "bias": 0.0}
ARGUMENT = {"gamma": "scale", "beta": "center", "bias": "use_bias"}

EPSILON = 1e-5
"""What batch norm adds to the variance in the other libraries, unless it is set."""

FLATTEN = ("channels_first", "channels_last")


def transfer(model: Any, foreign: Foreign, options: Options) -> Any:
    """A copy of `model` with the weights of `foreign`."""
    layers = takers(model, options.layers, foreign.transposed)
    matching = matched(model, foreign, options)
    prefixes = matching.mapping
    refuse_others(model, layers, options)
    images = images_of(model, layers, prefixes, foreign, options)
    new = {
        path: _weights(path, layers[path], foreign, prefix, images.get(path))
        for path, prefix in prefixes.items()
    }
    _make_biased(new, options.count)
    paths = {id(layers[path]): path for path in prefixes}
    configs = {
        path: _config(path, layers[path], foreign, prefix, options)
        for path, prefix in prefixes.items()
        if not is_linear(layers[path])
    }

    def replace(layer: Layer) -> Replacement | None:
        if paths.get(id(layer), "") not in configs:
            return None
        return Replacement(made_like(layer, **configs[paths[id(layer)]]))

    def fill(old: Layer, new_layer: Layer) -> None:
        _assign(new_layer, old, new[paths[id(old)]])
        if new_layer.renorm:
            set_renorm_statistics(new_layer)
        made_of_data(new_layer)

    copy = rebuild(model, replace, fill)
    copies = takers(copy, options.layers, foreign.transposed)
    for path in set(new) - set(configs):
        _assign(copies[path], layers[path], new[path])
    carry_compile(model, copy, slots=False)
    warn_of_order(matching, stacklevel=3)
    return copy


def _assign(new: Layer, old: Layer, values: Mapping[str, np.ndarray]) -> None:
    for name, value in values.items():
        getattr(new, name).assign(value)
        getattr(new, name).trainable = getattr(old, name).trainable


def _weights(
    path: str,
    layer: Layer,
    foreign: Foreign,
    prefix: str,
    image: tuple[int, ...] | None,
) -> dict[str, np.ndarray]:
    """The new value of each weight of `layer`."""
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    found = {}
    for name in ("kernel", "bias") if is_linear(layer) else names:
        variable = getattr(layer, name)
        value = foreign.weight(prefix, name)
        theirs = f"{prefix}.{foreign.names[name]}".removeprefix(".")
        if variable is None:
            if value is not None and np.any(value != NEUTRAL[name]):
                raise ValueError(
                    f"Layer '{path}' must have {ARGUMENT[name]}=True, to take in "
                    f"'{theirs}'. Received: {ARGUMENT[name]}=False"
                )
            continue
        shape = variable.shape
        if value is None:  # affine=False, bias=False
            found[name] = np.full(shape, NEUTRAL[name])
            continue
        expected = their_shape(layer) if name == "kernel" else (math.prod(shape),)
        if squeezed(value.shape) != squeezed(expected):
            raise ValueError(
                f"Argument `{foreign.argument}` must have '{theirs}' of shape "
                f"{expected}, as layer '{path}' has. Received: shape {value.shape}"
            )
        _check_values(foreign.argument, theirs, name, value)
        if image and name != "bias":
            value = reordered(value, image, back=False)
        kernel = name == "kernel"
        found[name] = to_ours(layer, value) if kernel else value.reshape(shape)
    return found


def _check_values(argument: str, theirs: str, name: str, value: np.ndarray) -> None:
    """Refuses what no training leaves behind but one that went wrong."""
    least, expected = -np.inf, "weights that are finite"
    if name == "moving_variance":
        least, expected = 0, "variances that are finite and not negative"
    bad = value[~(np.isfinite(value) & (value >= least))]
    if bad.size:
        raise ValueError(
            f"Argument `{argument}` must have {expected}. Received: '{theirs}' with "
            f"{bad.size} that are not, the first {bad[0]}"
        )


def images_of(
    model: Any,
    layers: Mapping[str, Layer],
    prefixes: Mapping[str, str],
    foreign: Foreign,
    options: Options,
) -> dict[str, tuple[int, ...]]:
    """By path: the image, channels last, whose values come in another order there."""
    order = foreign.flatten if options.flatten is None else options.flatten
    if order not in (None, *FLATTEN):
        raise ValueError(
            f"Argument `flatten` must be one of {list(FLATTEN)} or None. Received: "
            f"flatten={options.flatten!r}"
        )
    images = flattened(model)
    found = {p: images[id(layers[p])] for p in prefixes if id(layers[p]) in images}
    if found and order is None:
        path, image = next(iter(found.items()))
        raise ValueError(
            f"Argument `flatten` must say in which order the {foreign.library} model "
            f"flattens images: layer '{path}' takes one, flattened{_shape(image)}. "
            "That is 'channels_first', unless the model moves the channels itself, "
            "'channels_last'. Received: flatten=None"
        )
    if options.flatten is not None and not found:
        raise ValueError(
            "Argument `flatten` must be None where no layer that gets weights is seen, "
            "in the graph of the model, to take a flattened image of more than one "
            f"position. Received: flatten={options.flatten!r}"
        )
    if order != "channels_first":
        return {}
    mixed = [path for path, image in found.items() if image == MIXED]
    if mixed:
        raise ValueError(
            "Argument `model` must not have layers that take a flattened image among "
            "other values: which of them to reorder is not known. Received: such "
            f"layers {mixed}, and flatten='channels_first'"
        )
    return found


def _shape(image: tuple[int, ...]) -> str:
    return "" if image == MIXED else f" from shape {image}"


def _make_biased(
    weights: Mapping[str, dict[str, np.ndarray]],
    count: int | Mapping[str, int] | None,
) -> None:
    """Takes the factor n / (n - 1) out of the variances, if n is given."""
    for path, one in weights.items():
        if "moving_variance" in one:
            one["moving_variance"] = one["moving_variance"] / unbiased(path, count)


def unbiased(path: str, count: int | Mapping[str, int] | None) -> float:
    """By how much PyTorch's variance is larger: n / (n - 1); 1 if n is not given."""
    n = count.get(path) if isinstance(count, Mapping) else count
    if n is None and count is None:
        return 1.0
    if not isinstance(n, (int, np.integer)) or isinstance(n, bool) or n < 2:
        raise ValueError(
            "Argument `count` must be a whole number above 1, how many values of a "
            "channel a training batch had, or one for each batch norm layer by its "
            f"path. Received: {n!r} for layer '{path}'"
        )
    return n / (n - 1)


def _config(
    path: str, layer: Layer, foreign: Foreign, prefix: str, options: Options
) -> dict[str, Any]:
    """What changes in the configuration of a batch norm layer."""
    epsilon, kept = foreign.settings.get(prefix, (None, None))
    epsilon = options.epsilon if epsilon is None else epsilon
    kept = options.kept if kept is None else kept
    if kept == CUMULATIVE and options.kept is not None:
        kept = options.kept
    if epsilon is None and not same_epsilon(layer.epsilon, EPSILON):
        raise ValueError(
            f"Argument `epsilon` must be that of the {foreign.library} layers (the "
            f"weights do not hold it; {EPSILON:g} unless set), for outputs to agree. "
            f"Received: epsilon=None, while layer '{path}' has {layer.epsilon:g}"
        )
    config = {} if epsilon is None else {"epsilon": _epsilon(path, layer, epsilon)}
    if kept == CUMULATIVE:
        _check_cumulative(path, layer, foreign)
        return {**config, "momentum": None}
    if kept is None:
        return config
    return {**config, "momentum": _settings.momentum_in_range("momentum", kept)}


def same_epsilon(one: float, other: float) -> bool:
    """Whether these are one number in float32, in which layers add it."""
    return len(set(np.asarray([one, other], "float32").tolist())) == 1


def _epsilon(path: str, layer: Layer, epsilon: Any) -> float:
    """`epsilon`, of a module or as it was given, if the layer can have it."""
    number = _settings.epsilon_of_others(epsilon)
    if number == 0 and isinstance(layer, BatchNormalization):
        raise ValueError(
            f"Argument `epsilon` must be greater than 0 for layer '{path}', which is "
            "keras_bn's: without it a channel that does not vary is divided by 0 "
            "(Keras's layer takes it). Received: epsilon=0"
        )
    return number


def _check_cumulative(path: str, layer: Layer, foreign: Foreign) -> None:
    """Refuses momentum None where the layer has no such thing."""
    ours = isinstance(layer, BatchNormalization)
    if ours and not layer.zero_debias:
        return
    reason = (
        "has zero_debias=True" if ours else "is Keras's own, without a plain average"
    )
    raise ValueError(
        f"Argument `momentum` must be given: the {foreign.library} layer has None, the "
        f"plain average of all batches, while layer '{path}' {reason}. Received: "
        "momentum=None"
    )


def refuse_others(model: Any, layers: Mapping[str, Layer], options: Options) -> None:
    """No weights are left at their old values in silence, where all are asked for."""
    if options.layers != "all" or not options.strict:
        return
    known = {id(layer) for layer in layers.values()}
    left = {
        path: type(layer).__name__
        for path, layer in sublayers(model)
        if id(layer) not in known and trained_variables(layer)
    }
    if left:
        raise ValueError(
            "Argument `layers` must be 'norms' where the model has weights in layers "
            "other than batch norm, convolutions and dense layers (`strict=False` lets "
            f"these keep theirs). Received: layers='all' and {left}"
        )
