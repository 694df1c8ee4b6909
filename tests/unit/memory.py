"""A log and a view in memory: the API without Kafka.

For: tests of what is asked and answered. Not for: order among several writers, or anything a real log may do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence

from broker.core.changes import Change, change, prevailing
from broker.core.codec import decode, encode
from broker.core.cursor import Cursor
from broker.core.directory import Directory
from broker.core.events import (
    ChangeApplied,
    ControlEvent,
    Event,
    ListenerTested,
    MessageChange,
    MessageDeleted,
    PutClaimed,
)
from broker.core.paging import Chunk, Found, newest
from broker.errors import BrokerError
from broker.ports import (
    EARLIEST,
    LATEST,
    Acknowledged,
    BuildRecord,
    CountingChange,
    FetchResult,
    Record,
    StoredRecord,
    TooMuch,
)


class MemoryControl:
    """ports.ControlLog, and the fold right behind it (ports.DirectoryView).

    failing: raised by the next appends.
    before: awaited with an event before it is appended: what comes into the log first, from another process.
    after: awaited with an event before it is seen: what comes into the log next.
    behind: raised by caught_up().
    """

    def __init__(self) -> None:
        self.before: Callable[[ControlEvent], Awaitable[None]] | None = None
        self.after: Callable[[ControlEvent], Awaitable[None]] | None = None
        self.behind: BrokerError | None = None
        self.state = Directory()
        self.complete = True
        self.records: list[bytes] = []
        self.failing: BrokerError | None = None
        self._passed_over: set[int] = set()

    @property
    def position(self) -> int:
        return len(self.records)

    async def append(self, event: ControlEvent) -> int:
        if self.failing is not None:
            raise self.failing
        if self.before is not None:
            await self.before(event)
        offset = len(self.records)
        self.records.append(encode(event))
        if not self.state.apply(decode(self.records[offset])):
            self._passed_over.add(offset)
        return offset

    async def end_offset(self) -> int:
        return len(self.records)

    def passed_over(self, offset: int) -> bool:
        return offset in self._passed_over

    async def seen(self, offset: int, *, timeout_s: float = 2.0) -> None:
        assert offset < len(self.records)
        if self.after is not None:
            await self.after(decode(self.records[offset]))

    async def caught_up(self, *, timeout_s: float = 2.0) -> None:
        if self.behind is not None:
            raise self.behind


class MemoryMessages:
    """ports.MessageLog with two partitions in turn. failing: raised by the next appends."""

    def __init__(self) -> None:
        self.records: list[list[tuple[bytes, bytes, bytes]]] = [[], []]
        self.failing: BrokerError | None = None
        self._turn = 0

    def append(
        self, build: BuildRecord, *, ordering_key: str | None = None, size: int = 0
    ) -> asyncio.Future[tuple[int, int]]:
        done: asyncio.Future[tuple[int, int]] = asyncio.get_running_loop().create_future()
        if self.failing is not None:
            raise self.failing
        self._turn += 1
        partition = self._turn % 2 if ordering_key is None else self.partition_of(ordering_key)
        self.records[partition].append(build(partition))
        done.set_result((partition, len(self.records[partition]) - 1))
        return done

    def append_for(
        self, writer: Acknowledged, build: BuildRecord, *, ordering_key: str | None = None, size: int = 0
    ) -> None:
        place = self.append(build, ordering_key=ordering_key, size=size).result()
        asyncio.get_running_loop().call_soon(writer.set_result, place)

    async def append_together(
        self, builds: Sequence[BuildRecord], *, partition: int | None = None, size: int = 0
    ) -> None:
        if self.failing is not None:
            raise self.failing
        await asyncio.sleep(0)
        number = self.some_partition() if partition is None else partition
        self.records[number] += [build(number) for build in builds]
        await asyncio.sleep(0)

    def partition_of(self, ordering_key: str) -> int:
        return 0

    async def end_offsets(self) -> tuple[int, ...]:
        return tuple(len(records) for records in self.records)

    async def offsets_at(self, at_ms: int) -> tuple[int, ...]:
        def first(records: list[tuple[bytes, bytes, bytes]]) -> int:
            later = (offset for offset, (_, value, _) in enumerate(records) if decode(value).at_ms >= at_ms)
            return 0 if at_ms == 0 else next(later, len(records))

        return tuple(map(first, self.records))

    async def find(
        self, *, partition: int, at_ms: int, message_id: str, organization_id: str
    ) -> tuple[int, bytes] | None:
        if partition >= len(self.records):
            return None
        for offset, (key, value, _) in enumerate(self.records[partition]):
            if key == message_id.encode():
                return offset, value
        return None

    async def find_all(
        self, *, partition: int, at_ms: int, message_ids: Collection[str], organization_id: str
    ) -> dict[str, tuple[int, bytes]]:
        asked = {"partition": partition, "at_ms": at_ms, "organization_id": organization_id}
        found = {one: await self.find(message_id=one, **asked) for one in message_ids}
        return {one: there for one, there in found.items() if there is not None}

    def some_partition(self) -> int:
        self._turn += 1
        return self._turn % 2

    async def count(
        self, queue_id: str, *, begin: Sequence[int], end: Sequence[int], organization_id: str
    ) -> tuple[int, bool]:
        stretches = [self.records[number][begin[number] : end[number]] for number in range(len(self.records))]
        return sum(queue == queue_id.encode() for records in stretches for _, _, queue in records), True

    async def newest(
        self,
        queue_id: str,
        *,
        begin: Sequence[int],
        end: Sequence[int],
        limit: int,
        organization_id: str,
        wanted: Callable[[bytes], bool] | None = None,
    ) -> tuple[list[StoredRecord], list[int]]:
        chunks = [
            Chunk(
                begin[number],
                begin[number],
                end[number],
                None,
                [
                    Found(decode(value).at_ms, offset, StoredRecord(number, offset, value))
                    for offset, (_, value, queue) in enumerate(records)
                    if begin[number] <= offset < end[number]
                    and queue == queue_id.encode()
                    and (wanted is None or wanted(value))
                ],
            )
            for number, records in enumerate(self.records)
        ]
        return newest(chunks, limit)


class MemoryClaims:
    """ports.ClaimLog. Others come to their turn in each call, as with a real one. failing: raised by the next
    appends.
    """

    def __init__(self) -> None:
        self.records: list[PutClaimed] = []
        self.failing: BrokerError | None = None

    async def append(self, claim: PutClaimed) -> None:
        if self.failing is not None:
            raise self.failing
        await asyncio.sleep(0)
        self.records.append(claim)
        await asyncio.sleep(0)

    async def claims(self, digest: bytes) -> list[PutClaimed]:
        await asyncio.sleep(0)
        return [claim for claim in self.records if claim.digest == digest.hex()]


class MemoryChanges:
    """ports.ChangeLog. states: by listener id, what a worker answers to every change; None: it says nothing."""

    def __init__(self) -> None:
        self.events: list[MessageChange] = []
        self.states: dict[str, str] | None = {}
        self.failing: BrokerError | None = None

    async def append(self, event: MessageChange) -> tuple[int, int]:
        if self.failing is not None:
            raise self.failing
        self.events.append(event)
        return len(self.events) - 1, 0

    async def answer(
        self, partition: int, change_offset: int, message_id: str, *, answers_from: int, within_s: float
    ) -> ChangeApplied | None:
        if self.states is None:
            return None
        before = [event for event in self.events[:change_offset] if event.message_id == message_id]
        return ChangeApplied(
            at_ms=0,
            organization_id="",
            queue_id="",
            message_id=message_id,
            partition=partition,
            change_offset=change_offset,
            applied=not any(isinstance(event, MessageDeleted) for event in before),
            listeners=tuple(self.states.items()),
        )

    async def counted(self, event: MessageChange) -> int | None:
        counts = None
        for offset, one in enumerate(self.events):
            if one.message_id == event.message_id:
                this = change(offset, one)
                counts = prevailing(counts, this)
                if one is event and counts is this:
                    return offset
        return None

    async def latest(
        self, places: Mapping[str, tuple[int, int]], *, organization_id: str, bytes_max: int | None = None
    ) -> dict[str, CountingChange]:
        found: dict[str, CountingChange] = {}
        counts: dict[str, Change] = {}
        for offset, event in enumerate(self.events):
            this = change(offset, event)
            if event.message_id in places and prevailing(counts.get(event.message_id), this) is this:
                counts[event.message_id] = this
                found[event.message_id] = CountingChange(offset, event)
        held = sum(len(getattr(one.event, "data", "")) for one in found.values())
        if bytes_max is not None and held > bytes_max and len(found) > 1:
            raise TooMuch
        return found

    async def deleted(
        self, queue_id: str, *, begin: Sequence[int], end: Sequence[int], since_ms: int, organization_id: str
    ) -> tuple[int, bool]:
        return len({one.message_id for one in self.events if isinstance(one, MessageDeleted)}), True


class MemoryCursors:
    """ports.Cursors. committed: by listener."""

    def __init__(self) -> None:
        self.committed: dict[str, dict[int, Cursor]] = {}

    async def load(self, listener_ids: Iterable[str], partitions: Iterable[int]) -> dict[str, dict[int, Cursor]]:
        return {one: self.committed.get(one, {}) for one in listener_ids}


class MemoryTests:
    """ports.ListenerTestLog."""

    def __init__(self) -> None:
        self.events: list[ListenerTested] = []

    async def append(self, event: ListenerTested) -> None:
        self.events.append(event)


class MemoryLog:
    """ports.Log."""

    def __init__(self) -> None:
        self.control = MemoryControl()
        self.messages = MemoryMessages()
        self.claims = MemoryClaims()
        self.changes = MemoryChanges()
        self.tests = MemoryTests()


class MemoryRecords:
    """audit.reader.Records of a MemoryLog: the topics by their last word, each record at its event's own time.

    more: further records by topic and partition, such as outcomes. records_a_read: records that one read brings.
    before_read: awaited before each read.
    """

    def __init__(self, log: MemoryLog, records_a_read: int = 3) -> None:
        self.more: dict[tuple[str, int], list[Record]] = {}
        self.before_read: Callable[[], Awaitable[object]] | None = None
        self._log = log
        self._records_a_read = records_a_read

    def add(self, topic: str, partition: int, event: Event) -> None:
        records = self.more.setdefault((topic, partition), [])
        records.append(Record(len(records), event.at_ms, None, encode(event), ()))

    async def offsets(self, topic: str, at_ms: Mapping[int, int]) -> dict[int, int]:
        found = {}
        for partition, moment in at_ms.items():
            records = self._records(topic, partition)
            later = (record.offset for record in records if record.timestamp >= moment)
            found[partition] = {EARLIEST: 0, LATEST: len(records)}.get(moment, next(later, -1))
        return found

    async def read(
        self,
        topic: str,
        partition: int,
        offset: int,
        *,
        bytes_max: int = 1 << 20,
        worth: Callable[[bytes], bool] | None = None,
    ) -> FetchResult:
        if self.before_read is not None:
            await self.before_read()
        records = self._records(topic, partition)
        here = records[offset : offset + (1 if bytes_max == 1 else self._records_a_read)]
        if here and worth is not None and not worth(b"".join(record.value or b"" for record in here)):
            left_out_ms = max(record.timestamp for record in here)
            return FetchResult([], offset + len(here), len(records), left_out_ms=left_out_ms)
        return FetchResult(here, offset + len(here), len(records))

    def _records(self, topic: str, partition: int) -> list[Record]:
        name = topic.rpartition(".")[2]
        values = list[bytes]()
        if name == "control":
            values = self._log.control.records
        elif name == "messages" and partition < len(self._log.messages.records):
            values = [value for _, value, _ in self._log.messages.records[partition]]
        made = [Record(offset, decode(value).at_ms, None, value, ()) for offset, value in enumerate(values)]
        return made + self.more.get((name, partition), [])
