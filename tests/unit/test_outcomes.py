"""Appends by partition where not every partition can be written."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from aiokafka import errors as kafka_errors

from broker.errors import LogUnavailable
from broker.kafka.outcomes import OutcomesTopic


class Producer:
    """Partition 1 hangs, partition 2 is refused. cancelled: sends that were taken back."""

    def __init__(self) -> None:
        self.failures: list[Exception] = []
        self.cancelled = 0

    def get(self) -> Producer:
        return self

    def failed(self, _producer: Producer, error: Exception) -> None:
        self.failures.append(error)

    def send_all(self, _topic: str, partition: int, _records) -> list:
        return [self._send(partition), self._send(partition)]

    async def _send(self, partition: int) -> int:
        await asyncio.sleep(0)
        if partition == 2:
            raise kafka_errors.MessageSizeTooLargeError
        try:
            while partition == 1:
                await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return 7


def outcomes(*partitions: int) -> dict[int, list[tuple[bytes, bytes | None]]]:
    return {partition: [(b"k", b"v")] for partition in partitions}


async def test_what_is_written_is_taken_out_and_the_rest_is_left_and_taken_back():
    producer = Producer()
    topic = OutcomesTopic(producer, "deliveries", 0.05)
    some = outcomes(0, 1, 3)
    with pytest.raises(LogUnavailable, match="in time"):
        await topic.append(some)
    assert some == outcomes(1)
    assert producer.cancelled == 2
    every = outcomes(0, 3)
    await topic.append(every)
    assert every == {}


async def test_a_partition_that_kafka_refuses_does_not_keep_back_the_others():
    producer = Producer()
    some = outcomes(0, 2, 3)
    with pytest.raises(LogUnavailable, match="MessageSizeTooLargeError"):
        await OutcomesTopic(producer, "deliveries", 5.0).append(some)
    assert some == outcomes(2)
    assert len(producer.failures) == 1


async def test_one_record_says_where_it_is():
    producer = SimpleNamespace(get=lambda: None, send_all=lambda *_: [asyncio.sleep(0, 9)])
    assert await OutcomesTopic(producer, "claims", 5.0).append_one(0, b"k", b"v") == 9
