"""How griffe, which reads Google's docstrings and imports nothing, reads Keras's."""

import re
from collections.abc import Iterator
from textwrap import dedent, indent
from typing import Any

import griffe

EXAMPLE = re.compile(r"^Example:\n\n(.*)\Z", re.M | re.S)
CALL_ARGUMENTS = re.compile(r"^Call arguments:$", re.M)
# Read as such, a return has a type, and a reference is a box that folds.
PLAIN = re.compile(r"^(Returns|Reference):\n((?:    .*\n|\n)+)", re.M)


def in_googles_form(docstring: str) -> str:
    """The text with those sections of Keras's form that griffe knows by other names."""
    # "Args" would be looked for in the constructor's signature.
    text = CALL_ARGUMENTS.sub("Other args: Call arguments", docstring)
    text = EXAMPLE.sub(lambda it: f"Examples:\n{indent(it[1], '    ')}", text)
    return PLAIN.sub(lambda it: f"**{it[1]}:**\n\n{dedent(it[2])}", f"{text}\n")


class KerasDocstrings(griffe.Extension):
    """Rewrites docstrings, and lets functions take the place of their files."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Before any docstring is parsed."""
        for one in objects(pkg):
            if one.docstring:
                one.docstring.value = in_googles_form(one.docstring.value)
        # `keras_bn.tools.fold` is the function, as in Python, and not its file.
        packages = [pkg, *(m for m in pkg.modules.values() if m.is_init_module)]
        public = [
            (p, str(n), found(p, str(n))) for p in packages for n in p.exports or ()
        ]
        for package, name, target in public:
            if target.parent is not package:
                package.members[name] = griffe.Alias(name, target, parent=package)


def objects(parent: griffe.Object) -> Iterator[griffe.Object]:
    """All that is defined in there."""
    for member in tuple(parent.members.values()):
        if not member.is_alias:
            yield member
            yield from objects(member)


def found(package: griffe.Module, name: str) -> griffe.Object:
    """What a package exports: of a file by this name, what it is named after."""
    member = package.members[name]
    target = member.final_target if member.is_alias else member
    is_file = target.is_module and not target.is_init_module
    return target.members.get(name, target) if is_file else target
