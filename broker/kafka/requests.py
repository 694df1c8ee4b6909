"""Single Kafka requests that need no consumer: read a stretch of a partition, look offsets up, keep cursors.

For: one request, one answer, with the leader or coordinator found, and found again when it moved. Not for: a tail
that waits for new records (delivery uses a consumer for that), nor for what the records and metadata mean.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

from aiokafka import errors as kafka_errors
from aiokafka.client import AIOKafkaClient, ConnectionGroup, CoordinationType
from aiokafka.coordinator.protocol import ConsumerProtocol
from aiokafka.protocol.admin import DeleteGroupsRequest, DeleteRecordsRequest, DescribeGroupsRequest, ListGroupsRequest
from aiokafka.protocol.commit import OffsetCommitRequest, OffsetFetchRequest
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.group import LeaveGroupRequest
from aiokafka.protocol.offset import OffsetRequest
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.structs import TopicPartition

from broker.errors import LogUnavailable
from broker.kafka.reach import reachable, why_not
from broker.settings import KafkaSettings

EARLIEST: Final = -2
LATEST: Final = -1
_NO_MEMBER: Final = (-1, "")  # of a commit from outside the group: Kafka takes it while the group has no members
_RETRY_PAUSE_S: Final = 0.05
_BEHIND_PAUSE_S: Final = 0.2
_AT_ONCE: Final = 500  # records that are parsed before others run: a fraction of a millisecond

T = TypeVar("T")


class Record(NamedTuple):
    """One record. timestamp: milliseconds. headers: (name, value) pairs.

    Its fields are named as those of aiokafka's own class, for what is read are records of that one: to copy each would
    take longer than to parse it.
    """

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]


class Stretch(NamedTuple):
    """What one fetch brought. next_offset: where to read on; end_offset: one past the newest record there is.

    size: in bytes, as Kafka sent it. left_out_ms: all records were left out, the latest of this time.
    """

    records: list[Record]
    next_offset: int
    end_offset: int
    size: int = 0
    left_out_ms: int | None = None


class OffsetTooOld(LogUnavailable):
    """The log no longer begins where a reader wanted to read."""

    code = "offset-too-old"


class KafkaRequests:
    """A client of its own, shared by all who need a single request. timeout_ms: for a call with all its retries."""

    def __init__(self, kafka: KafkaSettings, *, timeout_ms: int = 5_000) -> None:
        self._kafka = kafka
        self._timeout_ms = timeout_ms
        self._client: Any = None
        self._coordinators: dict[str, int] = {}

    async def start(self, topics: Iterable[str]) -> None:
        """Connect, and keep the metadata of these topics (LogUnavailable, ConfigurationError)."""
        options = await reachable(self._kafka)
        self._client = AIOKafkaClient(**options, request_timeout_ms=self._timeout_ms)
        try:
            await self._client.bootstrap()
            await self._client.set_topics(list(topics))
        except (kafka_errors.KafkaError, OSError) as error:
            await self._client.close()
            raise LogUnavailable(f"Kafka can't be reached: {await why_not(options)}") from error

    async def stop(self) -> None:
        if self._client is not None:
            await self._client.close()

    def partitions(self, topic: str) -> int:
        """How many the topic has, 0 when there is no such topic."""
        return len(self._client.cluster.partitions_for_topic(topic) or ())

    def partitions_with_leader(self, topic: str) -> list[int]:
        """The partitions that can be written to now, as far as this client has heard."""
        return sorted(self._client.cluster.available_partitions_for_topic(topic) or ())

    def leader(self, topic: str, partition: int) -> int | None:
        """The node that can write it, as far as this client has heard; None: there is none."""
        found = self._client.cluster.leader_for_partition(TopicPartition(topic, partition))
        return None if found is None or found == -1 else int(found)

    def look_again(self) -> None:
        """Ask the cluster who leads its partitions; the answer comes later, if there is one."""
        self._client.force_metadata_update()

    async def offsets(self, topic: str, at_ms: Mapping[int, int]) -> dict[int, int]:
        """By partition, the first offset at or after a time; EARLIEST and LATEST are times too. -1: there is none."""

        async def ask() -> dict[int, int]:
            by_leader: dict[int, list[tuple[int, int]]] = {}
            for partition, moment in at_ms.items():
                by_leader.setdefault(self._leader(topic, partition), []).append((partition, moment))
            answers = await asyncio.gather(
                *(
                    self._client.send(node, OffsetRequest(-1, 0, [(topic, wanted)]))
                    for node, wanted in by_leader.items()
                )
            )
            found = {}
            for answer in answers:
                for _, partitions in answer.topics:
                    for partition, code, _, offset in partitions:
                        _check(code)
                        found[partition] = offset
            return found

        return await self._retried(ask)

    async def read(
        self,
        topic: str,
        partition: int,
        offset: int,
        *,
        bytes_max: int = 1 << 20,
        worth: Callable[[bytes], bool] | None = None,
    ) -> Stretch:
        """The records from this offset on, as many as fit into bytes_max but at least one if there is any.

        worth: whether any of the records in these bytes may be wanted. If not, all are left out, unparsed; but what is
        compressed is not asked.
        """

        async def ask() -> Stretch:
            request = FetchRequest(0, 0, max(bytes_max, 1), 0, [(topic, [(partition, offset, bytes_max)])])
            answer = await self._client.send(self._leader(topic, partition), request)
            _, partitions = answer.topics[0]
            _, code, end_offset, *_, raw = partitions[0]
            if kafka_errors.for_code(code) is kafka_errors.OffsetOutOfRangeError:
                raise OffsetTooOld(f"partition {partition} of the log can't be read from offset {offset}")
            _check(code)
            return await _parse(raw, offset, end_offset, worth)

        return await self._retried(ask)

    async def walk(self, topic: str, partition: int, offset: int, end: int) -> AsyncIterator[Record]:
        """The records in [offset, end), a read at a time (LogUnavailable).

        end: known to be there. A new leader may say for a while that the log ends before: that is waited for.
        """
        patient_until = 0.0
        while offset < end:
            stretch = await self.read(topic, partition, offset)
            for record in stretch.records:
                if record.offset < end:
                    yield record
            if stretch.next_offset > offset:
                offset, patient_until = stretch.next_offset, 0.0
            elif stretch.end_offset >= end:
                break  # compaction has left nothing
            else:
                now = time.monotonic()
                patient_until = patient_until or now + self._timeout_ms / 1000
                if now > patient_until:
                    raise LogUnavailable(f"Kafka gives nothing of {topic}/{partition} from offset {offset} on")
                await asyncio.sleep(_BEHIND_PAUSE_S)

    async def delete_before(self, topic: str, partition: int, offset: int) -> None:
        """Let a partition's log begin at this offset, or where it begins by now if that is later (LogUnavailable)."""

        async def ask() -> None:
            request = DeleteRecordsRequest([(topic, [(partition, offset)])], self._timeout_ms)
            answer = await self._client.send(self._leader(topic, partition), request)
            for row in (row for told in answer.topics for row in told[1]):
                _check(row[2])

        await self._retried(ask)

    async def commit(
        self,
        group: str,
        topic: str,
        cursors: Mapping[int, tuple[int, str]],
        *,
        member: tuple[int, str] = _NO_MEMBER,
    ) -> None:
        """Store (offset, metadata) by partition for a group that has no members (LogUnavailable).

        member: generation and id of one that it has, and LogUnavailable when it has not.
        """
        wanted = [(topic, [(partition, offset, text) for partition, (offset, text) in cursors.items()])]

        async def ask() -> None:
            request = OffsetCommitRequest(group, *member, -1, wanted)
            answer = await self._ask_coordinator(group, request)
            for _, partitions in answer.topics:
                for _, code in partitions:
                    _check(code)

        await self._retried(ask, group=group)

    async def committed(self, group: str, topic: str, partitions: Iterable[int]) -> dict[int, tuple[int, str]]:
        """By partition, the (offset, metadata) last stored; nothing for a partition without."""
        wanted = [(topic, list(partitions))]

        async def ask() -> dict[int, tuple[int, str]]:
            answer = await self._ask_coordinator(group, OffsetFetchRequest(group, wanted))
            _check(getattr(answer, "error_code", 0))
            found = {}
            for _, rows in answer.topics:
                for partition, offset, text, code in rows:
                    _check(code)
                    if offset >= 0:
                        found[partition] = (offset, text or "")
            return found

        return await self._retried(ask, group=group)

    async def expel(self, group: str, client_id: str) -> int:
        """Have the members of a group that have this client id leave it at once; how many there were (LogUnavailable).

        One that lives all the same joins again by itself.
        """

        async def ask() -> int:
            answer = await self._ask_coordinator(group, DescribeGroupsRequest([group]))
            code, *_, members = answer.groups[0][:6]
            _check(code)
            found = [member[0] for member in members if member[1] == client_id]
            for member_id in found:
                code = (await self._ask_coordinator(group, LeaveGroupRequest(group, member_id))).error_code
                if kafka_errors.for_code(code) is not kafka_errors.UnknownMemberIdError:  # it went by itself
                    _check(code)
            return len(found)

        return await self._retried(ask, group=group)

    async def assignments(self, group: str, topic: str) -> list[set[int]]:
        """By member, the partitions of a topic that it was given; none while the group agrees anew (LogUnavailable)."""

        async def ask() -> list[set[int]]:
            answer = await self._ask_coordinator(group, DescribeGroupsRequest([group]))
            code, *_, members = answer.groups[0][:6]
            _check(code)
            given = [ConsumerProtocol.ASSIGNMENT.decode(member[4]) if member[4] else None for member in members]
            return [
                {one.partition for one in assignment.partitions() if one.topic == topic}
                for assignment in given
                if assignment is not None
            ]

        return await self._retried(ask, group=group)

    async def groups(self) -> set[str]:
        """The names of all groups that the cluster has, whoever coordinates them (LogUnavailable)."""

        async def ask() -> set[str]:
            nodes = [broker.nodeId for broker in self._client.cluster.brokers()]
            answers = await asyncio.gather(*(self._client.send(node, ListGroupsRequest()) for node in nodes))
            for answer in answers:
                _check(answer.error_code)
            return {group[0] for answer in answers for group in answer.groups}

        return await self._retried(ask)

    async def delete_group(self, group: str) -> None:
        """The group and its committed offsets are gone, or there was no such group (LogUnavailable)."""

        async def ask() -> None:
            answer = await self._ask_coordinator(group, DeleteGroupsRequest([group]))
            for _, code in answer.results:
                if kafka_errors.for_code(code) is not kafka_errors.GroupIdNotFound:
                    _check(code)

        await self._retried(ask, group=group)
        self._coordinators.pop(group, None)

    async def _ask_coordinator(self, group: str, request: Any) -> Any:
        return await self._client.send(await self._coordinator(group), request, group=ConnectionGroup.COORDINATION)

    def _leader(self, topic: str, partition: int) -> int:
        leader = self.leader(topic, partition)
        if leader is None:
            raise kafka_errors.LeaderNotAvailableError
        return leader

    async def _coordinator(self, group: str) -> int:
        node = self._coordinators.get(group)
        if node is None:
            brokers = self._client.cluster.brokers()
            if len(brokers) == 1 and self._coordinators:  # the first look-up makes Kafka create its offsets topic
                return int(next(iter(brokers)).nodeId)
            node = self._coordinators[group] = int(await self._client.coordinator_lookup(CoordinationType.GROUP, group))
        return node

    async def _retried(self, ask: Callable[[], Awaitable[T]], *, group: str | None = None) -> T:
        last: Exception | None = None
        try:
            async with asyncio.timeout(self._timeout_ms / 1000):
                while True:
                    try:
                        return await ask()
                    except (kafka_errors.KafkaError, OSError, IndexError) as error:
                        if isinstance(error, kafka_errors.KafkaError) and not error.retriable:
                            raise LogUnavailable(f"Kafka refused: {type(error).__name__}") from error
                        last = error
                    if group is not None:
                        self._coordinators.pop(group, None)
                    await asyncio.sleep(_RETRY_PAUSE_S)
                    await self._client.force_metadata_update()  # which waits as long as a request
        except TimeoutError:
            # Who hangs may not be the one to ask any more; nobody else would look for five minutes.
            self.look_again()
            if group is not None:
                self._coordinators.pop(group, None)
            why = "" if last is None else f": {type(last).__name__}"
            raise LogUnavailable(f"Kafka did not answer in time{why}") from last


def _check(code: int) -> None:
    error = kafka_errors.for_code(code)
    if error is not kafka_errors.NoError:
        raise error


async def _parse(raw: bytes, offset: int, end_offset: int, worth: Callable[[bytes], bool] | None) -> Stretch:
    records: list[Record] = []
    next_offset = offset
    source = MemoryRecords(raw)
    batches = []
    while source.has_next():
        batch = source.next_batch()
        next_offset = max(next_offset, batch.next_offset)
        if not batch.is_control_batch:
            batches.append(batch)
    packed = any(batch.compression_type for batch in batches)
    if batches and worth is not None and not packed and not worth(raw):
        return Stretch([], next_offset, end_offset, len(raw), max(batch.max_timestamp for batch in batches))
    rest = itertools.chain.from_iterable(batches)
    while some := list(itertools.islice(rest, _AT_ONCE)):
        if some[0].offset < offset:  # a batch may begin before the offset asked for
            some = [record for record in some if record.offset >= offset]
        records += some
        await asyncio.sleep(0)
    return Stretch(records, next_offset, end_offset, len(raw))
