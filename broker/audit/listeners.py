"""All listeners and replays that have ever existed. Deleted ones are only in the topic `control`.

For: reading the log by queue, listener or message. Not for: existing listeners (projections/), past states (past.py).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Final

from broker.audit.control import control_records
from broker.audit.pace import Others, Pace
from broker.audit.records import Records
from broker.core.codec import wire_name
from broker.core.events import Event, ListenerCreated, QueueCreated, ReplayStarted
from broker.core.selection import Selection
from broker.kafka.read_slots import ReadSlots
from broker.ports import EARLIEST, LATEST, DirectoryView
from broker.time_offsets import offsets_since

_KEPT_MAX: Final = 128
# Clocks are sometimes set back, so a search for a queue's events begins a minute before the queue's creation.
_CLOCK_MS: Final = 60_000
_MADE: Final = frozenset({wire_name(QueueCreated), wire_name(ListenerCreated), wire_name(ReplayStarted)})


@dataclass(slots=True)
class _Queue:
    """A cache entry: the ids of the listeners and replays that one queue had before the offset `next` of the topic
    `control`. The next read of `control` for this queue begins at `next`. `made` says whether the event that created
    the queue was found.
    """

    next: int
    made: bool = False
    listener_ids: set[str] = field(default_factory=set)


class Listeners:
    """A cache of the listeners of up to 128 queues. For each queue, it has the ids of the queue's listeners and
    replays, including deleted listeners and ended replays.

    If a queue is in the cache, a request reads only the records of `control` that are newer than the cache's entry.
    """

    def __init__(
        self, records: Records, control: str, view: DirectoryView, read_slots: ReadSlots, others: Others
    ) -> None:
        self._records = records
        self._view = view
        self._others = others
        self._control = control
        self._read_slots = read_slots
        self._kept: OrderedDict[tuple[str, str], _Queue] = OrderedDict()

    async def of_queue(self, organization_id: str, queue_id: str) -> frozenset[str] | None:
        """Return the ids of all listeners that the queue ever had, and of their replays. Return None if the
        organization never had this queue.

        If the queue is in the cache, read only the new records of the topic `control`. Otherwise, read the topic from
        the queue's creation on, or from its start if the queue does not exist now. Raises Unavailable if Kafka does not
        answer, or if too many reads are running.
        """
        place = organization_id, queue_id
        before = self._kept.pop(place, None) or await self._unread(organization_id, queue_id)
        end = await self._offset(LATEST)
        now = _Queue(end, before.made, set(before.listener_ids))
        async with aclosing(self._made(organization_id, before.next, end)) as events:
            async for event in events:
                if isinstance(event, QueueCreated):
                    now.made = now.made or event.queue_id == queue_id
                elif isinstance(event, ListenerCreated):
                    if event.queue_id == queue_id:
                        now.listener_ids.add(event.listener_id)
                elif isinstance(event, ReplayStarted) and event.listener_id in now.listener_ids:
                    now.listener_ids.add(event.replay_id)
        if not now.made:
            return None
        self._kept[place] = now
        while len(self._kept) > _KEPT_MAX:
            self._kept.popitem(last=False)
        return frozenset(now.listener_ids)

    async def hears(self, organization_id: str, listener_id: str, queue_id: str) -> bool:
        """Return whether a listener belongs to this queue, or belonged to it before the listener was deleted.

        Raises Unavailable if Kafka does not answer, or if too many reads are running.
        """
        live = self._view.state.listener(organization_id, listener_id)
        if live is not None:
            return live.queue_id == queue_id
        return listener_id in (await self.of_queue(organization_id, queue_id) or ())

    async def was(self, organization_id: str, listener_id: str) -> bool:
        """Return whether the organization has, or ever had, a listener or replay with this id.

        If the listener or replay does not exist now, the topic `control` is read from its start until the event of its
        creation is found. Raises Unavailable if Kafka does not answer, or if too many reads are running.
        """
        state = self._view.state
        live = state.listener(organization_id, listener_id) or state.replays.find(organization_id, listener_id)
        if live is not None:
            return True
        begin, end = await self._offset(EARLIEST), await self._offset(LATEST)
        async with aclosing(self._made(organization_id, begin, end)) as events:
            async for event in events:
                if isinstance(event, ListenerCreated) and event.listener_id == listener_id:
                    return True
                if isinstance(event, ReplayStarted) and event.replay_id == listener_id:
                    return True
        return False

    async def _unread(self, organization_id: str, queue_id: str) -> _Queue:
        """Return a new cache entry for a queue, still without listeners. Its offset `next` is a little before the
        queue's creation in the topic `control`, or at the topic's start if the queue does not exist now.
        """
        live = self._view.state.queue(organization_id, queue_id)
        if live is None:
            return _Queue(await self._offset(EARLIEST))
        since_ms = max(0, live.created_at_ms - _CLOCK_MS)
        return _Queue((await offsets_since(self._records, self._control, {0: since_ms}))[0])

    async def _offset(self, at_ms: int) -> int:
        return (await self._records.offsets(self._control, {0: at_ms}))[0]

    async def _made(self, organization_id: str, begin: int, end: int) -> AsyncGenerator[Event, None]:
        """Yield the events that created queues, listeners and replays of the organization, in the offsets [begin, end)
        of `control`.
        """
        wanted = Selection(organization_id=organization_id, types=_MADE)
        pace = Pace(self._others)
        async with aclosing(control_records(self._records, self._control, end, begin=begin)) as results:
            while True:
                async with self._read_slots.slot(organization_id):
                    records = await anext(results, None)
                    if records is None:
                        return
                    with pace:
                        events = [event for record in records if (event := wanted.take(record.value)) is not None]
                    await pace.give_way()
                for event in events:
                    yield event
