"""Copies of what stands in a layer's attributes: variables, containers, functions.

A layer is copied as it stands, attribute by attribute, and not made anew from its
config: a config may leave something out, cannot hold a function with what it refers to,
and may hand out the layer's own parts, which a second layer would then write into.
"""

import copy
import operator
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import keras
import numpy as np

from keras_bn._keras import Tracker, copied_variable, recount_tracked
from keras_bn.tools._copies.references import SHARED, holds, names_read, slots_of
from keras_bn.tools._graphs.walk import Layer, array, sublayers


class NotCopied(ValueError):
    """Something in an attribute cannot be copied: says why, but not yet where."""


class Values:
    """Copies of values, each made once.

    Args:
        model: The model that is copied.
        layers: Gives what stands in a layer's place: a copy, mostly.
        tensor: Gives the copy of a symbolic tensor.

    Attributes:
        loose: Whether a layer's place may hold none or several, as it may in a model
            that runs a graph, and knows its layers by the way only.
    """

    def __init__(
        self,
        model: Any,
        layers: Callable[[Layer], list[Layer]],
        tensor: Callable[[Any], Any],
    ) -> None:
        self._layers, self._tensor = layers, tensor
        self.loose = False
        # The originals are kept beside their copies: an id may be given out again.
        self._memo: dict[int, tuple[Any, Any]] = {}
        self._trackers: list[Any] = []
        self._own: dict[int, Any] = {id(model): model}
        self._own |= {id(one): one for _, one in sublayers(model)}
        self._own |= {id(v): v for v in model.variables}
        self._tensors = {id(v.value): v for v in model.variables}

    def own(self, value: Any) -> bool:
        """Whether `value` is a layer or a variable of the model."""
        return id(value) in self._own

    def of(self, value: Any) -> Any:
        """The copy of `value`; `value` itself where it can be shared."""
        if isinstance(value, SHARED):
            return value
        if id(value) in self._memo:
            return self._memo[id(value)][1]
        if isinstance(value, keras.Operation):
            return self._one_layer(value)
        if isinstance(value, keras.KerasTensor):
            return self._tensor(value)
        if id(value) in self._tensors:  # the tensor itself, without its variable
            return self.of(self._tensors[id(value)]).value
        for kinds, copied in _COPIES:
            if issubclass(type(value), kinds):
                return copied(self, value)
        if isinstance(value, (dict, tuple)):  # a proxy, in which TensorFlow wraps them
            return self.of(value.__wrapped__)  # type: ignore[union-attr]
        return self._object(value)

    def _one_layer(self, old: Layer) -> Any:
        layers = self._layers(old)
        if len(layers) == 1:
            return layers[0]
        if self.loose:
            return layers[0] if layers else None
        raise NotCopied(
            f"the layer '{old.name}' needs an activation layer after it, which cannot "
            "be put there. Take the activation out of the layer. Received: activation="
            f"{getattr(old, 'activation', None)!r}"
            if layers
            else f"the layer '{old.name}' cannot be left out there"
        )

    def _each(self, items: Any) -> Iterator[Any]:
        for one in items:
            if self.loose and isinstance(one, keras.Operation):
                yield from self._layers(one)
            else:
                yield self.of(one)

    def remember(self, old: Any, new: Any) -> Any:
        """Notes `new` as the copy of `old`, and gives it."""
        self._memo[id(old)] = (old, new)
        return new

    def finish(self) -> None:
        """Does what can be done only when everything has been copied."""
        for tracker in self._trackers:
            recount_tracked(tracker)

    def _variable(self, old: Any) -> Any:
        return self.remember(old, copied_variable(old, array(old.value)))

    def _list(self, old: Any) -> Any:
        new = self.remember(old, _empty(old))
        # Not by the methods of Keras's lists, which track what they are given.
        list.extend(new, self._each(old))
        return self._attributes(new, old)

    def _set(self, old: Any) -> Any:
        new = self.remember(old, _empty(old))
        set.update(new, self._each(old))
        return self._attributes(new, old)

    def _dict(self, old: Any) -> Any:
        new = self.remember(old, _empty(old))
        kind = OrderedDict if isinstance(old, OrderedDict) else dict
        for key, value in old.items():
            kind.__setitem__(new, self.of(key), self.of(value))
        if hasattr(old, "default_factory"):
            new.default_factory = self.of(old.default_factory)
        return self._attributes(new, old)

    def _deque(self, old: Any) -> Any:
        return self.remember(old, deque(self._each(old), old.maxlen))

    def _tuple(self, old: Any) -> Any:
        named = hasattr(old, "_fields")
        items = [self.of(one) for one in old] if named else list(self._each(old))
        if len(items) == len(old) and all(map(operator.is_, items, old)):
            return old
        return type(old)(*items) if named else tuple.__new__(type(old), items)

    def _attributes(self, new: Any, old: Any) -> Any:
        for name, value in getattr(old, "__dict__", {}).items():
            vars(new)[name] = self.of(value)
        return new

    def _tracker_of(self, old: Any) -> Any:
        new = self.remember(old, object.__new__(type(old)))
        self._trackers.append(new)
        return self._attributes(new, old)

    def _array(self, old: Any) -> Any:
        return self.remember(old, old.copy())

    def _partial(self, old: Any) -> Any:
        parts = [self.of(one) for one in (old.func, old.args, old.keywords)]
        return self.remember(old, partial(parts[0], *parts[1], **parts[2]))

    def _method(self, old: types.MethodType) -> Any:
        if not self._holds_own(old.__self__):
            return old
        owner = self.of(old.__self__)
        return self.remember(old, types.MethodType(old.__func__, owner))

    def _function(self, old: types.FunctionType) -> Any:
        """The same function: the user's own, with the copies for the model's layers."""
        for name in names_read(old.__code__):
            if self.own(old.__globals__.get(name)):
                raise NotCopied(
                    f"the function '{old.__qualname__}' uses the global '{name}', a "
                    "part of the model, which its copy would use too. Hold it in the "
                    "layer, or make it an input"
                )
        inside = [*(old.__closure__ or ()), old.__defaults__, old.__kwdefaults__]
        if not any(map(self._holds_own, inside)):
            return old
        cells = tuple(map(self._cell, old.__closure__ or ()))
        if id(old) in self._memo:  # by a cell of its own: it calls itself
            return self._memo[id(old)][1]
        new = types.FunctionType(
            old.__code__, old.__globals__, old.__name__, None, cells
        )
        self.remember(old, new)
        new.__defaults__ = self.of(old.__defaults__)
        new.__kwdefaults__ = self.of(old.__kwdefaults__)
        for name in ("__module__", "__qualname__", "__doc__", "__annotations__"):
            setattr(new, name, getattr(old, name))
        return self._attributes(new, old)

    def _cell(self, old: Any) -> Any:
        if id(old) in self._memo:
            return self._memo[id(old)][1]
        if not self._holds_own(old):
            return old
        new = self.remember(old, types.CellType())
        new.cell_contents = self.of(old.cell_contents)
        return new

    def _weak(self, old: weakref.ref[Any]) -> Any:
        there = old()
        if not self._holds_own(there):
            return old
        of_method = isinstance(old, weakref.WeakMethod)
        return (weakref.WeakMethod if of_method else weakref.ref)(self.of(there))

    def _object(self, old: Any) -> Any:
        """Shared, but where something of a model is in it."""
        if keras.ops.is_tensor(old):
            return self.remember(old, _tensor_like(old))
        if not holds(old, self._of_model):
            return old
        made_by: Any = type(old).__new__
        slots = slots_of(type(old))
        if made_by is not object.__new__ or not (slots or hasattr(old, "__dict__")):
            if not self._holds_own(old):
                return old
            raise NotCopied(
                f"an object of class {type(old).__name__} holds a part of the model, "
                "and cannot be taken apart"
            )
        new = self.remember(old, object.__new__(type(old)))
        for name in slots:
            if hasattr(old, name):
                object.__setattr__(new, name, self.of(getattr(old, name)))
        return self._attributes(new, old)

    def _of_model(self, value: Any) -> bool:
        kinds = (keras.Operation, keras.Variable, keras.KerasTensor)
        return isinstance(value, kinds) or id(value) in self._tensors

    def _holds_own(self, value: Any) -> bool:
        return holds(value, self.own)


def _empty(container: Any) -> Any:
    """A container of the same class, without its constructor, with nothing in it."""
    cls: Any = type(container)
    return cls.__new__(cls)


def _tensor_like(tensor: Any) -> Any:
    """A copy, since some frameworks' tensors are written into."""
    try:
        return copy.deepcopy(tensor)
    except Exception:
        return tensor  # a tracer that a call has left behind


_COPIES: tuple[tuple[Any, Callable[[Values, Any], Any]], ...] = (
    (keras.Variable, Values._variable),
    (list, Values._list),
    (dict, Values._dict),
    (tuple, Values._tuple),
    (set, Values._set),
    (deque, Values._deque),
    (np.ndarray, Values._array),
    (types.FunctionType, Values._function),
    (types.MethodType, Values._method),
    (partial, Values._partial),
    (weakref.ref, Values._weak),
    *([] if Tracker is None else [(Tracker, Values._tracker_of)]),
)
