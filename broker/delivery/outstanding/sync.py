"""The index kept in step with the topic `outstanding`: filled at a take-over, and compared with the topic since then.

For: reading a partition's records into the index, which appends are under way or in doubt, and the fingerprint by which
the partition's next owner notices that records are missing. Not for: the records (records.py), writing them
(schedule.py, broker/kafka/appender.py), rebuilding them (rebuild.py).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, MutableMapping
from typing import Final

from broker.core.outstanding_sum import parse_sum
from broker.delivery.dispatch.stream import now_ms
from broker.delivery.outstanding.due import Due
from broker.delivery.outstanding.entry import Key, OutstandingEntry, ids_in
from broker.delivery.outstanding.index import OutstandingIndex
from broker.delivery.outstanding.rebuild import Streams
from broker.delivery.outstanding.records import OutstandingRecords
from broker.delivery.ports import Appender, KeyAndValue, LogReader
from broker.delivery.tuning import Tuning
from broker.errors import LogUnavailable
from broker.ports import LATEST

_UNKNOWN: Final = -1  # no count of changes


class WatchedAppender:
    """An appender to one topic that remembers, for each partition, its appends and whether they have succeeded."""

    def __init__(self, topic: Appender) -> None:
        self._topic = topic
        # By partition: a counter that grows by 1 when an append begins, and by 1 when the append ends.
        self.changes: defaultdict[int, int] = defaultdict(int)
        # The number of records that Kafka has acknowledged, by partition.
        self.records: defaultdict[int, int] = defaultdict(int)
        self._under_way: defaultdict[int, int] = defaultdict(int)
        # The keys of records about which Kafka and the index may disagree, by partition.
        self._in_doubt: defaultdict[int, set[bytes]] = defaultdict(set)

    @property
    def name(self) -> str:
        return self._topic.name

    def settled(self, partition: int) -> bool:
        """Return whether all appends to this partition have ended, and have a known result."""
        return not self._under_way[partition] and not self._in_doubt[partition]

    def doubt(self, partition: int, key: bytes) -> None:
        """Remember that the index may lack a record with this key. When a later record with the same key is written,
        this is forgotten.
        """
        self._in_doubt[partition].add(key)

    async def append(self, outcomes: MutableMapping[int, list[KeyAndValue]]) -> None:
        keys = {partition: [key for key, _ in records] for partition, records in outcomes.items()}
        self._begin(*keys)
        try:
            await self._topic.append(outcomes)
        finally:
            for partition, some in keys.items():
                self._end(partition, some, written=partition not in outcomes)

    async def append_one(self, partition: int, key: bytes, value: bytes) -> int:
        self._begin(partition)
        written = False
        try:
            offset = await self._topic.append_one(partition, key, value)
            written = True
        finally:
            self._end(partition, [key], written=written)
        return offset

    def _begin(self, *partitions: int) -> None:
        for partition in partitions:
            self.changes[partition] += 1
            self._under_way[partition] += 1

    def _end(self, partition: int, keys: list[bytes], *, written: bool) -> None:
        self.changes[partition] += 1
        self._under_way[partition] -= 1
        if written:
            self.records[partition] += len(keys)
            self._in_doubt[partition].difference_update(keys)
        else:
            self._in_doubt[partition].update(keys)


class IndexSync:
    """The part of a worker that fills the SQLite index from the topic `outstanding`, and checks that both agree."""

    def __init__(
        self,
        index: OutstandingIndex,
        records: OutstandingRecords,
        written: WatchedAppender,
        requests: LogReader,
        due: Due,
        tuning: Tuning,
    ) -> None:
        self._index = index
        self._records = records
        self._written = written
        self._requests = requests
        self._due = due
        self._tuning = tuning
        self._reading: dict[int, object] = {}  # the latest read() of each partition
        # For each partition of `outstanding`, an offset up to which the index has all records, and a count of records.
        # The count in `_known` says how many records this worker had written to the partition when it noted the offset.
        self._known: dict[int, tuple[int, int]] = {}
        # By partition of `outstanding`: the value of `_written.changes` at the newest fingerprint, and the fingerprint.
        # If `_written.changes` has grown since the newest fingerprint, the partition needs a new fingerprint.
        self._noted: dict[int, tuple[int, str]] = {}

    async def read(self, partition: int, streams: Callable[[], Streams], noted: str) -> Collection[bytes]:
        """Read a partition's deliveries from the topic `outstanding` into the SQLite index.

        Return the keys of the empty records with which `everput serve` has replaced records that Kafka lost. Raises
        LogUnavailable if Kafka does not answer. A later read() of the partition, or close(), stops this read, which
        then returns nothing.
        """
        reading = self._reading[partition] = object()

        def current() -> bool:
            return self._reading.get(partition) is reading

        while current() and (
            before := self._index.of_partition(partition, limit=self._tuning.rows_at_once)
        ):  # If an earlier try of the take-over has failed, remove the rows that it left in the index.
            for entry in before:
                self._index.remove(entry)
            await asyncio.sleep(0)
        async for rows in self._records.all_of(
            partition,
            at_once=self._tuning.rows_at_once,
            streams=streams,
            noted=parse_sum(noted),
            found=lambda: self._index.sums[partition] if current() else None,  # a closed index is empty
        ):
            if not current():
                return ()
            self._found(partition, rows)
            await asyncio.sleep(0)
        if not current():
            return ()
        self._noted[partition] = _UNKNOWN, noted
        self._known[partition] = self._records.ends[partition], self._written.records[partition]
        return self._records.fillers.pop(partition, set())

    def _found(self, partition: int, rows: Mapping[Key, OutstandingEntry | None]) -> None:
        for entry in rows.values():
            if (
                entry is not None
                and entry.key_queue is not None
                and not self._index.begins_before(entry.key_queue, entry.message_offset)
            ):
                entry.queued_ms = entry.due_ms  # First delivery of its ordering key: queue it for its due time.
        for before in self._index.write(partition, rows, now_ms()):
            if before.key_queue is not None and before.queued_ms is not None:
                self._due.advance(before.key_queue, foreseen=True)

    def close(self) -> None:
        """Make each read() that has not ended yet stop at its next step."""
        self._reading.clear()

    def notes(self) -> dict[int, str]:
        """Return, by partition, the newest known fingerprint of its deliveries in the topic `outstanding`, as text."""
        return {partition: text for partition, (_, text) in self._noted.items()}

    async def note(self, partitions: Iterable[int]) -> None:
        """Update the fingerprint of each partition: the number of its stored deliveries, and a hash of their keys. A
        partition keeps its former fingerprint while it is uncertain which records are stored, if Kafka does not answer,
        or if the index and Kafka disagree.
        """
        changes = {one: self._written.changes[one] for one in partitions}
        quiet = [
            partition
            for partition, count in changes.items()
            if self._written.settled(partition) and self._noted.get(partition, (_UNKNOWN,))[0] != count
        ]
        found = {one: self._index.sums[one].until(0) for one in quiet}
        if not found:
            return
        with contextlib.suppress(LogUnavailable):
            ends = await self._requests.offsets(self._written.name, dict.fromkeys(found, LATEST))
            for partition, end in ends.items():
                known = await self._knows(partition, end)
                if known and self._written.changes[partition] == changes[partition]:
                    self._noted[partition] = changes[partition], found[partition]._replace(end=end).text()

    async def _knows(self, partition: int, end: int) -> bool:
        """Return whether the index agrees with the records in Kafka before this offset.

        Kafka can have more records than this worker has written: an append may have been sent twice, or the partition's
        former owner may have sent one late. In this case, compare the index with these records.
        """
        begin, before = self._known.get(partition, (0, 0))
        last: dict[bytes, bool] = {}
        if begin + self._written.records[partition] - before != end:
            async for record in self._requests.walk(self._written.name, partition, begin, end):
                last[record.key or b""] = record.value is not None
        for key, is_there in last.items():
            if (self._index.find(partition, *ids_in(key)) is not None) is not is_there:
                return False
        self._known[partition] = end, self._written.records[partition]
        return True
