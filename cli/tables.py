"""Tables that fit the terminal: a row for each item, or a block of lines for each item on a narrow terminal.

Not for: colors and escapes (printing.py), the columns of a command (cli/commands/).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType  # noqa: TID251 - only as a type
from rich.table import Table

from cli.visible import visible

# A word with more than 20 characters may be broken into several lines, unless its column has `whole`.
_WORD_WIDTH_MAX: Final = 20
_BORDERS_WIDTH: Final = 3  # the characters that a column adds to its text: a border and two spaces


class Column(NamedTuple):
    """A column of a table. With `right`, its cells are aligned to the right. With `whole`, no word in the column is
    broken into several lines, so that users can copy the word.
    """

    heading: str
    right: bool = False
    whole: bool = False


class FittingTable:
    """A table for the library rich that fits the terminal. If the terminal is wide enough, each item is a row.
    Otherwise, each item is a block of lines: one line for each cell that is not empty, with the column's heading.
    """

    def __init__(self, columns: Sequence[Column], *, simple: bool = False) -> None:
        self._columns = columns
        self._box = box.SIMPLE if simple else box.HEAVY_HEAD
        self._rows: list[tuple[Sequence[str], str]] = []

    def add_row(self, cells: Sequence[str], *, style: str = "") -> None:
        self._rows.append((cells, style))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterable[RenderableType]:
        if self._needs() <= options.max_width:
            yield self._table()
        else:
            yield self._blocks()

    def _needs(self) -> int:
        """Return the width in characters that the table needs to be readable."""
        widths = (
            max(self._word_width(column, cell) for cell in (column.heading, *(cells[place] for cells, _ in self._rows)))
            for place, column in enumerate(self._columns)
        )
        return sum(widths) + _BORDERS_WIDTH * len(self._columns) + 1

    @staticmethod
    def _word_width(column: Column, cell: str) -> int:
        width = max((cell_len(word) for word in visible(cell, layout=True).split()), default=0)
        return width if column.whole else min(width, _WORD_WIDTH_MAX)

    def _table(self) -> Table:
        table = Table(box=self._box)
        for column in self._columns:
            table.add_column(
                column.heading, justify="right" if column.right else "left", no_wrap=column.whole, overflow="fold"
            )
        for cells, style in self._rows:
            table.add_row(*cells, style=style)
        return table

    def _blocks(self) -> Group:
        blocks: list[RenderableType] = []
        for cells, style in self._rows:
            block = Table("", "", box=None, show_header=False, style=style)
            block.columns[1].overflow = "fold"
            for column, cell in zip(self._columns, cells, strict=True):
                if cell:
                    block.add_row(column.heading, cell)
            blocks += (block, "")
        return Group(*blocks[:-1])
