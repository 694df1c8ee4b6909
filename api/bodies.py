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
    """The memory of this process for unfinished request bodies is used up, or the tenant has used all of its share. Try
    again later.
    """

    code = "busy"


class Bodies:
    """The memory that unfinished request bodies may use in one process. The bodies of one tenant may use half of the
    memory that the bodies of other tenants leave. For example, if the process has 256 MiB and the other tenants use 56
    MiB, a tenant may use 100 MiB. If a part of a body would exceed this limit, the part is refused.
    """

    def __init__(self, bytes_max: int = BYTES_MAX) -> None:
        self._left = bytes_max
        self._held: Counter[str] = Counter()  # bytes by tenant

    @contextmanager
    def arriving(self, tenant: str = "") -> Iterator[Callable[[int], None]]:
        """Count the memory of one arriving body inside the `with` block. The block passes the size of each arriving
        part to the yielded function.

        That function raises TooMuchUnderWay if the tenant's bodies would use more than half of the memory that the
        bodies of other tenants leave. `tenant` is empty for a request without an organization.
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
