"""Weights out of a Haiku model: batch norm's, and on demand all others."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_bn.tools._foreign.layouts import channels_first
from keras_bn.tools._foreign.pairs import Matching
from keras_bn.tools._foreign.transfer import transfer
from keras_bn.tools._foreign.weights import Foreign, Options, matched

NAMES = {
    "gamma": "scale",
    "beta": "offset",
    "moving_mean": "~/mean_ema",
    "moving_variance": "~/var_ema",
    "kernel": "w",
    "bias": "b",
}


def from_haiku(
    model: Any,
    params: Mapping[str, Any],
    state: Mapping[str, Any],
    mapping: Mapping[str, str] | None = None,
    *,
    epsilon: float | None = None,
    momentum: float | None = None,
    layers: str = "norms",
    strict: bool = True,
) -> Any:
    """A copy of `model` with the batch norm weights and statistics of a Haiku model.

    Haiku's `scale, offset` become `gamma, beta`, and its averages `mean_ema, var_ema`
    become `moving_mean, moving_variance`. Each average has two values after t steps:

        hidden = decay * hidden + (1 - decay) * batch
        average = hidden / (1 - decay ** t)

    `hidden` starts at zero and is drawn towards it; `average`, without that, is what
    Haiku normalizes by in inference, and what is taken. The variance is that which
    Haiku normalizes by in training, as in Keras. What the state does not say is to be
    stated:

    - epsilon (`eps`), 1e-5 in Haiku unless given, 1e-3 in Keras. A layer whose epsilon
      is not that of the Haiku model would give other outputs: an error, unless
      `epsilon` says what it is there; the copy's layers then have it.
    - momentum, the share that is kept, which Haiku calls `decay_rate`; without it the
      layers keep their own.

    Which weights are which layer's is told as in `from_torch`, by the names of Haiku's
    modules, and `match_haiku` shows the pairs. `model` is left as it was.

    Args:
        model: A built Keras model.
        params: The parameters, by module.
        state: The state, by module.
        mapping: The name of the Haiku module for layers, by the layer's path, such as
            `{"stem_bn": "net/~/batch_norm"}`. Layers that it does not name are matched.
        epsilon: The Haiku layers' `eps`.
        momentum: The Haiku layers' `decay_rate`.
        layers: `"norms"`, or `"all"` for the kernels and biases of convolutions and
            dense layers too; transposed convolutions are not among them.
        strict: As in `from_torch`.

    Returns:
        The new model.

    Raises:
        TypeError: `model` is not a Keras model, `params` or `state` not a mapping.
        ValueError: As from `from_torch`; an average that no step has updated.

    Reference:
        [hk.BatchNorm](https://dm-haiku.readthedocs.io/en/latest/api.html#batchnorm).

    Example:

    >>> import keras, keras_bn, numpy as np
    >>> model = keras.Sequential([keras.Input((2,)), keras_bn.BatchNormalization()])
    >>> average = {"average": np.ones(2), "hidden": np.full(2, 0.1), "counter": 1}
    >>> state = {f"net/bn/~/{name}_ema": average for name in ("mean", "var")}
    >>> params = {"net/bn": {"scale": np.ones(2), "offset": np.zeros(2)}}
    >>> ours = keras_bn.from_haiku(model, params, state, epsilon=1e-5, momentum=0.9)
    >>> ours.layers[0].moving_mean.numpy().tolist(), ours.layers[0].momentum
    ([1.0, 1.0], 0.9)
    """
    options = Options(mapping, layers, strict, epsilon, momentum)
    return transfer(model, _weights(params, state), options)


def match_haiku(
    model: Any,
    params: Mapping[str, Any],
    state: Mapping[str, Any],
    mapping: Mapping[str, str] | None = None,
    *,
    layers: str = "norms",
    strict: bool = True,
) -> Matching:
    """Which weights `from_haiku` would give to which layer, and why; see `match_torch`.

    Args:
        model: A built Keras model.
        params: As in `from_haiku`.
        state: As in `from_haiku`.
        mapping: As in `from_haiku`.
        layers: As in `from_haiku`.
        strict: As in `from_haiku`.

    Returns:
        The pairs, with what each rests on, and what is left over.

    Raises:
        TypeError: As from `from_haiku`.
        ValueError: As from `from_haiku`.
    """
    options = Options(mapping, layers, strict)
    return matched(model, _weights(params, state), options)


def _weights(params: Any, state: Any) -> Foreign:
    for name, value in (("params", params), ("state", state)):
        if not isinstance(value, Mapping):
            raise TypeError(
                f"Argument `{name}` must be a mapping of Haiku modules. Received: "
                f"{name} of type {type(value).__name__}"
            )
    end = f"/{NAMES['moving_mean']}"
    prefixes = [name.removesuffix(end) for name in state if name.endswith(end)]
    norms = {}
    for prefix in prefixes:
        own = params.get(prefix, {})
        norms[prefix] = {n: own[NAMES[n]] for n in ("gamma", "beta") if NAMES[n] in own}
        for name in ("moving_mean", "moving_variance"):
            norms[prefix][name] = _average(state, f"{prefix}/{NAMES[name]}")
    linears = {}
    for prefix, own in params.items():
        if np.ndim(own.get("w")) > 1:
            linears[prefix] = {"kernel": channels_first(own["w"])}
            linears[prefix] |= {"bias": own["b"]} if "b" in own else {}
    return Foreign(
        *("Haiku", "state", norms, linears, NAMES),
        flatten="channels_last",
        transposed=False,
    )


def _average(state: Mapping[str, Any], name: str) -> Any:
    """The average without the pull to its start."""
    one = state.get(name, {})
    if "average" not in one or one.get("counter") == 0:
        raise ValueError(
            f"Argument `state` must have '{name}' with an `average` that a training "
            f"step has updated. Received: {dict(one)}"
        )
    return one["average"]
