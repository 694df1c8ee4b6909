"""Membership in the workers' consumer group, and the newest messages (the tail) of this worker's partitions.

For: joining and leaving the group, learning which partitions were assigned or revoked, and reading from given offsets
on. Not for: delivering the messages (broker/delivery), the listeners' cursors (cursors.py). Nobody reads the offsets
that this group commits: a successful commit only shows that the worker is still a member.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener
from aiokafka import errors as kafka_errors
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from aiokafka.structs import TopicPartition

from broker.core.flow import Share
from broker.errors import LogDamaged, LogUnavailable
from broker.kafka.reachability import reachable
from broker.kafka.requests import KafkaRequests
from broker.kafka.topics import topics, workers_group
from broker.ports import SESSION_TIMEOUT_MS, NoMember
from broker.settings import KafkaSettings

log = logging.getLogger(__name__)

_HEARTBEAT_MS: Final = 1_000
_POLL_MS: Final = 2_000  # Kafka answers a fetch sooner if there are records.
_PAUSE_S: Final = 0.5  # after an error
_RECORDS_MAX: Final = 1_000
# The timeout is long for all requests of a group member, because joining takes as long as the slowest hand-over.
_ANSWER_MS: Final = SESSION_TIMEOUT_MS + 5_000
# A consumer that has had only errors for nine seconds does not recover by itself.
FAILING_S_MAX: Final = 9.0

# Errors of aiokafka that mean a wrong checksum or a wrong length of a record batch.
_DAMAGED: Final = (kafka_errors.CorruptRecordException, kafka_errors.RecordTooLargeError)

_NO_NOTES: Final[Mapping[int, str]] = {}

Gained = Callable[[Collection[int]], None]
GivenUp = Callable[[Collection[int]], Awaitable[None]]


class Tail(ConsumerRebalanceListener):  # type: ignore[misc]
    """A member of the workers' consumer group. It reads new messages of the partitions that Kafka assigns to it.

    `name` is a client id: a dead member with the same id is removed from the group at the start.
    """

    def __init__(self, kafka: KafkaSettings, requests: KafkaRequests, *, name: str | None = None) -> None:
        self._topic, self._group = topics(kafka).messages.name, workers_group(kafka)
        self._kafka = kafka
        self._requests = requests
        self._name = name
        self._consumer: Any = None
        self._positions: dict[TopicPartition, int] = {}  # next offsets to read
        self._member = (0, "")
        self._failing_since: float | None = None
        self._gained: Gained
        self._given_up: GivenUp

    async def start(self, gained: Gained, given_up: GivenUp) -> None:
        """See broker.delivery.ports.Membership."""
        self._gained, self._given_up = gained, given_up
        named = {}
        if self._name is not None:
            named["client_id"] = self._name
            await self._replace(self._name)
        self._consumer = AIOKafkaConsumer(
            **await reachable(self._kafka),
            **named,
            group_id=self._group,
            enable_auto_commit=False,
            check_crcs=True,
            auto_offset_reset="earliest",
            session_timeout_ms=SESSION_TIMEOUT_MS,
            heartbeat_interval_ms=_HEARTBEAT_MS,
            rebalance_timeout_ms=SESSION_TIMEOUT_MS,
            request_timeout_ms=_ANSWER_MS,
            partition_assignment_strategy=(StickyPartitionAssignor,),
            fetch_max_wait_ms=_POLL_MS,
            max_partition_fetch_bytes=1 << 20,
        )
        self._consumer.subscribe([self._topic], listener=self)
        try:
            await self._consumer.start()
        except (kafka_errors.KafkaError, OSError) as error:
            await self._consumer.stop()
            raise LogUnavailable(f"Kafka can't be reached: {error}") from error

    async def _replace(self, name: str) -> None:
        """Remove dead group members with this client id. Otherwise nobody reads their partitions until the session
        times out.
        """
        with contextlib.suppress(LogUnavailable):
            if await self._requests.groups.expel(self._group, name):
                log.info("worker.replaces name=%s", name)

    async def stop(self) -> None:
        """Leave the consumer group, so that other members get the partitions at once."""
        if self._consumer is not None:
            with contextlib.suppress(kafka_errors.KafkaError):
                await self._consumer.stop()

    def begin(self, offsets: Mapping[int, int]) -> None:
        """Begin to read these partitions from these offsets on."""
        wanted = {TopicPartition(self._topic, partition): offset for partition, offset in offsets.items()}
        assigned = self._consumer.assignment()
        for partition, offset in wanted.items():
            if partition in assigned:
                self._consumer.seek(partition, offset)
                self._consumer.resume(partition)
                self._positions[partition] = offset

    async def confirm(self, offsets: Mapping[int, int], notes: Mapping[int, str] = _NO_NOTES) -> None:
        """Confirm that this worker still owns its partitions, by committing these offsets as the current group member.

        Raises NoMember if the worker is no longer a member, LogUnavailable if Kafka does not answer. Tools show the
        offsets as the group's progress. `notes` are the metadata of these commits.
        """
        if not offsets:
            raise LogUnavailable("this worker owns no partitions of the topic messages now")
        cursors = {partition: (offset, notes.get(partition, "")) for partition, offset in offsets.items()}
        try:
            await self._requests.groups.commit(self._group, self._topic, cursors, member=self._member)
        except LogUnavailable as error:
            if isinstance(error.__cause__, kafka_errors.UnknownMemberIdError | kafka_errors.IllegalGenerationError):
                raise NoMember(str(error)) from error
            raise

    async def notes(self, partitions: Iterable[int]) -> dict[int, str]:
        """See broker.delivery.ports.Membership."""
        found = await self._requests.groups.committed(self._group, self._topic, partitions)
        return {partition: text for partition, (_, text) in found.items() if text}

    async def share(self, partitions: Collection[int]) -> Share:
        """Return the share of this worker, which owns these partitions, in all partitions and workers.

        Raises LogUnavailable if Kafka does not answer, or during a rebalance.
        """
        owned = await self._requests.groups.assignments(self._group, self._topic)
        workers = sorted(sorted(one) for one in owned if one)
        if sorted(partitions) not in workers:
            raise LogUnavailable("the workers' consumer group is rebalancing; try again")
        return Share(
            partitions=len(partitions) / topics(self._kafka).messages.partitions,
            workers=len(workers),
            rank=workers.index(sorted(partitions)),
        )

    async def read(self) -> Mapping[int, list[Any]]:
        """Return new messages by partition, after at most two seconds. Return nothing while Kafka is unreachable.

        Raises LogUnavailable after errors for many seconds, because aiokafka's membership tasks may have ended and do
        not restart.
        """
        try:
            batches = await poll(
                self._consumer, self._requests, self._positions, timeout_ms=_POLL_MS, max_records=_RECORDS_MAX
            )
        except kafka_errors.KafkaError as error:
            log.warning("tail.failed error=%s", error)
            now = time.monotonic()
            self._failing_since = self._failing_since or now
            if now - self._failing_since > FAILING_S_MAX:
                raise LogUnavailable(f"new messages can't be read from Kafka: {error}") from error
            await asyncio.sleep(_PAUSE_S)
            return {}
        self._failing_since = None
        return batches

    # aiokafka calls these two methods.

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        self._positions.clear()
        await self._given_up([partition.partition for partition in revoked])

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        coordinator = self._consumer._coordinator  # noqa: SLF001 - no public attribute has it
        self._member = (coordinator.generation, coordinator.member_id)
        if assigned:
            self._consumer.pause(*assigned)
        self._gained([partition.partition for partition in assigned])


async def poll(
    consumer: Any, requests: KafkaRequests, positions: dict[TopicPartition, int], **options: int
) -> dict[int, list[Any]]:
    """Return the consumer's new records by partition. `positions` holds the next offset of each partition, and is
    updated.

    Raises LogDamaged if the next record of a partition is unreadable. The `options` are those of getmany().
    """
    try:
        batches = await consumer.getmany(**options)
    except kafka_errors.KafkaError as error:
        # getmany() drops the records of other partitions, and does not say which partition failed.
        # getmany() also skips an offset whose batch claims to be longer than the bytes that Kafka sent.
        for partition, position in positions.items():
            consumer.seek(partition, position)
        if not isinstance(error, _DAMAGED):
            raise
        return await _read_otherwise(consumer, requests, positions, list(positions))
    if not batches:
        # If a batch claims to reach beyond its file, Kafka returns no bytes and no error.
        read = [(partition, at) for partition, at in positions.items() if partition in consumer.assignment()]
        behind = [partition for partition, at in read if (consumer.highwater(partition) or 0) > at]
        return await _read_otherwise(consumer, requests, positions, behind)
    positions.update({partition: records[-1].offset + 1 for partition, records in batches.items() if records})
    return {partition.partition: records for partition, records in batches.items()}


async def _read_otherwise(
    consumer: Any,
    requests: KafkaRequests,
    positions: dict[TopicPartition, int],
    partitions: Collection[TopicPartition],
) -> dict[int, list[Any]]:
    """Read these partitions by single requests, which try follower replicas if the leader's copy is damaged.

    Raises LogDamaged if no replica is intact.
    """
    found: dict[int, list[Any]] = {}
    damaged: LogDamaged | None = None
    for partition in partitions:
        position = positions.get(partition)
        if position is None:  # the partition was given up meanwhile
            continue
        try:
            fetched = await requests.read(partition.topic, partition.partition, position)
        except LogDamaged as error:
            damaged = error
        except LogUnavailable as error:
            log.warning("tail.failed error=%s", error)
        else:
            if fetched.records and positions.get(partition) == position:  # Another call may have moved it.
                consumer.seek(partition, fetched.next_offset)
                positions[partition] = fetched.next_offset
                found[partition.partition] = fetched.records
    if damaged is not None and not found:
        raise damaged
    return found
