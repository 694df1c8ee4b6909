"""Reads the newest changes of messages, for the worker that owns their partitions.

For: getting a change within milliseconds of its append. Not for: which worker owns which partition (tail.py), applying
a change (broker/delivery/changes/honour.py).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any, Final

from aiokafka import AIOKafkaConsumer
from aiokafka import errors as kafka_errors
from aiokafka.structs import TopicPartition

from broker.core.codec import decode
from broker.core.events import MessageChange
from broker.errors import LogDamaged, LogUnavailable, UnknownEvent
from broker.kafka.client import ANSWER_MS
from broker.kafka.reachability import reachable
from broker.kafka.requests import KafkaRequests
from broker.kafka.tail import poll
from broker.kafka.topics import topics
from broker.settings import KafkaSettings

_POLL_MS: Final = 2_000  # Kafka answers a fetch sooner if there are records.
_PAUSE_S: Final = 0.5  # after an error


class ChangesTail:
    """A Kafka consumer of new changes to messages. It has no consumer group: the caller says which partitions
    it reads.
    """

    def __init__(self, kafka: KafkaSettings, requests: KafkaRequests) -> None:
        self._kafka = kafka
        self._requests = requests
        self._topic = topics(kafka).changes.name
        self._consumer: Any = None
        self._positions: dict[TopicPartition, int] = {}
        self._follows = asyncio.Event()

    async def start(self) -> None:
        """Connect to Kafka. Raises LogUnavailable if Kafka can't be reached."""
        self._consumer = AIOKafkaConsumer(
            **await reachable(self._kafka),
            enable_auto_commit=False,
            check_crcs=True,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=_POLL_MS,
            request_timeout_ms=ANSWER_MS,
            max_partition_fetch_bytes=1 << 20,
        )
        try:
            await self._consumer.start()
        except (kafka_errors.KafkaError, OSError) as error:
            await self._consumer.stop()
            raise LogUnavailable(f"Kafka can't be reached: {error}") from error

    async def stop(self) -> None:
        if self._consumer is not None:
            with contextlib.suppress(kafka_errors.KafkaError):
                await self._consumer.stop()

    def follow(self, offsets: Mapping[int, int]) -> None:
        """Read these partitions from these offsets on, instead of those read before."""
        wanted = {TopicPartition(self._topic, partition): offset for partition, offset in offsets.items()}
        self._consumer.assign(list(wanted))
        self._positions = wanted
        for partition, offset in wanted.items():
            self._consumer.seek(partition, offset)
        self._follows.set()

    async def read(self) -> list[tuple[int, int, MessageChange]]:
        """Return (partition, offset, event) of new changes to messages. Wait at most two seconds for them.

        Return an empty list while Kafka is unreachable.
        """
        await self._follows.wait()
        try:
            batches = await poll(self._consumer, self._requests, self._positions, timeout_ms=_POLL_MS)
        except LogDamaged as damage:  # An unreadable change has no effect.
            partition = TopicPartition(self._topic, damage.partition)
            self._positions[partition] = damage.last + 1
            self._consumer.seek(partition, damage.last + 1)
            return []
        except kafka_errors.KafkaError:
            await asyncio.sleep(_PAUSE_S)
            return []
        found = []
        for partition, records in batches.items():
            for record in records:
                with contextlib.suppress(UnknownEvent):
                    event = decode(record.value or b"")
                    if isinstance(event, MessageChange):
                        found.append((partition, record.offset, event))
        return found
