"""Single faults in Python source: small changes, each of which a test ought to see."""

import ast
import re
from collections.abc import Iterator
from typing import NamedTuple


class Fault(NamedTuple):
    """A change of a source: what stands from `start` to `end` (in bytes) is `new`."""

    start: int
    end: int
    new: str
    lines: tuple[int, int]  # of the statement, which a test must run to see it

    def applied(self, source: str) -> str:
        """The source with the fault in it."""
        data = source.encode()
        return (data[: self.start] + self.new.encode() + data[self.end :]).decode()

    def difference(self, source: str) -> tuple[str, str]:
        """The first line that differs: as it was, and as it is."""
        lines = (one.splitlines() for one in (source, self.applied(source)))
        pairs = zip(*lines, strict=False)
        return next((a.strip(), b.strip()) for a, b in pairs if a != b)


_OPERATORS = {
    ast.Add: (r"\+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: (r"\*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "//"),
    ast.Pow: (r"\*\*", "*"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: (r"\|", "&"),
    ast.And: (r"\band\b", "or"),
    ast.Or: (r"\bor\b", "and"),
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: (r"\bis\b", "is not"),
    ast.IsNot: (r"\bis\s+not\b", "is"),
    ast.In: (r"\bin\b", "not in"),
    ast.NotIn: (r"\bnot\s+in\b", "in"),
}
# What a change of the operator negates as well.
_NEGATED = (ast.Eq, ast.NotEq, ast.Is, ast.IsNot, ast.In, ast.NotIn)
# What says something about its argument, rather than making something of it.
_ABOUT = {"getattr", "hasattr", "isinstance", "len", "range", "repr", "type", "zip"}
# How a figure looks, where what it shows stays the same.
_LOOKS = {
    *("bbox_to_anchor", "dpi", "fontsize", "fontweight", "frameon", "ha", "labelsize"),
    *("linestyle", "loc", "linewidth", "markersize", "ncols", "rotation", "va"),
}
# Types, which are not run, and texts, which are for people.
_NOT_LOOKED_INTO = {"annotation", "returns", "decorator_list", "bases"}


def faults(source: str) -> list[Fault]:
    """All faults that can be made in a source, and that leave it Python."""
    finder = _Finder(source)
    finder.visit(ast.parse(source))
    found = {(one.start, one.end, one.new): one for one in finder.found}
    return [one for one in found.values() if _compiles(one.applied(source))]


def _compiles(source: str) -> bool:
    try:
        ast.parse(source)
    except SyntaxError:
        return False
    return True


class _Finder(ast.NodeVisitor):
    def __init__(self, source: str) -> None:
        self._data = source.encode()
        self._starts = [0]
        for line in self._data.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))
        self._lines = (1, 1)
        self._dropped: ast.Call | None = None
        self.found: list[Fault] = []

    def visit(self, node: ast.AST) -> None:
        """Notes the faults of a node, then those of what is in it."""
        outside = self._lines
        if isinstance(node, ast.stmt):
            self._lines = _lines(node)
        if not _is_type(node):
            getattr(self, f"_{type(node).__name__}", lambda node: None)(node)
        if not (_is_type(node) or _is_for_people(node)):
            for name, value in ast.iter_fields(node):
                if name not in _NOT_LOOKED_INTO:
                    for child in value if isinstance(value, list) else [value]:
                        if isinstance(child, ast.AST):
                            self.visit(child)
        self._lines = outside

    def _span(self, node: ast.AST) -> tuple[int, int]:
        return (
            self._starts[node.lineno - 1] + node.col_offset,
            self._starts[node.end_lineno - 1] + node.end_col_offset,
        )

    def _text(self, node: ast.AST) -> str:
        start, end = self._span(node)
        return self._data[start:end].decode()

    def _put(self, node: ast.AST, new: str) -> None:
        self.found.append(Fault(*self._span(node), new, self._lines))

    def _swap(self, operator: ast.AST, left: ast.AST, right: ast.AST) -> None:
        if type(operator) not in _OPERATORS:
            return
        start, end = self._span(left)[1], self._span(right)[0]
        pattern, new = _OPERATORS[type(operator)]
        found = re.search(pattern, self._data[start:end].decode())
        if found:
            span = start + found.start(), start + found.end()
            self.found.append(Fault(*span, new, self._lines))

    def _BinOp(self, node: ast.BinOp) -> None:
        self._swap(node.op, node.left, node.right)

    def _BoolOp(self, node: ast.BoolOp) -> None:
        for left, right in zip(node.values, node.values[1:], strict=False):
            self._swap(node.op, left, right)

    def _Compare(self, node: ast.Compare) -> None:
        left = node.left
        for operator, right in zip(node.ops, node.comparators, strict=True):
            self._swap(operator, left, right)
            left = right

    def _UnaryOp(self, node: ast.UnaryOp) -> None:
        self._put(node, f"({self._text(node.operand)})")

    def _Constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, bool):
            self._put(node, repr(not value))
        elif isinstance(value, int):
            self._put(node, repr(value + 1))
        elif isinstance(value, float):
            self._put(node, repr(2 * value if value else 1.0))

    def _negate(self, test: ast.expr) -> None:
        swapped = isinstance(test, ast.Compare) and isinstance(test.ops[0], _NEGATED)
        if not (swapped or isinstance(test, ast.UnaryOp)):
            self._put(test, f"(not ({self._text(test)}))")

    def _If(self, node: ast.If | ast.IfExp | ast.While) -> None:
        self._negate(node.test)

    _IfExp = _While = _If

    def _comprehension(self, node: ast.comprehension) -> None:
        for test in node.ifs:
            self._negate(test)

    def _Call(self, node: ast.Call) -> None:
        for keyword in node.keywords:
            if keyword.arg is not None and not _is_for_people(keyword):
                start, end = self._span(keyword)
                comma = re.match(rb"\s*,[ \t]*", self._data[end:])
                end += comma.end() if comma else 0
                self.found.append(Fault(start, end, "", self._lines))
        about = isinstance(node.func, ast.Name) and node.func.id in _ABOUT
        starred = node.args and isinstance(node.args[0], ast.Starred)
        if node.args and not (about or starred or node is self._dropped):
            self._put(node, f"({self._text(node.args[0])})")

    def _drop(self, node: ast.stmt) -> None:
        self._put(node, "pass")

    _Raise = _AugAssign = _Continue = _Break = _drop

    def _Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Call):
            self._drop(node)
            self._dropped = node.value  # for which its argument comes to the same

    def _Assign(self, node: ast.Assign) -> None:
        # A new name that were missing would be an error, which says little of tests.
        names = {name for target in node.targets for name in _names(target)}
        inside = isinstance(node.targets[0], (ast.Attribute, ast.Subscript))
        if inside or names & set(_names(node.value)):
            self._drop(node)


def _lines(node: ast.stmt) -> tuple[int, int]:
    """The lines of a statement; of one with a body those of its head."""
    body = getattr(node, "body", None)
    if body:
        return node.lineno, max(node.lineno, body[0].lineno - 1)
    return node.lineno, node.end_lineno or node.lineno


def _names(node: ast.AST) -> Iterator[str]:
    return (one.id for one in ast.walk(node) if isinstance(one, ast.Name))


def _is_for_people(node: ast.AST) -> bool:
    """Whether it is a text, a look, or guards against a mistake in the code itself."""
    if isinstance(node, ast.keyword):
        return node.arg in ("strict", "stacklevel", *_LOOKS)
    return isinstance(node, (ast.Raise, ast.JoinedStr))


def _is_type(node: ast.AST) -> bool:
    """Whether it is a type that stands where it is run, such as `int | None`."""
    union = isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr)
    return union and any(
        isinstance(one, ast.Constant) and one.value is None for one in ast.walk(node)
    )
