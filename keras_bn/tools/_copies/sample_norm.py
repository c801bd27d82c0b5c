"""A norm of each sample alone in the place of batch norm: group or layer norm."""

import inspect
import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_bn._keras import attached_mask, calls_of
from keras_bn.ops._settings import positive_epsilon, positive_integer
from keras_bn.tools._graphs.walk import Layer, array, at_initial_values

SAMPLE_NORMS = {
    "group": keras.layers.GroupNormalization,
    "layer": keras.layers.LayerNormalization,
}
GROUPS = 32
"""At most so many by default: what Wu and He use, and Keras."""


def check_groups(overrides: dict[str, Any]) -> None:
    """Checks the epsilon and the groups, which Keras does not, or not up to 3.14.

    Puts an integer of Python's in the place of another, which Keras would not take.
    """
    if "epsilon" in overrides:  # above 0: one value alone has no variance
        positive_epsilon(overrides["epsilon"])
    if overrides.get("groups") not in (None, -1):
        overrides["groups"] = positive_integer("groups", overrides["groups"])


def sample_norm(layer: Layer, to: str, overrides: dict[str, Any]) -> Layer:
    """The group or layer norm in the place of `layer`, a built batch norm."""
    axes, rank = _axes(layer), len(_shape(layer))
    if _has_no_positions(layer):
        # Of one position, a group of one channel would leave beta, one of two signs.
        to, axes = "layer", [*range(1, rank)]
    if to == "group":
        _check_masks(layer)
        overrides = {**overrides, "groups": _groups(layer, axes, overrides)}
    else:
        _check_axes(layer, axes, rank)
    target = SAMPLE_NORMS[to]
    config = {**layer.get_config(), **overrides}
    taken = inspect.signature(target.__init__).parameters
    accepted = {*taken, "name", "trainable", "dtype"}
    config["axis"] = axes[0] if len(axes) == 1 else axes
    return target.from_config({k: v for k, v in config.items() if k in accepted})


def _shape(layer: Layer) -> Sequence[int | None]:
    return layer.get_build_config()["input_shape"]  # type: ignore[no-any-return]


def _axes(layer: Layer) -> list[int]:
    """The axes of the features in their order, from 0."""
    given = [layer.axis] if isinstance(layer.axis, int) else layer.axis
    return sorted(one % len(_shape(layer)) for one in given)


def _has_no_positions(layer: Layer) -> bool:
    """Whether a sample is known to have one position only."""
    axes = _axes(layer)
    return all(n == 1 for i, n in enumerate(_shape(layer)) if i and i not in axes)


def _groups(layer: Layer, axes: list[int], overrides: dict[str, Any]) -> int:
    if len(axes) > 1 or axes[0] == 0:
        raise ValueError(
            f"Layer '{layer.name}' cannot be converted: Keras's GroupNormalization "
            "makes groups along one axis, which is not the first. Received: axis="
            f"{layer.axis}"
        )
    channels: int = layer.moving_mean.shape[0]
    given = overrides.get("groups")
    if given is None:
        # Groups of one channel are instance norm, the worst of all sizes in the paper.
        most = max(1, min(GROUPS, channels // 2))
        return next(n for n in range(most, 0, -1) if channels % n == 0)
    if channels % given:
        raise ValueError(
            "Argument `groups` must divide the channels of each layer; left out, each "
            f"gets a number that does. Received: groups={given}, layer '{layer.name}' "
            f"with {channels} channels"
        )
    return given  # type: ignore[no-any-return]


def _check_axes(layer: Layer, axes: list[int], rank: int) -> None:
    """Refuses axes that Keras's layer norm confuses with the last ones (on torch)."""
    try:
        # Along axes of sizes that are all different.
        keras.ops.layer_normalization(np.zeros(range(rank), "float32"), axis=axes)
    except Exception as error:
        raise ValueError(
            f"Layer '{layer.name}' cannot be converted: on this backend, the "
            f"LayerNormalization of Keras {keras.__version__} serves the last axes "
            "only. Use another backend, channels last, or, for one statistic a sample, "
            f'`to="group", groups=1`. Received: axis={layer.axis}'
        ) from error


def _check_masks(layer: Layer) -> None:
    """Refuses a mask, in graphs that can be read."""
    for node in calls_of(layer):
        masks = [node.arguments.kwargs.get("mask")]
        # Since Keras 3.16 a call's arguments do not say what it reads off its inputs.
        masks += map(attached_mask, node.input_tensors)
        if any(mask is not None for mask in masks):
            raise ValueError(
                f"Layer '{layer.name}' cannot be converted: a mask reaches it, and "
                "Keras's GroupNormalization would take masked positions into its "
                'statistics. Use `to="layer"`, which normalizes each position alone. '
                f"Received: inputs of shape {node.input_tensors[0].shape} and a mask"
            )


def copy_parameters(old: Layer, new: Layer) -> None:
    """Gives `new` gamma and beta of `old`, a batch norm, and their flags."""
    alike = new.trainable == old.trainable  # or an override has said it of all weights
    for name in ("gamma", "beta"):
        source, target = getattr(old, name, None), getattr(new, name, None)
        if source is not None and target is not None:
            # Those of several axes have the inputs' rank in a batch norm.
            target.assign(array(source).reshape(target.shape))
            if alike:
                target.trainable = source.trainable


def warn_of_unread_groups(
    model: Any, replaced: dict[str, Layer], overrides: dict[str, Any]
) -> None:
    """Says so where `groups` are asked for, and layer norm has none."""
    groups = overrides.get("groups")
    without = [path for path, layer in replaced.items() if _has_no_positions(layer)]
    if without and groups not in (None, 1):  # one group is what layer norm is there
        warnings.warn(
            f"Argument `groups` is not read for {len(without)} layers of model "
            f"'{model.name}', '{without[0]}' the first: their inputs have no "
            f"positions, so that they get layer norm. Received: groups={groups}",
            UserWarning,
            stacklevel=3,
        )


def warn_of_dropped(model: Any, replaced: dict[str, Layer], target: type) -> None:
    """Says so where moving statistics go that are not those they began with."""
    dropped = [path for path, layer in replaced.items() if not at_initial_values(layer)]
    if dropped:
        warnings.warn(
            f"The moving statistics of {len(dropped)} layers of model '{model.name}' "
            f"are dropped, '{dropped[0]}' the first: {target.__name__} has none. The "
            "new model's outputs are others; train it on.",
            UserWarning,
            stacklevel=3,
        )
