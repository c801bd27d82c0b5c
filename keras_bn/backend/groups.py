"""Groups of replicas, as they are given: one argument for three frameworks' engines."""

from collections.abc import Iterable
from typing import Any

Groups = Any
"""None (all replicas), or one of three forms, of which two are plain and hashable:

- a tuple of tuples of replica indices, which say who belongs together;
- a tuple of names of axes of a mesh: the replicas along these belong together;
- a process group of the framework's own.
"""


def named_axes(groups: Groups) -> bool:
    """Whether `groups` are names of axes."""
    return isinstance(groups, tuple) and isinstance(groups[0], str)


def listed(groups: Groups) -> bool:
    """Whether `groups` are lists of replica indices."""
    return isinstance(groups, tuple) and not isinstance(groups[0], str)


def require_partition(
    groups: tuple[tuple[int, ...], ...],
    replicas: Iterable[int],
    this: int | None = None,
) -> None:
    """Raises unless every one of `replicas` is in one of the groups, and no other.

    `this` is the replica that runs, where the framework tells it before it runs.
    """
    everyone = set(replicas)
    found = {one for group in groups for one in group}
    if found == everyone:
        return
    received = f"Received: replica_groups={[list(group) for group in groups]}"
    if this is not None and this not in found:
        received += f", of which replica {this}, the one that runs, is in none"
    missing, unknown = sorted(everyone - found), sorted(found - everyone)
    if missing:
        received += f", without replica {', '.join(map(str, missing))}"
    if unknown:
        received += f", with replica {', '.join(map(str, unknown))}"
    raise ValueError(
        "Argument `replica_groups` must have every replica in one of its groups, and "
        f"no other: the replicas here are {sorted(everyone)}. {received}"
    )


def group_of_each(groups: tuple[tuple[int, ...], ...]) -> list[int]:
    """The number of the group that each replica is in."""
    of = {one: number for number, group in enumerate(groups) for one in group}
    return [of[one] for one in range(len(of))]


def refuse(groups: Groups, expected: str) -> None:
    """Raises: groups of this form mean nothing to the engine that runs."""
    received = list(groups) if isinstance(groups, tuple) else groups
    raise ValueError(
        f"Argument `replica_groups` must be {expected}. "
        f"Received: replica_groups={received!r}"
    )
