"""A fault put into functions that are there already, so that none is imported anew."""

import gc
import inspect
import sys
import types
from collections.abc import Iterator

_OF_A_COMPREHENSION = {"<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>"}


def changed(old: str, new: str) -> list[tuple[str, int]] | None:
    """Which functions differ between two sources: their names and first lines.

    None if something else does, which is run as the module is imported: a constant, the
    body of a class, a default, a decorator; or if a method takes other names from the
    class around it (`super()`).
    """
    found = []
    for before, after in _pairs(_code(old, "old"), _code(new, "old")):
        function = _is_function(before)
        if not _same(before, after, inside=function):
            if not function or before.co_freevars != after.co_freevars:
                return None
            found.append(_place(before))
    return found


class Patches:
    """The functions of a package that is imported, by the place of their code."""

    def __init__(self, package: str) -> None:
        gc.unfreeze()  # what is frozen is not listed
        self._functions: dict[tuple[str, str, int], list[types.FunctionType]] = {}
        for one in gc.get_objects():
            if type(one) is types.FunctionType:  # `isinstance` asks objects, some warn
                code = one.__code__
                if code.co_filename.startswith(package):
                    place = code.co_filename, *_place(code)
                    self._functions.setdefault(place, []).append(one)
        gc.freeze()

    def holds(self, path: str, places: list[tuple[str, int]]) -> bool:
        """Whether all these functions of a file are there to be patched."""
        return all((path, *place) in self._functions for place in places)

    def put(self, path: str, old: str, new: str) -> None:
        """Gives the functions of a file the code that they have in the new source."""
        for before, after in _pairs(_code(old, path), _code(new, path)):
            for function in self._functions.get((path, *_place(before)), ()):
                if function.__code__.co_freevars == after.co_freevars:
                    function.__code__ = after


class CalledWhileImported:
    """A context that notes which functions are called: path, name and line of each."""

    def __init__(self, package: str) -> None:
        self._package = package
        self.found: set[tuple[str, str, int]] = set()

    def _note(self, frame, event, argument) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(self._package):
            self.found.add((code.co_filename, *_place(code)))

    def __enter__(self):
        sys.setprofile(self._note)
        return self

    def __exit__(self, *exception):
        sys.setprofile(None)


def _code(source: str, path: str) -> types.CodeType:
    return compile(source, path, "exec", dont_inherit=True)


def _place(code: types.CodeType) -> tuple[str, int]:
    return code.co_qualname, code.co_firstlineno


def _is_function(code: types.CodeType) -> bool:
    """Whether it is run when called, and not with what is around it."""
    optimized = code.co_flags & inspect.CO_OPTIMIZED
    return bool(optimized) and code.co_name not in _OF_A_COMPREHENSION


def _pairs(
    old: types.CodeType, new: types.CodeType
) -> Iterator[tuple[types.CodeType, types.CodeType]]:
    """The code of a module, of its classes and of their functions, side by side.

    Not of what is in a function: that is made as the function runs.
    """
    yield old, new
    if _is_function(old):
        return
    inside = [[one for one in code.co_consts if _is_code(one)] for code in (old, new)]
    if [one.co_name for one in inside[0]] == [one.co_name for one in inside[1]]:
        for pair in zip(*inside, strict=True):
            yield from _pairs(*pair)


def _is_code(constant: object) -> bool:
    return isinstance(constant, types.CodeType)


def _same(old: types.CodeType, new: types.CodeType, inside: bool = True) -> bool:
    """Whether code comes to the same, on whichever lines it is.

    Args:
        inside: Whether the functions in it are looked at too.
    """
    constants = [
        [(type(one), one) for one in code.co_consts if not _is_code(one)]
        for code in (old, new)
    ]
    within = [[one for one in code.co_consts if _is_code(one)] for code in (old, new)]
    return (
        (old.co_code, old.co_names, old.co_varnames)
        == (new.co_code, new.co_names, new.co_varnames)
        and repr(constants[0]) == repr(constants[1])
        and len(within[0]) == len(within[1])
        and (not inside or all(map(_same, *within)))
    )
