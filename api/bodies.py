"""How much of unfinished bodies a process holds.

For: many large or slow uploads at once, which would each be within its own limit. Not for: a body's own limit
(calls.py)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from broker.errors import Unavailable

BYTES_MAX: Final = 256 << 20


class TooMuchUnderWay(Unavailable):
    """This process is receiving as much as it can hold."""

    code = "busy"


class Bodies:
    """Of one process."""

    def __init__(self, bytes_max: int = BYTES_MAX) -> None:
        self._left = bytes_max

    @contextmanager
    def held(self, size: int) -> Iterator[None]:
        """Reserve so many bytes as long as a body arrives (TooMuchUnderWay)."""
        if size > self._left:
            raise TooMuchUnderWay("This process is receiving as much as it can hold.")
        self._left -= size
        try:
            yield
        finally:
            self._left += size
