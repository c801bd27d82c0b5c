"""Matches the names that two libraries give to the layers of one network."""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import groupby, product
from typing import NamedTuple

from keras_bn.tools._foreign.names import FAMILIES, Family

AUXILIARY, NUMBERED = "auxiliary", "numbered"
"""Parts of a network that `_names.py` tells of."""


class _Place(NamedTuple):
    """Where a name stands in a network; places sort as the network is ordered."""

    kind: str
    part: int
    block: tuple[tuple[int, str], ...]
    role: int
    order: tuple[int, ...]


class _Placed(NamedTuple):
    """The names that a naming knows, in order, and those of auxiliary heads."""

    names: list[tuple[_Place, str]]
    aside: set[str]
    numbered: bool


def by_families(
    ours: Mapping[str, str], theirs: Mapping[str, str], strict: bool
) -> Iterator[tuple[dict[str, str], str, set[str]]]:
    """Proposals: names of `ours` to those of `theirs`, by which naming, what is aside.

    Both sides are kinds by name, since a norm may stand where its convolution does. Not
    `strict`: one side may end earlier, as a network without its head does.
    """
    for family in FAMILIES.values():
        mine, other = (
            {naming: _places(family, naming, side) for naming in family.namings}
            for side in (ours, theirs)
        )
        for a, b in product(mine, other):
            found = {} if a == b else _zipped(mine[a], other[b], strict)
            if found:
                yield found, f"{b} -> {a}", other[b].aside


def _zipped(ours: _Placed, theirs: _Placed, strict: bool) -> dict[str, str]:
    """One to one, block by block; nothing where blocks or roles differ."""
    found: dict[str, str] = {}
    for kind in {place.kind for place, _ in ours.names}:
        mine, other = (
            [one for one in side.names if one[0].kind == kind]
            for side in (ours, theirs)
        )
        if strict and len(mine) != len(other):
            return {}
        pairs = list(zip(mine, other, strict=strict))
        mine, other = map(list, zip(*pairs, strict=True)) if pairs else ([], [])
        if not (ours.numbered or theirs.numbered) and _blocks(mine) != _blocks(other):
            return {}
        if any(a[0].role and b[0].role and a[0].role != b[0].role for a, b in pairs):
            return {}
        found |= {a[1]: b[1] for a, b in pairs}
    return found


def _blocks(names: list[tuple[_Place, str]]) -> list[int]:
    """How many names each block has."""
    return [len(list(block)) for _, block in groupby(names, lambda one: one[0][:3])]


def _places(family: Family, naming: str, names: Mapping[str, str]) -> _Placed:
    rows = _rows(family.namings[naming])
    parts = [part for part, _, _ in rows]
    roles = ("-", *family.roles)  # the first of which is not known
    placed, aside, numbered = [], set(), False
    for name, kind in names.items():
        for part, role, pattern in rows:
            found = pattern.fullmatch(name)
            if not found:
                continue
            if part == AUXILIARY:
                aside.add(name)
                break
            numbered |= part == NUMBERED
            groups = found.groupdict()
            role = groups.pop("role", role)
            named = found.re.groupindex.values()
            block = tuple(
                _natural(text)
                for i, text in enumerate(found.groups(), 1)
                if text is not None and i not in named
            )
            order = tuple(int(n) for n in groups.values() if n is not None)
            where = roles.index(role)
            placed.append((_Place(kind, parts.index(part), block, where, order), name))
            break
    return _Placed(sorted(placed), aside, numbered)


def _natural(text: str) -> tuple[int, str]:
    digits = text.rstrip("abcdefghijklmnopqrstuvwxyz")
    return int(digits), text[len(digits) :]


@cache
def _rows(lines: str) -> list[tuple[str, str, re.Pattern[str]]]:
    """Part, role and pattern of each line."""
    rows = []
    for line in lines.split("\n"):
        if line.strip():
            part, role, pattern = line.split()
            pattern = pattern.replace("#", r"(\d+[a-z]?)")
            for i in range(pattern.count("@")):
                pattern = pattern.replace("@", rf"(?P<order{i}>\d+)", 1)
            rows.append((part, role, re.compile(pattern)))
    return rows
