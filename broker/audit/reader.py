"""Reads the log in its order: a slice at a time, in bounded memory, and without holding up the process's other work.

For: the shell around broker/core/logorder.py: offsets, stretches, turns among readings, waiting until a moment is
safely past. Not for: which events (broker/core/selection.py), how they are answered (api/log.py).
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Final, NamedTuple

from broker.audit.control import control_records
from broker.audit.past import Past
from broker.audit.records import STRETCH_BYTES, Busy, Records
from broker.commands import now_ms
from broker.core.catalogue import TOPICS
from broker.core.events import Event, ListenerCreated, ReplayStarted, wire_name
from broker.core.logorder import Cursor, Lane, Merge, Next
from broker.core.selection import Selection
from broker.errors import Refused, Unavailable
from broker.kafka.requests import EARLIEST, LATEST, Stretch
from broker.kafka.topics import Topics

# An append is acknowledged within this, or Kafka is in trouble; and the processes' clocks differ by less.
SETTLE_MS: Final = 2_000
_OPEN_MAX: Final = 32  # readings under way in this process; one that follows the log is nearly always under way
_OPEN_EACH_MAX: Final = 8  # of one organization
_HELD_BYTES_MAX: Final = 4 << 20  # by one reading
_SHARE_BYTES_MIN: Final = 32 << 10  # by one lane
_SLICE_EVENTS: Final = 256
_SLICE_READS: Final = 16
_SLICE_BYTES: Final = 256 << 10
_TRIES_MAX: Final = 100
_PAUSE_S: Final = 0.02


class WrongCursor(Refused):
    """The cursor is of another reading: of another installation, or with other filters."""

    code = "wrong-cursor"


class Entry(NamedTuple):
    """An event and its place. log_ms: its log time."""

    log_ms: int
    topic: str
    partition: int
    offset: int
    event: Event


class Slice(NamedTuple):
    """The next events, and the cursor after them. complete: nothing is left in the range that was asked for."""

    entries: Sequence[Entry]
    cursor: Cursor
    complete: bool


class _Item(NamedTuple):
    """event: None when it was too large to be held, and must be read again."""

    event: Event | None
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """[begin_ms, end_ms) of log time. end_ms: None for now. cursor: begin there instead. limit: events."""

    begin_ms: int | None = None
    end_ms: int | None = None
    cursor: Cursor | None = None
    limit: int | None = None


class LogReader:
    """Of one process. past: the directory as it was."""

    def __init__(self, records: Records, table: Topics) -> None:
        self.past = Past(records, table)
        self._records = records
        self._table = dict(zip(TOPICS, (table.control, table.messages, table.changes, table.deliveries), strict=True))
        self._working = asyncio.Semaphore(1)  # one slice at a time: the readings together get a part of the loop
        self._open: Counter[str] = Counter()

    async def read(self, wanted: Selection, span: Range) -> AsyncGenerator[Slice, None]:
        """The events in the order of the log (Busy, WrongCursor, LogUnavailable). The last slice is complete.

        Without an end it is all that was acknowledged before the call, which takes SETTLE_MS longer than reading it.
        But a message's story is told at once: the order of its last moments may be another the next time.
        """
        with self._counted(wanted.organization_id):
            reading = _Reading(self._records, self._lanes(wanted), wanted)
            async with aclosing(reading.run(span, self._working)) as slices:
                async for one in slices:
                    yield one

    async def listeners_of(self, organization_id: str, queue_id: str) -> frozenset[str]:
        """All listeners that a queue ever had, and their replays, from `control` (LogUnavailable)."""
        name = self._table["control"].name
        end = (await self._records.offsets(name, {0: LATEST}))[0]
        kinds = frozenset({wire_name(ListenerCreated), wire_name(ReplayStarted)})
        created = Selection(organization_id=organization_id, types=kinds)
        found: set[str] = set()
        async for records in control_records(self._records, name, end):
            for record in records:
                event = created.take(record.value)
                if isinstance(event, ListenerCreated) and event.queue_id == queue_id:
                    found.add(event.listener_id)
                elif isinstance(event, ReplayStarted) and event.listener_id in found:
                    found.add(event.replay_id)
        return frozenset(found)

    def _lanes(self, wanted: Selection) -> list[tuple[int, str, int]]:
        """(rank, topic in Kafka, partition) of what must be read."""
        lanes = []
        for topic in wanted.topics():
            of = self._table[topic]
            here = range(of.partitions)
            if wanted.message is not None and topic != "control":
                here = range(wanted.message.partition, wanted.message.partition + 1)
            lanes += [(TOPICS.index(topic), of.name, partition) for partition in here]
        return lanes

    @contextmanager
    def _counted(self, organization_id: str) -> Iterator[None]:
        if self._open.total() >= _OPEN_MAX or self._open[organization_id] >= _OPEN_EACH_MAX:
            raise Busy("Too many are reading the log at this moment.")
        self._open[organization_id] += 1
        try:
            yield
        finally:
            self._open[organization_id] -= 1
            self._open += Counter()  # forget who reads nothing


class _Reading:
    """One range, once."""

    def __init__(self, records: Records, lanes: Sequence[tuple[int, str, int]], wanted: Selection) -> None:
        self._records = records
        self._lanes = lanes
        self._names = {rank: name for rank, name, _ in lanes}
        self._wanted = wanted
        self._share = max(_SHARE_BYTES_MIN, _HELD_BYTES_MAX // max(1, len(lanes)))
        self._merge: Merge[_Item] = Merge([])
        self._left: int | None = None
        self._settle_ms = SETTLE_MS if wanted.message is None else 0

    async def run(self, span: Range, working: asyncio.Semaphore) -> AsyncGenerator[Slice, None]:
        arrived_ms = now_ms()
        end_ms = arrived_ms + 1 if span.end_ms is None else min(span.end_ms, arrived_ms + 1)
        self._left = span.limit
        await self._begin(span)
        safe_ms = min(end_ms, arrived_ms + 1 - self._settle_ms)
        while True:
            async with working:
                entries, more = await self._slice(safe_ms)
            complete = not more and safe_ms >= end_ms
            if entries or more or complete:
                yield Slice(entries, self._merge.cursor(), complete)
            if complete or self._left == 0:
                return
            if not more:  # what is left is too young to be sure of: wait, and see what has come meanwhile
                await asyncio.sleep(max(0, end_ms + self._settle_ms - now_ms()) / 1000)
                safe_ms = end_ms
                self._merge.extend(await self._offsets(LATEST))

    async def _begin(self, span: Range) -> None:
        ends = await self._offsets(LATEST)
        first = await self._offsets(EARLIEST)
        cursor = span.cursor
        if cursor is not None:
            if len(cursor.lanes) != len(self._lanes):
                raise WrongCursor("The cursor was given for another reading.")
            places = list(cursor.lanes)
        elif span.begin_ms is None:
            places = [(at, 0) for at in first]
        else:
            found = await self._offsets(span.begin_ms)
            places = [(end if at < 0 else at, 0) for at, end in zip(found, ends, strict=True)]
        if any(at > end for (at, _), end in zip(places, ends, strict=True)):
            raise WrongCursor("The cursor is beyond the end of the log.")
        lanes: list[Lane[_Item]] = [
            Lane(rank, partition, max(at, oldest), end, floor_ms)
            for (rank, _, partition), (at, floor_ms), oldest, end in zip(self._lanes, places, first, ends, strict=True)
        ]
        self._merge = Merge(lanes, passed_ms=0 if cursor is None else cursor.passed_ms)

    async def _offsets(self, moment: int) -> list[int]:
        """By lane; a moment may be LATEST or EARLIEST."""
        found: dict[tuple[str, int], int] = {}
        for topic in dict.fromkeys(name for _, name, _ in self._lanes):
            wanted = {partition: moment for _, name, partition in self._lanes if name == topic}
            for partition, offset in (await self._records.offsets(topic, wanted)).items():
                found[topic, partition] = offset
        return [found[name, partition] for _, name, partition in self._lanes]

    async def _slice(self, before_ms: int) -> tuple[list[Entry], bool]:
        """The next entries, and whether there may be more before this log time."""
        entries: list[Entry] = []
        reads = size = 0
        busy_s = 0.0
        more = True
        while len(entries) < _SLICE_EVENTS and reads < _SLICE_READS and size < _SLICE_BYTES and self._left != 0:
            began_s = time.perf_counter()
            found = self._merge.next(before_ms)
            busy_s += time.perf_counter() - began_s
            if found is None:
                more = False
                break
            if isinstance(found, Lane):
                reads += 1
                busy_s += await self._read(found)
            else:
                entries.append(await self._entry(found))
                size += found.held.item.size
                self._left = None if self._left is None else self._left - 1
        await asyncio.sleep(busy_s)  # half of the time belongs to others
        return entries, more

    async def _read(self, lane: Lane[_Item]) -> float:
        """Read a stretch of the lane; how long looking through it took, in seconds."""
        stretch = await self._stretch(lane, lane.at, STRETCH_BYTES)
        began_s = time.perf_counter()
        rows: list[tuple[int, int, _Item | None]] = []
        at = stretch.next_offset
        held = 0
        for record in stretch.records:
            if record.offset >= lane.end:  # newer than the reading
                at = lane.end
                break
            if held >= self._share:  # the rest is read again when these are through
                at = record.offset
                break
            event = self._wanted.take(record.value)
            item = None
            if event is not None:
                size = len(record.value or b"")
                item = _Item(event if size <= self._share else None, size)
                held += size if item.event is not None else 0
            rows.append((record.offset, record.timestamp, item))
        self._merge.give(lane, rows, at)
        return time.perf_counter() - began_s

    async def _entry(self, found: Next[_Item]) -> Entry:
        lane, held = found.lane, found.held
        event = held.item.event
        if event is None:
            stretch = await self._stretch(lane, held.offset, 1)
            event = self._wanted.take(stretch.records[0].value)
            if event is None:
                raise Unavailable("Kafka gives another record at a place that was read before.")
        return Entry(held.log_ms, TOPICS[lane.rank], lane.partition, held.offset, event)

    async def _stretch(self, lane: Lane[_Item], offset: int, bytes_max: int) -> Stretch:
        """What is at an offset that is known to be there (Unavailable)."""
        for _ in range(_TRIES_MAX):
            stretch = await self._records.read(self._names[lane.rank], lane.partition, offset, bytes_max=bytes_max)
            if stretch.next_offset > offset:
                return stretch
            await asyncio.sleep(_PAUSE_S)
        raise Unavailable("Kafka does not give what it said it has.")
