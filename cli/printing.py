"""Prints what commands say: lines and tables for people, JSON for scripts.

For: text from outside (names, data, URLs, errors), which must neither drive the terminal nor be taken for markup. Every
command prints here: ruff refuses `click.echo` and rich's `Console` in other modules. Not for: which characters
are shown escaped (visible.py), log lines (logs.py)."""

from __future__ import annotations

import os
import shutil
import sys
from typing import Any, Final

import click
from rich.console import Console  # noqa: TID251 - here it takes no markup
from rich.text import Text

from cli.visible import visible, visible_json

WIDTH: Final = 200  # A table that goes to no terminal has this many columns.


def say(*parts: str | tuple[str, str], err: bool = False) -> None:
    """Print one line for people. A part is text, or (text, color). err: on stderr."""
    plain = bool(os.environ.get("NO_COLOR"))
    shown = [
        visible(part) if isinstance(part, str) else click.style(visible(part[0]), fg=None if plain else part[1])
        for part in parts
    ]
    click.echo("".join(shown), err=err, color=False if plain else None)  # noqa: TID251 - here it is escaped


def say_error(text: str) -> None:
    """Print an error on stderr. Only its first line begins at the margin: what follows can't pass for another error."""
    click.echo("\n  ".join(visible(text, layout=True).split("\n")), err=True)  # noqa: TID251 - here it is escaped


def say_json(value: str | bytes) -> None:
    """Print a line of JSON. What visible() escapes stands there as a JSON escape: scripts read the same value."""
    text = value if isinstance(value, str) else value.decode(errors="replace")
    click.echo(visible_json(text).encode())  # noqa: TID251 - here it is escaped


class _Console(Console):
    """A console that shows text in tables as it is: no markup, no emoji codes, control characters escaped."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text, layout=True), **options)


def terminal_width() -> int | None:
    """Return the width of the terminal that standard output is, in columns; None if it is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def stdout() -> Console:
    """Return a console on standard output, as wide as the terminal, or WIDTH columns for a pipe or a file."""
    found = _Console()
    return found if found.is_terminal or "COLUMNS" in os.environ else _Console(width=WIDTH)


def stderr() -> Console:
    """Standard error, for progress bars."""
    return _Console(stderr=True)
