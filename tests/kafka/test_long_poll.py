"""New records by long polls of a real Kafka. How they pass damage: test_damage_in_tails.py."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

import pytest
from aiokafka.conn import CloseReason

from broker.kafka import long_poll
from broker.kafka.log import KafkaLog
from broker.kafka.long_poll import LongPoll
from broker.kafka.topics import Topics
from broker.ports import EARLIEST
from broker.settings import KafkaSettings
from tests.kafka_clients import BrokerConnection
from tests.listeners import until


class Reading:
    """A long poll of `messages`, and what it has returned."""

    def __init__(self, log: KafkaLog, topic: str) -> None:
        self.log, self.topic = log, topic
        self.long_poll = LongPoll(log.requests, topic)
        self.got: list[tuple[int, int, bytes | None]] = []

    async def put(self, partition: int, values: Sequence[bytes]) -> None:
        for one in values:
            await asyncio.gather(*self.log.producer.send_all(self.topic, partition, [(b"key", one)]))

    async def read(self) -> None:
        for partition, records in (await self.long_poll.read()).items():
            self.got += [(partition, record.offset, record.value) for record in records]

    async def until_got(self, count: int) -> None:
        async def enough() -> bool:
            await self.read()
            return len(self.got) >= count

        await until(enough, what=f"{count} records are read")


@contextlib.asynccontextmanager
async def reading(kafka: KafkaSettings, ready: Topics) -> AsyncIterator[Reading]:
    log = KafkaLog(kafka)
    await log.start()
    one = Reading(log, ready.messages.name)
    try:
        yield one
    finally:
        await one.long_poll.stop()
        await log.stop()


async def test_each_record_is_read_once_and_in_order(kafka_settings: KafkaSettings, ready_topics: Topics):
    async with reading(kafka_settings, ready_topics) as one:
        await one.put(0, [b"0", b"1"])
        one.long_poll.begin({0: 0, 1: 0})
        await one.until_got(2)
        await one.put(1, [b"0"])
        await one.put(0, [b"2"])
        await one.until_got(4)
        await one.read()
        assert sorted(one.got) == [(0, 0, b"0"), (0, 1, b"1"), (0, 2, b"2"), (1, 0, b"0")]
        assert [offset for partition, offset, _ in one.got if partition == 0] == [0, 1, 2]


async def test_a_record_wakes_a_poll_that_waits(kafka_settings: KafkaSettings, ready_topics: Topics):
    async with reading(kafka_settings, ready_topics) as one:
        one.long_poll.begin({0: 0})
        await one.read()
        waiting = asyncio.create_task(one.until_got(1))
        await one.put(0, [b"0"])
        await waiting
        assert one.got == [(0, 0, b"0")]


async def test_the_next_record_of_a_partition_does_not_wait_for_other_partitions(
    kafka_settings: KafkaSettings, ready_topics: Topics, monkeypatch: pytest.MonkeyPatch
):
    # Ordering keys put one record after another in the same partition. No record may wait until a poll ends.
    monkeypatch.setattr(long_poll, "WAIT_MS", 120_000)
    async with reading(kafka_settings, ready_topics) as one:
        one.long_poll.begin({0: 0, 1: 0})
        async with asyncio.timeout(30):
            for number in range(5):
                await one.put(0, [b"%d" % number])
                await one.until_got(number + 1)
        assert one.got == [(0, number, b"%d" % number) for number in range(5)]


async def test_the_next_record_of_the_only_partition_is_read_at_once(
    kafka_settings: KafkaSettings, ready_topics: Topics, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(long_poll, "WAIT_MS", 120_000)
    async with reading(kafka_settings, ready_topics) as one:
        # The first records come in parts, and the next poll begins before all parts were returned.
        await asyncio.gather(
            *one.log.producer.send_all(one.topic, 0, [(b"key", b"%d" % number) for number in range(2_500)])
        )
        one.long_poll.begin({0: 0})
        async with asyncio.timeout(30):
            await one.until_got(2_500)
            await one.put(0, [b"2500"])
            await one.until_got(2_501)
        assert [offset for _, offset, _ in one.got] == list(range(2_501))


async def test_records_fetched_before_the_place_was_changed_are_not_returned(
    kafka_settings: KafkaSettings, ready_topics: Topics
):
    async with reading(kafka_settings, ready_topics) as one:
        await one.put(0, [b"0", b"1", b"2"])
        one.long_poll.begin({0: 0})
        first = asyncio.create_task(one.long_poll.read())
        await asyncio.sleep(0)  # its request is in flight
        one.long_poll.begin({0: 2})
        assert 0 not in await first
        await one.until_got(1)
        assert one.got == [(0, 2, b"2")]
        one.long_poll.forget()
        await one.put(0, [b"3"])
        await one.read()
        assert len(one.got) == 1, "no partition is read after forget()"


async def test_a_place_that_retention_has_deleted_becomes_the_first_that_is_left(
    kafka_settings: KafkaSettings, ready_topics: Topics
):
    async with reading(kafka_settings, ready_topics) as one:
        await one.put(0, [b"0", b"1", b"2"])
        await one.log.requests.delete_before(one.topic, 0, 2)
        await until(
            lambda: _begins_at(one, 2),
            what="Kafka has deleted them",
        )
        one.long_poll.begin({0: 0})
        await one.until_got(1)
        assert one.got == [(0, 2, b"2")]


async def _begins_at(one: Reading, offset: int) -> bool:
    return (await one.log.requests.offsets(one.topic, {0: EARLIEST}))[0] == offset


async def test_a_backlog_comes_in_parts_of_bounded_size(kafka_settings: KafkaSettings, ready_topics: Topics):
    async with reading(kafka_settings, ready_topics) as one:
        await asyncio.gather(
            *one.log.producer.send_all(one.topic, 0, [(b"key", b"%d" % number) for number in range(2_500)])
        )
        one.long_poll.begin({0: 0})
        parts: list[int] = []

        async def all_read() -> bool:
            before = len(one.got)
            await one.read()
            parts.append(len(one.got) - before)
            return len(one.got) >= 2_500

        await until(all_read, what="all are read")
        assert [value for _, _, value in one.got] == [b"%d" % number for number in range(2_500)]
        assert max(parts) <= 1_000


async def test_reading_goes_on_after_answers_that_are_lost_late_or_cut_off(
    kafka_settings: KafkaSettings, ready_topics: Topics
):
    async with reading(kafka_settings, ready_topics) as one:
        one.long_poll.begin({0: 0})

        async def direct() -> BrokerConnection:
            """The connection, once a poll waits on it that no task has sent."""

            async def polls() -> bool:
                await one.read()
                return any(not isinstance(poll, asyncio.Task) for poll in one.long_poll._polls.values())

            await until(polls, what="a poll needs no task")
            return BrokerConnection(one.log.requests.client, one.log.requests.leader(one.topic, 0), one.long_poll)

        def lost(connection: BrokerConnection) -> None:
            connection.inner.close()

        def late(connection: BrokerConnection) -> None:
            connection.replace_frames(lambda _frame: None)
            loop = connection.oldest[1].get_loop()
            loop.call_later(0.1, connection.inner.close, CloseReason.CONNECTION_TIMEOUT)

        def cut_off(connection: BrokerConnection) -> None:
            connection.replace_frames(lambda frame: frame[:-3])

        def of_another_request(connection: BrokerConnection) -> None:
            connection.replace_frames(lambda frame: b"\0\0\0\0" + frame[4:])

        for number, broken in enumerate([lost, late, cut_off, of_another_request]):
            connection = await direct()
            broken(connection)
            await one.put(0, [b"%d" % number])
            await one.until_got(number + 1)
            assert not connection.inner.connected()
        assert one.got == [(0, number, b"%d" % number) for number in range(4)]


async def test_a_poll_that_is_not_answered_ends_its_connection(kafka_settings: KafkaSettings, ready_topics: Topics):
    async with reading(kafka_settings, ready_topics) as one:
        await one.put(0, [b"0"])
        one.long_poll.begin({0: 0})
        await one.until_got(1)
        connection = BrokerConnection(one.log.requests.client, one.log.requests.leader(one.topic, 0), one.long_poll)
        connection.time_out(0.2)  # for the next poll: one is in flight already
        await one.put(0, [b"1"])
        await one.until_got(2)
        connection.replace_frames(lambda _frame: None)
        await one.put(0, [b"2"])
        await one.until_got(3)
        assert not connection.inner.connected()
