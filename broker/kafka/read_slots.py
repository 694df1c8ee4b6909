"""A limit on the long reads of the log that requests make at once, shared by tenants.

For: the slots. A tenant that makes many long reads waits for its own slots and delays no other tenant. Not for: the
reads, or those of workers. /v1/log has slots of its own (broker/audit/reader.py). Who holds a slot waits for no other.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Final

from broker.errors import Busy

# This many reads run at once in a process. Each takes a MiB or two, and milliseconds of the event loop.
AT_ONCE: Final = 4
EACH: Final = 2  # of one tenant
WAIT_S: Final = 10.0
COUNT_READS_MAX: Final = 16  # reads of a MiB per partition; counting reads no more


class ReadSlots:
    """Slots for large reads, given in the order of the requests.

    at_once: in all.
    each: of one tenant.
    tenant_of: by organization id, the account that the organization counts for. Without it, each organization counts
        for itself.
    """

    def __init__(self, at_once: int = AT_ONCE, each: int = EACH, *, wait_s: float = WAIT_S) -> None:
        self._all = asyncio.Semaphore(at_once)
        self._each = each
        self._wait_s = wait_s
        self._of: dict[
            str, tuple[asyncio.Semaphore, list[None]]
        ] = {}  # by tenant; the list has an item for each request
        self.tenant_of: Callable[[str], str] = lambda organization_id: organization_id

    @contextlib.asynccontextmanager
    async def slot(self, organization_id: str) -> AsyncIterator[None]:
        """Hold a slot inside the `with` block. Raises Busy if none becomes free in time."""
        tenant = self.tenant_of(organization_id)
        own, requests = self._of.setdefault(tenant, (asyncio.Semaphore(self._each), []))
        requests.append(None)
        try:
            async with contextlib.AsyncExitStack() as held:
                try:
                    async with asyncio.timeout(self._wait_s):
                        for semaphore in (own, self._all):
                            await held.enter_async_context(semaphore)
                except TimeoutError:
                    raise Busy("Too many large reads are running at the moment. Try again later.") from None
                yield
        finally:
            requests.pop()
            if not requests:
                del self._of[tenant]
