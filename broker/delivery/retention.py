"""Lets go of what is old and settled: `messages`, `changes` and `deliveries` of the partitions that this worker owns.

For: which records may go. Never one that somebody may still need: below the limit of a partition are only messages that
are old enough, settled by every listener of every queue (paused and down ones too), and older than all that is kept in
`outstanding`; a change and an outcome go when they are older than the message at the limit.
Not for: deleting (broker/kafka/requests.py). Only what Kafka holds counts: cursors that are committed, not what a
worker knows, so that one that owns a partition no more can do no harm.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Protocol

from broker.core.changes import CLOCK_SKEW_MS
from broker.delivery.ports import CursorStore, DeliveryLog
from broker.delivery.stream import now_ms
from broker.errors import LogUnavailable, ViewBehind
from broker.ports import EARLIEST, LATEST, DirectoryView

log = logging.getLogger(__name__)

LOOK_S: Final = 600.0


class Kept(Protocol):
    def oldest_put_ms(self, partition: int) -> int | None: ...


class Retention:
    """Of one worker. partitions: its own, as they are at each moment, another object after each take-over.

    retain_s: the age; None keeps all for ever. assure: see Ownership.
    """

    def __init__(
        self,
        event_log: DeliveryLog,
        cursors: CursorStore,
        view: DirectoryView,
        outstanding: Kept,
        partitions: Mapping[int, object],
        retain_s: int | None,
        assure: Callable[[], Awaitable[None]],
    ) -> None:
        self._assure = assure
        self._requests = event_log.requests
        self._messages = event_log.messages.name
        self._others = (event_log.changes.name, event_log.deliveries.name)
        self._cursors = cursors
        self._view = view
        self._outstanding = outstanding
        self._partitions = partitions
        self._retain_s = retain_s

    async def run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            if self._retain_s is not None:
                try:
                    await self.sweep(now_ms() - self._retain_s * 1000)
                except (LogUnavailable, ViewBehind) as error:
                    log.warning("retention.waits error=%s", error)

    async def sweep(self, before_ms: int) -> None:
        """Delete what was put before a time and is settled (LogUnavailable, ViewBehind)."""
        owned = dict(self._partitions)
        partitions = await self._with_old(list(owned), before_ms)
        if not partitions:
            return
        await self._view.caught_up()
        if not self._view.complete:  # there may be listeners that it does not know
            return
        listeners = list(self._view.state.listeners.values())
        cursors = await self._cursors.load([listener.id for listener in listeners], partitions)
        ends = await self._requests.offsets(self._messages, dict.fromkeys(partitions, LATEST))
        for partition in partitions:
            await self._assure()  # else others keep what we do not know of
            if self._partitions.get(partition) is not owned[partition]:
                continue  # given up meanwhile: what is kept there is not known any more, or newer than the cursors
            stands = (listener.stands_at(cursors.get(listener.id, {}), partition) for listener in listeners)
            low = min((cursor.offset for cursor in stands), default=ends[partition])
            # After the cursors: what has left a window since they were committed is still above them.
            oldest_ms = self._outstanding.oldest_put_ms(partition)
            kept_ms = (before_ms if oldest_ms is None else oldest_ms) - CLOCK_SKEW_MS
            await self._delete(partition, min(before_ms, kept_ms), min(low, ends[partition]))

    async def _with_old(self, partitions: list[int], before_ms: int) -> list[int]:
        """Those that begin before a time."""
        begins = await self._requests.offsets(self._messages, dict.fromkeys(partitions, EARLIEST))
        firsts = await self._requests.offsets(self._messages, dict.fromkeys(partitions, before_ms))
        ends = await self._requests.offsets(self._messages, dict.fromkeys(partitions, LATEST))
        return [one for one in partitions if begins[one] < (ends[one] if firsts[one] < 0 else firsts[one])]

    async def _delete(self, partition: int, before_ms: int, low: int) -> None:
        """Messages below an offset that were put before a time, and the changes and outcomes of no others."""
        begin = (await self._requests.offsets(self._messages, {partition: EARLIEST}))[partition]
        first = (await self._requests.offsets(self._messages, {partition: before_ms}))[partition]
        limit = low if first < 0 else min(first, low)
        if limit <= begin:
            return
        stretch = await self._requests.read(self._messages, partition, limit, bytes_max=1)
        if stretch.records:
            before_ms = min(before_ms, stretch.records[0].timestamp)
        await self._requests.delete_before(self._messages, partition, limit)
        for topic in self._others:
            found = (await self._requests.offsets(topic, {partition: before_ms - CLOCK_SKEW_MS}))[partition]
            if found > 0:
                await self._requests.delete_before(topic, partition, found)
        log.info("retention.deleted partition=%d messages_before=%d", partition, limit)
