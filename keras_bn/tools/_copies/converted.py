"""One layer in the place of another: its arguments, and its weights."""

import inspect
from collections.abc import Callable
from functools import partial
from numbers import Real
from typing import Any

import keras
import numpy as np

from keras_bn._keras import calls_of
from keras_bn.layers import BatchNormalization, DomainBatchNormalization
from keras_bn.ops import _settings
from keras_bn.tools._copies.carry import config_of, with_own
from keras_bn.tools._copies.rebuild import Replacement, adder
from keras_bn.tools._graphs.walk import (
    COUNTS,
    RENORM_STATISTICS,
    STATISTICS,
    Layer,
    activation_of,
    array,
    assign_copy,
    called_with,
    float64,
)
from keras_bn.tools._statistics.averaging import carry_weights

ACCUMULATED = ("count", "mean", "variance", "steps")
WEIGHTS = (
    "gamma",
    "beta",
    *STATISTICS,
    *RENORM_STATISTICS,
    *(f"accumulated_{part}" for part in ACCUMULATED),
    *COUNTS,
    "moving_step",
)


def arguments_of(target: type) -> set[str]:
    names = set(inspect.signature(target.__init__).parameters)  # type: ignore[misc]
    if target is DomainBatchNormalization:
        names |= arguments_of(BatchNormalization)
    return names - {"self", "kwargs"}


def converted(layer: Layer, target: type, overrides: dict[str, Any]) -> Replacement:
    """The layer of class `target` that does what `layer` does."""
    config, own = config_of(layer)
    config |= overrides
    accepted = arguments_of(target) | {"name", "trainable", "dtype"}
    then: tuple[Layer, ...] = ()
    if "activation" not in accepted:
        config.pop("activation", None)
        then = following(layer)
    defaults = inspect.signature(type(layer).__init__).parameters
    for name in [one for one in config if one not in accepted]:
        if config[name] != defaults[name].default:
            raise ValueError(
                f"Layer '{layer.name}' cannot be converted: "
                f"{target.__module__.split('.')[0]}'s BatchNormalization has no "
                f"argument `{name}`. Received: {name}={config[name]!r}"
            )
        del config[name]
    if target is keras.layers.BatchNormalization:
        config["axis"] = _single_axis(layer)
        _check_numbers(layer, config)
    check_nothing_is_lost(layer, config)
    try:
        new = target.from_config(config)  # type: ignore[attr-defined]
    except Exception as error:
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(
            f"Layer '{layer.name}' cannot be converted: "
            f"{target.__module__.split('.')[0]}'s BatchNormalization does not take its "
            "arguments here; override them, as in `convert(..., synchronized=False)`. "
            f"Received: {reason}"
        ) from error
    own = {name: one for name, one in own.items() if name not in overrides}
    add = None if target is BatchNormalization else adder(layer)
    return Replacement(with_own(new, own), then, add)


def check_overrides(overrides: dict[str, Any]) -> None:
    """Checks what the constructors of Keras's norms take without a look at it.

    An epsilon of 0 they are made for; ours is not, where a channel may not vary.
    """
    checks: dict[str, Callable[[Any], Any]] = {
        "momentum": partial(_settings.momentum_in_range, "momentum"),
        "renorm_momentum": partial(_settings.momentum_in_range, "renorm_momentum"),
        "renorm_clipping": _settings.renorm_limits,
        "epsilon": _settings.epsilon_of_others,
    }
    booleans = ("center", "scale", "renorm", "synchronized", "trainable")
    checks |= {name: partial(_settings.boolean_or_number, name) for name in booleans}
    for name in checks.keys() & overrides.keys():
        checks[name](overrides[name])


def check_calls(layer: Layer, to: str) -> None:
    """Refuses weights, in graphs that can be read."""
    if any(called_with(node, "weights") for node in calls_of(layer)):
        raise ValueError(
            f"Layer '{layer.name}' cannot be converted: it is called with `weights`, "
            f'which only keras_bn\'s BatchNormalization takes. Received: to="{to}"'
        )


def check_nothing_is_lost(layer: Layer, config: dict[str, Any]) -> None:
    for name, neutral, argument in (("gamma", 1, "scale"), ("beta", 0, "center")):
        weight = getattr(layer, name)
        lost = weight is not None and not config[argument]
        if lost and np.any(array(weight) != neutral):
            raise ValueError(
                f"Argument `{argument}` must stay True: layer '{layer.name}' has a "
                f"{name} other than {neutral}, which would be lost. Received: "
                f"{argument}=False"
            )


def following(layer: Layer) -> tuple[Layer, ...]:
    """What does the activation fused into `layer`, if any."""
    activation = activation_of(layer)
    return () if activation is None else (activation_layer(layer, activation),)


def activation_layer(layer: Layer, activation: Any) -> Layer:
    """The activation fused into `layer`, as a layer of its own."""
    return keras.layers.Activation(
        activation, name=f"{layer.name}_activation", dtype=layer.dtype_policy
    )


def _single_axis(layer: Layer) -> int:
    axes = [layer.axis] if isinstance(layer.axis, int) else layer.axis
    if len(axes) != 1:
        raise ValueError(
            f"Layer '{layer.name}' cannot be converted: Keras's BatchNormalization "
            f"normalizes along one axis. Received: axis={layer.axis}"
        )
    return axes[0]


def _check_numbers(layer: Layer, config: dict[str, Any]) -> None:
    """Refuses what Keras's layer would take without a word, and fail on in training."""
    limits = (config["renorm_clipping"] or {}) if config["renorm"] else {}
    settings = {name: config[name] for name in ("momentum", "renorm_momentum")} | {
        f"renorm_clipping[{key!r}]": value
        for key, value in limits.items()
        if value is not None
    }
    for name, value in settings.items():
        if not isinstance(value, Real):
            raise ValueError(
                f"Layer '{layer.name}' cannot be converted: in Keras's "
                f"BatchNormalization `{name}` is a number, neither None nor a "
                "schedule; override it, as in `convert(..., momentum=0.99)`. Received: "
                f"{name}={value!r}"
            )


def copy_batch_norm(old: Layer, new: Layer) -> None:
    """Gives `new` the weights of `old`; statistics that it lacked start at its own.

    A layer for several domains gets them for each.
    """
    alike = new.trainable == old.trainable  # or an override has said it of all weights
    for name in WEIGHTS:
        source, target = getattr(old, name, None), getattr(new, name, None)
        if source is not None and target is not None:
            target.assign(np.array(np.broadcast_to(array(source), target.shape)))
            if alike:
                target.trainable = source.trainable
    if new.renorm and not old.renorm:
        set_renorm_statistics(new)
    carry_weights(old, new)


def set_renorm_statistics(layer: Layer) -> None:
    """Starts the statistics of renorm at the moving ones, so that r = 1 and d = 0."""
    stddev = np.sqrt(float64(layer.moving_variance) + layer.epsilon)
    layer.moving_stddev.assign(stddev)
    assign_copy(layer.renorm_mean, layer.moving_mean)
    layer.renorm_stddev.assign(stddev)
