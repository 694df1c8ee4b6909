"""The progress bar of `everput put`, on stderr and only on a terminal. Not for: counting (cli/publish.py)."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from cli.printing import say, stderr
from cli.visible import visible


class Progress:
    """The progress bar of `everput put`.

    `total_bytes` is the size of the file, or None if it is unknown. If `shown` is False, or stderr is no terminal,
    there is no bar.
    """

    def __init__(self, *, total_bytes: int | None, shown: bool) -> None:
        console = stderr()
        self._bar = Bar(
            SpinnerColumn(),
            TextColumn("{task.fields[put]:,} put"),
            BarColumn(),
            TextColumn("{task.fields[rate]:,.0f}/s"),
            TextColumn("{task.fields[refused]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not (shown and console.is_terminal),
        )
        self._task = self._bar.add_task("put", total=total_bytes, put=0, rate=0.0, refused="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, put: int, refused: int, bytes_read: int) -> None:
        """Update the counts."""
        elapsed_s = self._bar.tasks[0].elapsed or 0.0
        self._bar.update(
            self._task,
            completed=bytes_read,
            put=put,
            rate=put / elapsed_s if elapsed_s else 0.0,
            refused=f"{refused} refused" if refused else "",
        )

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if self._bar.disable:
            say(text, err=True)
        else:
            self._bar.console.print(visible(text))
