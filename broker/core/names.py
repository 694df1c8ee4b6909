"""The rule for the names of organizations, API keys, queues, listeners and messages.

For: the rule and its error text, and quoting text from outside. Not for: whether a name is taken (directory.py).
"""

from __future__ import annotations

from typing import Final

NAME_CHARS_MAX: Final = 200


def refuse_name(name: str) -> str | None:
    """Return the reason why a text is not a valid name, as the end of an error message. Return None if the name is
    valid.
    """
    if not name:
        return "must not be empty"
    if len(name) > NAME_CHARS_MAX:
        return f"must have at most {NAME_CHARS_MAX} characters, not {len(name)}"
    if not name.isprintable() or name.isspace():
        return "must consist of printable characters"
    return None


def shortened(text: str, chars_max: int = NAME_CHARS_MAX) -> str:
    """Return the text in the form in which an error message quotes it. A text of more than `chars_max` characters is
    cut there, and an ellipsis is added.
    """
    return text if len(text) <= chars_max else text[:chars_max] + "…"
