"""Reads the log in its order: in slices, with bounded memory, and without delaying other requests of the process.

For: the I/O around broker/core/logorder.py, slots, and waiting until a time is far enough in the past for a final
order. Not for: fetches (lanes.py), which events match (broker/core/selection.py), HTTP answers (api/log.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, NamedTuple

from broker.audit.feed import LogFeed
from broker.audit.lanes import LaneReader, LogPartition, Rests
from broker.audit.listeners import Listeners
from broker.audit.pace import Others, Pace
from broker.audit.past import Past
from broker.audit.records import Records
from broker.clock import now_ms
from broker.core.catalogue import TOPIC_OF, TOPICS
from broker.core.codec import wire_name
from broker.core.events import Event, MessagePut
from broker.core.logorder import Lane, Merge, PageToken
from broker.core.selection import Selection
from broker.core.story import Story
from broker.errors import Busy, NotFound, Refused
from broker.kafka.read_slots import ReadSlots
from broker.kafka.topics import Topics
from broker.ports import EARLIEST, LATEST, DirectoryView
from broker.tenant_slots import TenantSlots
from broker.time_offsets import offsets_since

_SLOT_WAIT_S: Final = 60.0
_SLICE_BYTES: Final = 256 << 10
# When a read of the log has worked for a millisecond, it pauses, so that the event loop can serve requests.
_STEPS_S: Final = 0.001
_MESSAGES: Final = TOPIC_OF[wire_name(MessagePut)]


class WrongCursor(Refused):
    """The cursor does not belong to this request. It is from another installation or from a request with other filters,
    or it lies beyond the end of the log.
    """

    code = "wrong-cursor"


class Entry(NamedTuple):
    """An event of the log with its topic, partition and offset. `log_ms` is the highest record time in the partition up
    to this event. The log is ordered by this time.
    """

    log_ms: int
    topic: str
    partition: int
    offset: int
    event: Event


class Slice(NamedTuple):
    """The next events for a client that reads the log, and a page token. A read with this token continues after these
    events. `complete` is true if the range that the client wants has no further events.
    """

    entries: Sequence[Entry]
    page_token: PageToken
    complete: bool


# A function of the type Hears gets the ids of an organization, a listener and a queue.
# A function of the type Hears returns True if the listener belongs to the queue, or did so before it was deleted.
Hears = Callable[[str, str, str], Awaitable[bool]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """The range of the log that a client reads. It begins at the place that `page_token` marks. Without a page token,
    it begins at the time `begin_ms` (None: at the beginning of the log).

    It ends before the time `end_ms`. If `end_ms` is None or in the future, it ends at the time of the request. The
    client gets at most `limit` events; None means no limit.
    """

    begin_ms: int | None = None
    end_ms: int | None = None
    page_token: PageToken | None = None
    limit: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderTuning:
    """The limits for reading the log in one process.

    The order of events older than `settle_ms` milliseconds is treated as final, because Kafka acknowledges nearly every
    append within this time. `open_max` and `open_each_max` limit the requests that read the log at the same time. A
    request also counts while it waits for the final order, or for a slow client.
    """

    settle_ms: int = 2_000
    open_max: int = 32  # requests at once in this process
    open_each_max: int = 8  # requests at once of one organization
    held_bytes_max: int = 4 << 20  # bytes in memory, per request
    share_bytes_min: int = 32 << 10  # bytes per partition, at least
    rest_bytes_max: int = 16 << 20  # bytes in the cache, all requests
    slice_events: int = 256  # events per slice
    slice_reads: int = 16  # reads per slice


class LogReader:
    """The reader of the log for all clients of one process. It returns events in the order of the log.

    `past` returns earlier states of an organization's queues, listeners and API keys. `others` records when a request
    arrives that does not read the log, so that reads of the log leave time for it. `feed` tells waiting clients which
    queues, listeners or messages have changed.
    """

    def __init__(
        self, records: Records, table: Topics, view: DirectoryView, tuning: ReaderTuning = ReaderTuning()
    ) -> None:
        self._tuning = tuning
        self.others = Others()
        self.past = Past(records, table, self.others, view.state.tenant_of)
        self._records = records
        self._table = dict(zip(TOPICS, (table.control, table.messages, table.changes, table.deliveries), strict=True))
        self.feed = LogFeed(records, self._table, view)
        # This process reads one slice of the log at a time, so that other requests wait less. Tenants take turns.
        self._read_slots = ReadSlots(1, 1, wait_s=_SLOT_WAIT_S)
        self._read_slots.tenant_of = view.state.tenant_of
        self.rests = Rests(tuning.rest_bytes_max)
        self._listeners = Listeners(records, table.control.name, view, self._read_slots, self.others)
        self._slots = TenantSlots(
            tuning.open_max,
            tuning.open_each_max,
            tenant_of=view.state.tenant_of,
            refusal=lambda: Busy("Too many requests read the log at the moment. Try again later."),
        )

    async def read(self, wanted: Selection, span: Range) -> AsyncGenerator[Slice, None]:
        """Yield the matching events in the order of the log, in slices. The last slice is marked as complete, unless
        `limit` ends the read earlier. A slice may have no events, but its page token still marks how far the log was
        searched.

        If the range has no end, it ends with the events that Kafka acknowledged before the call. The order of the
        newest events is final only after `settle_ms` milliseconds. So the complete slice comes at least `settle_ms`
        after the call; for the history of one message, it may come earlier.

        Raises Busy if too many requests read the log, and NotFound if the wanted queue or listener never existed.
        Raises WrongCursor if the page token does not fit this request, and Unavailable if Kafka does not answer.
        """
        with self._slots.slot(wanted.organization_id):
            wanted = await self._named(wanted, span)
            reading = _Reading(
                self._records, self._lanes(wanted), wanted, self._read_slots, self.rests, self.others, self._tuning
            )
            async with aclosing(reading.run(span, self._listeners.hears)) as slices:
                async for one in slices:
                    yield one

    async def _named(self, wanted: Selection, span: Range) -> Selection:
        """Add the listeners of the wanted queue to the filter of a request, and return the filter.

        Raises NotFound if the organization never had the wanted queue or listener. The listener is not checked if the
        request has a page token, or reads the history of one message.
        """
        organization_id, message = wanted.organization_id, wanted.message
        if message is not None and wanted.queue_id == message.queue_id:
            # Do not filter by the message's queue: all events about the message belong to this queue.
            wanted = replace(wanted, queue_id=None)
        if wanted.queue_id is not None:
            found = await self._listeners.of_queue(organization_id, wanted.queue_id)
            if found is None:
                raise NotFound("No queue of this organization has, or had, this ID. Check the ID.")
            wanted = replace(wanted, queue_listener_ids=found)
        if wanted.listener_id is None or message is not None or span.page_token is not None:
            # If the request has a page token, do not check the listener: an earlier request has already done so.
            # For one message's history, do not check the listener: this might need a read of the whole topic `control`.
            return wanted
        if not await self._listeners.was(organization_id, wanted.listener_id):
            raise NotFound("No listener or replay of this organization has, or had, this ID. Check the ID.")
        return wanted

    def _lanes(self, wanted: Selection) -> list[LogPartition]:
        """Return the partitions that can hold events for this filter. Only these partitions are read."""
        lanes = []
        for topic in wanted.topics():
            of = self._table[topic]
            here = range(of.partitions)
            if wanted.message is not None and topic != "control":
                here = range(wanted.message.partition, wanted.message.partition + 1)
            lanes += [LogPartition(TOPICS.index(topic), of.name, partition) for partition in here]
        return lanes


class _Reading:
    """The read of a range of the log, such as the events of one day, for one API request."""

    def __init__(
        self,
        records: Records,
        partitions: Sequence[LogPartition],
        wanted: Selection,
        read_slots: ReadSlots,
        rests: Rests,
        others: Others,
        tuning: ReaderTuning,
    ) -> None:
        self._tuning = tuning
        self._records = records
        self._partitions = partitions
        self._wanted = wanted
        self._read_slots = read_slots
        self._others = others
        self._merge: Merge[Event] = Merge([])
        share = max(tuning.share_bytes_min, tuning.held_bytes_max // max(1, len(partitions)))
        self._lanes = LaneReader(records, partitions, wanted, rests, share_bytes=share)
        self._left: int | None = None
        self._story: Story | None = None
        self._settle_ms = tuning.settle_ms if wanted.message is None else 0

    async def run(self, span: Range, hears: Hears) -> AsyncGenerator[Slice, None]:
        arrived_ms = now_ms()
        end_ms = arrived_ms + 1 if span.end_ms is None else min(span.end_ms, arrived_ms + 1)
        self._left = span.limit
        if self._wanted.message is not None:
            self._story = Story(whole=span.page_token is None and (span.begin_ms or 0) <= self._wanted.message.at_ms)
        await self._begin(span)
        safe_ms = min(end_ms, arrived_ms + 1 - self._settle_ms)
        try:
            while True:
                async with self._read_slots.slot(self._wanted.organization_id):
                    entries, more = await self._slice(safe_ms)
                if self._story is not None:
                    entries = await self._told(self._story, entries, hears)
                self._left = None if self._left is None else self._left - len(entries)
                complete = not more and safe_ms >= end_ms
                if entries or more or complete:
                    yield Slice(entries, self._merge.page_token(), complete)
                if complete or self._left == 0:
                    return
                # When all older records are read, wait until the order of the newest records is final. Then read on.
                if not more:
                    await asyncio.sleep(max(0, end_ms + self._settle_ms - now_ms()) / 1000)
                    safe_ms = end_ms
                    self._merge.extend(await self._ends())
        finally:
            await self._lanes.stop()

    async def _begin(self, span: Range) -> None:
        first = await self._offsets(EARLIEST)
        ends = await self._ends()
        page_token = span.page_token
        if page_token is not None:
            if not page_token.is_of((one.rank, one.partition) for one in self._partitions):
                raise WrongCursor(
                    "The cursor is from a request with other filters, or from another Everput installation. "
                    "Repeat the request without a cursor."
                )
            if any(at > end for (at, _), end in zip(page_token.lanes, await self._offsets(LATEST), strict=True)):
                raise WrongCursor("The cursor is beyond the end of the log. Repeat the request without a cursor.")
            starts = list(page_token.lanes)
        else:
            starts = [(at, 0) for at in await self._starts(span.begin_ms, first, ends)]
        lanes: list[Lane[Event]] = [
            Lane(one.rank, one.partition, max(at, oldest), end, floor_ms)
            for one, (at, floor_ms), oldest, end in zip(self._partitions, starts, first, ends, strict=True)
        ]
        self._merge = Merge(lanes, passed_ms=0 if page_token is None else page_token.passed_ms)

    async def _starts(self, begin_ms: int | None, first: Sequence[int], ends: Sequence[int]) -> Sequence[int]:
        """Return, for each partition, the offset at which the read begins. `begin_ms` is the time at which the wanted
        range begins; None means the partitions' first offsets, which are in `first`. `ends` has the offsets before
        which the read ends.
        """
        if begin_ms is None:
            return first
        found = await self._offsets(begin_ms, confirmed=True)
        starts = [min(at, end) for at, end in zip(found, ends, strict=True)]
        message = self._wanted.message
        if message is not None:
            # For one message's history, read `messages` from its first record of the message's time or later.
            # If the read began at the message itself, the message's log time could be wrong.
            # If Kafka's time index is damaged, the message's events may come in a wrong order, but none is left out.
            near = await self._offsets(message.at_ms)
            for number, one in enumerate(self._partitions):
                if one.topic == _MESSAGES and 0 <= near[number] <= message.offset:
                    starts[number] = max(starts[number], near[number])
        return starts

    async def _ends(self) -> list[int]:
        """Return, for each partition, the offset before which the read ends: the partition's end offset. For one
        message's history, the read of `messages` ends right after this message.
        """
        message = self._wanted.message
        return [
            end if message is None or one.topic != _MESSAGES else min(end, message.offset + 1)
            for one, end in zip(self._partitions, await self._offsets(LATEST), strict=True)
        ]

    async def _offsets(self, at_ms: int, *, confirmed: bool = False) -> list[int]:
        """Return, for each partition, the offset of the first record whose time is `at_ms` or later. For a partition
        without such a record, return -1, or with `confirmed` its end offset.

        If `at_ms` is EARLIEST, return the partition's first offset; if it is LATEST, its end offset. With `confirmed`,
        the times of records are checked, because Kafka's time index may be damaged. If it is damaged, the offset may be
        earlier than necessary, but no record is missed.
        """
        found: dict[tuple[str, int], int] = {}
        for topic in dict.fromkeys(one.name for one in self._partitions):
            wanted = {one.partition: at_ms for one in self._partitions if one.name == topic}
            ask = partial(offsets_since, self._records) if confirmed else self._records.offsets
            for partition, offset in (await ask(topic, wanted)).items():
                found[topic, partition] = offset
        return [found[one.name, one.partition] for one in self._partitions]

    async def _slice(self, before_ms: int) -> tuple[list[Entry], bool]:
        """Return the next events of the log, and whether there may be more events before the time `before_ms`."""
        entries: list[Entry] = []
        pace = Pace(self._others)
        reads = size = 0
        more = True
        while more and reads < self._tuning.slice_reads and size < _SLICE_BYTES:
            most = self._tuning.slice_events if self._left is None else min(self._tuning.slice_events, self._left)
            if len(entries) >= most:
                break
            with pace:
                found = self._merge.next(before_ms, most=most - len(entries), bytes_max=_SLICE_BYTES - size)
            if found is None:
                more = False
            elif isinstance(found, Lane):
                reads += 1
                await self._lanes.read(self._merge, found, pace)
            else:
                topic, partition = TOPICS[found.lane.rank], found.lane.partition
                events = await self._lanes.events(found)
                with pace:
                    entries += [
                        Entry(held.log_ms, topic, partition, held.offset, event)
                        for held, event in zip(found.records, events, strict=True)
                    ]
                size += found.size
            await pace.give_way(after_s=_STEPS_S)
        await pace.give_way()
        return entries, more

    async def _told(self, story: Story, entries: Sequence[Entry], hears: Hears) -> list[Entry]:
        """Return the entries of a slice that belong to the message's history."""
        told = set()
        # A worker stores the result of an attempt up to some seconds later. A redrive can come before it in the log.
        for place in sorted(range(len(entries)), key=lambda place: entries[place].event.at_ms):
            event = entries[place].event
            if story.tells(event):
                message, doubted = self._wanted.message, story.doubted(event)
                if doubted is None or message is None or await hears(event.organization_id, doubted, message.queue_id):
                    told.add(place)
        return [entry for place, entry in enumerate(entries) if place in told]
