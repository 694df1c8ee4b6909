"""A limit on the large reads of the log that API requests make at the same time, shared by tenants.

For: a tenant that makes many large reads waits for its own slots, so that it can't use all of them. Not for: the reads
themselves, reads of workers, /v1/log, which has slots of its own (broker/audit/reader.py). A caller that holds a slot
must not wait for another.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Final

from broker.errors import Busy

# In each process, at most four large reads run at once for API requests. Requests to /v1/log have a separate limit.
# A large read takes 1 or 2 MiB of memory, and keeps the event loop busy for some ms.
AT_ONCE: Final = 4
EACH: Final = 2  # reads at once, per tenant
WAIT_S: Final = 10.0
COUNT_READS_MAX: Final = 16  # reads of 1 MiB, per partition


class ReadSlots:
    """A limit on large reads of Kafka for API requests. At most `at_once` large reads run at the same time, and at most
    `each` large reads of one tenant. Further reads wait. The reads of one tenant begin in the order of their arrival.

    `tenant_of` maps an organization to its tenant, which is the account that created it. By default, each organization
    is its own tenant.
    """

    def __init__(self, at_once: int = AT_ONCE, each: int = EACH, *, wait_s: float = WAIT_S) -> None:
        self._all = asyncio.Semaphore(at_once)
        self._each = each
        self._wait_s = wait_s
        # By tenant: a semaphore for its reads, and a list whose length is the number of its waiting and running reads.
        self._of: dict[str, tuple[asyncio.Semaphore, list[None]]] = {}
        self.tenant_of: Callable[[str], str] = lambda organization_id: organization_id

    def __len__(self) -> int:
        """Count the tenants that read or wait."""
        return len(self._of)

    @contextlib.asynccontextmanager
    async def slot(self, organization_id: str) -> AsyncIterator[None]:
        """Wait until a large read may run, and let the caller read in the `with` block. Raises Busy after a wait of
        `wait_s`.
        """
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
                    raise Busy(
                        "Too many large reads of messages are running at the moment. Try again in some seconds."
                    ) from None
                yield
        finally:
            requests.pop()
            if not requests:
                del self._of[tenant]
