"""Launches and passes of a program that XLA has scheduled, read from its text."""

import re
from typing import NamedTuple

_BITS = {
    **{"f64": 64, "f32": 32, "f16": 16, "bf16": 16, "pred": 8},
    **{f"{sign}{bits}": bits for sign in "su" for bits in (8, 16, 32, 64)},
}
_TYPE = re.compile(rf"\b({'|'.join(_BITS)})\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_CALLED = re.compile(
    r"branch_computations=\{([^}]*)\}"
    r"|(?:true_computation|false_computation|body|condition|to_apply)=(%[\w.\-]+)"
)
# No launch: names, tuples, and what is known when the program starts.
_FREE = {
    *("after-all", "async-done", "bitcast", "constant", "get-tuple-element", "iota"),
    *("opt-barrier", "parameter", "partition-id", "replica-id", "tuple"),
}
_CONTROL = {"call", "conditional", "while"}


class Counts(NamedTuple):
    """Of a scheduled program: its launches, and the bytes that they read and write."""

    kernels: int
    read: int
    written: int

    def passes(self, unit: int) -> float:
        """What is read and written, in tensors of `unit` bytes."""
        return (self.read + self.written) / unit


def counts(text: str) -> Counts:
    """Counts the entry computation and what it calls; of branches, all of them."""
    computations, entry = _computations(text)
    return _walk(computations, entry)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of each computation by its name, and the name of the entry."""
    found: dict[str, list[str]] = {}
    entry = current = ""
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) .*->.*\{\s*$", line)
        if head:
            current = head.group(2)
            found[current] = []
            entry = current if head.group(1) else entry
        elif line.startswith("  ") and current:
            found[current].append(line.strip())
    if not entry:
        raise ValueError("The text holds no ENTRY computation of an HLO module")
    return found, entry


def _walk(computations: dict[str, list[str]], name: str) -> Counts:
    sizes: dict[str, int] = {}
    total = Counts(0, 0, 0)
    for line in computations[name]:
        parsed = _INSTRUCTION.match(line)
        if not parsed:
            continue
        result, kind, operation, rest = parsed.groups()
        sizes[result] = _bytes(kind)
        if operation in _FREE:
            continue
        if operation in _CONTROL:
            inner = [_walk(computations, callee) for callee in _callees(line)]
        else:
            operands = dict.fromkeys(re.findall(r"%([\w.\-]+)", rest.split("), ")[0]))
            read = sum(sizes.get(operand, 0) for operand in operands)
            inner = [Counts(1, read - _unread(computations, line), sizes[result])]
        total = Counts(*map(sum, zip(total, *inner, strict=True)))
    return total


def _callees(line: str) -> list[str]:
    return [
        callee.strip().lstrip("%")
        for branches, one in _CALLED.findall(line)
        for callee in (branches.split(",") if branches else [one])
    ]


def _unread(computations: dict[str, list[str]], line: str) -> int:
    """The bytes of a fusion's parameters that it does not read: it takes slices."""
    called = re.search(r"calls=%([\w.\-]+)", line)
    if not called:
        return 0
    body = computations[called.group(1)]
    unread = 0
    for line in body:
        parameter = re.match(r"%([\w.\-]+) = (.*?) parameter\(\d+\)", line)
        if not parameter:
            continue
        name, kind = parameter.groups()
        used = re.compile(rf"%{re.escape(name)}[,)]")
        users = [one for one in body if used.search(one.split(" = ", 1)[1])]
        slices = [_INSTRUCTION.match(one) for one in users]
        if users and all(one and one.group(3) == "slice" for one in slices):
            unread += _bytes(kind) - sum(_bytes(one.group(2)) for one in slices)
    return unread


def _bytes(kind: str) -> int:
    total = 0
    for name, sizes in _TYPE.findall(kind):
        bits = _BITS[name]
        for size in filter(None, sizes.split(",")):
            bits *= int(size)
        total += bits // 8
    return total
