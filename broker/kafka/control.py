"""Appends to the topic `control` in order (ports.ControlLog).

For: appending one event at a time, and the end offset. Not for: applying events (projections/), which events are
allowed (broker/commands).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from aiokafka import errors as kafka_errors

from broker.core.codec import encode
from broker.core.events import ControlEvent
from broker.disk import Refusal
from broker.errors import ConfigurationError, InDoubt, LogDamaged, LogUnavailable
from broker.kafka.producer import Producer
from broker.kafka.requests import KafkaRequests
from broker.ports import EARLIEST, LATEST, Record


class ControlTopic:
    """The Kafka topic `control`, which holds the events of accounts, queues, listeners and more. append() writes one
    event.
    """

    def __init__(self, producer: Producer, requests: KafkaRequests, topic: str, timeout_s: float) -> None:
        self._producer = producer
        self._requests = requests
        self._topic = topic
        self._timeout_s = timeout_s
        self.refusal: Refusal | None = None

    async def append(self, event: ControlEvent) -> int:
        """Append an event to the topic `control`, and return its offset once all in-sync replicas have stored it. In a
        rare case, Kafka stores the event but does not say at which offset. Then return the offset of the topic's newest
        record.

        Raises InDoubt if Kafka does not acknowledge the event: it may be stored or not. Raises DiskNearlyFull if the
        disk has too little free space for the event. Urgent events are refused later than all others.
        """
        if self.refusal is not None:
            self.refusal.check(urgent=event.urgent)
        producer = self._producer.get()
        try:
            async with asyncio.timeout(self._timeout_s):
                done = await producer.send(
                    self._topic, key=event.organization_id.encode(), value=encode(event), partition=0
                )
                offset = int((await asyncio.shield(done)).offset)
        except TimeoutError:
            raise InDoubt(
                "Kafka did not acknowledge the change in time. The change may have been stored; "
                "read the resource before you repeat the request."
            ) from None
        except kafka_errors.KafkaError as error:
            self._producer.failed(producer, error)
            raise InDoubt(
                f"Kafka did not acknowledge the change ({type(error).__name__}). The change may have been stored; "
                "read the resource before you repeat the request."
            ) from error
        # A negative `offset` means that Kafka has stored the record, but does not say at which offset.
        # In this case, return the last offset of the topic.
        if offset < 0:
            try:
                return await self.end_offset() - 1
            except LogUnavailable as error:
                raise InDoubt(
                    "The change is stored, but Kafka does not say at which offset. Before you repeat the request, read "
                    "the resource to see whether the change had an effect."
                ) from error
        return offset

    async def check(self) -> bool:
        """Read the whole topic `control` once, while this process starts. Return True if no damaged copy was found.
        Return False if some records are damaged on the partition leader, and were read from another broker. An ordinary
        Kafka consumer reads only from the leader, so it may be unable to read the topic.

        Raises ConfigurationError if some records are unreadable on every replica, or if the topic's first events are
        lost.
        """
        begin = (await self._requests.offsets(self._topic, {0: EARLIEST}))[0]
        if begin > 0:
            raise ConfigurationError(
                f"{self._topic}/0 begins at offset {begin}: the events before this offset are lost. Everput computes "
                "all state from the topic `control`, so no process can start: restore the missing files of this topic "
                "from a copy, or import an export into an empty installation"
            )
        try:
            async for _ in self.records(await self.end_offset()):
                pass
        except LogDamaged as damage:
            raise ConfigurationError(
                f"{damage}. Everput computes all state from the topic `control`, so no process can start until these "
                "records are restored or, with the embedded Kafka, given up (`everput mend --help`)"
            ) from damage
        return all(topic != self._topic for topic, *_ in self._requests.bad_copies)

    async def records(self, end: int) -> AsyncIterator[Record]:
        """See ports.ControlLog.records."""
        async for record in self._requests.walk(self._topic, 0, 0, end):
            yield record

    async def begin_group(self, group: str, offset: int) -> None:
        """See ports.ControlLog.begin_group."""
        await self._requests.groups.commit(group, self._topic, {0: (offset, "")})

    async def delete_group(self, group: str) -> None:
        """See ports.ControlLog.delete_group."""
        await self._requests.groups.delete(group)

    async def end_offset(self) -> int:
        """Return the end offset of the topic `control`. Raises LogUnavailable if Kafka does not answer."""
        return (await self._requests.offsets(self._topic, {0: LATEST}))[0]
