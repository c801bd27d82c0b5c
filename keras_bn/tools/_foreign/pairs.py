"""The layers of two models in pairs: what is matched, and what is said of it."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from keras_bn.tools._foreign.layouts import squeezed
from keras_bn.tools._reports.table import Table

NORM, LINEAR = "norm", "linear"

SHOWN = 12
"""How many names a message shows of each side."""


class Item(NamedTuple):
    """A layer, on either side: what it is called, what it is, its sizes."""

    name: str
    kind: str
    size: tuple[int, ...]


def alike(one: Item, other: Item) -> bool:
    """Whether the weights of one fit the other."""
    return one.kind == other.kind and squeezed(one.size) == squeezed(other.size)


class Pair(NamedTuple):
    """One row of a `Matching`.

    Attributes:
        layer: The path of the layer in the Keras model.
        prefix: What stands before the names of its weights in the other model.
        kind: `"norm"` or `"linear"`.
        size: Channels of a norm; of a linear layer, the shape of the other's weight.
        by: What the pair rests on.
    """

    layer: str
    prefix: str
    kind: str
    size: tuple[int, ...]
    by: str


ORDER = "order"
"""What a pair rests on, where layers of one size are told apart by their order."""


@dataclass(frozen=True, repr=False)
class Matching(Table):
    """Which layer gets which weights; prints as a table.

    Attributes:
        pairs: One for each layer that gets weights, in the order of the model.
        unmatched: Layers that get none (with `strict=False`).
        unused: Prefixes that no layer gets; those of auxiliary heads among them.
    """

    pairs: list[Pair]
    unmatched: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)

    def _counts(self) -> dict[str, Any]:
        return {
            "pairs": len(self.pairs),
            "unmatched": len(self.unmatched),
            "unused": len(self.unused),
        }

    @property
    def mapping(self) -> dict[str, str]:
        """The prefix by layer: what the tools take as `mapping`."""
        return {pair.layer: pair.prefix for pair in self.pairs}

    def __rich__(self) -> Any:
        """What rich prints."""
        left = [
            f"{len(names)} {what}"
            for names, what in (
                (self.unmatched, "layers get nothing"),
                (self.unused, "prefixes are not used"),
            )
            if names
        ]
        title = ", ".join([f"{len(self.pairs)} layers matched", *left])
        rows = [(*p[:2], "x".join(map(str, p.size)), p.by) for p in self.pairs]
        rows += [(name, "-", "", "keeps its weights") for name in self.unmatched]
        rows += [("-", name, "", "not used") for name in self.unused]
        return self.table(title, ("layer", "prefix", "size", "matched by"), rows)


def said(item: Item) -> str:
    return f"{item.kind} of size {'x'.join(map(str, item.size))}"


def few(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{list(names[:SHOWN])}{more}"


def ambiguous(proposals: Sequence[Mapping[str, str]]) -> str:
    every = {name: None for proposal in proposals for name in proposal}
    layers = [n for n in every if len({p.get(n) for p in proposals}) > 1]
    lines = [
        f"  {n}: {', '.join(sorted({str(p.get(n)) for p in proposals}))}"
        for n in layers[:SHOWN]
    ]
    return (
        f"Argument `mapping` must be given: names match in {len(proposals)} ways. "
        "Received, layer by layer:\n" + "\n".join(lines)
    )


def refusal(ours: Sequence[Item], theirs: Sequence[Item], doubts: Sequence[str]) -> str:
    lines, unfit = [], []
    for one in ours:
        fitting = [other.name for other in theirs if alike(one, other)]
        if len(fitting) != 1:
            lines.append(f"  {one.name} ({said(one)}): {few(fitting)}")
        if not fitting:
            unfit.append(f"'{one.name}', a {said(one)}")
    why = (
        "Argument `mapping` must be given: neither names nor sizes nor order say for "
        "certain which weights are which layer's"
    )
    if unfit:
        sizes = list(dict.fromkeys(map(said, theirs)))
        more = f", nor {len(unfit) - 1} others" if len(unfit) > 1 else ""
        why = (
            "Argument `model` must have layers of the sizes of the weights there, "
            f"{few(sizes)}. No `mapping` helps {unfit[0]}{more}"
        )
    return (
        f"{why} (`strict=False` leaves out what has no name alike). "
        f"Received: {len(ours)} layers, {few([o.name for o in ours])},"
        f" and {len(theirs)} prefixes, {few([t.name for t in theirs])}."
        + "".join(f"\n- {doubt}" for doubt in list(dict.fromkeys(doubts))[:SHOWN])
        + ("\nCandidates of equal size:\n" if lines else "")
        + "\n".join(lines[:SHOWN])
    )


def warn_of_order(matching: Matching, stacklevel: int) -> None:
    """Says so where nothing but the order speaks for pairs.

    A model that goes through a list of equal layers from its end has the same weights
    under the same names as one that goes through it from its start.
    """
    pairs = [pair for pair in matching.pairs if pair.by == ORDER]
    if pairs:
        warnings.warn(
            f"{len(pairs)} layers were paired by their order, '{pairs[0].layer}' with "
            f"'{pairs[0].prefix}' the first: they are of one size, are called one "
            "after the other here, and differ in a number there. Give `mapping` if the "
            "other model calls them otherwise, or to say that it does not.",
            UserWarning,
            stacklevel=stacklevel + 1,
        )
