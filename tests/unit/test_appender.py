"""Appends by partition where not every partition can be written."""

from __future__ import annotations

import asyncio

import pytest
from aiokafka import errors as kafka_errors

from broker.core.events import ListenerTested, PutClaimed
from broker.errors import InDoubt, LogUnavailable
from broker.kafka.appender import Appender
from broker.kafka.claims import ClaimsTopic
from broker.kafka.listener_tests import ListenerTestsTopic
from broker.kafka.requests import KafkaRequests
from broker.kafka.topics import Topic
from broker.settings import KafkaSettings


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
    topic = Appender(producer, "deliveries", 0.05)
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
        await Appender(producer, "deliveries", 5.0).append(some)
    assert some == outcomes(2)
    assert len(producer.failures) == 1


class Batches:
    """A producer of batches of at most three records, each acknowledged when the test says so. sent: their records."""

    def __init__(self) -> None:
        self.sent: list[list[bytes]] = []
        self.acknowledged: list[asyncio.Future[int]] = []

    def get(self) -> None:
        return None

    def send_some(self, _topic: str, _partition: int, records, *, bytes_max: int):
        assert bytes_max
        self.sent.append([value for _, value in records[:3]])
        self.acknowledged.append(asyncio.get_running_loop().create_future())
        return min(3, len(records)), self.acknowledged[-1]

    async def acknowledge(self, first: int | Exception) -> None:
        """The newest batch; then let everyone who is concerned go on."""
        if isinstance(first, Exception):
            self.acknowledged[-1].set_exception(first)
        else:
            self.acknowledged[-1].set_result(first)
        for _ in range(10):
            await asyncio.sleep(0)


def appending(topic: Appender, *values: bytes) -> list[asyncio.Task[int]]:
    return [asyncio.create_task(topic.append_one(0, b"k", value)) for value in values]


async def test_what_is_appended_while_a_batch_is_under_way_becomes_the_next_ones_in_order():
    producer = Batches()
    topic = Appender(producer, "outstanding", 5.0)
    first = appending(topic, b"a")
    await asyncio.sleep(0.01)
    others = appending(topic, b"b", b"c", b"d", b"e")
    await asyncio.sleep(0.01)
    assert producer.sent == [[b"a"]]
    await producer.acknowledge(7)
    await producer.acknowledge(8)
    await producer.acknowledge(20)
    assert producer.sent == [[b"a"], [b"b", b"c", b"d"], [b"e"]]
    assert await asyncio.gather(*first, *others) == [7, 8, 9, 10, 20]
    again = appending(topic, b"f", b"g")
    await asyncio.sleep(0.01)
    await producer.acknowledge(-1)  # Kafka knows them, and no longer where they are
    assert await asyncio.gather(*again) == [-1, -1]


async def test_who_waits_no_longer_is_in_no_later_batch_and_keeps_none_up():
    producer = Batches()
    topic = Appender(producer, "outstanding", 5.0)
    (first, gone, last) = [*appending(topic, b"a"), *await later(topic, b"b"), *await later(topic, b"c")]
    gone.cancel()
    await asyncio.sleep(0)
    await producer.acknowledge(7)
    await producer.acknowledge(9)
    assert producer.sent == [[b"a"], [b"c"]]
    assert (await first, await last) == (7, 9)


async def test_a_batch_that_nobody_waits_for_any_more_is_taken_back():
    producer = Batches()
    topic = Appender(producer, "outstanding", 5.0)
    first, second = appending(topic, b"a", b"b")
    await asyncio.sleep(0.01)
    first.cancel()
    await asyncio.sleep(0.01)
    assert not producer.acknowledged[-1].cancelled()
    second.cancel()
    await asyncio.sleep(0.01)
    assert producer.acknowledged[-1].cancelled()
    (after,) = appending(topic, b"c")
    await asyncio.sleep(0.01)
    await producer.acknowledge(1)
    assert await after == 1


async def later(topic: Appender, value: bytes) -> list[asyncio.Task[int]]:
    await asyncio.sleep(0.01)
    return appending(topic, value)


async def test_a_batch_that_fails_is_told_to_those_in_it_and_the_next_one_is_written():
    producer = Batches()
    topic = Appender(producer, "outstanding", 5.0)
    failing = [*appending(topic, b"a", b"b"), *await later(topic, b"c")]
    await asyncio.sleep(0.01)
    await producer.acknowledge(RuntimeError("no"))
    await producer.acknowledge(3)
    ended = await asyncio.gather(*failing, return_exceptions=True)
    assert [type(one) for one in ended] == [RuntimeError, RuntimeError, int]


async def test_a_batch_that_is_not_acknowledged_in_time_holds_nobody_up_for_longer():
    producer = Batches()
    topic = Appender(producer, "outstanding", 0.05)
    ended = await asyncio.gather(*appending(topic, b"a"), *await later(topic, b"b"), return_exceptions=True)
    assert {type(one) for one in ended} == {LogUnavailable}
    await asyncio.sleep(0.1)
    (after,) = appending(topic, b"c")
    await asyncio.sleep(0.01)
    await producer.acknowledge(1)
    assert await after == 1


async def test_an_answer_about_a_record_that_was_not_acknowledged_says_what_may_be_stored():
    by = {"at_ms": 1, "organization_id": "o", "actor": "key:k", "queue_id": "q", "partition": 0}
    tests = ListenerTestsTopic(Appender(Batches(), "deliveries", 0.01))
    of = {"listener_id": "l", "message_id": "m", "status": 200, "error": None, "answers": ()}
    with pytest.raises(InDoubt, match="The test was sent"):
        await tests.append(ListenerTested(**by, **of, took_ms=1, dns_ms=None, connect_ms=None, tls_ms=None))
    topic = Topic("claims", 1, {})
    requests = KafkaRequests(KafkaSettings(bootstrap="unused"))
    claims = ClaimsTopic(Appender(Batches(), topic.name, 0.01), requests, topic)
    claim = PutClaimed(**by, digest="00", body_sha256="", claim_id="c", ids_at_ms=1, ids_seed="s")
    with pytest.raises(LogUnavailable, match="put no messages"):
        await claims.append(claim)
