"""Single Kafka requests without a consumer: read a range of a partition, look up offsets, commit cursors.

For: one request and its answer. The leader or coordinator is found, and found again after it has moved. Not for:
waiting for new records (tail.py), the meaning of records and metadata.
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
from aiokafka.protocol.offset import OffsetRequest
from aiokafka.structs import TopicPartition

from broker.errors import LogDamaged, LogUnavailable
from broker.kafka.batches import FOLLOWING_BYTES, bytes_wanted, damaged_range, good, parse, to_confirm
from broker.kafka.fetch import Fetch, rows_of
from broker.kafka.groups import KafkaGroups, check
from broker.kafka.reachability import reachable, why_not
from broker.kafka.scan import scan
from broker.kafka.topics import topics as topics_of
from broker.ports import LATEST, FetchResult, OffsetTooOld, Record
from broker.settings import KafkaSettings

log = logging.getLogger(__name__)

_RETRY_PAUSE_S: Final = 0.05
_COPY_BYTES: Final = 16 << 20  # larger than any batch
_BAD_COPIES_MAX: Final = 1_000  # damaged copies that are remembered
_CORRUPT: Final = b"\0"  # bytes that are no valid batch
_PROBE_BYTES: Final = 1  # Kafka answers with one whole batch.

T = TypeVar("T")


class KafkaRequests:
    """A Kafka client for single requests, shared within a process. A request takes at most `timeout_ms`, including its
    retries.
    """

    def __init__(self, kafka: KafkaSettings, *, timeout_ms: int = 5_000) -> None:
        self.kafka = kafka
        self._timeout_ms = timeout_ms
        self.client: Any = None
        self.groups = KafkaGroups(self)
        self._compacted = {topics_of(kafka).outstanding.name}
        self.bad_copies: dict[tuple[str, int, int, int | None], None] = {}  # (topic, partition, offset, broker)
        # on_damage() is called with each unreadable range that a read finds. It is None if nobody needs the ranges.
        self.on_damage: Callable[[LogDamaged], None] | None = None
        # given_up() returns True if an unreadable range was deleted, or if an operator has given the range up as lost.
        self.given_up: Callable[[LogDamaged], bool] = lambda _: False

    async def start(self, topics: Iterable[str]) -> None:
        """Connect to Kafka, and keep the metadata of these topics up to date.

        Raises LogUnavailable if Kafka can't be reached, or ConfigurationError if a retry can't help, such as after a
        refused password.
        """
        options = await reachable(self.kafka)
        self.client = AIOKafkaClient(**options, request_timeout_ms=self._timeout_ms)
        try:
            await self.client.bootstrap()
            await self.client.set_topics(list(topics))
        except (kafka_errors.KafkaError, OSError) as error:
            await self.client.close()
            raise LogUnavailable(f"Kafka could not be reached: {await why_not(options)}") from error

    async def stop(self) -> None:
        if self.client is not None:
            await self.client.close()

    def partitions(self, topic: str) -> int:
        """Return the topic's number of partitions, as far as this client knows; 0 if it knows none."""
        return len(self.client.cluster.partitions_for_topic(topic) or ())

    def leaders(self, topic: str) -> dict[int, int]:
        """Return the id of the broker that leads each partition, as far as this client knows. Partitions without a
        leader are left out.
        """
        partitions = self.client.cluster._partitions.get(topic, {})  # noqa: SLF001 - aiokafka has no method for all
        return {number: metadata.leader for number, metadata in partitions.items() if metadata.leader != -1}

    def leader(self, topic: str, partition: int) -> int | None:
        """Return the id of the broker that leads the partition, as far as this client knows. Return None if there is no
        leader.
        """
        found = self.client.cluster.leader_for_partition(TopicPartition(topic, partition))
        return None if found is None or found == -1 else int(found)

    def look_again(self) -> None:
        """Ask the cluster again which brokers lead the partitions. Do not wait for the answer."""
        self.client.force_metadata_update()

    async def offsets(self, topic: str, at_ms: Mapping[int, int]) -> dict[int, int]:
        """Return the offset of the first record at or after a time, by partition; -1 if there is none. The time
        EARLIEST stands for the partition's first offset, and LATEST for its end offset.

        Raises LogUnavailable if Kafka does not answer.
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
        """Read records from `offset` on: as many as fit into `bytes_max`, but at least one if there is any.

        Every record batch is checked, and the result ends before a damaged batch. If the first batch is damaged in the
        leader's copy, it is read from a follower. The function `worth` can save time: it gets the fetched bytes, unless
        they are compressed. If `worth` returns False, the records in these bytes are skipped without parsing.

        Raises LogDamaged if the first batch is damaged on every replica. To read on, begin after the last offset that
        the error names. Raises OffsetTooOld if Kafka has deleted the record at `offset`, or if the partition ends
        before `offset`. Raises LogUnavailable if Kafka does not answer.
        """
        holes = topic in self._compacted

        async def ask() -> FetchResult:
            leader = self._leader(topic, partition)
            raw, end = await self._fetch(leader, topic, partition, offset, bytes_max)
            fetched = await parse(raw, offset, end, worth, holes=holes)
            # If the first batch is damaged, fetch more bytes: the next batch may show where the damage ends.
            if fetched is None:
                raw, end = await self._fetch(leader, topic, partition, offset, bytes_wanted(raw))
                fetched = await parse(raw, offset, end, worth, holes=holes)
            if fetched is None:
                fetched = await self._from_another(topic, partition, offset, bytes_max, end, worth)
            if fetched is None:
                damage = await self._damage(topic, partition, offset, end, raw)
                self.report(damage)
                raise damage
            return fetched

        return await self.retried(ask)

    def report(self, damage: LogDamaged) -> None:
        """Call on_damage(), if it is set, with a range whose records are unreadable or missing."""
        if self.on_damage is not None:
            self.on_damage(damage)

    async def _fetch(self, node: int, topic: str, partition: int, offset: int, bytes_max: int) -> tuple[bytes, int]:
        """Fetch the bytes of a partition from this offset on from one broker, without checking them. Return the bytes
        and the end offset.
        """
        request = Fetch(topic, [(partition, offset, bytes_max)], bytes_max=max(bytes_max, 1))
        _, code, end_offset, raw = rows_of(await self.client.send(node, request))[0]
        error = kafka_errors.for_code(code)
        if error is kafka_errors.OffsetOutOfRangeError:
            raise OffsetTooOld(
                f"Kafka has no offset {offset} of {topic}/{partition}: its record was deleted, or the partition ends "
                "before this offset"
            )
        # If a broker says that its copy is damaged, return bytes that parse() rejects. So read() asks other brokers.
        if error is kafka_errors.CorruptRecordException:
            return _CORRUPT, (await self.offsets(topic, {partition: LATEST}))[partition]
        check(code)
        if topic not in self._compacted and (follows := to_confirm(raw, offset, end_offset)) is not None:
            after, size = follows
            following, _ = await self._fetch(node, topic, partition, after, _PROBE_BYTES)
            raw = raw[:size] + following[:FOLLOWING_BYTES]
        return raw, end_offset

    async def _from_another(
        self, topic: str, partition: int, offset: int, bytes_max: int, end: int, worth: Callable[[bytes], bool] | None
    ) -> FetchResult | None:
        """Read the records from a follower, because the leader's copy is damaged (KIP-392). Return None if no follower
        returns an intact copy.
        """
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

    async def check_copies(
        self,
        topic: str,
        partition: int,
        offset: int,
        end: int,
        *,
        seen: Callable[[int, FetchResult], None] | None = None,
    ) -> None:
        """Check the followers' copies of the offsets [offset, end), and record the damaged copies in `bad_copies`.

        If a follower's copy ends before `end`, check this copy up to its own end. If a follower does not answer, skip
        the rest of its copy. After each read, the function `seen` gets the broker's id and the result of the read.
        """
        leader = self.leader(topic, partition)
        for node in [node for node in self._copies(topic, partition) if node != leader]:
            at = offset
            while at < end:
                try:
                    raw, own_end = await self._fetch(node, topic, partition, at, _COPY_BYTES)
                    worth = (lambda _: False) if seen is None else None
                    fetched = await parse(raw, at, own_end, worth, holes=topic in self._compacted)
                except (kafka_errors.KafkaError, OSError, IndexError, OffsetTooOld):
                    break
                if fetched is None:
                    self._note_bad_copy(topic, partition, at, node)
                    fetched = await self.read(topic, partition, at, bytes_max=1)  # to find where to continue
                if fetched.next_offset <= at:
                    break
                if seen is not None:
                    seen(node, fetched)
                at = fetched.next_offset

    def _copies(self, topic: str, partition: int) -> list[int]:
        """Return the brokers that have a replica of the partition, in-sync replicas first."""
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
        """Return the LogDamaged error for the unreadable range that contains `offset`.

        The range ends before the next intact record batch.
        """
        found = damaged_range(raw, offset, end)
        first, last = found or (offset, await self._next_readable(topic, partition, offset, end) - 1)
        return LogDamaged(topic, partition, first, last)

    async def _next_readable(self, topic: str, partition: int, offset: int, end: int) -> int:
        """Return the first offset after a damaged batch from which Kafka can return an intact batch. Return `end` if
        there is no such offset.

        If the length field of the damaged batch is wrong, Kafka can't find the next batch: it can read only from the
        next entry of its offset index on. A binary search finds the offset. The search assumes that all offsets after
        it are readable.
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
        """Yield the records at the offsets [offset, end), one read at a time. All offsets up to `end` must exist. If a
        new leader lacks the newest offsets for a moment, wait for them, up to `timeout_ms`.

        Raises LogUnavailable if Kafka does not answer, or does not have the offsets in time. Raises LogDamaged for an
        unreadable range. With `pass_damaged`, unreadable ranges are skipped instead. With `pass_given_up`, unreadable
        ranges are skipped only if they were deleted or given up as lost.
        """

        def damaged(damage: LogDamaged) -> None:
            if not pass_damaged and not (pass_given_up and self.given_up(damage)):
                raise damage
            log.warning("log.passed error=%s", damage)

        patience_s = self._timeout_ms / 1000
        # This scan never reads ahead. So if the caller stops early, there is no read in progress to cancel.
        async for fetched in scan(self, topic, partition, offset, end, damaged=damaged, patience_s=patience_s):
            for record in fetched.records:
                yield record

    async def delete_before(self, topic: str, partition: int, offset: int) -> None:
        """Delete the partition's records before this offset. Raises LogUnavailable if Kafka does not answer."""

        async def ask() -> None:
            request = DeleteRecordsRequest([(topic, [(partition, offset)])], self._timeout_ms)
            answer = await self.client.send(self._leader(topic, partition), request)
            for row in (row for topic in answer.topics for row in topic[1]):
                check(row[2])

        await self.retried(ask)

    def _leader(self, topic: str, partition: int) -> int:
        leader = self.leader(topic, partition)
        if leader is None:
            raise kafka_errors.LeaderNotAvailableError
        return leader

    async def retried(self, ask: Callable[[], Awaitable[T]], *, failed: Callable[[], None] = lambda: None) -> T:
        """Call the function `ask` until it succeeds, for at most `timeout_ms`, and return its result. Call `failed`
        before each retry, and when the time has run out, but not if a retry can't help.

        Raises LogUnavailable if the time has run out, or if a retry can't help.
        """
        last: Exception | None = None
        try:
            async with asyncio.timeout(self._timeout_ms / 1000):
                while True:
                    try:
                        return await ask()
                    # uvloop raises RuntimeError for a write to a connection that was lost just now. A KafkaError is a
                    # RuntimeError, too.
                    except (RuntimeError, OSError, IndexError) as error:
                        if isinstance(error, kafka_errors.KafkaError) and not error.retriable:
                            raise LogUnavailable(f"Kafka refused a request: {type(error).__name__}") from error
                        last = error
                    failed()
                    await asyncio.sleep(_RETRY_PAUSE_S)
                    # The update of the metadata can be slow, too. So the timeout of this call includes it.
                    await self.client.force_metadata_update()
        except TimeoutError:
            # Ask now which brokers lead the partitions: aiokafka itself would ask only after five minutes.
            self.look_again()
            failed()
            why = "" if last is None else f": {type(last).__name__}"
            raise LogUnavailable(
                f"a request to Kafka did not succeed within {self._timeout_ms / 1000:g} s{why}; try again"
            ) from last
