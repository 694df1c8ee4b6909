"""Short forms of ids: 22 letters and digits instead of a UUID's 36 characters, so that a line fits the terminal.

For: showing an id on a terminal, and accepting a pasted one. A short id is the whole UUID in base 58, so it needs no
look-up. Not for: scripts, which get whole ids.
"""

from __future__ import annotations

import re
import sys
from typing import Any, Final
from uuid import UUID

import click

# The characters of a short id. 0, O, I and l are left out, because they look alike.
_DIGITS: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_LENGTH: Final = 22
# This regular expression takes linear time on any input, because it matches a fixed number of characters.
_SHORT: Final = re.compile(f"[{_DIGITS}]{{{_LENGTH}}}")


def short_id(text: str) -> str:
    """Return the short form (22 characters, base 58) of a UUID in lower case with hyphens. Return any other text
    unchanged.
    """
    try:
        value = UUID(text).int
    except ValueError:
        return text
    if str(UUID(text)) != text:
        return text
    digits = ""
    for _ in range(_LENGTH):
        value, digit = divmod(value, len(_DIGITS))
        digits = _DIGITS[digit] + digits
    return digits


def whole_id(text: str) -> str:
    """Return the UUID of a short id (22 characters, base 58). Return any other text unchanged."""
    if _SHORT.fullmatch(text) is None:
        return text
    value = 0
    for digit in text:
        value = value * len(_DIGITS) + _DIGITS.index(digit)
    return str(UUID(int=value)) if value < 1 << 128 else text


def shown_id(text: str) -> str:
    """Return the short form of an id if standard output is a terminal, else the whole id."""
    return short_id(text) if sys.stdout.isatty() else text


class Id(click.ParamType):
    """The type of an argument or option that is an id. A short id is converted to the whole id."""

    name = "id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:  # noqa: ARG002 - click's signature
        return whole_id(str(value))
