"""Which layer of another library's model is which layer of a Keras model."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from keras_bn.tools._foreign.names import HEADS
from keras_bn.tools._foreign.naming import by_families
from keras_bn.tools._foreign.order import as_far_as_known, by_order
from keras_bn.tools._foreign.pairs import (
    NORM,
    Item,
    Matching,
    Pair,
    alike,
    ambiguous,
    few,
    refusal,
    said,
)

WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Parts of names that are of the wrapper, not of the model, wherever they stand."""

NUMBERED_BY_KERAS = re.compile(
    r"(?:^|/)(?:batch_normalization|dense|(?:depthwise_)?conv[123]d(?:_transpose)?)"
    r"(?:_\d+)?$"
)
"""Names that nobody gave: another library may count the same kind of layer from 0."""

Proposal = dict[str, str]
"""The prefix by layer, as far as one way of matching goes."""


def match(
    ours: Sequence[Item],
    theirs: Sequence[Item],
    mapping: Mapping[str, str] | None,
    strict: bool,
    before: Mapping[str, frozenset[str]],
    others: tuple[Sequence[Item], Sequence[Item]] = ((), ()),
) -> Matching:
    """The pairs of `ours` and `theirs`; an error where they are not certain.

    In this order, what is certain first:

    1. `mapping`, for the layers that it names.
    2. Equal names, once what all names of a side begin with is taken off, and dots,
       slashes and underscores are held to be the same.
    3. The names of a well-known network (`_names.py`), in blocks of equal sizes.
    4. Sizes, where only one layer has each.
    5. Sizes and order, where layers of one size are called one after the other in the
       Keras model (`before`), and their names there differ in numbers only; not where
       numbers in any pair, of `mapping`, sizes or `others`, do not follow the calls.

    Args:
        ours: Layers of the Keras model, in its order.
        theirs: Those of the other model, in the order of its weights.
        mapping: The prefix by layer, for some or all layers.
        strict: Whether each layer must get weights, and all weights a layer. If not,
            names alone decide.
        before: For each layer, those that are surely called before it.
        others: Layers of both sides that get nothing, but may speak against an order.
    """
    given: Mapping[str, str] = mapping or {}
    _check_mapping(ours, theirs, given, {one.name for one in others[0]})
    left = [one for one in ours if one.name not in given]
    rest = [one for one in theirs if one.name not in given.values()]
    by = dict.fromkeys(given, "mapping")
    if left:
        kinds = {one.kind for one in left}
        rest = [one for one in rest if one.kind in kinds]
        known = {**as_far_as_known(*others, before), **given}
        found, why = _decide(left, rest, strict, before, known)
        given = {**given, **found}
        by |= why
    sizes = {(one.name, one.kind): one.size for one in theirs}
    kinds_of = {one.name: one.kind for one in ours}
    return Matching(
        [
            Pair(n, given[n], kinds_of[n], sizes[given[n], kinds_of[n]], by[n])
            for n in kinds_of
            if n in given
        ],
        [name for name in kinds_of if name not in given],
        [one.name for one in theirs if one.name not in given.values()],
    )


View = dict[str, Item]
"""Items by what is left of their names."""

Way = Callable[
    [Mapping[str, str], Mapping[str, str], bool],
    Iterator[tuple[Proposal, str, set[str]]],
]
"""Pairs names of two sides, given by their kinds: pairs, by what, what may be left."""


def _decide(
    ours: Sequence[Item],
    theirs: Sequence[Item],
    strict: bool,
    before: Mapping[str, frozenset[str]],
    known: Mapping[str, str],
) -> tuple[Proposal, dict[str, str]]:
    """The pairs, and what each rests on."""
    doubts: list[str] = []
    views = _views(ours, theirs, strict)
    # Where a part will do, more of it by other names counts for more.
    ways = [(_by_name,), (by_families,)] if strict else [(_by_name, by_families)]
    for these in ways:
        proposals = _proposals(these, views, ours, theirs, strict, doubts)
        most = max(map(len, proposals), default=None)
        best = {k: why for k, why in proposals.items() if len(k) == most}
        if len(best) > 1:
            raise ValueError(ambiguous([dict(one) for one in best]))
        if best:
            ((pairs, why),) = best.items()
            return dict(pairs), {name: why for name, _ in pairs}
    if strict:
        in_order, by, doubt = by_order(ours, theirs, before, known)
        if in_order and all(_agrees(in_order, *view) for view in views):
            return in_order, by
        doubts.append("by order: " + (doubt or "some names say other"))
    raise ValueError(refusal(ours, theirs, doubts))


def _proposals(
    ways: Sequence[Way],
    views: Sequence[tuple[View, View]],
    ours: Sequence[Item],
    theirs: Sequence[Item],
    strict: bool,
    doubts: list[str],
) -> dict[frozenset[tuple[str, str]], str]:
    """What is beyond doubt, as pairs, and what it rests on; notes what is not."""
    norms = {one.name for one in ours if one.kind == NORM}
    proposals: dict[frozenset[tuple[str, str]], str] = {}
    for (mine, other), way in product(views, ways):
        if any(_shorter((mine, other)) < len(one) for one in proposals):
            break  # no more can come of it
        for found, why, aside in way(_kinds(mine), _kinds(other), strict):
            pairs = [(mine[o], other[t]) for o, t in found.items()]
            if not strict:  # a head may be for other classes
                pairs = [(o, t) for o, t in pairs if not _is_head(o) or alike(o, t)]
            named = {o.name: t.name for o, t in pairs}
            skipped = {other[name].name for name in aside} if strict else None
            doubt = _doubt(named, ours, theirs, skipped)
            if doubt and 2 * len(named) > len(ours):
                doubts.append(f"by {why}: {doubt}")
            elif not doubt and (norms & set(named) or not norms):
                proposals[frozenset(named.items())] = why
    return proposals


