"""Groups of commands, with suggestions for mistyped names, and the examples in each command's help.

For: the class of every group. Not for: which commands exist (app.py).
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Final

import click

# If a user enters a command's name from another program, such as `ls`, Everput suggests its own name for the command.
_SYNONYMS: Final = {"ls": "list", "rm": "delete", "remove": "delete", "add": "create", "new": "create", "show": "get"}


class Group(click.Group):
    """A group of commands that suggests a name for a mistyped one."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            names = self.list_commands(ctx)
            synonym = _SYNONYMS.get(args[0])
            close = [synonym] if synonym in names else get_close_matches(args[0], names)
            if close and args[0] not in names and not args[0].startswith("-"):
                error.message += f" Did you mean {' or '.join(repr(name) for name in close)}?"
            raise


def examples(*lines: str) -> str:
    """Return the text with which a command's help ends: the examples, each on a line of its own."""
    return "\n".join(["\b", "Examples:" if lines[1:] else "Example:", *(f"  {line}" for line in lines)])
