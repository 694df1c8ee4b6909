"""Short forms of IDs: 22 letters and digits instead of a UUID's 36 characters, so that a line fits the terminal.

For: showing an ID on a terminal, and taking a pasted one back. A short ID is the whole UUID in base 58, so nothing
needs to be looked up. Not for: scripts, which get whole IDs."""

from __future__ import annotations

import re
import sys
from typing import Any, Final
from uuid import UUID

import click

# The letters 0, O, I and l look alike and are left out.
_DIGITS: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_LENGTH: Final = 22
# This pattern takes linear time: fixed length
_SHORT: Final = re.compile(f"[{_DIGITS}]{{{_LENGTH}}}")


def short_id(text: str) -> str:
    """Return the short form of a UUID, and any other text as it is."""
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
    """Return the UUID of a short ID, and any other text as it is."""
    if _SHORT.fullmatch(text) is None:
        return text
    value = 0
    for digit in text:
        value = value * len(_DIGITS) + _DIGITS.index(digit)
    return str(UUID(int=value)) if value < 1 << 128 else text


def shown_id(text: str) -> str:
    """Return the short form if standard output is a terminal, else the whole ID."""
    return short_id(text) if sys.stdout.isatty() else text


class Id(click.ParamType):
    """The type of an ID in an argument. A short ID is replaced by the whole one."""

    name = "id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:  # noqa: ARG002 - click's signature
        return whole_id(str(value))