def _views(
    ours: Sequence[Item], theirs: Sequence[Item], strict: bool
) -> list[tuple[View, View]]:
    """Both sides with prefixes taken off; not `strict`: what has the prefix only.

    The largest come first, and none in which less than a quarter could be matched.
    """
    pairs = product(_stripped(ours, strict), _stripped(theirs, strict))
    least = min(len(ours), len(theirs)) / 4
    return sorted(
        (pair for pair in pairs if _shorter(pair) >= least), key=_shorter, reverse=True
    )


def _shorter(views: tuple[View, View]) -> int:
    return min(map(len, views))


def _stripped(items: Sequence[Item], strict: bool) -> list[View]:
    # Paths hold slashes, and dots as part of a name; names of attributes hold dots.
    between = "/" if any("/" in one.name for one in items) else "."
    names = []
    for one in items:
        parts = one.name.replace("/~/", "/").split(between)
        names.append([part for part in parts if part not in WRAPPERS] or parts)
    starts = {tuple(name[:n]): None for name in names for n in range(len(name))}
    views = []
    for start in starts:
        inside = [
            (between.join(name[len(start) :]), one)
            for name, one in zip(names, items, strict=True)
            if tuple(name[: len(start)]) == start and len(name) > len(start)
        ]
        view = dict(inside)
        # No name may stand for two; `strict`, none may be left out.
        if len(view) == len(items if strict else inside):
            views.append(view)
    return views


def _kinds(view: View) -> dict[str, str]:
    return {name: one.kind for name, one in view.items()}


def _by_name(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], strict: bool
) -> Iterator[tuple[Proposal, str, set[str]]]:
    mine, other = ({_normalized(name): name for name in s} for s in (ours, theirs))
    if len(mine) == len(ours) and len(other) == len(theirs):
        both = set(mine) & set(other)
        found = {mine[name]: other[name] for name in mine if name in both}
        if not strict:
            found = {o: t for o, t in found.items() if not NUMBERED_BY_KERAS.search(o)}
        head, theirs_head = ((set(side) - both) & HEADS for side in (mine, other))
        if len(head) == len(theirs_head) == 1:
            found[mine[head.pop()]] = other[theirs_head.pop()]
        yield found, "name", set()


def _normalized(name: str) -> str:
    words = re.split(r"[./_]+", name.lower())
    return "_".join(re.sub(r"^(?:dw)?conv[123]d$", "conv", word) for word in words)


def _doubt(
    found: Proposal,
    ours: Sequence[Item],
    theirs: Sequence[Item],
    skipped: set[str] | None,
) -> str:
    """Why `found` is not it; `skipped` may be left over, anything if None."""
    mine, other = ({one.name: one for one in s} for s in (ours, theirs))
    for name, prefix in found.items():
        a, b = mine[name], other[prefix]
        if not alike(a, b):
            return f"'{name}' is a {said(a)}, '{prefix}' a {said(b)}"
    if skipped is None:
        return ""
    for names, what in (
        (set(mine) - set(found), "layers"),
        (set(other) - set(found.values()) - skipped, "prefixes"),
    ):
        if names:
            return f"only some names match, not those of {what} {few(sorted(names))}"
    return ""


def _is_head(item: Item) -> bool:
    return _normalized(re.split("[./]", item.name)[-1]) in HEADS


def _agrees(found: Proposal, mine: View, other: View) -> bool:
    return all(
        found[mine[o].name] == other[t].name
        for by_name, *_ in _by_name(mine, other, True)
        for o, t in by_name.items()
    )


def _check_mapping(
    ours: Sequence[Item],
    theirs: Sequence[Item],
    mapping: Mapping[str, str],
    linear: Collection[str],
) -> None:
    layers, prefixes = ({one.name: one for one in s} for s in (ours, theirs))
    taken: dict[str, str] = {}
    for path, prefix in mapping.items():
        if path in linear:
            raise ValueError(
                "Argument `layers` must be 'all' where `mapping` names convolutions or "
                f"dense layers. Received: layers='norms', and {path!r} in `mapping`"
            )
        if path not in layers:
            raise ValueError(
                "Argument `mapping` must have paths of layers that take weights as "
                f"keys, {few(list(layers))}. Received: {path!r}"
            )
        if prefix not in prefixes:
            raise ValueError(
                "Argument `mapping` must have prefixes of the other model's weights as "
                f"values, {few(list(prefixes))}. Received: {prefix!r} for layer "
                f"{path!r}"
            )
        if prefix in taken:
            raise ValueError(
                "Argument `mapping` must give a prefix to one layer only. Received: "
                f"{prefix!r} for {taken[prefix]!r} and {path!r}"
            )
        if layers[path].kind != prefixes[prefix].kind:
            raise ValueError(
                f"Argument `mapping` must pair layers of one kind. Received: {path!r}, "
                f"a {said(layers[path])}, and {prefix!r}, a {said(prefixes[prefix])}"
            )
        taken[prefix] = path
