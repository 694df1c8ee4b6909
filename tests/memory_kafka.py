"""Kafka in memory: the twins of the ports that delivery asks (broker/delivery/ports.py).

For: tests and simulations of delivery without a broker. tests/contracts says what twin and Kafka have in common.
Not for: what only Kafka can show (tests/kafka).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, MutableMapping
from types import MappingProxyType, SimpleNamespace

from broker.core.codec import decode, encode
from broker.core.cursor import Cursor
from broker.core.events import ControlEvent, MessageChange
from broker.core.flow import Share
from broker.delivery.ports import Gained, GivenUp, KeyAndValue, Ports
from broker.errors import LogDamaged, LogUnavailable
from broker.kafka.changes import ChangesTopic
from broker.kafka.requests import KafkaRequests
from broker.ports import EARLIEST, LATEST, FetchResult, NoMember, OffsetTooOld, Record

TOPICS = ("control", "messages", "changes", "deliveries", "outstanding", "claims")
POLL_S = 0.05


class MemoryKafka:
    """A cluster. records: by topic and partition; None: compacted away. unavailable: raised by every request.

    records_max: how many records one fetch brings.
    """

    def __init__(self, partitions: int = 4, *, records_max: int = 1_000) -> None:
        self.partitions = partitions
        self.records_max = records_max
        self.records: dict[str, list[list[Record | None]]] = {
            topic: [[] for _ in range(partitions)] for topic in TOPICS
        }
        self.begins: defaultdict[tuple[str, int], int] = defaultdict(int)
        self.committed: dict[str, dict[int, tuple[int, str]]] = {}
        self.notes: dict[int, str] = {}
        self.members: list[MemoryMembership] = []
        self.generation = 0
        self.unavailable: LogUnavailable | None = None
        self.time: Callable[[], float] = lambda: asyncio.get_running_loop().time()
        self.appended = asyncio.Event()

    def ports(self) -> Ports:
        log = MemoryLog(self)
        return Ports(
            log=log, membership=MemoryMembership(self), cursors=MemoryCursors(self), changes=MemoryChangeFeed(self)
        )

    def write(
        self,
        topic: str,
        partition: int,
        key: bytes,
        value: bytes | None,
        headers: tuple[tuple[str, bytes | None], ...] = (),
    ) -> int:
        """The record is stored now; its offset."""
        rows = self.records[topic][partition]
        rows.append(Record(len(rows), round(self.time() * 1000), key, value, headers))
        self.appended.set()
        return len(rows) - 1

    async def asked(self) -> None:
        """What precedes every answer."""
        await asyncio.sleep(0)
        if self.unavailable is not None:
            raise self.unavailable

    async def rebalance(self) -> None:
        """All members give up what they own, then the partitions are dealt anew."""
        for member in list(self.members):
            owned, member.owned = member.owned, []
            await member.given_up(owned)
        self.generation += 1
        count = len(self.members)
        for rank, member in enumerate(self.members):
            member.owned = list(range(rank, self.partitions, count))
            member.generation = self.generation
            member.positions.clear()
        for member in list(self.members):
            member.gained(member.owned)

    async def expire(self, member: MemoryMembership) -> None:
        """The session of a member has ended, and it does not know."""
        self.members.remove(member)
        await self.rebalance()


class MemoryReader:
    """LogReader."""

    walk = KafkaRequests.walk
    _timeout_ms = 5_000

    def __init__(self, cluster: MemoryKafka) -> None:
        self._cluster = cluster
        self.damage: list[LogDamaged] = []

    def report(self, damage: LogDamaged) -> None:
        self.damage.append(damage)

    async def offsets(self, topic: str, at_ms: Mapping[int, int]) -> dict[int, int]:
        await self._cluster.asked()
        return {partition: self._offset(topic, partition, at) for partition, at in at_ms.items()}

    def _offset(self, topic: str, partition: int, at_ms: int) -> int:
        rows, begin = self._cluster.records[topic][partition], self._cluster.begins[topic, partition]
        if at_ms in (EARLIEST, LATEST):
            return begin if at_ms == EARLIEST else len(rows)
        later = (row.offset for row in rows[begin:] if row is not None and row.timestamp >= at_ms)
        return next(later, -1)

    async def read(
        self,
        topic: str,
        partition: int,
        offset: int,
        *,
        bytes_max: int = 1 << 20,
        worth: Callable[[bytes], bool] | None = None,
    ) -> FetchResult:
        await self._cluster.asked()
        rows, end = self._cluster.records[topic][partition], len(self._cluster.records[topic][partition])
        if not self._cluster.begins[topic, partition] <= offset <= end:
            raise OffsetTooOld(f"partition {partition} of the log can't be read from offset {offset}")
        most = 1 if bytes_max == 1 else self._cluster.records_max
        there = [row for row in rows[offset:] if row is not None]
        while most > 1 and sum(len(row.value or b"") for row in there[:most]) > bytes_max:
            most //= 2
        records, more = there[:most], len(there) > most
        next_offset = records[-1].offset + 1 if more else end
        raw = b"".join(b"%b %b %b" % (row.key, row.value or b"", _headers(row)) for row in records)
        if records and worth is not None and not worth(raw):
            return FetchResult([], next_offset, end, len(raw), max(row.timestamp for row in records))
        return FetchResult(records, next_offset, end, len(raw))

    async def delete_before(self, topic: str, partition: int, offset: int) -> None:
        await self._cluster.asked()
        self._cluster.begins[topic, partition] = max(self._cluster.begins[topic, partition], offset)


def _headers(row: Record) -> bytes:
    return b" ".join(name.encode() + b"=" + (value or b"") for name, value in row.headers)


class MemoryAppender:
    """Appender."""

    def __init__(self, cluster: MemoryKafka, name: str) -> None:
        self._cluster = cluster
        self.name = name
        self.refusal: str | None = None

    async def append(self, outcomes: MutableMapping[int, list[KeyAndValue]]) -> None:
        await self._cluster.asked()
        for partition in list(outcomes):
            for key, value in outcomes.pop(partition):
                self._cluster.write(self.name, partition, key, value)

    async def append_one(self, partition: int, key: bytes, value: bytes, *, urgent: bool = False) -> int:
        await self._cluster.asked()
        return self._cluster.write(self.name, partition, key, value)


class MemoryLog:
    """DeliveryLog. Its `changes` are the real ones, over what is in memory."""

    def __init__(self, cluster: MemoryKafka) -> None:
        self._cluster = cluster
        self.requests = MemoryReader(cluster)
        self.messages = SimpleNamespace(name="messages", end_offsets=self._end_offsets)
        self.control = SimpleNamespace(append=self._append_to_control)
        self.deliveries = MemoryAppender(cluster, "deliveries")
        self.outstanding = MemoryAppender(cluster, "outstanding")
        self.changes = ChangesTopic(MemoryAppender(cluster, "changes"), self.requests, "deliveries", None)

    async def _end_offsets(self) -> tuple[int, ...]:
        ends = await self.requests.offsets("messages", dict.fromkeys(range(self._cluster.partitions), LATEST))
        return tuple(ends[partition] for partition in range(self._cluster.partitions))

    async def _append_to_control(self, event: ControlEvent) -> int:
        await self._cluster.asked()
        return self._cluster.write("control", 0, b"", encode(event))


class MemoryCursors:
    """CursorStore."""

    def __init__(self, cluster: MemoryKafka) -> None:
        self._cluster = cluster

    async def load(self, listener_ids: Iterable[str], partitions: Iterable[int]) -> dict[str, dict[int, Cursor]]:
        await self._cluster.asked()
        wanted = set(partitions)
        return {one: self._of(one, wanted) for one in listener_ids}

    def _of(self, listener_id: str, wanted: Collection[int]) -> dict[int, Cursor]:
        stored = self._cluster.committed.get(listener_id, {})
        return {number: Cursor.from_metadata(*row) for number, row in stored.items() if number in wanted}

    async def store(self, cursors: Mapping[str, Mapping[int, Cursor]]) -> None:
        await self._cluster.asked()
        for listener_id, rows in cursors.items():
            stored = self._cluster.committed.setdefault(listener_id, {})
            stored.update({number: (cursor.offset, cursor.metadata()) for number, cursor in rows.items()})

    async def listeners(self) -> set[str]:
        await self._cluster.asked()
        return set(self._cluster.committed)

    async def delete(self, listener_id: str) -> None:
        await self._cluster.asked()
        self._cluster.committed.pop(listener_id, None)


class MemoryMembership:
    """Membership. owned, generation: as the group agreed last. positions: by partition, where it reads on."""

    def __init__(self, cluster: MemoryKafka) -> None:
        self._cluster = cluster
        self.owned: list[int] = []
        self.generation = 0
        self.positions: dict[int, int] = {}
        self.gained: Gained
        self.given_up: GivenUp

    async def start(self, gained: Gained, given_up: GivenUp) -> None:
        self.gained, self.given_up = gained, given_up
        self._cluster.members.append(self)
        await self._cluster.rebalance()

    async def stop(self) -> None:
        if self in self._cluster.members:
            self._cluster.members.remove(self)
            await self._cluster.rebalance()

    def begin(self, offsets: Mapping[int, int]) -> None:
        self.positions.update({number: offset for number, offset in offsets.items() if number in self.owned})

    async def read(self) -> dict[int, list[Record]]:
        found = self._new()
        if not found:
            self._cluster.appended.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await self._cluster.appended.wait()
            found = self._new()
        return found

    def _new(self) -> dict[int, list[Record]]:
        found = {}
        for number, position in list(self.positions.items()):
            rows = [row for row in self._cluster.records["messages"][number][position:] if row is not None]
            if rows:
                found[number] = rows
                self.positions[number] = rows[-1].offset + 1
        return found

    async def confirm(self, offsets: Mapping[int, int], notes: Mapping[int, str] = MappingProxyType({})) -> None:
        if not offsets:
            raise LogUnavailable("no partition is ours")
        await self._cluster.asked()
        if self not in self._cluster.members or self.generation != self._cluster.generation:
            raise NoMember("the group does not know this member")
        self._cluster.notes.update({number: notes.get(number, "") for number in offsets})

    async def notes(self, partitions: Iterable[int]) -> dict[int, str]:
        await self._cluster.asked()
        return {number: text for number in partitions if (text := self._cluster.notes.get(number))}

    async def share(self, partitions: Collection[int]) -> Share:
        await self._cluster.asked()
        workers = sorted(sorted(member.owned) for member in self._cluster.members if member.owned)
        if sorted(partitions) not in workers:
            raise LogUnavailable("the partitions are being given out anew")
        return Share(
            partitions=len(partitions) / self._cluster.partitions,
            workers=len(workers),
            rank=workers.index(sorted(partitions)),
        )


class MemoryChangeFeed:
    """ChangeFeed."""

    def __init__(self, cluster: MemoryKafka) -> None:
        self._cluster = cluster
        self._positions: dict[int, int] = {}

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass

    def follow(self, offsets: Mapping[int, int]) -> None:
        self._positions = dict(offsets)

    async def read(self) -> list[tuple[int, int, MessageChange]]:
        await asyncio.sleep(POLL_S / 10)
        found = []
        for number, position in self._positions.items():
            rows = self._cluster.records["changes"][number][position:]
            self._positions[number] += len(rows)
            found += [(number, row.offset, decode(row.value or b"")) for row in rows if row is not None]
        return found
