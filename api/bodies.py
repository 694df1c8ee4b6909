"""How much of unfinished bodies a process holds.

For: many large or slow uploads at once, which would each be within its own limit. Only what has arrived counts: who
announces much and sends little takes nothing from the others. Not for: a body's own limit (calls.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
    def arriving(self) -> Iterator[Callable[[int], None]]:
        """Call what this gives with the size of each part that arrives (TooMuchUnderWay)."""
        held = 0

        def hold(size: int) -> None:
            nonlocal held
            if size > self._left:
                raise TooMuchUnderWay("This process is receiving as much as it can hold.")
            self._left -= size
            held += size

        try:
            yield hold
        finally:
            self._left += held
