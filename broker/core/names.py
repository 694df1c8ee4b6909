"""What a name may be: of an organization, a key, a queue, a listener, a message.

For: the one rule. Not for: whether the name is taken (broker/core/directory.py)."""

from __future__ import annotations

from typing import Final

NAME_CHARS_MAX: Final = 200


def refuse_name(name: str) -> str | None:
    """Why this is no name, as the end of a sentence about it; None when it is one."""
    if not name:
        return "must not be empty"
    if len(name) > NAME_CHARS_MAX:
        return f"must have at most {NAME_CHARS_MAX} characters, not {len(name)}"
    if not name.isprintable() or name.isspace():
        return "must consist of printable characters"
    return None
