"""The partitions (lanes) that one request for the log reads. Each is read one fetch at a time, and the next fetch
starts early.

For: keeping fetched records until they are needed, and reading again what does not fit into memory. Not for: the order
(broker/core/logorder.py), slots and slices (reader.py).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final, NamedTuple

from broker.audit.pace import Pace
from broker.audit.records import FETCH_BYTES, Records
from broker.core.catalogue import TOPIC_OF, TOPICS
from broker.core.codec import wire_name
from broker.core.events import Event, ListenerRedriven
from broker.core.events import LogDamaged as DamageFound
from broker.core.logorder import Lane, Merge, Run
from broker.core.selection import Selection, Unreadable
from broker.errors import LogDamaged, Unavailable
from broker.ports import EARLIEST, FetchResult, OffsetTooOld

_CONTROL: Final = TOPIC_OF[wire_name(ListenerRedriven)]
_TRIES_MAX: Final = 100
_PAUSE_S: Final = 0.02
# This placeholder stands for an event that is too large to wait in memory. The event is read again when it is needed.
_TOO_LARGE: Final[Event] = Unreadable(at_ms=0, organization_id="", written="")


class LogPartition(NamedTuple):
    """A partition of the log that a request reads. `name` is the name of its topic in Kafka. `rank` is the position of
    this topic in TOPICS.
    """

    rank: int
    name: str
    partition: int

    @property
    def topic(self) -> str:
        return TOPICS[self.rank]


class _Ahead(NamedTuple):
    lane: Lane[Event]
    fetched: asyncio.Task[FetchResult]


class Rests:
    """A cache of fetched records that are not needed yet. All requests of one process that read the log share this
    cache, but each request takes only its own records from it.

    The cache holds at most `bytes_max` bytes. When it is full, it drops the oldest fetches. If a request needs a
    dropped record, it reads the record from Kafka again.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self.bytes = 0
        self._kept: OrderedDict[Lane[Event], FetchResult] = OrderedDict()

    def keep(self, lane: Lane[Event], fetched: FetchResult, index: int) -> None:
        """Put the records of a fetch into the cache, except the first `index` records. The request's next read of this
        partition takes these records from the cache instead of Kafka. If the cache then has more than `bytes_max`
        bytes, drop the oldest fetches.
        """
        records = fetched.records[index:]
        rest = fetched._replace(records=records, size=fetched.size * len(records) // len(fetched.records))
        self._kept[lane] = rest
        self.bytes += rest.size
        while self.bytes > self._bytes_max:
            self.bytes -= self._kept.popitem(last=False)[1].size

    def take(self, lane: Lane[Event]) -> FetchResult | None:
        rest = self._kept.pop(lane, None)
        self.bytes -= 0 if rest is None else rest.size
        return rest

    def __contains__(self, lane: Lane[Event]) -> bool:
        return lane in self._kept


class LaneReader:
    """The reader of the partitions that one request for the log needs. It adds their records to a Merge, which puts the
    records of all partitions into one order. Call stop() when the request has ended.

    At most about `share_bytes` bytes of each partition's records are in the Merge. Fetched records beyond that wait in
    the shared cache `rests`.
    """

    def __init__(
        self,
        records: Records,
        partitions: Sequence[LogPartition],
        wanted: Selection,
        rests: Rests,
        *,
        share_bytes: int,
    ) -> None:
        self._records = records
        self._names = {one.rank: one.name for one in partitions}
        self._wanted = wanted
        self._rests = rests
        self._share_bytes = share_bytes
        self._ahead: _Ahead | None = None
        self._lanes: Sequence[Lane[Event]] = ()

    async def read(self, merge: Merge[Event], lane: Lane[Event], pace: Pace) -> None:
        """Read the next records of a partition from the cache or from Kafka. Add the records that the request needs to
        `merge`, which puts the records of all partitions into one order. If the next records are damaged, add one event
        that says so. If Kafka has deleted the next records, skip them. Raises Unavailable if Kafka does not answer.
        """
        self._lanes = merge.lanes
        try:
            fetched = await self._next(lane)
        except LogDamaged as damage:
            first, last = max(lane.at, damage.first), min(damage.last, lane.end - 1)
            merge.give(lane, [(first, lane.floor_ms, 0, self._told_damaged(lane, first, last))], last + 1)
            return
        # Kafka has deleted the record at the requested offset, or the partition ends before the requested offset.
        except OffsetTooOld:
            name = self._names[lane.rank]
            oldest = (await self._records.offsets(name, {lane.partition: EARLIEST}))[lane.partition]
            if oldest <= lane.at:
                # Kafka did not delete the requested record: it is lost, or a new leader lacks it for a moment.
                raise
            merge.give(lane, (), oldest)
            return
        with pace:
            self._give(merge, lane, fetched)
        soonest = merge.soonest()
        if self._ahead is None and soonest is not None and soonest not in self._rests:
            self._ahead = _Ahead(soonest, asyncio.create_task(self._fetch(soonest, soonest.at)))

    def _told_damaged(self, lane: Lane[Event], first: int, last: int) -> Event:
        """Return an event that stands for an unreadable range of the log. All clients see it, because Everput does not
        know which organizations had records in this range.
        """
        return DamageFound(
            at_ms=lane.floor_ms,
            organization_id="",
            topic=TOPICS[lane.rank],
            partition=lane.partition,
            first_offset=first,
            last_offset=last,
        )

    async def events(self, run: Run[Event]) -> list[Event]:
        """Return the events of the records in `run`, which are all from one partition. If an event was too large to be
        kept in memory, read the event from Kafka again. Raises Unavailable if Kafka does not answer.
        """
        found = [held.item for held in run.records]
        for index, event in enumerate(found):
            if event is _TOO_LARGE:
                fetched = await self._fetch(run.lane, run.records[index].offset, 1)
                again = self._wanted.take(fetched.records[0].value) if fetched.records else None
                if again is None:
                    raise Unavailable(
                        "Kafka no longer returns a record that this request has read. Repeat the request, with the "
                        "newest cursor that you have got, if any."
                    )
                found[index] = again
        return found

    async def stop(self) -> None:
        for lane in self._lanes:
            self._rests.take(lane)
        if self._ahead is not None:
            self._ahead.fetched.cancel()
            await asyncio.gather(self._ahead.fetched, return_exceptions=True)

    async def _next(self, lane: Lane[Event]) -> FetchResult:
        if (rest := self._rests.take(lane)) is not None:
            return rest
        ahead = self._ahead
        if ahead is None or ahead.lane is not lane:
            return await self._fetch(lane, lane.at)
        self._ahead = None
        return await ahead.fetched

    def _give(self, merge: Merge[Event], lane: Lane[Event], fetched: FetchResult) -> None:
        """Add fetched records to `merge`, until they have about `share_bytes` bytes together. Put the remaining records
        into the cache.
        """
        rows: list[tuple[int, int, int, Event | None]] = []
        # Some of the skipped records may lie after the requested range. This does no harm: none of them is wanted.
        if fetched.left_out_ms is not None:
            rows.append((lane.at, fetched.left_out_ms, 0, None))
        left, at, end, take = self._share_bytes, fetched.next_offset, lane.end, self._wanted.take
        for index, record in enumerate(fetched.records):
            offset, value = record.offset, record.value
            if offset >= end:  # the request ends before this offset
                at = end
                break
            if left <= 0:
                at = offset
                self._rests.keep(lane, fetched, index)
                break
            event = take(value)
            size = 0
            if event is not None and value is not None:
                size = len(value)
                event = event if size <= self._share_bytes else _TOO_LARGE
                left -= size
            rows.append((offset, record.timestamp, size, event))
        merge.give(lane, rows, at)

    async def _fetch(self, lane: Lane[Event], offset: int, bytes_max: int = FETCH_BYTES) -> FetchResult:
        """Fetch records from an offset that exists in Kafka. Raises Unavailable if Kafka returns no records."""
        worth = None if TOPICS[lane.rank] == _CONTROL else self._wanted.may_be_in
        name = self._names[lane.rank]
        for _ in range(_TRIES_MAX):
            fetched = await self._records.read(name, lane.partition, offset, bytes_max=bytes_max, worth=worth)
            if fetched.next_offset > offset:
                return fetched
            await asyncio.sleep(_PAUSE_S)
        raise Unavailable(
            f"Kafka returned no records of {name}/{lane.partition} from offset {offset} on, although the partition "
            "should have records there. The client may repeat its request; if this continues, check Kafka's brokers.",
            public="Kafka does not return records that it should have. Try again.",
        )
