"""Batch norm's weights out of a PyTorch state dict."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_bn.tools._averaging import made_of_data
from keras_bn.tools._carry import carry_compile
from keras_bn.tools._rebuild import Replacement, rebuild
from keras_bn.tools._walk import Layer, array, batch_norms, is_plain_batch_norm
from keras_bn.tools.convert import set_renorm_statistics

TORCH_EPSILON = 1e-5
NAMES = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
NEUTRAL = {"gamma": 1.0, "beta": 0.0}


def from_torch(
    model: Any,
    state_dict: Any,
    mapping: Mapping[str, str] | None = None,
    *,
    epsilon: float | None = None,
    momentum: float | None = None,
) -> Any:
    """A copy of `model` with the batch norm weights and statistics of a PyTorch model.

    PyTorch's `weight, bias, running_mean, running_var` become `gamma, beta,
    moving_mean, moving_variance`. Two settings are not in a state dict, though outputs
    or further training depend on them:

    - epsilon, 1e-5 in PyTorch unless given, 1e-3 in Keras. A layer whose epsilon is not
      that of the PyTorch model would give other outputs: an error, unless `epsilon`
      says what it is there; the copy's layers then have it.
    - momentum, which in PyTorch is the share that is *replaced*: 0.1 there is 0.9 here.
      `momentum` takes PyTorch's number; without it the layers keep their own.

    If `state_dict` is the `torch.nn.Module` itself, both are read from its layers.

    Only batch norm is copied. `model` is left as it was.

    Args:
        model: A built Keras model.
        state_dict: A PyTorch state dict (values may be tensors or arrays), or a module.
        mapping: The prefix in the state dict for each batch norm layer, by the layer's
            path, such as `{"stem_bn": "features.1"}`. If None, prefixes are matched by
            name (dots as underscores or slashes), and where no name matches, in order.
        epsilon: The PyTorch layers' `eps`.
        momentum: The PyTorch layers' `momentum`.

    Returns:
        The new model.

    Raises:
        TypeError: `model` is not a Keras model, `state_dict` not a state dict.
        ValueError: A layer without a counterpart or with one of another size; an
            epsilon that differs; a `weight` or `bias` that a layer has no place for;
            `momentum` outside [0, 1].

    Reference:
        [torch.nn.BatchNorm2d](https://docs.pytorch.org/docs/stable/generated/torch.nn.BatchNorm2d.html).

    Example:

    >>> import keras, keras_bn, numpy as np
    >>> model = keras.Sequential(
    ...     [keras.Input((2,)), keras_bn.BatchNormalization(name="bn")]
    ... )
    >>> state = {"bn.running_mean": np.ones(2), "bn.running_var": np.full(2, 4.0)}
    >>> ours = keras_bn.from_torch(model, state, epsilon=1e-5, momentum=0.1)
    >>> bn = ours.layers[0]
    >>> bn.moving_mean.numpy().tolist(), bn.momentum, bn.epsilon
    ([1.0, 1.0], 0.9, 1e-05)
    """
    layers = {
        p: one for p, one in batch_norms(model).items() if is_plain_batch_norm(one)
    }
    settings = _settings_of_modules(state_dict)
    state = _state(state_dict)
    prefixes = _match(layers, _prefixes(state), mapping)
    paths = {id(layer): path for path, layer in layers.items() if path in prefixes}
    weights = {
        path: _weights(path, layers[path], state, p) for path, p in prefixes.items()
    }
    configs = {
        path: _config(path, layers[path], settings.get(prefix, (epsilon, momentum)))
        for path, prefix in prefixes.items()
    }

    def replace(layer: Layer) -> Replacement | None:
        if id(layer) not in paths:
            return None
        config = {**layer.get_config(), **configs[paths[id(layer)]]}
        return Replacement(type(layer).from_config(config))

    def fill(old: Layer, new: Layer) -> None:
        for name, value in weights[paths[id(old)]].items():
            getattr(new, name).assign(value)
            getattr(new, name).trainable = getattr(old, name).trainable
        if new.renorm:
            set_renorm_statistics(new)
        made_of_data(new)

    copy = rebuild(model, replace, fill)
    carry_compile(model, copy, slots=False)
    return copy


def _settings_of_modules(module: Any) -> dict[str, tuple[Any, Any]]:
    """Epsilon and momentum by prefix, if a module was given."""
    if not hasattr(module, "named_modules"):
        return {}
    return {
        name: (one.eps, one.momentum)
        for name, one in module.named_modules()
        if hasattr(one, "running_mean") and hasattr(one, "eps")
    }


def _state(state_dict: Any) -> dict[str, Any]:
    if hasattr(state_dict, "named_modules"):
        state_dict = state_dict.state_dict()
    if not isinstance(state_dict, Mapping):
        raise TypeError(
            "Argument `state_dict` must be a PyTorch state dict or module. Received: "
            f"state_dict of type {type(state_dict).__name__}"
        )
    return dict(state_dict)


def _prefixes(state: dict[str, Any]) -> list[str]:
    """What stands before `.running_mean`, in the order of the state dict."""
    end = ".running_mean"
    found = [key[: -len(end)] for key in state if key.endswith(end)]
    if not found:
        raise ValueError(
            "Argument `state_dict` must have batch norm statistics, keys that end in "
            f"'{end}'. Received: {len(state)} keys, such as {list(state)[:3]}"
        )
    return found


def _match(
    layers: dict[str, Layer], prefixes: list[str], mapping: Mapping[str, str] | None
) -> dict[str, str]:
    """The prefix for each path."""
    if mapping is not None:
        _check_mapping(layers, prefixes, mapping)
        return dict(mapping)
    if len(layers) != len(prefixes):
        raise ValueError(
            "Argument `mapping` must be given where the models differ in their number "
            f"of batch norm layers. Received: {len(layers)} in the Keras model, "
            f"{list(layers)}, and {len(prefixes)} in the state dict, {prefixes}"
        )
    named = {_normalized(prefix): prefix for prefix in prefixes}
    paths = [_normalized(path) for path in layers]
    if set(named) == set(paths):
        return {path: named[_normalized(path)] for path in layers}
    if set(named) & set(paths):
        raise ValueError(
            "Argument `mapping` must be given where only some names match. Received: "
            f"layers {list(layers)} and prefixes {prefixes}"
        )
    return dict(zip(layers, prefixes, strict=True))


def _normalized(name: str) -> str:
    return name.removeprefix("module.").replace(".", "_").replace("/", "_").lower()


def _check_mapping(
    layers: dict[str, Layer], prefixes: list[str], mapping: Mapping[str, str]
) -> None:
    for path, prefix in mapping.items():
        if path not in layers:
            raise ValueError(
                f"Argument `mapping` must have paths of batch norm layers as keys, "
                f"{list(layers)}. Received: {path!r}"
            )
        if prefix not in prefixes:
            raise ValueError(
                f"Argument `mapping` must have prefixes of the state dict as values, "
                f"{prefixes}. Received: {prefix!r} for layer {path!r}"
            )
    missing = sorted(set(layers) - set(mapping))
    if missing:
        raise ValueError(
            "Argument `mapping` must name every batch norm layer of the model. "
            f"Received: a mapping without {missing}"
        )


def _weights(
    path: str, layer: Layer, state: dict[str, Any], prefix: str
) -> dict[str, np.ndarray]:
    """The new value of each weight of `layer`."""
    found = {}
    for name, theirs in NAMES.items():
        variable = getattr(layer, name)
        value = _numpy(state.get(f"{prefix}.{theirs}"))
        if value is None:  # affine=False
            value = None if variable is None else np.full(variable.shape, NEUTRAL[name])
        if variable is None:
            if value is not None and np.any(value != NEUTRAL[name]):
                argument = "scale" if name == "gamma" else "center"
                raise ValueError(
                    f"Layer '{path}' must have {argument}=True, to take in "
                    f"'{prefix}.{theirs}'. Received: {argument}=False"
                )
            continue
        if value.size != array(variable).size or value.ndim != 1:
            raise ValueError(
                f"Argument `state_dict` must have '{prefix}.{theirs}' of shape "
                f"{tuple(variable.shape)}, as layer '{path}' has. Received: shape "
                f"{value.shape}"
            )
        found[name] = value.reshape(variable.shape)
    return found


def _numpy(tensor: Any) -> Any:
    if hasattr(tensor, "detach"):
        # NumPy has no bfloat16, and knows nothing of other devices.
        tensor = tensor.detach().cpu().double().numpy()
    return None if tensor is None else np.asarray(tensor, "float64")


def _config(path: str, layer: Layer, settings: tuple[Any, Any]) -> dict[str, Any]:
    """What changes in the layer's configuration."""
    epsilon, momentum = settings
    if epsilon is None and not np.isclose(layer.epsilon, TORCH_EPSILON, atol=0):
        raise ValueError(
            "Argument `epsilon` must be the `eps` of the PyTorch layers (a state dict "
            f"does not hold it; {TORCH_EPSILON:g} unless set), for outputs to agree. "
            f"Received: epsilon=None, while layer '{path}' has {layer.epsilon:g}"
        )
    config = {} if epsilon is None else {"epsilon": float(epsilon)}
    if momentum is not None:
        if not 0 <= momentum <= 1:
            raise ValueError(
                "Argument `momentum` must be in [0, 1], the share of the average that "
                f"PyTorch replaces. Received: momentum={momentum!r}"
            )
        config["momentum"] = 1.0 - float(momentum)
    return config
