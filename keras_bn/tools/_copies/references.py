"""What a value in an attribute refers to."""

import dis
import functools
import gc
import inspect
import types
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

# What holds no layer, or is the same for everyone.
SHARED = (
    *(type(None), bool, int, float, complex, str, bytes, type, np.generic),
    *(types.ModuleType, types.BuiltinFunctionType, types.CodeType),
    *(inspect.Signature, keras.dtype_policies.DTypePolicy),
)
MOST = 20_000
"""Objects looked at, before something is held to have nothing of a model in it."""


def holds(value: Any, wanted: Callable[[Any], bool]) -> bool:
    """Whether one can come from `value` to something `wanted`."""
    pending, seen = [value], {id(value)}
    while pending and len(seen) < MOST:
        one = pending.pop()
        if wanted(one):
            return True
        for inner in _inside(one):
            if id(inner) not in seen and not isinstance(inner, SHARED):
                seen.add(id(inner))
                pending.append(inner)
    return False


def _inside(value: Any) -> list[Any]:
    """What `value` refers to; of a function not its module's names."""
    if isinstance(value, types.FunctionType):
        return [
            value.__closure__,
            value.__defaults__,
            value.__kwdefaults__,
            vars(value),
        ]
    return gc.get_referents(value)


@functools.cache
def names_read(code: types.CodeType) -> tuple[str, ...]:
    """The globals that a function's code reads."""
    read = [
        one.argval
        for one in dis.get_instructions(code)
        if one.opname in ("LOAD_GLOBAL", "LOAD_NAME")
    ]
    inside = (one for one in code.co_consts if isinstance(one, types.CodeType))
    return (*read, *(name for one in inside for name in names_read(one)))


def slots_of(cls: type) -> list[str]:
    """The attributes that instances of `cls` have outside of a dictionary."""
    every = [vars(one).get("__slots__", ()) for one in cls.__mro__]
    names = [n for some in every for n in ([some] if isinstance(some, str) else some)]
    return [name for name in names if name not in ("__dict__", "__weakref__")]
