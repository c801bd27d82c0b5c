"""Copies a model with other layers in the place of chosen ones."""

import inspect
import warnings
from collections.abc import Callable
from itertools import count
from typing import Any, NamedTuple

import keras
from keras.src.models.functional import functional_like_constructor

from keras_bn.tools._carry import Fill, carry_state, classes_known
from keras_bn.tools._held import held, put, shown
from keras_bn.tools._lasting import make_lasting
from keras_bn.tools._walk import (
    Layer,
    children,
    has_graph,
    is_functional,
    is_sequential,
    sublayers,
)

SAME = object()
"""As the layer of a `Replacement`: a copy of the one that stood there."""


class Replacement(NamedTuple):
    """What stands in the copy where a layer stood.

    Attributes:
        layer: The layer that is called instead; None to hand the input on, `SAME` for
            a copy of the old one.
        then: What follows it, called on the result alone: layers, or functions
            that make one, a new one for each call of a layer that is shared.
        add: Makes the layer that adds a `residual` that the old one was called with,
            before `then`; None where the new one is called with it.
    """

    layer: Layer | None
    then: tuple[Layer | Callable[[], Layer], ...] = ()
    add: Callable[[], Layer] | None = None


class OutOfReach(ValueError):
    """A layer cannot be replaced where it is held.

    Attributes:
        owner: The layer that holds it.
    """

    def __init__(self, message: str, owner: Layer) -> None:
        super().__init__(message)
        self.owner = owner


Replace = Callable[[Layer], Replacement | None]
"""Says what to put in the place of a layer; None to copy it as it is."""


def rebuild(model: Any, replace: Replace, fill: Fill) -> Any:
    """A copy of `model`, of the same names, weights, random states and flags.

    Layers that are shared in the model are shared in the copy. A layer in which some
    class of the user's holds others is copied by its config, and what it holds is then
    replaced attribute by attribute.

    Raises:
        ValueError: A layer that cannot be copied by its config, or holds a layer to be
            replaced where it cannot be; the message names the attribute.
    """
    copier = _Copier(replace)
    with classes_known(model):
        copy: Any = copier.copy(model).layer
        if not copy.built:
            _build_alike(model, copy)
    carry_state(list(copier.copies.values()), copier.replaced, fill)
    return copy


class _Copier:
    """Each layer's copy, made once."""

    def __init__(self, replace: Replace) -> None:
        self._replace = replace
        self.copies: dict[int, tuple[Layer, Replacement]] = {}
        self.replaced: set[int] = set()
        self._placed: list[Layer] = []

    def copy(self, layer: Layer) -> Replacement:
        if id(layer) not in self.copies:
            chosen = self._replace(layer) or Replacement(SAME)
            if chosen.layer is SAME:
                chosen = chosen._replace(layer=self._same(layer))
            else:
                self.replaced.add(id(layer))
            self.copies[id(layer)] = (layer, chosen)
        return self.copies[id(layer)][1]

    def _same(self, layer: Layer) -> Layer:
        if is_sequential(layer):
            return self._sequential(layer)
        if is_functional(layer):
            return self._functional(layer)
        copy = _from_config(layer)
        if children(layer):
            self._replace_inside(layer, copy, layer.name)
            make_lasting(copy, self._placed)
        return copy

    def _sequential(self, model: Any) -> Any:
        layers: list[Layer] = []
        for layer in children(model):
            if isinstance(layer, keras.layers.InputLayer):
                layers.append(_from_config(layer))
                continue
            first, then, _ = self.copy(layer)
            layers += [_made(one) for one in (first, *then) if one is not None]
        cls = type(model)
        if cls.__init__ is not keras.Sequential.__init__:
            cls = _plain(model, keras.Sequential)
        return cls(layers, name=model.name)

    def _functional(self, model: Any) -> Any:
        inputs = _ordered(
            keras.tree.map_structure(_input_like, model.input), model.input
        )
        outputs = model._run_through_graph(
            inputs, operation_fn=self.copy, call_fn=_call
        )
        cls = type(model)
        if not functional_like_constructor(cls):
            cls = _plain(model, keras.Model)
        return cls(inputs, _ordered(outputs, model.output), name=model.name)

    def _replace_inside(self, old: Layer, new: Layer, path: str) -> None:
        """Replaces layers in the attributes of `new`, a copy of `old`, or in lists."""
        before, done = dict(held(old)), {}
        for place, inner in list(held(new)):
            if id(inner) not in done:
                where = f"{path}.{shown(place)}"
                done[id(inner)] = self._layer_inside(
                    before.get(place), inner, new, where
                )
            if done[id(inner)] is not inner:
                put(new, place, done[id(inner)])
                self._placed.append(done[id(inner)])
        left = {id(layer) for _, layer in sublayers(new)}
        for name, layer in sublayers(old):
            if self._replace(layer) and not self._arrived(layer, left):
                raise OutOfReach(_out_of_reach(old, f"{path}.{name}", layer), old)

    def _arrived(self, layer: Layer, present: set[int]) -> bool:
        if id(layer) not in self.copies:
            return False
        copy = self.copies[id(layer)][1].layer
        return copy is None or id(copy) in present

    def _layer_inside(self, old: Any, new: Layer, owner: Layer, path: str) -> Layer:
        if not isinstance(old, keras.layers.Layer):
            return new
        # A constructor makes the class that it names, whatever stands there by now.
        alike = type(old) is type(new) and not has_graph(old)
        if alike and self._replace(old) is None:
            self.copies.setdefault(id(old), (old, Replacement(new)))
            self._replace_inside(old, new, path)
            return new
        first, then, _ = self.copy(old)
        if first is None or then:
            raise ValueError(
                f"The layer '{path}' needs an activation layer after it, which cannot "
                f"be put inside a {type(owner).__name__}. Take the activation out of "
                f"the layer. Received: activation={getattr(old, 'activation', None)!r}"
            )
        if new.built and not first.built:  # some configs build what they make
            first.build_from_config(old.get_build_config())
        return first


