"""Reads PyTorch's checkpoints: modules, state dicts, files; what is what in them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from keras_bn.tools._foreign.weights import CUMULATIVE, Foreign, Settings

NAMES = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
    "kernel": "weight",
    "bias": "bias",
}


def opened(state_dict: Any, key: str | None = None) -> tuple[dict[str, Any], Any]:
    """The state dict in what `from_torch` takes, and the module or None."""
    if isinstance(state_dict, (str, Path)):
        state_dict = read(Path(state_dict))
    inner = _inner(state_dict, key)
    if hasattr(inner, "named_modules"):
        return inner.state_dict(), inner
    return dict(inner), None


def torch_weights(state: Mapping[str, Any], module: Any = None) -> Foreign:
    """A state dict, taken apart into norms and linear layers."""
    modules = dict(module.named_modules()) if module is not None else {}
    groups: dict[str, dict[str, Any]] = {}
    for name, value in state.items():
        prefix, _, last = name.rpartition(".")
        groups.setdefault(prefix, {})[last] = value
    norms, linears, left_out = {}, {}, []
    for prefix, group in groups.items():
        if "running_mean" in group and "running_var" in group:
            if _is_instance_norm(modules.get(prefix)):
                left_out.append(prefix)
            else:
                norms[prefix] = _renamed(group, ("gamma", "beta"))
                norms[prefix] |= _renamed(group, ("moving_mean", "moving_variance"))
        elif np.ndim(group.get("weight", ())) > 1:
            linears[prefix] = _renamed(group, ("kernel", "bias"))
    settings = {name: _settings(one) for name, one in modules.items() if name in norms}
    return Foreign(
        "PyTorch",
        "state_dict",
        norms,
        linears,
        NAMES,
        settings,
        left_out=left_out,
    )


def _renamed(group: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: group[NAMES[name]] for name in names if NAMES[name] in group}


def _is_instance_norm(module: Any) -> bool:
    # Its running statistics are of one image at a time: other numbers, of other use.
    return any(cls.__name__ == "_InstanceNorm" for cls in type(module).__mro__)


def _settings(module: Any) -> Settings:
    """What a module says of these; frozen ones have no momentum."""
    epsilon = getattr(module, "eps", None)
    if not hasattr(module, "momentum"):
        return epsilon, None
    momentum = module.momentum
    return epsilon, CUMULATIVE if momentum is None else 1 - momentum


def _is_state(value: Any) -> bool:
    if hasattr(value, "named_modules"):
        return True
    return isinstance(value, Mapping) and any(
        isinstance(name, str)
        and name.rpartition(".")[2] in ("weight", "running_mean")
        and hasattr(one, "shape")
        for name, one in value.items()
    )


def _inner(checkpoint: Any, key: str | None) -> Any:
    """The state dict or module in a checkpoint, which may hold it under some key."""
    if key is None and _is_state(checkpoint):
        return checkpoint
    if not isinstance(checkpoint, Mapping):
        raise TypeError(
            "Argument `state_dict` must be a PyTorch state dict or module, or the path "
            f"of a file. Received: state_dict of type {type(checkpoint).__name__}"
        )
    found = dict(_states(checkpoint))
    if key is not None and key not in found:
        raise ValueError(
            "Argument `key` must be one under which the checkpoint has a state dict, "
            f"{list(found)}. Received: key={key!r}"
        )
    if key is None and len(found) > 1:
        raise ValueError(
            "Argument `key` must say which state dict of the checkpoint to take. "
            f"Received: key=None, and state dicts under {list(found)}"
        )
    if not found:
        raise ValueError(
            "Argument `state_dict` must hold weights of layers. Received: "
            f"{len(checkpoint)} keys, {list(checkpoint)[:5]}"
        )
    return found[key] if key is not None else next(iter(found.values()))


def _states(checkpoint: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """The state dicts inside, and the keys that lead to them, with dots between."""
    for name, value in checkpoint.items():
        if _is_state(value):
            yield str(name), value
        elif isinstance(value, Mapping):
            yield from ((f"{name}.{inner}", one) for inner, one in _states(value))


def read(path: Path) -> Any:
    """What a .safetensors file, or one that `torch.save` wrote, holds; tensors only.

    Raises:
        ValueError: It is not there, or not such a file, or holds more than tensors.
        ImportError: The package that reads it is not installed.
    """
    if not path.is_file():
        found = "is no file" if path.exists() else "does not exist"
        raise ValueError(
            "Argument `state_dict` must be a file that is there, where it is a path. "
            f"Received: {path}, which {found}"
        )
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"PyTorch reads {path.name}, whatever Keras's backend: `pip install torch`,"
            " or save the weights as .safetensors where PyTorch is"
        ) from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"Argument `state_dict` must be a file of tensors. Received: {path}, which "
            f"PyTorch does not read as such ({str(error).splitlines()[0]}). If you "
            "trust it, load it yourself, and give `from_torch` the state dict in it"
        ) from error


def _read_safetensors(path: Path) -> Any:
    try:
        from safetensors.numpy import load_file
    except ImportError as error:
        raise ImportError(
            f"safetensors reads {path.name}: `pip install keras-bn[safetensors]`"
        ) from error
    try:
        return load_file(path)
    except Exception as error:
        raise ValueError(
            f"Argument `state_dict` must be a safetensors file. Received: {path}: "
            f"{error}"
        ) from error
