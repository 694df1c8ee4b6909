"""The view of `everput demo`: a live table on a terminal, a plain line a second elsewhere, and what happened in
between.

Not for: the figures (cli/demo/demo.py gathers them).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from rich.live import Live
from rich.table import Table

from cli.printing import stdout

PLAIN_EVERY_S: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The counts of one listener, for the demo's table."""

    name: str
    state: str
    # the number of different messages that this listener has accepted
    received: int
    # the number of messages that were put and that this listener has not accepted so far
    waiting: int
    # the number of attempts (without probes) that this listener answered with 503
    refused: int
    # the number of accepted requests that were not the first attempt to deliver their message
    retries: int
    # the number of accepted requests for messages that this listener had accepted before
    duplicates: int


class View:
    """The view of the demo's progress on the terminal. It is a context manager."""

    def __init__(self, total: int) -> None:
        self.console = stdout()
        self._total = total
        self._started_s = time.monotonic()
        self._plain_at_s = 0.0
        self._live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, text: str) -> None:
        """Print a line that says what has happened, with the seconds since the demo's start."""
        self._print(f"{time.monotonic() - self._started_s:6.1f} s  {text}")

    def show(self, put: int, rows: Sequence[Row], *, now: bool = False) -> None:
        """Show the current counts of messages.

        On a terminal, update the table. Otherwise, print a line if `now` is true, or if the last such line was printed
        at least PLAIN_EVERY_S seconds ago.
        """
        if self._live is not None:
            self._live.update(self._table(put, rows), refresh=True)
            return
        at_s = time.monotonic()
        if now or at_s - self._plain_at_s >= PLAIN_EVERY_S:
            self._plain_at_s = at_s
            listeners = " | ".join(
                f"{row.name} ({row.state}): received {row.received:,}, waiting {row.waiting:,},"
                f" refused {row.refused:,}, retries {row.retries:,}, duplicates {row.duplicates:,}"
                for row in rows
            )
            self.say(f"put {put:,} of {self._total:,} | {listeners}")

    def _print(self, text: str) -> None:
        self.console.print(text, soft_wrap=True)

    def _table(self, put: int, rows: Sequence[Row]) -> Table:
        seconds = time.monotonic() - self._started_s
        table = Table(title=f"put {put:,} of {self._total:,} · {seconds:.0f} s", title_justify="left")
        table.add_column("listener")
        table.add_column("state")
        for heading in ("received", "waiting", "refused", "retries", "duplicates"):
            table.add_column(heading, justify="right")
        for row in rows:
            figures = (row.received, row.waiting, row.refused, row.retries, row.duplicates)
            style = "" if row.state == "takes them" else "yellow"
            table.add_row(row.name, row.state, *(f"{figure:,}" for figure in figures), style=style)
        return table
