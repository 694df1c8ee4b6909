"""The counting of a process's partitions into the topic `statistics`.

For: reading partitions (lanes) in batches, writing their counts, and finding the position after a restart. Not for:
what is counted and which counting events are valid (broker/core/statistics.py), assigning lanes to processes
(projections/statistics.py), reading the counts (statistics.py).

After a restart, each lane continues where its last valid counting event ends. A process that counts a lane which
another process has counted meanwhile drops its own counts and continues from there.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import Counter
from collections.abc import Collection
from typing import Final, NamedTuple

from broker.clock import now_ms
from broker.core.codec import decode, encode
from broker.core.statistics import KEPT_MS, MINUTE_MS, Coverage, Lane, Position, Totals
from broker.errors import LogDamaged, UnknownEvent
from broker.kafka.appender import Appender
from broker.kafka.requests import KafkaRequests
from broker.kafka.statistics import counting_event, read_on
from broker.kafka.topics import by_name, topics
from broker.ports import EARLIEST, LATEST, OffsetTooOld, Record
from broker.settings import KafkaSettings
from broker.time_offsets import offsets_since

log = logging.getLogger(__name__)

SOURCES: Final = ("messages", "deliveries")
ROWS_MAX: Final = 2_000  # rows before a write to Kafka
# Usually, the counts of a minute are written at least 5 s after its end, because some records arrive late.
_WAIT_S: Final = 5.0
_READ_BYTES: Final = 1 << 20
# Every 60 s, read all records again that were read but not counted yet, because Faust may have lost some of them.
_ON_THE_WAY_S: Final = 60.0
_LANES_AT_ONCE: Final = 4
# To find where counting must continue in each partition, read the last 1,000 records of `statistics`.
# If 1,000 records do not have the position of every partition, read the last 2,000, then 4,000, and so on.
_LOOK_BACK: Final = 1_000


class UncountedBatch(NamedTuple):
    """Records of one partition that were read and must be counted. Their offsets begin at `begin` and end before `end`.
    If `unreadable` is true, the whole range is damaged, and `records` is empty.

    `assignment` says how often forget_reads() had been called when the records were read. After another call, the
    records are read again, so this batch is not counted.
    """

    lane: Lane
    begin: int
    end: int
    records: list[Record]
    unreadable: bool
    assignment: int


class _Follower:
    """A reader of the topic `statistics`. It knows which events of this topic are valid, so that no record is counted
    twice.
    """

    def __init__(self, requests: KafkaRequests, topic: str, begin: int) -> None:
        self._requests = requests
        self._topic = topic
        self.next = begin
        self.coverage = Coverage()

    async def follow(self) -> None:
        """Read the topic `statistics` up to its end, and remember which events are valid. Raises LogUnavailable if
        Kafka does not answer.
        """
        while True:
            records, end = await read_on(self._requests, self._topic, 0, self.next)
            for record in records:
                event = counting_event(record)
                if event is not None:
                    self.coverage.accept(record.offset, event)
            if end <= self.next:
                return
            self.next = end


class Counting:
    """The counting of puts and deliveries in the partitions that this process owns. It writes the counts to Kafka.

    Call assign() first. Then, in a loop, call write_if_due() and read(), and give each batch that read() returns to
    fold().
    """

    def __init__(self, kafka: KafkaSettings, requests: KafkaRequests, writer: Appender) -> None:
        table = topics(kafka)
        self._names = {source: by_name(table)[source].name for source in SOURCES}
        self._requests = requests
        self._writer = writer
        self._follower: _Follower | None = None
        self._totals = Totals()
        self._fetched: dict[Lane, int] = {}
        self._ends: dict[Lane, int] = {}  # by partition: the newest known end offset in Kafka
        self._assignment = 0
        self._looked_s = 0.0
        self._first_folded_s = 0.0
        self._written_minute = 0
        self._writing = asyncio.Lock()
        self.lanes: frozenset[Lane] = frozenset()

    @property
    def positions(self) -> dict[Lane, Position]:
        """Position up to which each partition is counted."""
        return dict(self._totals.positions)

    async def assign(self, lanes: Collection[Lane]) -> None:
        """Count the records of these partitions from now on. Drop all counts in memory that were not written to Kafka.
        Raises LogUnavailable if Kafka does not answer.
        """
        self.lanes = frozenset()
        self._restart({})
        follower = await self._found(lanes)
        missing = [lane for lane in lanes if lane not in follower.coverage.positions]
        begins = await self._begins(missing)
        self._follower, self.lanes = follower, frozenset(lanes)
        self._restart({lane: follower.coverage.positions.get(lane) or begins[lane] for lane in lanes})

    def forget_reads(self) -> None:
        """Let read() read all records again that were read but not counted yet. For example, Faust may have dropped
        them in a rebalance.
        """
        self._assignment += 1
        self._looked_s = time.monotonic()
        self._fetched = {lane: at.offset for lane, at in self._totals.positions.items()}

    def _restart(self, positions: dict[Lane, Position]) -> None:
        self._totals = Totals(positions)
        self.forget_reads()

    def _overtaken(self) -> None:
        """Drop the counts in memory that are not written to Kafka, and count their records again if their counts are
        not in Kafka.

        Call this if another process has counted some of the same records, or if an error may have made some counts
        wrong.
        """
        counted = {} if self._follower is None else self._follower.coverage.positions
        begins = self._totals.begins
        self._restart({lane: counted.get(lane, begins.get(lane, Position(0))) for lane in self.lanes})

    async def _found(self, lanes: Collection[Lane]) -> _Follower:
        """Return a reader of the topic `statistics`. The reader knows the offset up to which each of these partitions
        is counted, except for partitions that were never counted.
        """
        topic = self._writer.name
        first = (await self._requests.offsets(topic, {0: EARLIEST}))[0]
        end = (await self._requests.offsets(topic, {0: LATEST}))[0]
        back = _LOOK_BACK
        while True:
            begin = max(first, end - back)
            follower = _Follower(self._requests, topic, begin)
            await follower.follow()
            if begin == first or set(lanes) <= follower.coverage.positions.keys():
                return follower
            back *= 2

    async def _begins(self, lanes: Collection[Lane]) -> dict[Lane, Position]:
        """Return, for each of these partitions, the offset at which counting begins: that of the oldest record that
        statistics can still show. Call this only for partitions that were never counted before.
        """
        found: dict[Lane, Position] = {}
        for source in SOURCES:
            numbers = [lane.partition for lane in lanes if lane.topic == source]
            if not numbers:
                continue
            oldest_ms = dict.fromkeys(numbers, now_ms() - KEPT_MS)
            since = await offsets_since(self._requests, self._names[source], oldest_ms)
            found |= {Lane(source, number): Position(offset) for number, offset in since.items()}
        return found

    async def read(self) -> list[UncountedBatch]:
        """Read one batch from each partition that has new records, but from no more than four partitions in one call.
        Skip partitions whose last batch is not counted yet.

        Raises LogUnavailable if Kafka does not answer.
        """
        if time.monotonic() - self._looked_s > _ON_THE_WAY_S:
            self.forget_reads()
        if not self.behind:
            self._ends = await self._ask_ends()
        ends = self._ends
        folded, assignment, batches = self._totals.positions, self._assignment, list[UncountedBatch]()
        new = (lane for lane, at in self._fetched.items() if at == folded[lane].offset and at < ends.get(lane, 0))
        for lane in list(itertools.islice(new, _LANES_AT_ONCE)):
            batch = await self._batch(lane, self._fetched[lane], assignment)
            if assignment != self._assignment:
                return []
            if batch.end > batch.begin:
                batches.append(batch)
                # Put this partition at the end of the dictionary, so that the next call reads other partitions first.
                del self._fetched[lane]
                self._fetched[lane] = batch.end
            else:
                ends[lane] = batch.begin
        return batches

    @property
    def behind(self) -> bool:
        """Return whether some partitions have records that were not read yet. The end offsets are those of Kafka's
        newest answer.
        """
        return any(at < self._ends.get(lane, 0) for lane, at in self._fetched.items())

    async def _ask_ends(self) -> dict[Lane, int]:
        """Return the offset after the newest record of each partition."""
        ends: dict[Lane, int] = {}
        for source in SOURCES:
            numbers = [lane.partition for lane in self.lanes if lane.topic == source]
            if numbers:
                found = await self._requests.offsets(self._names[source], dict.fromkeys(numbers, LATEST))
                ends |= {Lane(source, number): end for number, end in found.items()}
        return ends

    async def _batch(self, lane: Lane, begin: int, assignment: int) -> UncountedBatch:
        topic = self._names[lane.topic]
        try:
            fetched = await self._requests.read(topic, lane.partition, begin, bytes_max=_READ_BYTES)
        except LogDamaged as damage:
            return UncountedBatch(lane, begin, damage.last + 1, [], unreadable=True, assignment=assignment)
        except OffsetTooOld:
            first = (await self._requests.offsets(topic, {lane.partition: EARLIEST}))[lane.partition]
            return UncountedBatch(lane, begin, max(begin, first), [], unreadable=False, assignment=assignment)
        return UncountedBatch(
            lane, begin, fetched.next_offset, fetched.records, unreadable=False, assignment=assignment
        )

    def fold(self, batch: UncountedBatch) -> None:
        """Count a batch of records. Ignore the batch if it does not begin at the first offset of its partition that is
        not counted yet.

        After an error, drop all counts that were not written to Kafka. Their records are then read and counted again,
        so each record is counted once.
        """
        try:
            self._fold(batch)
        except BaseException:
            self._overtaken()
            raise

    def _fold(self, batch: UncountedBatch) -> None:
        totals, lane = self._totals, batch.lane
        at = totals.positions.get(lane)
        if batch.assignment != self._assignment or at is None or at.offset != batch.begin:
            return
        if not totals.moved:
            self._first_folded_s = time.monotonic()
        if batch.unreadable:
            totals.unreadable(lane, batch.begin, batch.end - 1)
            return
        if lane.topic == "messages":
            put = Counter([(one.timestamp // MINUTE_MS, one.headers[0][1]) for one in batch.records if one.headers])
            for (minute, queue_id), number in put.items():
                totals.put(minute, (queue_id or b"").decode(errors="replace"), number)
            if batch.records:
                totals.passed(lane, batch.records[-1].offset, max([one.timestamp for one in batch.records]))
        else:
            for record in batch.records:
                try:
                    totals.event(decode(record.value or b""))
                except UnknownEvent:  # a newer version wrote this event
                    totals.unreadable(lane, record.offset, record.offset)
                totals.passed(lane, record.offset, record.timestamp)
        totals.skipped(lane, batch.end)

    @property
    def due(self) -> bool:
        """Return whether the counts must be written to Kafka now. Usually, counts are written once a minute, shortly
        after the minute has ended. If many counts are in memory, they are written immediately.
        """
        totals = self._totals
        if not totals.moved:
            return False
        if len(totals) >= ROWS_MAX:
            return True
        waited_s = time.monotonic() - self._first_folded_s
        return waited_s >= _WAIT_S and _minute_now() != self._written_minute

    async def write_if_due(self) -> None:
        """See write()."""
        if self.due:
            await self.write()

    async def write(self) -> bool:
        """Write the counts to Kafka. If another process has already counted some of the same records, drop the counts
        and return False.

        Raises LogUnavailable if Kafka does not answer. Kafka may have stored the counts nevertheless. If it has not,
        the records are counted again.
        """
        async with self._writing:
            return await self._write()

    async def _write(self) -> bool:
        totals, follower = self._totals, self._follower
        if follower is None or not totals.moved:
            return True
        self._totals, assignment = Totals(totals.positions), self._assignment
        try:
            await follower.follow()
            written = follower.coverage.positions
            counted = all(at.offset == written.get(lane, at).offset for lane, at in totals.begins.items())
            if counted:
                value = encode(totals.counted(now_ms(), follower.next))
                await self._writer.append_one(0, b"", value)
                await follower.follow()
                counted = all(at == written.get(lane) for lane, at in totals.positions.items())
        # After an error, it is unknown whether Kafka has stored the counts. So drop the counts in memory.
        # The next write first reads which counts Kafka has stored.
        except BaseException:
            if assignment == self._assignment:
                self._overtaken()
            raise
        if not counted and assignment == self._assignment:
            log.info("statistics.overtaken lanes=%d", len(totals.begins))
            self._overtaken()
        self._written_minute = _minute_now()
        return counted


def _minute_now() -> int:
    """Return the number of the minute (since the epoch) that includes the time 5 s ago (_WAIT_S). So the number changes
    5 s after a minute has ended. By then, the records of this minute have usually arrived.
    """
    return int((now_ms() - _WAIT_S * 1000) // MINUTE_MS)
