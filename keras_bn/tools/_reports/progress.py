"""A progress bar for work that turns out to be long."""

import sys
import time
from types import TracebackType
from typing import Any

PATIENCE = 2.0
"""Seconds of work without a word."""


class Progress:
    """A bar on standard error once the work has taken `PATIENCE` seconds.

    On a terminal only, from where it goes when the work is done: nobody reads bars in a
    file. `advance` is called once for each of `total` pieces of work, or more often.
    """

    def __init__(self, what: str, total: int | None) -> None:
        self._what = what
        self._total = total
        self._done = 0
        self._start = time.monotonic()
        self._bar: Any = None
        self._shown = sys.stderr.isatty()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self) -> None:
        """A piece of work is done."""
        self._done += 1
        if not self._shown or time.monotonic() - self._start < PATIENCE:
            return
        if self._bar is None:
            # Rich comes with Keras; it takes a while to import.
            from rich.console import Console
            from rich.progress import Progress as Bar

            self._bar = Bar(console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(self._what, total=self._total)
            self._bar.start()
        self._bar.update(self._task, completed=self._done)
