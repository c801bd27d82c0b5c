"""The argument `replica_groups`: its check, and how it is saved."""

from collections.abc import Sequence
from operator import index
from typing import Any, NoReturn

from keras_bn.backend import group_ranks
from keras_bn.backend.groups import Groups, listed

_EXPECTED = (
    "None, a list of lists of replica indices, the name of an axis of a mesh or a list "
    "of names, or a process group of the backend's"
)


def replica_groups(value: Any, synchronized: bool) -> Groups:
    """`value` in one of the forms of `keras_bn.backend.groups`.

    Raises:
        TypeError: It is of another form.
        ValueError: A group is empty, or has a replica that is in one already, or not
            this process; or `synchronized` is False.
    """
    if value is None:
        return None
    if not synchronized:
        raise ValueError(
            "Argument `replica_groups` needs synchronized=True: without it a replica's "
            "statistics are its own. "
            f"Received: synchronized={synchronized}, replica_groups={value!r}"
        )
    if isinstance(value, str):
        value = (value,)
    if not isinstance(value, Sequence):
        if group_ranks(value) is None:
            _refuse(value)
        return value
    if not value:
        raise ValueError(
            "Argument `replica_groups` must have at least one group. "
            f"Received: replica_groups={value!r}"
        )
    if all(isinstance(one, str) for one in value):
        groups, members = tuple(value), list(value)
    else:
        groups = _lists(value)
        members = [one for group in groups for one in group]
    twice = sorted({one for one in members if members.count(one) > 1})
    if twice:
        raise ValueError(
            "Argument `replica_groups` must not have a replica or an axis twice. "
            f"Received: replica_groups={value!r}, with {twice}"
        )
    return groups


def _lists(value: Sequence[Any]) -> tuple[tuple[int, ...], ...]:
    if any(isinstance(one, str) or not isinstance(one, Sequence) for one in value):
        _refuse(value)
    try:
        groups = tuple(tuple(index(one) for one in group) for group in value)
    except TypeError:
        _refuse(value)
    if not all(groups) or any(one < 0 for group in groups for one in group):
        raise ValueError(
            "Argument `replica_groups` must have groups of at least one replica, and "
            f"replicas by index, from 0. Received: replica_groups={value!r}"
        )
    return groups


def _refuse(value: Any) -> NoReturn:
    raise TypeError(
        f"Argument `replica_groups` must be {_EXPECTED}. "
        f"Received: replica_groups={value!r}"
    )


def serialized(groups: Groups) -> Any:
    """`groups` as lists, as a configuration can have them.

    Of a process group it is its ranks: those of other groups are not known to it.
    """
    if groups is None:
        return None
    if listed(groups):
        return [list(group) for group in groups]
    return list(groups) if isinstance(groups, tuple) else [group_ranks(groups)]
