"""The tail of `messages` and who owns which partition: one member of the workers' consumer group.

For: joining and leaving the group, being told of partitions gained and given up, and reading on from given offsets.
Not for: what is done with the records (broker/delivery), nor the listeners' cursors (cursors.py): this group commits
nothing, its membership is all that counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener
from aiokafka import errors as kafka_errors
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from aiokafka.structs import TopicPartition

from broker.errors import LogUnavailable
from broker.kafka.client import client_options
from broker.kafka.requests import KafkaRequests
from broker.kafka.topics import topics, workers_group
from broker.settings import KafkaSettings

log = logging.getLogger(__name__)

SESSION_TIMEOUT_MS: Final = 10_000  # how long a killed worker's partitions stand still, if none takes its place
_HEARTBEAT_MS: Final = 1_000
_POLL_MS: Final = 500
_RECORDS_MAX: Final = 1_000

Gained = Callable[[Collection[int]], None]
GivenUp = Callable[[Collection[int]], Awaitable[None]]


class Tail(ConsumerRebalanceListener):  # type: ignore[misc]
    """gained: told at once; nothing is read before begin(). given_up: awaited before others may own them.

    name: whoever else has it is dead, and this one stands in its place. None: it stands in nobody's.
    """

    def __init__(
        self, kafka: KafkaSettings, requests: KafkaRequests, *, name: str | None, gained: Gained, given_up: GivenUp
    ) -> None:
        self._topic = topics(kafka).messages.name
        self._gained = gained
        self._given_up = given_up
        self._kafka = kafka
        self._requests = requests
        self._name = name
        self._consumer: Any = None

    async def start(self) -> None:
        """Join the group; gained() follows (LogUnavailable)."""
        named = {}
        if self._name is not None:
            named["client_id"] = self._name
            await self._replace(self._name)
        self._consumer = AIOKafkaConsumer(
            **client_options(self._kafka),
            **named,
            group_id=workers_group(self._kafka),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            session_timeout_ms=SESSION_TIMEOUT_MS,
            heartbeat_interval_ms=_HEARTBEAT_MS,
            rebalance_timeout_ms=SESSION_TIMEOUT_MS,
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
        """Without it all partitions stand still until the dead one's session has timed out: docs/decisions/0032."""
        with contextlib.suppress(LogUnavailable):
            if await self._requests.expel(workers_group(self._kafka), name):
                log.info("worker.replaces name=%s", name)

    async def stop(self) -> None:
        """Leave the group, so that others take the partitions over at once."""
        if self._consumer is not None:
            with contextlib.suppress(kafka_errors.KafkaError):
                await self._consumer.stop()

    def begin(self, offsets: Mapping[int, int]) -> None:
        """Read these partitions from these offsets on."""
        wanted = {TopicPartition(self._topic, partition): offset for partition, offset in offsets.items()}
        assigned = self._consumer.assignment()
        for partition, offset in wanted.items():
            if partition in assigned:
                self._consumer.seek(partition, offset)
                self._consumer.resume(partition)

    async def read(self) -> Mapping[int, list[Any]]:
        """New records by partition, waiting for up to half a second; nothing while Kafka is away."""
        try:
            batches = await self._consumer.getmany(timeout_ms=_POLL_MS, max_records=_RECORDS_MAX)
        except kafka_errors.KafkaError:
            await asyncio.sleep(_POLL_MS / 1000)
            return {}
        return {batch.partition: records for batch, records in batches.items()}

    # aiokafka calls these

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        await self._given_up([partition.partition for partition in revoked])

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        if assigned:
            self._consumer.pause(*assigned)
        self._gained([partition.partition for partition in assigned])
