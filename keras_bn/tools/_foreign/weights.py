"""The weights of another library's model, and the layers here that may take them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from keras_bn.ops import _settings
from keras_bn.tools._foreign.layouts import is_linear, their_shape
from keras_bn.tools._foreign.matching import match
from keras_bn.tools._foreign.order import precedence
from keras_bn.tools._foreign.pairs import LINEAR, NORM, Item, Matching
from keras_bn.tools._graphs.walk import (
    Layer,
    batch_norms,
    is_plain_batch_norm,
    sublayers,
    why_not_plainly,
)

LAYERS = ("norms", "all")

CUMULATIVE = "cumulative"
"""In place of the share that is kept: all batches count alike (`momentum=None`)."""

Settings = tuple[float | None, float | str | None]
"""Epsilon and the share of the average that is kept, or `CUMULATIVE`; None: unknown."""


@dataclass(frozen=True)
class Foreign:
    """Weights of another library's model, by what stands before their names.

    Attributes:
        library: Whose they are, for messages.
        argument: What the user calls them, for messages.
        norms: By prefix, what becomes `gamma`, `beta`, `moving_mean` and
            `moving_variance`; the first two may be missing.
        linears: By prefix, `kernel`, in PyTorch's layout, and maybe `bias`.
        names: For messages, what the library calls these weights.
        settings: What is known of the norms' arguments, by prefix.
        flatten: How its models flatten images, where there is no doubt.
        left_out: Prefixes with statistics that are not batch norm's.
        transposed: Whether transposed convolutions can be taken.
    """

    library: str
    argument: str
    norms: dict[str, dict[str, Any]]
    linears: dict[str, dict[str, Any]]
    names: dict[str, str]
    settings: dict[str, Settings] = field(default_factory=dict)
    flatten: str | None = None
    left_out: Sequence[str] = ()
    transposed: bool = True

    def items(self) -> list[Item]:
        """What can be matched, norms first."""
        sizes = {p: np.shape(one["moving_mean"]) for p, one in self.norms.items()}
        norms = [Item(p, NORM, (math.prod(size),)) for p, size in sizes.items()]
        return norms + [
            Item(p, LINEAR, tuple(np.shape(one["kernel"])))
            for p, one in self.linears.items()
        ]

    def weight(self, prefix: str, name: str) -> np.ndarray | None:
        """One weight in float64, or None.

        Raises:
            TypeError: It holds no numbers.
        """
        group = self.norms.get(prefix) or self.linears.get(prefix) or {}
        if group.get(name) is None:
            return None
        try:
            value = as_numpy(group[name])
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"Argument `{self.argument}` must hold arrays of numbers. Received: "
                f"'{prefix}' with a {self.names[name]} of type "
                f"{type(group[name]).__name__}: {error}"
            ) from error
        # Statistics may have kept axes of size 1.
        return value if name == "kernel" else value.ravel()


@dataclass(frozen=True)
class Options:
    """What the tools that take weights in have in common; see `from_torch`."""

    mapping: Mapping[str, str] | None
    layers: str
    strict: bool
    epsilon: float | None = None
    kept: float | None = None
    count: int | Mapping[str, int] | None = None
    flatten: str | None = None

    def __post_init__(self) -> None:
        """Checks what needs neither model nor weights."""
        _settings.boolean("strict", self.strict)
        if self.epsilon is not None:
            _settings.epsilon_of_others(self.epsilon)
        if self.kept is not None:
            _settings.momentum_in_range("momentum", self.kept)
        pairs = self.mapping.items() if isinstance(self.mapping, Mapping) else ()
        named = all(isinstance(one, str) for pair in pairs for one in pair)
        if not (self.mapping is None or isinstance(self.mapping, Mapping)) or not named:
            raise TypeError(
                "Argument `mapping` must be a dictionary of strings, from a layer's "
                "path to what stands before the names of its weights there. Received: "
                f"mapping={self.mapping!r}"
            )


def as_numpy(tensor: Any) -> np.ndarray:
    """A tensor of any library in float64."""
    if hasattr(tensor, "detach"):
        # NumPy has no bfloat16, and knows nothing of other devices.
        tensor = tensor.detach().cpu().double().numpy()
    return np.asarray(tensor, "float64")


def takers(model: Any, layers: str, transposed: bool) -> dict[str, Layer]:
    """The layers of `model` that take weights, by path; maybe transposed ones, too."""
    if layers not in LAYERS:
        raise ValueError(
            f"Argument `layers` must be one of {list(LAYERS)}. Received: "
            f"layers={layers!r}"
        )
    every = batch_norms(model)
    found = {p: o for p, o in every.items() if is_plain_batch_norm(o)}
    if layers == "norms" and not found:
        path, layer = next(iter(every.items()))
        raise ValueError(
            "Argument `model` must have a batch normalization layer that other "
            f"libraries have, too. Received: model with layer '{path}' of class "
            f"{type(layer).__name__}: {why_not_plainly(layer)}"
        )
    if layers == "norms":
        return found
    norms = {id(layer): path for path, layer in found.items()}
    everything = {}
    for path, layer in sublayers(model):
        if id(layer) in norms:
            everything[norms[id(layer)]] = layer
        elif is_linear(layer, transposed) and layer.built:
            everything[path] = layer
    return everything


def items_of(takers: Mapping[str, Layer]) -> list[Item]:
    """The layers of a Keras model, to be matched."""
    return [
        Item(path, LINEAR, their_shape(layer))
        if is_linear(layer)
        else Item(path, NORM, (math.prod(layer.moving_mean.shape),))
        for path, layer in takers.items()
    ]


def matched(model: Any, foreign: Foreign, options: Options) -> Matching:
    """Which layer gets which weights."""
    layers = takers(model, options.layers, foreign.transposed)
    every = takers(model, "all", foreign.transposed)
    ours, theirs = items_of(layers), foreign.items()
    others: tuple[list[Item], list[Item]] = ([], [])
    if options.layers == "norms":
        kernels = {p: one for p, one in every.items() if p not in layers}
        others = items_of(kernels), [one for one in theirs if one.kind == LINEAR]
        theirs = [one for one in theirs if one.kind == NORM]
    before = precedence(model, {id(layer): path for path, layer in every.items()})
    try:
        if not any(one.kind == NORM for one in theirs):
            names = [foreign.names[n] for n in ("moving_mean", "moving_variance")]
            raise ValueError(
                f"Argument `{foreign.argument}` must have batch norm statistics, "
                f"'{names[0]}' and '{names[1]}'. Received: none in {len(theirs)} layers"
            )
        return match(ours, theirs, options.mapping, options.strict, before, others)
    except ValueError as error:
        if foreign.left_out:
            raise ValueError(
                f"{error}\nLeft out, since instance normalization is not batch norm: "
                f"{list(foreign.left_out)}"
            ) from error
        raise
