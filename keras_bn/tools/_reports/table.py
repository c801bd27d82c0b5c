"""Reports that print as a table."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any


class Table(ABC):
    """Gives a report with `__rich__` its `str`, and builds the table for it."""

    @abstractmethod
    def _counts(self) -> dict[str, Any]:
        """What `repr` says of the report."""

    def __repr__(self) -> str:
        """The report in one line: what was counted."""
        counts = ", ".join(f"{name}={one!r}" for name, one in self._counts().items())
        return f"{type(self).__name__}({counts})"

    @abstractmethod
    def __rich__(self) -> Any:
        """What rich prints."""

    def __str__(self) -> str:
        """The report as text, 120 columns wide."""
        from rich.console import Console

        # Text, whatever FORCE_COLOR and its like say of what is printed.
        console = Console(width=120, force_terminal=False)
        with console.capture() as capture:
            console.print(self)
        # A table pads its lines to full width.
        return "\n".join(line.rstrip() for line in capture.get().split("\n")).strip()

    @staticmethod
    def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Any:
        """A title and a table of text, for rich to print."""
        from rich import box
        from rich.console import Group
        from rich.markup import escape
        from rich.table import Table as RichTable

        table = RichTable(box=box.SIMPLE_HEAD)
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*map(escape, row))
        return Group(f"[bold]{escape(title)}[/bold]", table)
