"""The output of commands: lines and tables for people, JSON for scripts.

For: printing text from outside (names, data, URLs, errors) so that it neither controls the terminal nor counts as
markup. Every command prints here: ruff refuses `click.echo` and rich's `Console` in other modules. Not for: which
characters are escaped (visible.py), log lines (logs.py).
"""

from __future__ import annotations

import os
import shutil
import sys
from typing import Any, Final

import click
from rich.console import Console  # noqa: TID251 - here it takes no markup
from rich.text import Text

from cli.visible import visible, visible_json

WIDTH: Final = 200  # the width of a table in characters if the output is no terminal


def say(*parts: str | tuple[str, str], err: bool = False) -> None:
    """Print one line of text for people, on stdout or, with `err`, on stderr. The line consists of `parts`: each part
    is a text, or a pair of a text and the name of its color.
    """
    plain = bool(os.environ.get("NO_COLOR"))
    shown = [
        visible(part) if isinstance(part, str) else click.style(visible(part[0]), fg=None if plain else part[1])
        for part in parts
    ]
    click.echo("".join(shown), err=err, color=False if plain else None)  # noqa: TID251 - here it is escaped


def say_error(text: str) -> None:
    """Print an error on stderr. Indent all of its lines except the first. Then a part of the error that comes from
    outside, such as a name with a line end, can't look like a second error.
    """
    click.echo("\n  ".join(visible(text, layout=True).split("\n")), err=True)  # noqa: TID251 - here it is escaped


def say_json(value: str | bytes) -> None:
    """Print a line of JSON. Control characters are printed as JSON escapes, which a script decodes to the same
    characters.
    """
    text = value if isinstance(value, str) else value.decode(errors="replace")
    click.echo(visible_json(text).encode())  # noqa: TID251 - here it is escaped


class _Console(Console):
    """A console of the library rich that shows text as it is: no markup, no emoji codes, control characters escaped."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text, layout=True), **options)


def terminal_width() -> int | None:
    """Return the width of the terminal in columns. Return None if standard output is no terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def stdout() -> Console:
    """Return a console for standard output, as wide as the terminal. For a pipe or a file, it has WIDTH columns, unless
    the environment variable COLUMNS is set.
    """
    found = _Console()
    return found if found.is_terminal or "COLUMNS" in os.environ else _Console(width=WIDTH)


def stderr() -> Console:
    """Return a console for progress bars on stderr."""
    return _Console(stderr=True)
