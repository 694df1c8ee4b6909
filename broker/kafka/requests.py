"""Single Kafka requests that need no consumer: read a range of a partition, look offsets up, keep cursors.

For: one request, one answer, with the leader or coordinator found, and found again when it moved. Not for: a tail
that waits for new records (delivery uses a consumer for that), nor for what the records and metadata mean.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import Any, Final, TypeVar

from aiokafka import errors as kafka_errors
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.admin import DeleteRecordsRequest
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.offset import OffsetRequest
from aiokafka.structs import TopicPartition

from broker.errors import LogDamaged, LogUnavailable
from broker.kafka.batches import FOLLOWING_BYTES, bytes_wanted, damaged_range, good, parse, to_confirm
from broker.kafka.groups import KafkaGroups, check
from broker.kafka.reachability import reachable, why_not
from broker.kafka.scan import scan
from broker.kafka.topics import topics as topics_of
from broker.ports import EARLIEST, LATEST, FetchResult, OffsetTooOld, Record
from broker.settings import KafkaSettings

__all__ = ["EARLIEST", "LATEST", "FetchResult", "KafkaRequests", "OffsetTooOld", "Record"]

log = logging.getLogger(__name__)

# A commit from outside the group has no member. Kafka accepts it while the group has no members.
_NO_MEMBER: Final = (-1, "")
_RETRY_PAUSE_S: Final = 0.05
_COPY_BYTES: Final = 16 << 20  # more than any batch, so that the next one is always among them
_BAD_COPIES_MAX: Final = 1_000  # that are remembered
_CORRUPT: Final = b"\0"  # no batch
_PROBE_BYTES: Final = 1  # Kafka then answers with one batch

T = TypeVar("T")


class KafkaRequests:
    """A Kafka client for single requests, shared within a process. timeout_ms: for a call with all its retries."""

    def __init__(self, kafka: KafkaSettings, *, timeout_ms: int = 5_000) -> None:
        self._kafka = kafka
        self._timeout_ms = timeout_ms
        self.client: Any = None
        self.groups = KafkaGroups(self)
        self._compacted = {topics_of(kafka).outstanding.name}
        self.bad_copies: dict[tuple[str, int, int, int | None], None] = {}  # (topic, partition, offset, broker)
        self.on_damage: Callable[[LogDamaged], None] | None = None  # told of each, whoever reads
        # Returns whether an operator has given the range up.
        self.given_up: Callable[[LogDamaged], bool] = lambda _: False

    async def start(self, topics: Iterable[str]) -> None:
        """Connect, and keep the metadata of these topics. Raises LogUnavailable or ConfigurationError."""
        options = await reachable(self._kafka)
        self.client = AIOKafkaClient(**options, request_timeout_ms=self._timeout_ms)
        try:
            await self.client.bootstrap()
            await self.client.set_topics(list(topics))
        except (kafka_errors.KafkaError, OSError) as error:
            await self.client.close()
            raise LogUnavailable(f"Kafka can't be reached: {await why_not(options)}") from error

    async def stop(self) -> None:
        if self.client is not None:
            await self.client.close()

    def partitions(self, topic: str) -> int:
        """Return the number of the topic's partitions; 0 when there is no such topic."""
        return len(self.client.cluster.partitions_for_topic(topic) or ())

    def partitions_with_leader(self, topic: str) -> list[int]:
        """List the partitions that can be written to now, as far as this client knows."""
        return sorted(self.client.cluster.available_partitions_for_topic(topic) or ())

    def leader(self, topic: str, partition: int) -> int | None:
        """Return the node that leads the partition, as far as this client knows; None: there is none."""
        found = self.client.cluster.leader_for_partition(TopicPartition(topic, partition))
        return None if found is None or found == -1 else int(found)

    def look_again(self) -> None:
        """Ask the cluster for its leaders. The answer comes later, if at all."""
        self.client.force_metadata_update()

    async def offsets(self, topic: str, at_ms: Mapping[int, int]) -> dict[int, int]:
        """Return, by partition, the first offset at or after a time. EARLIEST and LATEST are times, too. -1: there is
        none.
        """

        async def ask() -> dict[int, int]:
            by_leader: dict[int, list[tuple[int, int]]] = {}
            for partition, time_ms in at_ms.items():
                by_leader.setdefault(self._leader(topic, partition), []).append((partition, time_ms))
            answers = await asyncio.gather(
                *(self.client.send(node, OffsetRequest(-1, 0, [(topic, wanted)])) for node, wanted in by_leader.items())
            )
            found = {}
            for answer in answers:
                for _, partitions in answer.topics:
                    for partition, code, _, offset in partitions:
                        check(code)
                        found[partition] = offset
            return found

        return await self.retried(ask)

    async def read(
        self,
        topic: str,
        partition: int,
        offset: int,
        *,
        bytes_max: int = 1 << 20,
        worth: Callable[[bytes], bool] | None = None,
    ) -> FetchResult:
        """Read the records from this offset on: as many as fit into bytes_max, but at least one if there is any.

        Every batch is checked. The records end before a batch that is bad on every broker with a copy. A read that
        begins at such a batch raises LogDamaged; reading continues after its last offset.
        worth: whether any record in these bytes may be wanted. If not, all are skipped without parsing. Compressed
            batches are always parsed.
        """
        holes = topic in self._compacted

        async def ask() -> FetchResult:
            leader = self._leader(topic, partition)
            raw, end = await self._fetch(leader, topic, partition, offset, bytes_max)
            fetched = await parse(raw, offset, end, worth, holes=holes)
            if fetched is None:  # The next batch in the leader's copy, or another copy, may help.
                raw, end = await self._fetch(leader, topic, partition, offset, bytes_wanted(raw))
                fetched = await parse(raw, offset, end, worth, holes=holes)
            if fetched is None:
                fetched = await self._from_another(topic, partition, offset, bytes_max, end, worth)
            if fetched is None:
                damage = await self._damage(topic, partition, offset, end, raw)
                if self.on_damage is not None:
                    self.on_damage(damage)
                raise damage
            return fetched

        return await self.retried(ask)

    async def _fetch(self, node: int, topic: str, partition: int, offset: int, bytes_max: int) -> tuple[bytes, int]:
        """Fetch what a broker has from this offset on, unchecked. Return the bytes and the partition's end."""
        request = FetchRequest(0, 0, max(bytes_max, 1), 0, [(topic, [(partition, offset, bytes_max)])])
        answer = await self.client.send(node, request)
        _, partitions = answer.topics[0]
        _, code, end_offset, *_, raw = partitions[0]
        error = kafka_errors.for_code(code)
        if error is kafka_errors.OffsetOutOfRangeError:
            raise OffsetTooOld(f"partition {partition} of the log can't be read from offset {offset}")
        # The broker itself has found the damage, so nothing in its answer can be trusted.
        if error is kafka_errors.CorruptRecordException:
            return _CORRUPT, (await self.offsets(topic, {partition: LATEST}))[partition]
        check(code)
        raw = raw or b""
        if topic not in self._compacted and (follows := to_confirm(raw, offset, end_offset)) is not None:
            after, size = follows
            following, _ = await self._fetch(node, topic, partition, after, _PROBE_BYTES)
            raw = raw[:size] + following[:FOLLOWING_BYTES]
        return raw, end_offset

    async def _from_another(
        self, topic: str, partition: int, offset: int, bytes_max: int, end: int, worth: Callable[[bytes], bool] | None
    ) -> FetchResult | None:
        """Read from a follower if the leader's copy is bad (KIP-392); None when no follower has a good one."""
        leader = self.leader(topic, partition)
        for node in self._copies(topic, partition):
            if node == leader:
                continue
            with contextlib.suppress(kafka_errors.KafkaError, OSError, IndexError, OffsetTooOld):
                raw, _ = await self._fetch(node, topic, partition, offset, bytes_max)
                fetched = await parse(raw, offset, end, worth, holes=topic in self._compacted)
                if fetched is not None and fetched.next_offset > offset:
                    self._note_bad_copy(topic, partition, offset, leader)
                    return fetched
        return None

    async def check_copies(self, topic: str, partition: int, offset: int, end: int) -> None:
        """Read what the followers have of [offset, end), and note bad copies as a read does. Raises LogUnavailable.

        A follower that is behind is read up to where it is.
        """
        leader = self.leader(topic, partition)
        for node in [node for node in self._copies(topic, partition) if node != leader]:
            at = offset
            while at < end:
                try:
                    raw, own_end = await self._fetch(node, topic, partition, at, _COPY_BYTES)
                    fetched = await parse(raw, at, own_end, lambda _: False, holes=topic in self._compacted)
                except (kafka_errors.KafkaError, OSError, IndexError, OffsetTooOld):
                    break
                if fetched is None:
                    self._note_bad_copy(topic, partition, at, node)
                    fetched = await self.read(topic, partition, at, bytes_max=1)  # where it goes on
                if fetched.next_offset <= at:
                    break
                at = fetched.next_offset

    def _copies(self, topic: str, partition: int) -> list[int]:
        """List the brokers that have the partition, in-sync ones first."""
        found = self.client.cluster._partitions.get(topic, {}).get(partition)  # noqa: SLF001 - nothing else tells
        return [] if found is None else list(dict.fromkeys((*found.isr, *found.replicas)))

    def _note_bad_copy(self, topic: str, partition: int, offset: int, node: int | None) -> None:
        place = topic, partition, offset, node
        if place not in self.bad_copies:
            while len(self.bad_copies) >= _BAD_COPIES_MAX:
                del self.bad_copies[next(iter(self.bad_copies))]
            self.bad_copies[place] = None
            log.error("log.bad_copy topic=%s partition=%d offset=%d broker=%s", *place)

    async def _damage(self, topic: str, partition: int, offset: int, end: int, raw: bytes) -> LogDamaged:
        """Find the unreadable range at this offset, up to the next good batch."""
        found = damaged_range(raw, offset, end)
        first, last = found or (offset, await self._next_readable(topic, partition, offset, end) - 1)
        return LogDamaged(topic, partition, first, last)

    async def _next_readable(self, topic: str, partition: int, offset: int, end: int) -> int:
        """Find the first offset after this one from which Kafka gives a good batch, or else the end.

        After an altered length, Kafka finds its way again at the next entry of its index. All offsets from there on can
        be read, so a binary search finds the first.
        """
        leader, holes = self._leader(topic, partition), topic in self._compacted

        async def begins(at: int) -> int | None:
            raw, _ = await self._fetch(leader, topic, partition, at, _PROBE_BYTES)
            first = next(good(raw, at, end, holes=holes), None)
            return None if first is None else max(offset + 1, min(at, first[0].base_offset))

        low, step, found = offset, 1, end
        while low + step < end:
            begin = await begins(low + step)
            if begin is not None:
                found = begin
                break
            low, step = low + step, 2 * step
        high = min(found, end)
        while low + 1 < high:
            middle = (low + high) // 2
            begin = await begins(middle)
            if begin is None:
                low = middle
            else:
                found = high = min(begin, middle)
        return found

    async def walk(
        self,
        topic: str,
        partition: int,
        offset: int,
        end: int,
        *,
        pass_damaged: bool = False,
        pass_given_up: bool = False,
    ) -> AsyncIterator[Record]:
        """Yield the records in [offset, end), one read at a time. Raises LogUnavailable.

        end: known to exist. A new leader may report an earlier end for a while; that is waited for.
        pass_damaged: continue after unreadable ranges, which on_damage() is told; otherwise LogDamaged.
        pass_given_up: continue only after ranges that an operator has given up.
        """

        def damaged(damage: LogDamaged) -> None:
            if not pass_damaged and not (pass_given_up and self.given_up(damage)):
                raise damage
            log.warning("log.passed error=%s", damage)

        patience_s = self._timeout_ms / 1000
        # A scan that does not read ahead leaves nothing behind: it need not be closed where the caller stops early.
        async for fetched in scan(self, topic, partition, offset, end, damaged=damaged, patience_s=patience_s):
            for record in fetched.records:
                yield record

    async def delete_before(self, topic: str, partition: int, offset: int) -> None:
        """Delete the partition's records before this offset. Raises LogUnavailable."""

        async def ask() -> None:
            request = DeleteRecordsRequest([(topic, [(partition, offset)])], self._timeout_ms)
            answer = await self.client.send(self._leader(topic, partition), request)
            for row in (row for told in answer.topics for row in told[1]):
                check(row[2])

        await self.retried(ask)

    def _leader(self, topic: str, partition: int) -> int:
        leader = self.leader(topic, partition)
        if leader is None:
            raise kafka_errors.LeaderNotAvailableError
        return leader

    async def retried(self, ask: Callable[[], Awaitable[T]], *, failed: Callable[[], None] = lambda: None) -> T:
        """Return what `ask` does, tried again until timeout_ms is over. Raises LogUnavailable.

        failed: called after each failure, before the next try.
        """
        last: Exception | None = None
        try:
            async with asyncio.timeout(self._timeout_ms / 1000):
                while True:
                    try:
                        return await ask()
                    except (kafka_errors.KafkaError, OSError, IndexError) as error:
                        if isinstance(error, kafka_errors.KafkaError) and not error.retriable:
                            raise LogUnavailable(f"Kafka refused the request: {type(error).__name__}") from error
                        last = error
                    failed()
                    await asyncio.sleep(_RETRY_PAUSE_S)
                    await self.client.force_metadata_update()  # This wait is as long as that for a request.
        except TimeoutError:
            # A hanging broker may have lost its role, and nothing else would look for five minutes.
            self.look_again()
            failed()
            why = "" if last is None else f": {type(last).__name__}"
            raise LogUnavailable(f"Kafka did not answer in time{why}") from last
