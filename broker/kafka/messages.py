"""The topic `messages`: appending messages, and reading them again (ports.MessageLog).

For: finding messages by id, a queue's newest messages, the offsets of times and ends. Not for: record batches
(group_commit.py), new messages for workers (tail.py).
"""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Final

from broker.core.claims import CLOCKS_MS, IDS_KEPT_MS
from broker.core.paging import Chunk, Found, newest
from broker.errors import LogDamaged
from broker.kafka.group_commit import GroupCommit
from broker.kafka.read_slots import COUNT_READS_MAX, ReadSlots
from broker.kafka.requests import KafkaRequests
from broker.kafka.scan import scan
from broker.kafka.topics import Topic
from broker.ports import EARLIEST, LATEST, Acknowledged, BuildRecord, StoredRecord
from broker.time_offsets import offsets_since

log = logging.getLogger(__name__)

Kept = Callable[[int, str, str], Awaitable[tuple[int, bytes] | None]]
_CHUNK: Final = 200  # records of a partition per read
_CHUNK_BYTES_MAX: Final = 512 << 10  # bytes of these records, at most
_PAGE_BYTES_MAX: Final = 8 << 20  # bytes of records in a page


class MessagesTopic:
    """The Kafka topic `messages`: an object that appends messages, and finds stored messages.

    `kept` is a function that looks for the copy of a message in the topic `outstanding`. find() calls it if Kafka may
    have deleted the message from `messages`.
    """

    def __init__(
        self,
        writer: GroupCommit,
        requests: KafkaRequests,
        topic: Topic,
        timeout_s: float,
        read_slots: ReadSlots,
        kept: Kept | None = None,
    ) -> None:
        self.writer = writer
        self.name = self._topic = topic.name
        self._partitions = topic.partitions
        self._requests = requests
        # A message's record time is at most this many milliseconds later than the time in the message's id.
        # There are three reasons: a put waits for Kafka, a repeated put keeps its id, and machines' clocks differ.
        self._later_ms_max = IDS_KEPT_MS + round(timeout_s * 2000) + 2 * CLOCKS_MS
        self._read_slots = read_slots
        self._kept = kept

    def append(
        self, build: BuildRecord, *, ordering_key: str | None = None, size: int = 0
    ) -> Awaitable[tuple[int, int]]:
        """See ports.MessageLog.append."""
        return self.writer.append(build, ordering_key=ordering_key, size=size)

    def append_for(
        self, writer: Acknowledged, build: BuildRecord, *, ordering_key: str | None = None, size: int = 0
    ) -> None:
        """See ports.MessageLog.append_for."""
        self.writer.append_for(writer, build, ordering_key=ordering_key, size=size)

    def append_together(
        self, builds: Sequence[BuildRecord], *, partition: int | None = None, size: int = 0
    ) -> Awaitable[None]:
        """See ports.MessageLog.append_together."""
        return self.writer.append_together(builds, partition=partition, size=size)

    def partition_of(self, ordering_key: str) -> int:
        """See ports.MessageLog.partition_of."""
        return self.writer.partition_of(ordering_key)

    def some_partition(self) -> int:
        """See ports.MessageLog.some_partition."""
        return self.writer.some_partition()

    async def end_offsets(self) -> tuple[int, ...]:
        """Return the end offset of each partition of `messages`. Raises LogUnavailable if Kafka does not answer."""
        found = await self._requests.offsets(self._topic, dict.fromkeys(range(self._partitions), LATEST))
        return tuple(found[partition] for partition in range(self._partitions))

    async def offsets_at(self, at_ms: int) -> tuple[int, ...]:
        """Return, for each partition, the offset of the first record whose time is `at_ms` or later. If a partition has
        no such record, return its end offset. If Kafka's time index is damaged, the returned offset may be too low.

        If `at_ms` is 0, return the first offset that Kafka still has in each partition.
        """
        everywhere = range(self._partitions)
        if at_ms <= 0:
            found = await self._requests.offsets(self._topic, dict.fromkeys(everywhere, EARLIEST))
        else:
            found = await offsets_since(self._requests, self._topic, dict.fromkeys(everywhere, at_ms))
        return tuple(found[partition] for partition in everywhere)

    async def find(
        self, *, partition: int, at_ms: int, message_id: str, organization_id: str
    ) -> tuple[int, bytes] | None:
        """See ports.MessageLog.find."""
        found = await self.find_all(
            partition=partition, at_ms=at_ms, message_ids=[message_id], organization_id=organization_id
        )
        if message_id in found or self._kept is None or not await self._may_have_gone(partition, at_ms):
            return found.get(message_id)
        return await self._kept(partition, message_id, organization_id)

    async def _may_have_gone(self, partition: int, at_ms: int) -> bool:
        """Return whether Kafka may have deleted messages of this partition that were put at this time."""
        if partition >= self._partitions:
            return False
        begin = (await self._requests.offsets(self._topic, {partition: EARLIEST}))[partition]
        return begin > 0 and (await offsets_since(self._requests, self._topic, {partition: at_ms}))[partition] <= begin

    async def find_all(
        self, *, partition: int, at_ms: int, message_ids: Collection[str], organization_id: str
    ) -> dict[str, tuple[int, bytes]]:
        """Find messages of a partition by their ids. Return, by message id, the offset of each found message and the
        value of its Kafka record. Raises LogDamaged if a message was not found, but may be in an unreadable range of
        offsets.

        `at_ms` is the time in all these ids. The search begins at the first record since this time, and the first read
        usually finds the messages. Before a second read, the search waits for a slot of `read_slots`, which limits how
        many large reads run at once.
        """
        if partition >= self._partitions:
            return {}
        wanted = {message_id.encode() for message_id in message_ids}
        offset = (await self._requests.offsets(self._topic, {partition: at_ms}))[partition]
        found, damage = await self._scan(partition, offset, at_ms, wanted, organization_id)
        if len(found) < len(wanted):
            earlier = (await offsets_since(self._requests, self._topic, {partition: at_ms}))[partition]
            if offset < 0 or earlier < offset:
                found, damage = await self._scan(partition, earlier, at_ms, wanted, organization_id)
        # A message that was not found may be in an unreadable range of offsets. So raise LogDamaged.
        if damage is not None and len(found) < len(wanted):
            raise damage
        return found

    async def _scan(
        self, partition: int, offset: int, at_ms: int, wanted: Collection[bytes], organization_id: str
    ) -> tuple[dict[str, tuple[int, bytes]], LogDamaged | None]:
        """Search a partition for the wanted messages, from an offset on. The search ends when all are found, or at the
        first record that is too late to have a wanted id. Return the found messages, and the error of the first
        unreadable range of offsets; None if no range was unreadable. Ranges that Kafka has deleted, or that an operator
        gave up as lost, do not count as unreadable.
        """
        found: dict[str, tuple[int, bytes]] = {}
        damage: LogDamaged | None = None

        def damaged(error: LogDamaged) -> None:
            nonlocal damage
            if not self._requests.given_up(error):
                damage = damage or error

        async with contextlib.AsyncExitStack() as held:
            if offset < 0:
                return found, damage
            results = scan(self._requests, self._topic, partition, offset, damaged=damaged)
            await held.enter_async_context(contextlib.aclosing(results))
            slot: contextlib.AbstractAsyncContextManager[None] | None = self._read_slots.slot(organization_id)
            async for fetched in results:
                for record in fetched.records:
                    if record.key in wanted and record.key is not None and record.value is not None:
                        found.setdefault(record.key.decode(), (record.offset, record.value))
                    if len(found) == len(wanted) or record.timestamp > at_ms + self._later_ms_max:
                        return found, damage
                if slot is not None and fetched.next_offset < fetched.end_offset:
                    await held.enter_async_context(slot)
                    slot = None
        return found, damage

    async def count(
        self, queue_id: str, *, begin: Sequence[int], end: Sequence[int], organization_id: str
    ) -> tuple[int, bool]:
        """See ports.MessageLog.count."""
        queue = queue_id.encode()
        total, exact = 0, True
        async with self._read_slots.slot(organization_id):
            for partition, (start, stop) in enumerate(zip(begin, end, strict=True)):
                at, found, damage = start, 0, list[LogDamaged]()
                results = scan(
                    self._requests,
                    self._topic,
                    partition,
                    start,
                    stop,
                    damaged=damage.append,
                    reads_max=COUNT_READS_MAX,
                    patience_s=None,
                )
                async for fetched in results:
                    at = fetched.next_offset
                    found += sum(bool(record.headers) and record.headers[0][1] == queue for record in fetched.records)
                exact = exact and not damage
                if at < stop:
                    found, exact = found * (stop - start) // max(1, at - start), False
                total += found
        return total, exact

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
        """See ports.MessageLog.newest."""
        # Read one partition after the other, to have little in memory at a time.
        async with self._read_slots.slot(organization_id):
            chunks = [
                await self._chunk(number, queue_id, *bounds, wanted)
                for number, bounds in enumerate(zip(begin, end, strict=True))
            ]
        return newest(chunks, limit, bytes_max=_PAGE_BYTES_MAX)

    async def _chunk(
        self, partition: int, queue_id: str, begin: int, end: int, wanted: Callable[[bytes], bool] | None
    ) -> Chunk[StoredRecord]:
        """Search the last 200 offsets (_CHUNK) before `end` in a partition. Return the queue's messages there, and the
        range of offsets that was searched. If `wanted` is given, leave out each message for whose record value `wanted`
        returns False.

        If the messages have more than 512 KiB together, leave out the oldest ones. The returned range then begins after
        the messages that were left out.
        """
        start = max(begin, end - _CHUNK)
        found: deque[Found[StoredRecord]] = deque()
        held = 0
        oldest_at_ms: int | None = None
        queue = queue_id.encode()
        async for record in self._requests.walk(self._topic, partition, start, end, pass_damaged=True):
            oldest_at_ms = record.timestamp if oldest_at_ms is None else oldest_at_ms
            value = record.value
            if value is None or not record.headers or record.headers[0][1] != queue:
                continue
            if wanted is None or wanted(value):
                stored = StoredRecord(partition, record.offset, value)
                found.append(Found(record.timestamp, record.offset, stored, len(value)))
                held += len(value)
            # If the messages have more than 512 KiB together, drop the oldest ones: a later page of the list has them.
            while held > _CHUNK_BYTES_MAX and len(found) > 1:
                dropped = found.popleft()
                held -= dropped.size
                start, oldest_at_ms = dropped.offset + 1, dropped.at_ms
        return Chunk(begin, start, end, oldest_at_ms, found)
