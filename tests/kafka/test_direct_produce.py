"""Batches that bypass aiokafka's sender, on a real Kafka: each is stored once, whatever becomes of the answer."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
from aiokafka import errors as kafka_errors
from aiokafka.client import ConnectionGroup
from aiokafka.protocol.produce import ProduceResponse_v7
from aiokafka.structs import TopicPartition

from broker.kafka.log import KafkaLog
from broker.kafka.packed import PackedRequest
from broker.kafka.produce import DirectProducer
from broker.ports import LATEST
from tests.kafka_clients import BrokerConnection

CORRELATION_BYTES = 4


class Producing:
    """A producer, what it has sent without aiokafka's sender, and what aiokafka's sender has sent."""

    def __init__(self, log: KafkaLog, topic: str) -> None:
        self.log, self.topic = log, topic
        self.producer: DirectProducer = log.producer.get()
        self.direct = self.by_sender = 0
        sender, send = self.producer._sender, self.producer._send
        send_produce_req = sender._send_produce_req

        def counted(*args: Any) -> None:
            self.direct += 1
            send(*args)

        async def counted_too(*args: Any) -> None:
            self.by_sender += 1
            await send_produce_req(*args)

        self.producer._send, sender._send_produce_req = counted, counted_too

    @property
    def connection(self) -> BrokerConnection:
        leader = self.producer.client.cluster.leader_for_partition(TopicPartition(self.topic, 0))
        return BrokerConnection(self.producer.client, leader, ConnectionGroup.DEFAULT)

    def replace_answers(self, replaced: Callable[[bytes], bytes | None]) -> None:
        """Pass on what is made of each answer to a packed request, or nothing if that is None."""
        connection = self.connection

        def hostile(frame: bytes) -> bytes | None:
            if not isinstance(connection.oldest[0], PackedRequest):
                return frame
            answer = replaced(frame[CORRELATION_BYTES:])
            return None if answer is None else frame[:CORRELATION_BYTES] + answer

        connection.replace_frames(hostile)

    async def begin(self, value: bytes, partition: int = 0, topic: str | None = None) -> asyncio.Future[Any]:
        """Send a record, without waiting for its acknowledgement."""
        batch = self.producer.create_batch()
        batch.append(key=b"key", value=value, timestamp=None)
        return await self.producer.send_batch(batch, topic or self.topic, partition=partition)

    async def send_together(self, values: dict[int, bytes]) -> list[int]:
        """Send a record to each of these partitions at once; the offset of each."""
        async with asyncio.timeout(60):
            sending = [await self.begin(value, partition) for partition, value in values.items()]
            return [acknowledged.offset for acknowledged in await asyncio.gather(*sending)]

    def count_requests(self) -> list[PackedRequest]:
        """A list that each packed request will be added to as it is sent."""
        seen: list[PackedRequest] = []
        inner = self.connection.inner

        class Seen(deque):
            def append(self, item: Any) -> None:
                if isinstance(item[1], PackedRequest):
                    seen.append(item[1])
                super().append(item)

        inner._requests = Seen(inner._requests)
        return seen

    async def send(self, value: bytes) -> int:
        async with asyncio.timeout(60):
            return (await (await self.begin(value))).offset

    async def stored(self, partition: int = 0, topic: str | None = None) -> list[bytes]:
        topic = topic or self.topic
        (end,) = (await self.log.requests.offsets(topic, {partition: LATEST})).values()
        found: list[bytes] = []
        while len(found) < end:
            fetched = await self.log.requests.read(topic, partition, len(found))
            found += [record.value for record in fetched.records]
        return found


@pytest.fixture
async def producing(kafka_settings, ready_topics):
    log = KafkaLog(kafka_settings)
    await log.start()
    found = Producing(log, ready_topics.deliveries.name)
    assert await found.send(b"0") == 0
    yield found
    await log.stop()


async def test_batches_bypass_the_sender_once_there_is_a_connection_and_take_turns_where_they_wait(producing):
    begun = (producing.direct, producing.by_sender)
    assert [await producing.send(b"%d" % number) for number in range(1, 10)] == list(range(1, 10))
    assert (producing.direct, producing.by_sender) == (begun[0] + 9, begun[1])
    together = [await producing.begin(b"%d" % number) for number in range(10, 12)]
    assert [(await one).offset for one in together] == [10, 11]  # the second one had to wait for the first
    assert (producing.direct, producing.by_sender) == (begun[0] + 10, begun[1] + 1)
    assert await producing.send(b"12") == 12
    assert producing.direct == begun[0] + 11
    assert await producing.stored() == [b"%d" % number for number in range(13)]


async def test_batches_that_are_sent_at_once_share_a_request(producing, ready_topics):
    changes = ready_topics.changes.name
    await (await producing.begin(b"0", 1, changes))
    seen, by_sender = producing.count_requests(), producing.by_sender
    values = {partition: b"%d" % partition for partition in range(ready_topics.deliveries.partitions)}
    sending = [await producing.begin(value, partition) for partition, value in values.items()]
    sending.append(await producing.begin(b"elsewhere", 1, changes))
    assert [one.offset for one in await asyncio.gather(*sending)] == [1] + [0] * (len(values) - 1) + [1]
    assert (len(seen), producing.by_sender) == (1, by_sender)
    assert await producing.stored() == [b"0", b"0"]
    for partition in range(1, len(values)):
        assert await producing.stored(partition) == [values[partition]]
    assert await producing.stored(1, changes) == [b"0", b"elsewhere"]


async def test_a_request_has_about_a_mebibyte_of_batches(producing):
    await producing.send_together({0: b"1", 1: b"1"})
    seen = producing.count_requests()
    assert await producing.send_together({0: b"x" * 600_000, 1: b"x" * 600_000}) == [2, 1]
    assert [len(request.encode()) // 600_000 for request in seen] == [1, 1]
    assert await producing.send_together({0: b"x" * 500_000, 1: b"x" * 500_000}) == [3, 2]
    assert len(seen) == 3


@pytest.mark.parametrize("row", [{"partition": 1, "error_code": 6}, {"partition": 1, "offset": -1}, {"partition": 7}])
async def test_of_a_request_only_the_batches_that_are_not_acknowledged_are_repeated(producing, row: dict[str, int]):
    await producing.send_together({0: b"1", 1: b"1"})
    seen: list[bytes] = []

    def first_one(answer: bytes) -> bytes:
        seen.append(answer)
        return rows_with(producing.topic, {"offset": 2}, row) if len(seen) == 1 else answer

    producing.replace_answers(first_one)
    by_sender = producing.by_sender
    assert await producing.send_together({0: b"2", 1: b"2"}) == [2, 1]
    assert producing.by_sender == by_sender + 1
    assert await producing.send_together({0: b"3", 1: b"3"}) == [3, 2]
    assert await producing.stored() == [b"0", b"1", b"2", b"3"]
    assert await producing.stored(1) == [b"1", b"2", b"3"]


async def test_batches_whose_connection_closes_before_they_are_sent_are_stored_once(producing):
    await producing.send_together({0: b"1", 1: b"1"})
    direct = producing.direct
    sending = [await producing.begin(b"2", partition) for partition in range(2)]
    assert producing.direct == direct + 2
    producing.connection.inner.close()
    async with asyncio.timeout(60):
        assert [one.offset for one in await asyncio.gather(*sending)] == [2, 1]
    assert await producing.stored() == [b"0", b"1", b"2"]
    assert await producing.stored(1) == [b"1", b"2"]


async def test_a_batch_whose_answer_is_lost_is_stored_once_and_later_ones_bypass_the_sender_again(producing):
    values = [b"0"]
    async with asyncio.timeout(60):
        for _ in range(3):
            direct = producing.direct
            while producing.direct == direct:
                values.append(b"%d" % len(values))
                sending = await producing.begin(values[-1])
                if producing.direct == direct:
                    await sending
            producing.connection.inner.close()  # The request is on its way.
            assert (await sending).offset == len(values) - 1
    assert await producing.stored() == values


async def test_a_caller_that_gives_up_does_not_hold_up_the_next_one(producing):
    sending = await producing.begin(b"given up")
    sending.cancel()
    assert await producing.send(b"next") == 2
    assert await producing.stored() == [b"0", b"given up", b"next"]


def rows_with(topic: str, *changed: dict[str, Any]) -> bytes:
    """An answer with a row for each of these dictionaries, each of which changes a row that acknowledges a batch."""
    rows = [{"partition": 0, "error_code": 0, "offset": 77, "time": -1, "start": 0} | one for one in changed]
    return ProduceResponse_v7([(topic, [tuple(row.values()) for row in rows])], 0).encode()


@pytest.mark.parametrize(
    "mutated",
    [
        lambda _topic, _answer: b"",
        lambda _topic, answer: answer[:-5],
        lambda _topic, _answer: b"\xff" * 60,
        lambda _topic, _answer: b"\0" * 8,  # no topic
        lambda topic, _answer: rows_with(topic, {"partition": 1}),
        lambda _topic, _answer: rows_with("another", {}),
        lambda topic, _answer: rows_with(topic, {"offset": -1}),
        lambda topic, _answer: rows_with(topic, {"error_code": 6}),  # not the leader
        lambda topic, _answer: rows_with(topic, {"error_code": 7}),  # timed out
        lambda topic, _answer: rows_with(topic, {"error_code": 20}),  # too few replicas stored it
    ],
)
async def test_an_answer_that_acknowledges_nothing_is_no_success_and_the_batch_is_stored_once(
    producing, mutated: Callable[[str, bytes], bytes]
):
    assert await producing.send(b"1") == 1
    seen: list[bytes] = []

    def first_one(answer: bytes) -> bytes:
        seen.append(answer)
        return mutated(producing.topic, answer) if len(seen) == 1 else answer

    producing.replace_answers(first_one)
    by_sender = producing.by_sender
    assert await producing.send(b"2") == 2
    assert seen
    assert producing.by_sender == by_sender + 1
    assert await producing.send(b"3") == 3
    assert await producing.stored() == [b"0", b"1", b"2", b"3"]


@pytest.mark.parametrize("code", [10, 45, 47, 29, -1])
async def test_an_error_that_ends_a_batch_is_the_one_that_aiokafka_makes_of_it(producing, code: int):
    assert await producing.send(b"1") == 1
    producing.replace_answers(lambda _answer: rows_with(producing.topic, {"error_code": code, "offset": -1}))
    expected = kafka_errors.ProducerFenced if code == 47 else kafka_errors.for_code(code)
    with pytest.raises(expected):
        await producing.send(b"2")


async def test_a_request_without_an_answer_ends_its_connection_and_is_repeated(producing):
    assert await producing.send(b"1") == 1
    connection = producing.connection
    connection.time_out(0.2)
    producing.replace_answers(lambda _answer: None)
    assert await producing.send(b"2") == 2
    assert not connection.inner.connected()
    assert await producing.stored() == [b"0", b"1", b"2"]


async def test_what_is_under_way_when_the_producer_stops_is_stored(producing):
    sending = [await producing.begin(b"%d" % number) for number in range(1, 3)]
    await producing.producer.stop()
    assert [one.result().offset for one in sending] == [1, 2]
    with pytest.raises(kafka_errors.ProducerClosed):
        await producing.begin(b"too late")


async def test_a_broker_that_does_not_know_the_version_gets_aiokafka_s_request(producing):
    producing.connection.inner._versions[0] = (0, 6)
    begun = (producing.direct, producing.by_sender)
    assert await producing.send(b"1") == 1
    assert (producing.direct, producing.by_sender) == (begun[0], begun[1] + 1)
