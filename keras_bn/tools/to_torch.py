"""Weights for a PyTorch model: batch norm's, and on demand all others."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_bn.tools._foreign.checkpoint import NAMES, opened, torch_weights
from keras_bn.tools._foreign.layouts import is_linear, reordered, squeezed, to_theirs
from keras_bn.tools._foreign.pairs import Matching, warn_of_order
from keras_bn.tools._foreign.transfer import (
    EPSILON,
    NEUTRAL,
    images_of,
    refuse_others,
    same_epsilon,
    unbiased,
)
from keras_bn.tools._foreign.weights import Options, matched, takers
from keras_bn.tools._graphs.walk import Layer, float64

NORM_NAMES = ("gamma", "beta", "moving_mean", "moving_variance")


def to_torch(
    model: Any,
    state_dict: Any = None,
    mapping: Mapping[str, str] | None = None,
    *,
    epsilon: float | None = None,
    layers: str = "norms",
    strict: bool = True,
    key: str | None = None,
    count: int | Mapping[str, int] | None = None,
    flatten: str | None = None,
) -> dict[str, Any]:
    """A PyTorch state dict with the batch norm weights and statistics of `model`.

    The way back from `from_torch`: `gamma, beta, moving_mean, moving_variance` become
    `weight, bias, running_mean, running_var`. What a state dict cannot hold has to be
    right in the PyTorch model, or be stated:

    - epsilon, 1e-5 in PyTorch unless given, 1e-3 in Keras. A layer with another one
      than the module's, or than `epsilon` where there is no module, is an error.
    - momentum, which in PyTorch is the share that is *replaced*: build the layer with
      1 - momentum of the layer here. Inference does not depend on it.
    - how many values n of a channel each batch had: PyTorch averages n / (n - 1) times
      the variance that it normalizes by. Inference wants the variance as it is, and so
      it is given; with `count`,

          running_var = moving_variance * n / (n - 1)

      as if PyTorch had trained the model.

    Neither `model` nor `state_dict` is changed: `module.load_state_dict` takes what is
    returned.

    Args:
        model: A built Keras model.
        state_dict: The PyTorch module, or its state dict, or a file or checkpoint as
            `from_torch` takes them: which names to give, and all weights that are not
            the model's. If None, a layer's weights are called by its path, with dots.
        mapping: The prefix in the state dict for layers, by the layer's path. Layers
            that it does not name are matched as in `from_torch`; `match_torch` shows
            the pairs.
        epsilon: The `eps` that the PyTorch layers have, where a module does not say it.
        layers: `"norms"`, or `"all"` for the kernels and biases of convolutions and
            dense layers too.
        strict: As in `from_torch`.
        key: As in `from_torch`.
        count: n, for all layers, or by the path of each.
        flatten: As in `from_torch`.

    Returns:
        The weights by name: those in the place of tensors as tensors of their dtype and
        device, else arrays, in float32 if `state_dict` is None.

    Raises:
        TypeError: `model` is not a Keras model, `state_dict` not a state dict.
        ValueError: As from `from_torch`; a weight other than its neutral value that the
            state dict has no place for.
        ImportError: As from `from_torch`.

    Example:

    >>> import keras, keras_bn
    >>> norm = keras_bn.BatchNormalization(epsilon=1e-5, scale=False, name="bn")
    >>> model = keras.Sequential([keras.Input((2,)), norm])
    >>> {name: one.tolist() for name, one in keras_bn.to_torch(model).items()}
    {'bn.bias': [0.0, 0.0], 'bn.running_mean': [0.0, 0.0], 'bn.running_var': [1.0, 1.0]}
    """
    options = Options(mapping, layers, strict, epsilon, None, count, flatten)
    state, module = ({}, None) if state_dict is None else opened(state_dict, key)
    foreign = torch_weights(state, module)
    ours = takers(model, layers, foreign.transposed)
    prefixes = {path: path.replace("/", ".") for path in ours}
    matching = Matching([])
    if state_dict is not None:
        matching = matched(model, foreign, options)
        prefixes = matching.mapping
    refuse_others(model, ours, options)
    images = images_of(model, ours, prefixes, foreign, options)
    for path, prefix in prefixes.items():
        layer = ours[path]
        if not is_linear(layer):
            known, _ = foreign.settings.get(prefix, (None, None))
            _check_epsilon(path, layer, epsilon if known is None else known)
        for name, value in _values(path, layer, count, images.get(path)).items():
            theirs = f"{prefix}.{NAMES[name]}".removeprefix(".")
            if state_dict is None:
                state |= {} if value is None else {theirs: value.astype("float32")}
            elif theirs in state:
                if value is None:  # with scale=False, gamma is 1 there
                    value = np.full(state[theirs].shape, NEUTRAL[name])
                state[theirs] = _like(theirs, state[theirs], value, path)
            elif value is not None and np.any(value != NEUTRAL[name]):
                raise ValueError(
                    f"Argument `state_dict` must have '{theirs}', to take in the "
                    f"{name} of layer '{path}'. Received: none"
                )
    warn_of_order(matching, stacklevel=2)
    return state


def _values(
    path: str,
    layer: Layer,
    count: int | Mapping[str, int] | None,
    image: tuple[int, ...] | None,
) -> dict[str, np.ndarray | None]:
    """What PyTorch's weights for `layer` are, by our names; None for those it lacks."""
    names = ("kernel", "bias") if is_linear(layer) else NORM_NAMES
    found: dict[str, np.ndarray | None] = {}
    for name in names:
        if getattr(layer, name) is None:
            found[name] = None
            continue
        kernel = name == "kernel"
        value = to_theirs(layer) if kernel else np.ravel(float64(getattr(layer, name)))
        if name == "moving_variance":
            value = value * unbiased(path, count)
        if image and name != "bias":
            value = reordered(value, image, back=True)
        found[name] = value
    return found


def _like(name: str, old: Any, value: np.ndarray, path: str) -> Any:
    """`value` as what stood there, a tensor or an array."""
    if squeezed(old.shape) != squeezed(value.shape):
        raise ValueError(
            f"Argument `state_dict` must have '{name}' of shape {value.shape}, as "
            f"layer '{path}' has. Received: shape {tuple(old.shape)}"
        )
    value = value.reshape(old.shape)
    if hasattr(old, "new_tensor"):
        return old.detach().new_tensor(value)
    return value.astype(old.dtype)


def _check_epsilon(path: str, layer: Layer, epsilon: float | None) -> None:
    received = f"epsilon={epsilon}"
    if epsilon is None:
        epsilon, received = EPSILON, f"epsilon=None, that is {EPSILON:g}"
    if not same_epsilon(layer.epsilon, epsilon):
        raise ValueError(
            f"Argument `epsilon` must be that of the layers, {layer.epsilon:g} in "
            f"'{path}', and the PyTorch layers be built with eps={layer.epsilon:g} (a "
            f"state dict does not hold it), for outputs to agree. Received: {received}"
        )
