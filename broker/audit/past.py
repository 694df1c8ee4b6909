"""The directory as it was at a past time, computed from the topic `control` up to that time.

For: one organization's queues, listeners and API keys at any time. Not for: the present (projections/), a message's
history (broker/audit/reader.py).

Only the organization's own events are applied, with pauses. The last few results are kept, because clients usually ask
about the same time more than once.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from broker.audit.control import control_records
from broker.audit.pace import Others, Pace
from broker.audit.records import Records
from broker.core.codec import decode
from broker.core.directory import Directory
from broker.errors import Busy, UnknownEvent
from broker.kafka.topics import Topics
from broker.tenant_slots import TenantSlots
from broker.time_offsets import offsets_since

_KEPT_MAX: Final = 4
_ASKING_MAX: Final = 16  # requests at once in this process
_ASKING_EACH_MAX: Final = 4  # requests at once of one organization


class PastView:
    """The part of the directory that belongs to one organization (its queues, listeners, API keys and so on), as it was
    at a past time. This object never changes.
    """

    def __init__(self, state: Directory, position: int, *, complete: bool) -> None:
        self.state = state
        self.position = position
        self.complete = complete

    async def seen(self, offset: int, *, timeout_s: float | None = 2.0) -> None:
        """Return at once: a past state is complete."""

    def passed_over(self, offset: int) -> bool:  # noqa: ARG002 - the protocol's signature
        return False

    async def caught_up(self, *, timeout_s: float = 2.0) -> None:
        """Return at once, because the view is complete."""


class Past:
    """The look-up of an organization's queues, listeners and API keys at a past time. Their state at that time is
    computed from the topic `control`, for one request at a time.

    `tenant_of` takes an organization's id, and returns the organization's tenant: usually the account that created it.
    Organizations of one tenant share a limit on concurrent requests.
    """

    def __init__(self, records: Records, table: Topics, others: Others, tenant_of: Callable[[str], str] = str) -> None:
        self._records = records
        self._others = others
        self._control = table.control.name
        self._kept: OrderedDict[tuple[str, int], PastView] = OrderedDict()
        self._lock = asyncio.Lock()
        self._slots = TenantSlots(
            _ASKING_MAX,
            _ASKING_EACH_MAX,
            tenant_of=tenant_of,
            refusal=lambda: Busy("Too many requests read past states at the moment. Try again later."),
        )

    def __len__(self) -> int:
        """Count the states that are kept."""
        return len(self._kept)

    async def view(self, organization_id: str, at_ms: int) -> PastView:
        """Return the organization's queues, listeners and keys at a past time, including the events of that time.

        Raises Busy if too many requests ask for past states, Unavailable if Kafka does not answer.
        """
        with self._slots.slot(organization_id):
            end = (await offsets_since(self._records, self._control, {0: at_ms + 1}))[0]
            async with self._lock:
                return await self._folded(organization_id, end)

    async def _folded(self, organization_id: str, end: int) -> PastView:
        position = organization_id, end
        found = self._kept.get(position)
        if found is None:
            state, complete, ours = Directory(), True, organization_id.encode()
            pace = Pace(self._others)
            async for records in control_records(self._records, self._control, end):
                with pace:
                    for record in records:
                        if record.value is None or ours not in record.value:
                            continue
                        try:
                            event = decode(record.value)
                        except UnknownEvent:
                            complete = False
                            continue
                        if event.organization_id == organization_id:
                            state.apply(event)
                await pace.give_way()
            found = self._kept[position] = PastView(state, end, complete=complete)
        self._kept.move_to_end(position)
        while len(self._kept) > _KEPT_MAX:
            self._kept.popitem(last=False)
        return found
