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
    """A limit on requests, streams or tunnels that are open at the same time. Each of them holds one of `total` slots,
    which tenants share.

    A tenant that holds no slot gets any free slot. A tenant that holds *n* slots gets another one only if more than
    `total`/2 + *n* slots are free. For example, of 8 slots, a tenant with one slot gets a second one if at least 6 are
    free. So half of the slots are kept for tenants that hold none.

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
        """Hold a slot for the organization inside the `with` block. Raises the error of `refusal` if the organization
        gets no slot.
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
