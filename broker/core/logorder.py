"""The order of the log: one order over all partitions of its topics, the same for every reader.

For: merging partitions that are read one fetch at a time, and the page token where a client continues. Pure. Not for:
reading (broker/audit/reader.py), which events a client wants (selection.py).

A record's *log time* is the highest record time in its partition up to that record, so it never goes back. Records are
ordered by (log time, topic, partition, offset). These values are all in the partitions themselves, so every reader gets
the same order wherever it begins (docs/decisions/0090).
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final, Generic, NamedTuple, TypeVar
from zlib import crc32

from broker.core.varints import pack, unpack

T = TypeVar("T")

_VERSION: Final = 2
# A page token of version 1 has the number of its partitions, but no checksum that identifies them.
_WITHOUT_CHECKSUM: Final = 1
_NO_END_MS: Final = 1 << 63


class Held(NamedTuple, Generic[T]):
    """A record that was read, and waits in memory until all earlier records of other partitions were returned. `size`
    is in bytes.
    """

    log_ms: int
    offset: int
    size: int
    item: T


class Lane(Generic[T]):
    """A partition of the log in a merge. The merge brings the records of all partitions into the order of time.

    `at` is the offset of the next record to read. Reading ends before the offset `end`. `rank` is the position of the
    topic: if records have the same time, the record of the topic with the lowest rank comes first.

    `floor_ms` is the highest record time read so far. If a later record has a lower time, `floor_ms` is used as its
    time. `held` has the records that were read, but not returned yet.
    """

    __slots__ = ("at", "end", "floor_ms", "held", "partition", "rank")

    def __init__(self, rank: int, partition: int, at: int, end: int, floor_ms: int = 0) -> None:
        self.rank = rank
        self.partition = partition
        self.at = at
        self.end = end
        self.floor_ms = floor_ms
        self.held: deque[Held[T]] = deque()


class Run(NamedTuple, Generic[T]):
    """Consecutive records of one partition, in the merged order of all partitions. `size` is the size of the records in
    bytes.
    """

    lane: Lane[T]
    records: list[Held[T]]
    size: int


class PageToken(NamedTuple):
    """The position in the log where a client's next page begins.

    The client has got all events before the time `passed_ms`. For each partition, `lanes` has the offset of the next
    record, and a time: the highest record time found in the partition up to this record. `checksum` identifies the
    partitions; it is None in a token of an older version.
    """

    passed_ms: int
    lanes: tuple[tuple[int, int], ...]
    checksum: int | None = None

    def is_of(self, partitions: Iterable[tuple[int, int]]) -> bool:
        """Return whether the token belongs to a request that reads these partitions. Each partition is a pair: the
        position of its topic in the order of topics, and its number.

        A token of an older version has no checksum, so only the number of partitions is compared.
        """
        places = list(partitions)
        return len(self.lanes) == len(places) and self.checksum in (None, _checksum(places))

    def text(self) -> str:
        """Encode the page token."""
        if self.checksum is None:
            numbers = [_WITHOUT_CHECKSUM, self.passed_ms, len(self.lanes)]
        else:
            numbers = [_VERSION, self.passed_ms, self.checksum, len(self.lanes)]
        for offset, floor_ms in self.lanes:
            numbers += (offset, max(0, floor_ms - self.passed_ms))
        return pack(numbers)

    @classmethod
    def from_text(cls, text: str) -> PageToken:
        """Decode a page token. Raises ValueError for any other text."""
        numbers = unpack(text)
        head = {_WITHOUT_CHECKSUM: 3, _VERSION: 4}.get(numbers[0] if numbers else 0, 0)
        if not head or len(numbers) < head or len(numbers) != head + 2 * numbers[head - 1]:
            raise ValueError("this text is not a page token of /v1/log")
        passed_ms, checksum = numbers[1], numbers[2] if numbers[0] == _VERSION else None
        lanes = ((numbers[i], passed_ms + numbers[i + 1]) for i in range(head, len(numbers), 2))
        return cls(passed_ms, tuple(lanes), checksum)


def _checksum(partitions: Sequence[tuple[int, int]]) -> int:
    return crc32(pack(number for partition in partitions for number in partition).encode())


class Merge(Generic[T]):
    """The merge of the records of all partitions into one sequence, in the order of time. All records before the time
    `passed_ms` have been returned. A record's time is the highest time in its partition up to this record.
    """

    def __init__(self, lanes: Sequence[Lane[T]], passed_ms: int = 0) -> None:
        self.lanes = lanes
        self.passed_ms = passed_ms
        self._heap: list[tuple[int, int, int, int, Lane[T]]] = []
        for lane in lanes:
            self._push(lane)

    def next(self, before_ms: int, *, most: int, bytes_max: int) -> Run[T] | Lane[T] | None:
        """Return the next records in order (a Run): at most `most` records, with about `bytes_max` bytes.

        If more records of a partition must be read before, return this partition (a Lane) instead. Return None if no
        record before the time `before_ms` is left.
        """
        if not self._heap or self._heap[0][0] >= before_ms:
            self.passed_ms = max(self.passed_ms, before_ms)
            return None
        lane = self._heap[0][4]
        if not lane.held:
            return lane
        last_ms = min(before_ms - 1, self._last_ms(lane))
        records: list[Held[T]] = []
        size = 0
        while lane.held and lane.held[0].log_ms <= last_ms and len(records) < most and size < bytes_max:
            held = lane.held.popleft()
            records.append(held)
            size += held.size
        self._replace(lane)
        self.passed_ms = records[-1].log_ms
        return Run(lane, records, size)

    def _last_ms(self, first: Lane[T]) -> int:
        """Return the latest time at which a record of the partition `first` comes before the records of all other
        partitions. `first` is the partition with the next record.
        """
        if len(self._heap) == 1:
            return _NO_END_MS
        log_ms, rank, partition, *_ = min(self._heap[1:3])
        return log_ms if (first.rank, first.partition) < (rank, partition) else log_ms - 1

    def give(self, lane: Lane[T], records: Iterable[tuple[int, int, int, T | None]], at: int) -> None:
        """Add the records that were read from the partition `lane`, after next() has asked for them. `at` is the offset
        at which the next read of the partition begins.

        Each of `records` has an offset, a record time, a size in bytes and an item. The item is None if the client does
        not want the record.
        """
        log_ms = lane.floor_ms
        for offset, at_ms, size, item in records:
            log_ms = max(log_ms, at_ms)
            if item is not None:
                lane.held.append(Held(log_ms, offset, size, item))
        lane.floor_ms = log_ms
        lane.at = at
        self._replace(lane)

    def soonest(self) -> Lane[T] | None:
        """Return the partition whose records will probably be needed next, so that the caller can read them early.
        Return None if all partitions are read to their ends.
        """
        open_lanes = (lane for lane in self.lanes if lane.at < lane.end)
        return min(open_lanes, key=lambda lane: lane.floor_ms, default=None)

    def extend(self, ends: Iterable[int]) -> None:
        """Set new end offsets, one for each partition in the order of `lanes`, so that newer records are read, too."""
        self._heap = []
        for lane, end in zip(self.lanes, ends, strict=True):
            lane.end = end
            self._push(lane)

    def page_token(self) -> PageToken:
        return PageToken(
            self.passed_ms,
            tuple(
                (lane.held[0].offset, lane.held[0].log_ms) if lane.held else (lane.at, lane.floor_ms)
                for lane in self.lanes
            ),
            _checksum([(lane.rank, lane.partition) for lane in self.lanes]),
        )

    def _entry(self, lane: Lane[T]) -> tuple[int, int, int, int, Lane[T]] | None:
        if lane.held:
            return lane.held[0].log_ms, lane.rank, lane.partition, lane.held[0].offset, lane
        if lane.at < lane.end:  # no earlier record can follow
            return lane.floor_ms, lane.rank, lane.partition, lane.at, lane
        return None

    def _push(self, lane: Lane[T]) -> None:
        if (entry := self._entry(lane)) is not None:
            heapq.heappush(self._heap, entry)

    def _replace(self, lane: Lane[T]) -> None:
        """Move the first partition of the heap to its new place, because its next record has changed. If the partition
        has no more records, remove it from the heap.
        """
        entry = self._entry(lane)
        if entry is None:
            heapq.heappop(self._heap)
        else:
            heapq.heapreplace(self._heap, entry)
