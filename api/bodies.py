"""The bound on unfinished bodies in a process.

For: many large or slow uploads at once, each within its own limit. Only bytes that have arrived count: a client that
announces much and sends little takes nothing from the others. Not for: a body's own limit (calls.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from broker.errors import Unavailable

BYTES_MAX: Final = 256 << 20


class TooMuchUnderWay(Unavailable):
    """This server is receiving as many large requests as it can hold. Try again later."""

    code = "busy"


class Bodies:
    """The room for unfinished bodies in one process. A tenant holds no more than it leaves free: half of it when it is
    alone.
    """

    def __init__(self, bytes_max: int = BYTES_MAX) -> None:
        self._left = bytes_max
        self._held: Counter[str] = Counter()  # by tenant

    @contextmanager
    def arriving(self, tenant: str = "") -> Iterator[Callable[[int], None]]:
        """Hold room inside the `with` block, which calls the given function with the size of each part that arrives.
        Raises TooMuchUnderWay.

        tenant: the sender; empty without a key and a session.
        """
        held = 0

        def hold(size: int) -> None:
            nonlocal held
            if self._held[tenant] + size > self._left - size:
                raise TooMuchUnderWay(
                    "This server is receiving as many large requests as it can hold. Try again later."
                )
            self._left -= size
            self._held[tenant] += size
            held += size

        try:
            yield hold
        finally:
            self._left += held
            self._held[tenant] -= held
            self._held += Counter()
