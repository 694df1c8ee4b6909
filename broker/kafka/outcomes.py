"""Appends by partition: to `deliveries`, `outstanding` and `changes`, what happened after a put, and to `claims`.

For: writing them by partition, bounded in time. Not for: what is written when (broker/delivery/checkpoints.py)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from aiokafka import errors as kafka_errors

from broker.errors import DiskNearlyFull, LogUnavailable
from broker.kafka.producer import KeyAndValue, Producer


class OutcomesTopic:
    """One of these topics."""

    def __init__(self, producer: Producer, topic: str, timeout_s: float) -> None:
        self._producer = producer
        self._timeout_s = timeout_s
        self.name = topic
        self.refusal: str | None = None  # why append_one() appends nothing at the moment

    async def append(self, outcomes: Mapping[int, Sequence[KeyAndValue]]) -> None:
        """Write (key, value) records by partition, all of them (LogUnavailable). No value: a tombstone."""
        await self._bounded(
            asyncio.gather(
                *(
                    send
                    for partition, records in outcomes.items()
                    for send in self._producer.send_all(self.name, partition, records)
                )
            )
        )

    async def append_one(self, partition: int, key: bytes, value: bytes) -> int:
        """The record's offset, -1 when Kafka knows it as a repeat and no longer where it is (Unavailable)."""
        if self.refusal is not None:
            raise DiskNearlyFull(self.refusal)
        (offset,) = await self._bounded(asyncio.gather(*self._producer.send_all(self.name, partition, [(key, value)])))
        return offset

    async def _bounded(self, sends: asyncio.Future[list[int]]) -> list[int]:
        """aiokafka tries for long; we don't wait that long. What it has begun may be written later, and then twice.

        What it has not begun, because another batch of the partition is under way, is taken back: who tries again and
        again while Kafka is away would have as many copies written as there were tries, and keep them until then.
        """
        producer = self._producer.get()
        try:
            async with asyncio.timeout(self._timeout_s):
                return await sends
        except TimeoutError:
            raise LogUnavailable("Kafka did not take the outcomes in time") from None
        except kafka_errors.KafkaError as error:
            self._producer.failed(producer, error)
            raise LogUnavailable(f"Kafka did not take the outcomes: {type(error).__name__}") from error
