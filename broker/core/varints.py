"""Lists of numbers as short text: unsigned LEB128 varints in unpadded url-safe base64.

For: the open offsets of a cursor, the offsets that a replay takes, and page tokens. Not for: the meaning of the
numbers.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import Final

_BITS_MAX: Final = 63


def pack(numbers: Iterable[int]) -> str:
    """Pack non-negative numbers into a short text: varints in base64. The varint of a number below 128 is one byte."""
    return base64.urlsafe_b64encode(b"".join(map(_varint, numbers))).rstrip(b"=").decode()


def unpack(text: str) -> list[int]:
    """Return the numbers that pack() has packed into this text. Raises ValueError if it is no such list of numbers."""
    return _numbers(base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True))


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _numbers(packed: bytes) -> list[int]:
    numbers: list[int] = []
    number = shift = 0
    for byte in packed:
        number |= (byte & 0x7F) << shift
        shift += 7
        if shift > _BITS_MAX:
            raise ValueError("a list of packed numbers is damaged: a number has over 63 bits")
        if byte < 0x80:
            numbers.append(number)
            number = shift = 0
    if shift:
        raise ValueError("a list of packed numbers is damaged: it ends within a number")
    return numbers
