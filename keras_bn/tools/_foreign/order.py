"""Matches layers by their sizes, and by order where the order is forced."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise, permutations
from typing import Any

from keras_bn.tools._foreign.layouts import squeezed
from keras_bn.tools._foreign.pairs import ORDER
from keras_bn.tools._graphs.walk import Layer, children, has_graph, is_sequential, nodes


def by_order(
    ours: Sequence[Any],
    theirs: Sequence[Any],
    before: Mapping[str, frozenset[str]],
    known: Mapping[str, str],
) -> tuple[dict[str, str], dict[str, str], str]:
    """The prefix by layer, what each rests on; nothing, and why, where not certain.

    Two layers of one size can be taken for each other. Their order says which is which
    only where it could not be another: each of ours is called before the next (`before`
    is what `precedence` gives), and the names of theirs are one name with other
    numbers, in the order of these. A block's shortcut and its third norm fail both.
    And only where the numbers are known to follow the calls as far as it can be seen:
    one list that is used from its end says that the others may be, too.

    Args:
        ours: Items of `_matching`, in the order of the model.
        theirs: The same, in the order of the weights.
        before: For each layer, those that are surely called before it.
        known: Pairs of other layers that the numbers must not contradict either.
    """
    found: dict[str, str] = {}
    by: dict[str, str] = {}
    for (kind, size), names, prefixes in _by_size(ours, theirs):
        if len(names) != len(prefixes):
            shape = "x".join(map(str, size))
            doubt = f"{len(names)} layers, {len(prefixes)} prefixes of {kind} size "
            return {}, {}, doubt + shape
        pairs = _in_order(names, prefixes, before)
        if not pairs:
            return {}, {}, f"nothing says the order of {names} or of {prefixes}"
        found |= pairs
        by |= dict.fromkeys(pairs, "size" if len(pairs) == 1 else ORDER)
    against = _against({**known, **found}, before) if ORDER in by.values() else ""
    return ({}, {}, against) if against else (found, by, "")


def as_far_as_known(
    ours: Sequence[Any], theirs: Sequence[Any], before: Mapping[str, frozenset[str]]
) -> dict[str, str]:
    """What `by_order` would pair, of the sizes of which both sides have as many."""
    found: dict[str, str] = {}
    for _, names, prefixes in _by_size(ours, theirs):
        if len(names) == len(prefixes):
            found |= _in_order(names, prefixes, before)
    return found


def _in_order(
    names: list[str], prefixes: list[str], before: Mapping[str, frozenset[str]]
) -> dict[str, str]:
    called, numbered = _called(names, before), _numbered(prefixes)
    return dict(zip(called, numbered, strict=True)) if called and numbered else {}


def _against(pairs: Mapping[str, str], before: Mapping[str, frozenset[str]]) -> str:
    """Where numbers do not follow the calls, in words; nothing if they all do."""
    for one, other in permutations(pairs, 2):
        if one in before.get(other, frozenset()) and _follows(pairs[one], pairs[other]):
            return (
                f"'{one}' is called before '{other}', but the one would be "
                f"'{pairs[one]}', the other '{pairs[other]}': the numbers do not "
                "follow the calls"
            )
    return ""


def _follows(one: str, other: str) -> bool:
    """Whether the first difference of these names is a number, higher in `one`."""
    parts = zip(re.split(r"(\d+)", one), re.split(r"(\d+)", other), strict=False)
    a, b = next(((a, b) for a, b in parts if a != b), ("", ""))
    return a.isdigit() and b.isdigit() and int(a) > int(b)


def _by_size(
    ours: Sequence[Any], theirs: Sequence[Any]
) -> Iterator[tuple[tuple[str, tuple[int, ...]], list[str], list[str]]]:
    """Kind and size, and the names that have these on both sides."""
    sides: list[dict[Any, list[str]]] = [defaultdict(list), defaultdict(list)]
    for side, items in zip(sides, (ours, theirs), strict=True):
        for one in items:
            side[one.kind, squeezed(one.size)].append(one.name)
    mine, other = map(dict, sides)
    for key in mine | other:
        yield key, mine.get(key, []), other.get(key, [])


def _called(names: list[str], before: Mapping[str, frozenset[str]]) -> list[str]:
    """`names` in the order of their calls; none if that is not known for all."""
    ordered = sorted(names, key=lambda name: len(before.get(name, frozenset())))
    pairs = pairwise(ordered)
    return ordered if all(a in before.get(b, frozenset()) for a, b in pairs) else []


def _numbered(prefixes: list[str]) -> list[str]:
    """`prefixes` by their numbers; none if they are not one name with other numbers."""
    if len({re.sub(r"\d+", "#", one) for one in prefixes}) > 1:
        return []
    ordered = sorted(
        prefixes, key=lambda one: [int(n) for n in re.findall(r"\d+", one)]
    )
    # A file may list names by the alphabet; any other order contradicts the numbers.
    return ordered if prefixes in (ordered, sorted(prefixes)) else []


def precedence(model: Layer, paths: Mapping[int, str]) -> dict[str, frozenset[str]]:
    """For each layer, those whose outputs its input surely comes from.

    Args:
        model: A model; only its graphs are read, so that a subclassed model gives none.
        paths: The path of each layer that counts, by `id`.
    """
    calls: list[tuple[str, frozenset[str]]] = []
    _follow(model, frozenset(), paths, calls)
    times = Counter(name for name, _ in calls)
    # What is called twice comes before and after itself.
    once = frozenset(name for name in times if times[name] == 1)
    return {name: past & once for name, past in calls if name in once}


def _follow(
    layer: Layer,
    past: frozenset[str],
    paths: Mapping[int, str],
    calls: list[tuple[str, frozenset[str]]],
) -> frozenset[str]:
    """Notes the calls inside a call of `layer`; what its outputs surely come from."""
    if id(layer) in paths:
        calls.append((paths[id(layer)], past))
        return past | {paths[id(layer)]}
    if is_sequential(layer):
        for one in children(layer):
            past = _follow(one, past, paths, calls)
    elif has_graph(layer):
        known: dict[int, frozenset[str]] = {}
        for node in nodes(layer):
            inputs = node.arguments.keras_tensors
            came = past.union(*(known.get(id(tensor), past) for tensor in inputs))
            after = _follow(node.operation, came, paths, calls)
            known |= {id(t): after for t in node.outputs}
        outputs = [known.get(id(tensor), past) for tensor in layer.outputs]
        past = frozenset.intersection(*outputs)
    return past
