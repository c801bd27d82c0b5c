"""Weights out of a Flax model: batch norm's, and on demand all others."""

from collections.abc import Iterator, Mapping
from typing import Any

from keras_bn.tools._foreign.layouts import channels_first
from keras_bn.tools._foreign.pairs import Matching
from keras_bn.tools._foreign.transfer import transfer
from keras_bn.tools._foreign.weights import (
    Foreign,
    Options,
    Settings,
    matched,
)

NAMES = {
    "gamma": "scale",
    "beta": "bias",
    "moving_mean": "mean",
    "moving_variance": "var",
    "kernel": "kernel",
    "bias": "bias",
}


def from_flax(
    model: Any,
    variables: Any,
    mapping: Mapping[str, str] | None = None,
    *,
    epsilon: float | None = None,
    momentum: float | None = None,
    layers: str = "norms",
    strict: bool = True,
) -> Any:
    """A copy of `model` with the batch norm weights and statistics of a Flax model.

    Flax's `scale, bias, mean, var` become `gamma, beta, moving_mean, moving_variance`.
    Both average the variance that they normalize by, so that it is taken as it is. What
    the variables do not say is to be stated:

    - epsilon, 1e-5 in Flax unless given, 1e-3 in Keras. A layer whose epsilon is not
      that of the Flax model would give other outputs: an error, unless `epsilon` says
      what it is there; the copy's layers then have it.
    - momentum, the share that is kept, in Flax as in Keras, 0.99 in both unless given;
      without it the layers keep their own.

    If `variables` is the `flax.nnx.Module` itself, both are read from its layers.

    Which weights are which layer's is told as in `from_torch`; the names are those of
    Flax with a slash between (`"ResNetBlock_0/BatchNorm_1"`), and `match_flax` shows
    the pairs. `model` is left as it was.

    Args:
        model: A built Keras model.
        variables: What `init` of a `flax.linen.Module` gives, with `"params"` and
            `"batch_stats"`, or a `flax.nnx.State`, or a `flax.nnx.Module`.
        mapping: The path in the variables for layers, by the layer's path. Layers that
            it does not name are matched.
        epsilon: The Flax layers' `epsilon`, where a module does not say it.
        momentum: The Flax layers' `momentum`, likewise.
        layers: `"norms"`, or `"all"` for the kernels and biases of convolutions and
            dense layers too; transposed convolutions are not among them.
        strict: As in `from_torch`.

    Returns:
        The new model.

    Raises:
        TypeError: `model` is not a Keras model, `variables` not as above.
        ValueError: As from `from_torch`.

    Reference:
        [flax.linen.BatchNorm](https://flax.readthedocs.io/en/latest/api_reference/flax.linen/layers.html#flax.linen.BatchNorm).

    Example:

    >>> import keras, keras_bn, numpy as np
    >>> model = keras.Sequential([keras.Input((2,)), keras_bn.BatchNormalization()])
    >>> variables = {
    ...     "params": {"BatchNorm_0": {"scale": np.ones(2), "bias": np.zeros(2)}},
    ...     "batch_stats": {"BatchNorm_0": {"mean": np.ones(2), "var": np.ones(2)}},
    ... }
    >>> ours = keras_bn.from_flax(model, variables, epsilon=1e-5, momentum=0.9)
    >>> ours.layers[0].moving_mean.numpy().tolist(), ours.layers[0].epsilon
    ([1.0, 1.0], 1e-05)
    """
    options = Options(mapping, layers, strict, epsilon, momentum)
    return transfer(model, _weights(variables), options)


def match_flax(
    model: Any,
    variables: Any,
    mapping: Mapping[str, str] | None = None,
    *,
    layers: str = "norms",
    strict: bool = True,
) -> Matching:
    """Which weights `from_flax` would give to which layer, and why; see `match_torch`.

    Args:
        model: A built Keras model.
        variables: As in `from_flax`.
        mapping: As in `from_flax`.
        layers: As in `from_flax`.
        strict: As in `from_flax`.

    Returns:
        The pairs, with what each rests on, and what is left over.

    Raises:
        TypeError: As from `from_flax`.
        ValueError: As from `from_flax`.
    """
    options = Options(mapping, layers, strict)
    return matched(model, _weights(variables), options)


def _weights(variables: Any) -> Foreign:
    settings: dict[str, Settings] = {}
    if not isinstance(variables, Mapping):
        variables, settings = _of_module(variables)
    trees = [variables]
    if "batch_stats" in variables:  # of linen, where norms stand in two trees
        trees = [variables.get("params", {}), variables["batch_stats"]]
    groups: dict[str, dict[str, Any]] = {}
    for tree in trees:
        for path, value in _leaves(tree):
            groups.setdefault("/".join(path[:-1]), {})[path[-1]] = value
    norms, linears = {}, {}
    for prefix, group in groups.items():
        if "mean" in group and "var" in group:
            names = ("gamma", "beta", "moving_mean", "moving_variance")
            norms[prefix] = {n: group[NAMES[n]] for n in names if NAMES[n] in group}
        elif "kernel" in group:
            linears[prefix] = {"kernel": channels_first(group["kernel"])}
            linears[prefix] |= {n: v for n, v in group.items() if n == "bias"}
    return Foreign(
        *("Flax", "variables", norms, linears, NAMES, settings),
        flatten="channels_last",
        transposed=False,
    )


def _leaves(
    tree: Mapping[Any, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in tree.items():
        inside = (*path, str(name))
        if isinstance(value, Mapping):
            yield from _leaves(value, inside)
        elif inside[-1] in NAMES.values():
            yield inside, value


def _of_module(
    module: Any,
) -> tuple[Any, dict[str, Settings]]:
    """The state of an nnx module, and the settings of its norms."""
    try:
        from flax import nnx
    except ImportError:
        nnx = None
    if nnx is None or not isinstance(module, nnx.Module):
        raise TypeError(
            "Argument `variables` must be the variables of a Flax model, or an nnx "
            f"module. Received: variables of type {type(module).__name__}"
        )
    settings = {
        "/".join(map(str, path)): (one.epsilon, one.momentum)
        for path, one in nnx.iter_graph(module)
        if isinstance(one, nnx.BatchNorm)
    }
    return nnx.state(module), settings
