"""Settings that may follow a schedule: momenta, and the limits of renorm."""

from collections.abc import Callable, Mapping
from typing import Any

import keras
from keras import ops

from keras_bn.ops import _settings

Schedule = Callable[[Any], Any]
"""A `LearningRateSchedule`, or another function of the step (a float32 tensor)."""


def momentum(name: str, value: Any) -> float | Schedule:
    """The argument `name`: a number in [0, 1], or a schedule, perhaps serialized."""
    value = _deserialized(value)
    if not callable(value):
        return _settings.momentum_in_range(name, value)
    start = _at_start(name, value)
    if start is not None:
        _settings.momentum_in_range(f"{name}(0)", start)
    return value  # type: ignore[no-any-return]


def limits(clipping: Any) -> dict[str, float | Schedule]:
    """The argument `renorm_clipping`: each limit a number or a schedule."""
    if not isinstance(clipping, Mapping):
        return {**_settings.renorm_limits(clipping)}
    given = {key: _deserialized(value) for key, value in clipping.items()}
    start = {
        key: _at_start(f"renorm_clipping[{key!r}]", value) if callable(value) else value
        for key, value in given.items()
    }
    numbers = _settings.renorm_limits(start)
    return {
        key: value if callable(value) else numbers[key]
        for key, value in given.items()
        if value is not None
    }


def at(setting: Any, step: Any) -> Any:
    """What a schedule says at this step."""
    return setting(ops.cast(step, "float32"))


def serialized(setting: Any) -> Any:
    """A setting for `get_config`; what is a number, or None, stays as it is."""
    if callable(setting):
        return keras.saving.serialize_keras_object(setting)
    if isinstance(setting, Mapping):
        return {key: serialized(value) for key, value in setting.items()}
    return setting


def _deserialized(setting: Any) -> Any:
    if isinstance(setting, Mapping) and "class_name" in setting:
        return keras.saving.deserialize_keras_object(setting)
    return setting


def _at_start(name: str, schedule: Schedule) -> Any:
    """The value at step 0; None where it is traced, and cannot be looked at."""
    value = at(schedule, 0.0)
    if value is None:
        raise TypeError(
            f"Argument `{name}` must be a function of the step that gives a number. "
            f"Received: {name}={schedule!r}, which gives None"
        )
    try:
        return ops.convert_to_numpy(value).tolist() if ops.is_tensor(value) else value
    except Exception:  # each framework has its own
        return None
