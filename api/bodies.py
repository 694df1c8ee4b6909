"""The bound on the memory that request bodies take in a process while they arrive.

For: many large or slow uploads at once, each within its own limit. Only bytes that have arrived count, so a client that
announces much and sends little takes nothing from other clients. Not for: the size limit of one body (calls.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from broker.errors import Unavailable

BYTES_MAX: Final = 256 << 20


class TooMuchUnderWay(Unavailable):
    """Unfinished requests use all of this server's memory for request bodies, or your share of it. Try again later."""

    code = "busy"


class Bodies:
    """The memory that unfinished request bodies may use in one process. The bodies of one tenant may use at most as
    many bytes as stay free for all other tenants. If the others use none, this is half of the memory. A part of a body
    that would exceed this limit is refused.
    """

    def __init__(self, bytes_max: int = BYTES_MAX) -> None:
        self._left = bytes_max
        self._held: Counter[str] = Counter()  # bytes by tenant

    @contextmanager
    def arriving(self, tenant: str = "") -> Iterator[Callable[[int], None]]:
        """Reserve memory for a body inside the `with` block. The block passes the size of each arriving part to the
        yielded function.

        That function raises TooMuchUnderWay if the tenant's bodies would use more bytes than would then stay free.
        `tenant` is empty for a request without an organization.
        """
        held = 0

        def hold(size: int) -> None:
            nonlocal held
            if self._held[tenant] + size > self._left - size:
                raise TooMuchUnderWay(
                    "Unfinished requests use all of this server's memory for request bodies, or your share of it. "
                    "Try again later."
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
