"""The index kept in step with the topic `outstanding`: filled at a take-over, and compared with the topic since then.

For: reading a partition's records into the index, which appends are under way or in doubt, and the fingerprint by which
the partition's next owner notices that records are missing. Not for: the records (records.py), writing them
(schedule.py, broker/kafka/appender.py), rebuilding them (rebuild.py).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, MutableMapping
from typing import Final

from broker.clock import now_ms
from broker.core.outstanding_sum import parse_sum
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
    """An appender to one topic. For each partition, it remembers which records are being appended, and the keys of
    records that Kafka may or may not have stored.
    """

    def __init__(self, topic: Appender) -> None:
        self._topic = topic
        # By partition: a counter that grows by one when an append begins, and by one when the append ends.
        self.changes: defaultdict[int, int] = defaultdict(int)
        # By partition: the number of records that Kafka has acknowledged.
        self.records: defaultdict[int, int] = defaultdict(int)
        # By partition: the key of each record that is being appended, and whether the record is a tombstone.
        self._under_way: defaultdict[int, Counter[tuple[bytes, bool]]] = defaultdict(Counter)
        # By partition: keys of deliveries whose newest record in Kafka may differ from their row in the SQLite index.
        # For each key, the value of `changes` when the doubt began.
        self._in_doubt: defaultdict[int, dict[bytes, int]] = defaultdict(dict)

    @property
    def name(self) -> str:
        return self._topic.name

    def settled(self, partition: int) -> bool:
        """Return whether it is certain which records this partition holds: no append is in progress, and no record is
        in doubt.
        """
        return not self._under_way[partition] and not self._in_doubt[partition]

    def doubt(self, partition: int, key: bytes) -> None:
        """Remember that Kafka may have a record with this key that the index does not have. settled() returns False at
        least until an append that begins later has written another record with the key.
        """
        self._in_doubt[partition][key] = self.changes[partition]

    async def append(
        self, outcomes: MutableMapping[int, list[KeyAndValue]], stored: Callable[[int], object] | None = None
    ) -> None:
        """Write records as Appender.append() does. For each partition whose records Kafka has stored, call `stored`,
        even if this call then fails or is cancelled. So the caller can update the index exactly for these partitions.
        """
        records = {partition: list(some) for partition, some in outcomes.items()}
        begun = {partition: self._begin(partition, some) for partition, some in records.items()}
        try:
            await self._topic.append(outcomes)
        finally:
            for partition, some in records.items():
                self._end(partition, some, begun[partition], written=partition not in outcomes)
                if stored is not None and partition not in outcomes:
                    stored(partition)

    async def append_one(self, partition: int, key: bytes, value: bytes) -> int:
        begun, written = self._begin(partition, [(key, value)]), False
        try:
            offset = await self._topic.append_one(partition, key, value)
            written = True
        finally:
            self._end(partition, [(key, value)], begun, written=written)
        return offset

    def _begin(self, partition: int, records: list[KeyAndValue]) -> int:
        self.changes[partition] += 1
        self._under_way[partition].update((key, value is None) for key, value in records)
        return self.changes[partition]

    def _end(self, partition: int, records: list[KeyAndValue], begun: int, *, written: bool) -> None:
        self.changes[partition] += 1
        under_way, in_doubt = self._under_way[partition], self._in_doubt[partition]
        if written:
            self.records[partition] += len(records)
        for key, value in records:
            under_way[key, value is None] -= 1
            if not under_way[key, value is None]:
                del under_way[key, value is None]
            # If a delivery and its tombstone were appended together, it is unknown which of them Kafka stored last.
            if not written or under_way[key, value is not None]:
                in_doubt[key] = self.changes[partition]
            # Keep a doubt that is newer than the beginning of this append: the other record may come after this one.
            elif in_doubt and in_doubt.get(key, begun) < begun:
                del in_doubt[key]


class IndexSync:
    """The part of a worker that fills the SQLite index from the topic `outstanding`, and checks that the index and the
    topic agree.
    """

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
        # By partition: two numbers. The first is an offset: the index has all earlier records of `outstanding`.
        # The second is the number of records that this worker had written to the partition when the first was set.
        self._known: dict[int, tuple[int, int]] = {}
        # By partition: the newest fingerprint of its deliveries, after the value of `_written.changes` at that time.
        # If the counter `_written.changes` has grown since the newest fingerprint, note() makes a new fingerprint.
        self._noted: dict[int, tuple[int, str]] = {}

    async def read(self, partition: int, streams: Callable[[], Streams], noted: str) -> Collection[bytes]:
        """Read a partition's deliveries from the topic `outstanding` into the SQLite index.

        Return the keys of empty records, which `everput serve` has put in the place of records that Kafka lost. Raises
        LogUnavailable if Kafka does not answer. If read() is called again for the partition, or if close() is called,
        this call stops and returns no keys.
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
                entry.queued_ms = entry.due_ms  # Only the first delivery of an ordering key is examined when it is due.
        for before in self._index.write(partition, rows, now_ms()):
            if before.key_queue is not None and before.queued_ms is not None:
                self._due.advance(before.key_queue, foreseen=True)

    def close(self) -> None:
        """Let each read() that is in progress stop before it adds further rows to the index."""
        self._reading.clear()

    def notes(self) -> dict[int, str]:
        """Return, by partition, the newest fingerprint of its deliveries in the topic `outstanding`, as text."""
        return {partition: text for partition, (_, text) in self._noted.items()}

    async def note(self, partitions: Iterable[int]) -> None:
        """Update the fingerprint of each partition: the number of its stored deliveries, and a hash of their keys. A
        partition keeps its former fingerprint if it is uncertain which records Kafka has stored. The same is true if
        Kafka does not answer, or if Kafka's records disagree with the index.
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
                # If an append has begun meanwhile, or a delivery was cancelled, the fingerprint and the end offset are
                # of different moments.
                unchanged = self._index.sums[partition].until(0) == found[partition]
                if known and unchanged and self._written.changes[partition] == changes[partition]:
                    self._known[partition] = end, self._written.records[partition]
                    self._noted[partition] = changes[partition], found[partition]._replace(end=end).text()

    async def _knows(self, partition: int, end: int) -> bool:
        """Return whether the index agrees with Kafka's records of the partition before the offset `end`.

        If Kafka has only the records that this worker has written since the previous check, return True. Otherwise,
        read the records since that check, and compare the index with them. For example, Kafka may have stored an append
        twice, or a record of the partition's former owner may have arrived late.
        """
        begin, before = self._known.get(partition, (0, 0))
        last: dict[bytes, bool] = {}
        if begin + self._written.records[partition] - before != end:
            async for record in self._requests.walk(self._written.name, partition, begin, end):
                last[record.key or b""] = record.value is not None
        for key, is_there in last.items():
            if (self._index.find(partition, *ids_in(key)) is not None) is not is_there:
                return False
        return True
