"""Matches layers by their sizes, and by order where the order is forced."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import keras

from keras_bn.tools._layouts import squeezed
from keras_bn.tools._walk import Layer, children, has_graph, is_sequential, nodes


def by_order(
    ours: Sequence[Any], theirs: Sequence[Any], before: Mapping[str, frozenset[str]]
) -> tuple[dict[str, str], str]:
    """The prefix by layer and what it rests on; nothing, and why, where not certain.

    Two layers of one size can be taken for each other. Their order says which is which
    only where it could not be another: each of ours is called before the next (`before`
    is what `precedence` gives), and the names of theirs are one name with other
    numbers, in the order of these. A block's shortcut and its third norm fail both.

    Args:
        ours: Items of `_matching`, in the order of the model.
        theirs: The same, in the order of the weights.
        before: For each layer, those that are surely called before it.
    """
    mine, other = _by_size(ours), _by_size(theirs)
    found: dict[str, str] = {}
    why = "size"
    for key in mine | other:
        names, prefixes = mine.get(key, []), other.get(key, [])
        if len(names) != len(prefixes):
            kind, size = key
            shape = "x".join(map(str, size))
            return {}, (
                f"{len(names)} layers, {len(prefixes)} prefixes of {kind} size {shape}"
            )
        if len(names) > 1:
            why = "order"
            names, prefixes = _called(names, before), _numbered(prefixes)
            if not names or not prefixes:
                return {}, f"nothing says the order of {mine[key]} or of {other[key]}"
        found |= dict(zip(names, prefixes, strict=True))
    return found, why


def _by_size(items: Sequence[Any]) -> dict[tuple[str, tuple[int, ...]], list[str]]:
    sizes = defaultdict(list)
    for one in items:
        sizes[one.kind, squeezed(one.size)].append(one.name)
    return dict(sizes)


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
            known |= {id(t): after for t in keras.tree.flatten(node.outputs)}
        outputs = [known.get(id(tensor), past) for tensor in layer.outputs]
        past = frozenset.intersection(*outputs)
    return past
