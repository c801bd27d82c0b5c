"""Reports that print as a table."""

from collections.abc import Iterable, Sequence
from typing import Any


class Table:
    """Gives a report with `__rich__` its `str`, and builds the table for it."""

    def __rich__(self) -> Any:
        raise NotImplementedError

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=120, no_color=True, record=False)
        with console.capture() as capture:
            console.print(self)
        return capture.get().rstrip("\n")

    @staticmethod
    def table(
        title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]
    ) -> Any:
        """A `rich.table.Table` of text."""
        from rich import box
        from rich.markup import escape
        from rich.table import Table as RichTable

        table = RichTable(
            title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD
        )
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*map(escape, row))
        return table
