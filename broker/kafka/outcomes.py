"""Appends by partition: to `deliveries`, `outstanding` and `changes`, what happened after a put, and to `claims`.

For: writing them by partition, bounded in time. Not for: what is written when (broker/delivery/checkpoints.py)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, MutableMapping, Sequence
from typing import TypeVar

from aiokafka import errors as kafka_errors

from broker.errors import DiskNearlyFull, LogUnavailable
from broker.kafka.producer import KeyAndValue, Producer

T = TypeVar("T")


class OutcomesTopic:
    """One of these topics."""

    def __init__(self, producer: Producer, topic: str, timeout_s: float) -> None:
        self._producer = producer
        self._timeout_s = timeout_s
        self.name = topic
        self.refusal: str | None = None  # why append_one() appends nothing at the moment

    async def append(self, outcomes: MutableMapping[int, list[KeyAndValue]]) -> None:
        """Write (key, value) records by partition. No value: a tombstone. What is written is taken out of `outcomes`.

        LogUnavailable: what is left there may be written or not.
        """

        async def write(partition: int, records: Sequence[KeyAndValue]) -> None:
            await asyncio.gather(*self._producer.send_all(self.name, partition, records))
            del outcomes[partition]

        await self._bounded([write(partition, records) for partition, records in outcomes.items()])

    async def append_one(self, partition: int, key: bytes, value: bytes) -> int:
        """The record's offset, -1 when Kafka knows it as a repeat and no longer where it is (Unavailable)."""
        if self.refusal is not None:
            raise DiskNearlyFull(self.refusal)
        (offset,) = await self._bounded(self._producer.send_all(self.name, partition, [(key, value)]))
        return offset

    async def _bounded(self, sends: Iterable[Awaitable[T]]) -> list[T]:
        """aiokafka tries for long; we don't wait that long. What it has begun may be written later, and then twice.

        What it has not begun, because another batch of the partition is under way, is taken back: who tries again and
        again while Kafka is away would have as many copies written as there were tries, and keep them until then.
        """
        producer = self._producer.get()
        try:
            async with asyncio.timeout(self._timeout_s):
                ended = await asyncio.gather(*sends, return_exceptions=True)
        except TimeoutError:
            raise LogUnavailable("Kafka did not take the outcomes in time") from None
        for error in ended:
            if isinstance(error, kafka_errors.KafkaError):
                self._producer.failed(producer, error)
                raise LogUnavailable(f"Kafka did not take the outcomes: {type(error).__name__}") from error
        failed = next((error for error in ended if isinstance(error, BaseException)), None)
        if failed is not None:
            raise failed
        return [one for one in ended if not isinstance(one, BaseException)]
