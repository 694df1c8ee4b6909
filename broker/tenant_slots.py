"""A fixed number of slots in one process, shared by all tenants (docs/decisions/0191).

For: who may take a slot, so that no tenant can use them all. Not for: waiting for a slot (broker/kafka/read_slots.py),
the answer to a tenant that gets none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from broker.errors import BrokerError


class TenantSlots:
    """A limit on requests, streams or tunnels that are open at the same time. All tenants share `total` slots. Each
    open request, stream or tunnel holds one slot.

    Half of the slots are reserved for tenants that hold no slot. Such a tenant gets its first slot if any slot is free.
    A tenant that holds *n* slots gets another slot only if more than `total`/2 + *n* slots are free. For example, if
    `total` is 8, a tenant with one slot gets a second slot if at least 6 slots are free.

    An organization can hold at most `each` slots. `tenant_of` maps an organization id to its tenant. `refusal` creates
    the error for an organization that gets no slot.
    """

    def __init__(
        self, total: int, each: int, *, tenant_of: Callable[[str], str], refusal: Callable[[], BrokerError]
    ) -> None:
        self._first = total // 2
        self._left = total
        self._each = each
        self._tenant_of = tenant_of
        self._refusal = refusal
        self._tenants: Counter[str] = Counter()
        self._organizations: Counter[str] = Counter()

    def __len__(self) -> int:
        """Count the tenants and organizations that hold slots."""
        return len(self._tenants) + len(self._organizations)

    @contextmanager
    def slot(self, organization_id: str) -> Iterator[None]:
        """Hold one of the shared slots for a request, stream or tunnel of the organization inside the `with` block.
        Raises the error of `refusal` if the organization gets no slot.
        """
        tenant = self._tenant_of(organization_id)
        mine = self._tenants[tenant]
        allowed = mine < self._left - self._first if mine else self._left > 0
        if not allowed or self._organizations[organization_id] >= self._each:
            self._forget()
            raise self._refusal()
        held = ((self._tenants, tenant), (self._organizations, organization_id))
        self._left -= 1
        for counter, name in held:
            counter[name] += 1
        try:
            yield
        finally:
            self._left += 1
            for counter, name in held:
                counter[name] -= 1
            self._forget()

    def _forget(self) -> None:
        """Forget the tenants that have no slots."""
        self._tenants += Counter()
        self._organizations += Counter()