def adder(layer: Layer) -> Callable[[], Layer]:
    """As `add` of a `Replacement` for `layer`."""
    numbers = count()

    def add() -> Layer:
        number = next(numbers)
        name = f"{layer.name}_add" + (f"_{number}" if number else "")
        return keras.layers.Add(name=name, dtype=layer.dtype_policy)

    return add


def _call(copies: Replacement, *args: Any, **kwargs: Any) -> Any:
    """Calls what stands in the place of a layer as the layer was called."""
    residual = None if copies.add is None else kwargs.pop("residual", None)
    if copies.layer is None:
        outputs = args[0] if args else next(iter(kwargs.values()))
    else:
        if "mask" in kwargs and not _takes_mask(copies.layer):
            del kwargs["mask"]
        outputs = copies.layer(*args, **kwargs)
    if copies.add is not None and residual is not None:
        outputs = copies.add()([outputs, residual])
    for layer in copies.then:
        outputs = _made(layer)(outputs)
    return outputs


def _takes_mask(layer: Layer) -> bool:
    return "mask" in inspect.signature(layer.call).parameters


def _made(layer: Any) -> Layer:
    return layer if isinstance(layer, keras.Operation) else layer()


def _ordered(structure: Any, like: Any) -> Any:
    """A dictionary in the order that it had, where mapping it has sorted its keys."""
    if isinstance(like, dict) and isinstance(structure, dict):
        return {key: structure[key] for key in like}
    return structure


def _input_like(tensor: Any) -> Any:
    layer = tensor._keras_history.operation
    return keras.Input(
        batch_shape=tensor.shape,
        dtype=tensor.dtype,
        sparse=tensor.sparse,
        name=layer.name,
        optional=layer.optional,
    )


def _from_config(layer: Layer) -> Layer:
    try:
        return type(layer).from_config(layer.get_config())
    except Exception as error:
        raise ValueError(
            f"Layer '{layer.name}' of class {type(layer).__name__} cannot be copied: "
            "its `get_config()` must give the arguments that its `from_config()` "
            f"takes. Received: {error}"
        ) from error


def _plain(model: Any, cls: type) -> type:
    warnings.warn(
        f"Model '{model.name}' is of class {type(model).__name__}, whose constructor "
        f"does not take layers: the copy is a plain keras.{cls.__name__}, which "
        "computes the same, without methods such as a custom `train_step`.",
        UserWarning,
        stacklevel=2,
    )
    return cls


def _out_of_reach(owner: Layer, path: str, layer: Layer) -> str:
    return (
        f"The layer '{path}' of class {type(layer).__name__} cannot be replaced: it is "
        f"not held by {type(owner).__name__} in a public attribute, or a list, tuple "
        "or dictionary in one, that the constructor fills. Build the layer there, or "
        f"take it as an argument. Received: {type(owner).__name__} '{owner.name}'"
    )


def _build_alike(model: Any, copy: Any) -> None:
    with warnings.catch_warnings():
        # The failure shows below, as an error with advice.
        warnings.simplefilter("ignore")
        copy.build_from_config(model.get_build_config())
    if not all(layer.built for _, layer in sublayers(copy)):
        raise ValueError(
            f"The copy of model '{model.name}' of class {type(model).__name__} cannot "
            "be built from its build config. Give the class a `build()` that creates "
            "all weights, or use a functional model. Received: build config "
            f"{model.get_build_config()}"
        )
    # Keras has built the layers by a symbolic `call`, and leaves this to `__call__`.
    copy.built = True
