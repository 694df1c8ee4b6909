"""The log on a real Kafka: what is appended is where it was said to be, in order, once, and an outage loses nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import time
import zlib
from collections import defaultdict

import pytest
from aiokafka import errors as kafka_errors
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.record.memory_records import MemoryRecords

from broker.core.codec import decode
from broker.core.events import QueueCreated
from broker.core.ids import message_id
from broker.errors import InDoubt, LogUnavailable
from broker.kafka.admin import ensure_topics
from broker.kafka.appender import Appender
from broker.kafka.appends import QUEUE_HEADER
from broker.kafka.embedded.kafka import EmbeddedKafka
from broker.kafka.log import KafkaLog
from broker.kafka.requests import KafkaRequests
from broker.kafka.topics import topics as topic_table
from broker.ports import LATEST
from tests.processes import stop_still

PARTITIONS = 4
TRIES = 20


@pytest.fixture
async def kafka_log(kafka_settings, ready_topics):
    log = KafkaLog(kafka_settings)
    await log.start()
    yield log
    await log.stop()


def record(number: int, value: bytes | None = None):
    """Builds record number so and so, whatever the partition."""
    return lambda _partition: (b"m-%d" % number, value or b"value %d" % number, b"q-%d" % (number % 3))


def queue_created(name: str) -> QueueCreated:
    return QueueCreated(at_ms=1, organization_id="o", queue_id="q", name=name)


async def read_all(log: KafkaLog, topic: str) -> dict[tuple[int, int], tuple[bytes, bytes]]:
    """By (partition, offset), (key, value) of every record."""
    found = {}
    for partition, end in enumerate(await log.messages.end_offsets()):
        offset = 0
        while offset < end:
            fetched = await log.requests.read(topic, partition, offset)
            found |= {(partition, one.offset): (one.key, one.value) for one in fetched.records}
            offset = fetched.next_offset
    return found


async def test_two_thousand_at_once_are_each_where_it_was_said_and_nowhere_else(kafka_log, ready_topics):
    places = await asyncio.gather(*(kafka_log.messages.append(record(number)) for number in range(2_000)))
    assert len(set(places)) == 2_000
    expected = {place: (b"m-%d" % number, b"value %d" % number) for number, place in enumerate(places)}
    assert await read_all(kafka_log, ready_topics.messages.name) == expected
    assert sum(await kafka_log.messages.end_offsets()) == 2_000


async def test_a_batch_keeps_the_order_in_which_its_messages_came(kafka_log):
    for _ in range(5):
        places = await asyncio.gather(*(kafka_log.messages.append(record(number)) for number in range(50)))
        by_partition = defaultdict(list)
        for partition, offset in places:
            by_partition[partition].append(offset)
        assert all(offsets == sorted(offsets) for offsets in by_partition.values())


async def test_the_pause_between_batches_is_as_long_as_the_log_was_told(kafka_settings, ready_topics):
    log = KafkaLog(kafka_settings, batch_pause_ms=3_600_000)
    await log.start()
    try:
        await asyncio.gather(*(log.messages.append(record(number)) for number in range(5)))
        waiting = [asyncio.ensure_future(log.messages.append(record(5)))]
        for number in range(20):
            await log.control.append(queue_created(f"meanwhile-{number}"))
        assert not waiting[0].done()
        # As many as in the batch before: that ends the pause.
        waiting += [asyncio.ensure_future(log.messages.append(record(number))) for number in range(6, 10)]
        assert len({partition for partition, _ in await asyncio.gather(*waiting)}) == 1
    finally:
        await log.stop()


async def test_a_record_carries_its_queue_in_its_first_header(kafka_log, ready_topics):
    partition, offset = await kafka_log.messages.append(record(7))
    (found,) = (await kafka_log.requests.read(ready_topics.messages.name, partition, offset)).records
    assert list(found.headers) == [(QUEUE_HEADER, b"q-1")]
    assert abs(found.timestamp - time.time() * 1000) < 60_000


async def test_messages_of_one_key_share_a_partition_and_keep_their_order(kafka_log):
    async def put_all(key: str) -> list[tuple[int, int]]:
        waiting = [kafka_log.messages.append(record(number), ordering_key=key) for number in range(100)]
        noise = [kafka_log.messages.append(record(number)) for number in range(20)]
        places = list(await asyncio.gather(*waiting))
        await asyncio.gather(*noise)
        return places

    for places in await asyncio.gather(*(put_all(f"key-{number}") for number in range(10))):
        assert len({partition for partition, _ in places}) == 1
        offsets = [offset for _, offset in places]
        assert offsets == sorted(offsets)
        assert len(set(offsets)) == len(offsets)


async def test_a_message_is_found_by_its_id_and_only_that_one(kafka_log):
    made: dict[str, bytes] = {}

    def build(number: int):
        def at(partition: int):
            at_ms = time.time_ns() // 1_000_000
            text = message_id(at_ms=at_ms, partition=partition, random_bits=number)
            made[text] = b"value %d" % number
            parts[text] = (partition, at_ms)
            return text.encode(), made[text], b"q"

        return at

    parts: dict[str, tuple[int, int]] = {}
    for first in range(0, 300, 100):
        await asyncio.gather(*(kafka_log.messages.append(build(number)) for number in range(first, first + 100)))
    for text, (partition, at_ms) in parts.items():
        found = await kafka_log.messages.find(partition=partition, at_ms=at_ms, message_id=text, organization_id="o")
        assert found is not None
        assert found[1] == made[text]
    partition, at_ms = next(iter(parts.values()))
    unknown = message_id(at_ms=at_ms, partition=partition, random_bits=10**6)
    for number, moment in ((partition, at_ms), (partition, at_ms + 10**9), (PARTITIONS, at_ms)):
        asked = {"partition": number, "at_ms": moment, "organization_id": "o"}
        assert await kafka_log.messages.find(message_id=unknown, **asked) is None


async def test_offsets_are_known_for_the_beginning_the_end_and_a_moment_between(kafka_log):
    assert await kafka_log.messages.end_offsets() == (0,) * PARTITIONS
    assert await kafka_log.messages.offsets_at(0) == (0,) * PARTITIONS
    await asyncio.gather(*(kafka_log.messages.append(record(number), ordering_key=str(number)) for number in range(50)))
    middle = await kafka_log.messages.end_offsets()
    await asyncio.sleep(0.01)  # Kafka's clock is in milliseconds
    at_ms = time.time_ns() // 1_000_000
    await asyncio.sleep(0.01)
    assert await kafka_log.messages.offsets_at(at_ms) == middle
    await asyncio.gather(*(kafka_log.messages.append(record(number), ordering_key=str(number)) for number in range(50)))
    end = await kafka_log.messages.end_offsets()
    assert sum(end) == 100
    assert await kafka_log.messages.offsets_at(at_ms) == middle
    assert await kafka_log.messages.offsets_at(0) == (0,) * PARTITIONS
    assert await kafka_log.messages.offsets_at(at_ms + 10**9) == end


async def test_a_value_of_6_mib_passes_between_small_ones(kafka_log, ready_topics):
    large = os.urandom(6 << 20)
    places = await asyncio.gather(
        *(kafka_log.messages.append(record(number, large if number == 5 else None)) for number in range(10))
    )
    found = await read_all(kafka_log, ready_topics.messages.name)
    assert found[places[5]] == (b"m-5", large)
    assert len(found) == 10


async def test_an_event_that_cannot_be_made_fails_alone(kafka_log):
    def impossible(_partition):
        raise RuntimeError("no such thing")

    waiting = [kafka_log.messages.append(impossible if number == 3 else record(number)) for number in range(6)]
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [isinstance(result, RuntimeError) for result in results] == [number == 3 for number in range(6)]


async def batches_of(log: KafkaLog, topic: str) -> list[list[bytes]]:
    """The keys of each record batch, as Kafka has them."""
    found: list[list[bytes]] = []
    for partition, end in enumerate(await log.messages.end_offsets()):
        if end:
            request = FetchRequest(0, 0, 64 << 20, 0, [(topic, [(partition, 0, 64 << 20)])])
            answer = await log.requests.client.send(log.requests._leader(topic, partition), request)
            raw = answer.topics[0][1][0][-1]
            batches = MemoryRecords(raw)
            while batches.has_next():
                found.append([one.key for one in batches.next_batch()])
    return found


async def test_messages_that_stay_together_are_one_record_batch_among_whatever_comes(kafka_log, ready_topics):
    noise = [kafka_log.messages.append(record(number), ordering_key=str(number % 9)) for number in range(2_000, 2_500)]
    groups = [
        kafka_log.messages.append_together([record(number) for number in range(first, first + 200)])
        for first in range(0, 2_000, 200)
    ]
    noise += [kafka_log.messages.append(record(number)) for number in range(2_500, 3_000)]
    await asyncio.gather(*noise, *groups)
    batches = await batches_of(kafka_log, ready_topics.messages.name)
    assert sorted(key for batch in batches for key in batch) == sorted(b"m-%d" % number for number in range(3_000))
    for first in range(0, 2_000, 200):
        (whole,) = [batch for batch in batches if b"m-%d" % first in batch]
        start = whole.index(b"m-%d" % first)
        assert whole[start : start + 200] == [b"m-%d" % number for number in range(first, first + 200)]


async def test_what_is_too_large_for_one_record_batch_goes_into_several_in_order(kafka_log, ready_topics):
    large = b"x" * (200 << 10)
    before = kafka_log.messages.append(record(100, large))
    together = kafka_log.messages.append_together([record(number, large) for number in range(12)], partition=1)
    await asyncio.gather(before, together)
    found = await batches_of(kafka_log, ready_topics.messages.name)
    theirs = [[key for key in batch if key != b"m-100"] for batch in found if batch != [b"m-100"]]
    assert [key for batch in theirs for key in batch] == [b"m-%d" % number for number in range(12)]
    assert len(theirs) == 3


async def test_a_group_with_an_event_that_cannot_be_made_is_not_written(kafka_log):
    def impossible(_partition):
        raise RuntimeError("no such thing")

    bad = kafka_log.messages.append_together([record(1), impossible, record(2)])
    good = kafka_log.messages.append(record(3))
    with pytest.raises(RuntimeError):
        await bad
    await good
    assert sum(await kafka_log.messages.end_offsets()) == 1


async def test_what_nobody_waits_for_any_more_is_not_written_and_holds_nobody_up(kafka_log):
    by_partition = {zlib.crc32(b"%d" % number) % PARTITIONS: str(number) for number in range(100)}
    *gone, last = by_partition.values()
    for _ in range(5):
        for waiting in [kafka_log.messages.append(record(1), ordering_key=key) for key in gone]:
            waiting.cancel()
        async with asyncio.timeout(20):  # those that are gone would be waited for longer
            await kafka_log.messages.append(record(2), ordering_key=last)
    assert sum(await kafka_log.messages.end_offsets()) == 5


async def test_control_events_are_in_one_order_and_say_where_they_are(kafka_log, ready_topics):
    offsets = await asyncio.gather(*(kafka_log.control.append(queue_created(str(number))) for number in range(100)))
    assert sorted(offsets) == list(range(100))
    assert await kafka_log.control.end_offset() == 100
    fetched = await kafka_log.requests.read(ready_topics.control.name, 0, 0)
    names = {one.offset: decode(one.value).name for one in fetched.records}
    assert names == {offset: str(number) for number, offset in enumerate(offsets)}


async def test_a_producer_that_kafka_has_ended_is_replaced_and_the_log_goes_on(kafka_log):
    await kafka_log.messages.append(record(1))
    for _ in range(3):
        ended = kafka_log.producer.get()
        kafka_log.producer.failed(ended, kafka_errors.OutOfOrderSequenceNumber())
        async with asyncio.timeout(60):
            while kafka_log.producer.get() is ended:
                await until_it_appends(kafka_log)
        await kafka_log.control.append(queue_created("after"))
    results = await asyncio.gather(*(kafka_log.messages.append(record(number)) for number in range(100)))
    assert len(set(results)) == 100


async def until_it_appends(log: KafkaLog, *, within_s: float = 60.0) -> tuple[int, int]:
    """The first append that is acknowledged again."""
    async with asyncio.timeout(within_s):
        while True:
            try:
                return await log.messages.append(record(10**6))
            except (InDoubt, LogUnavailable):
                await asyncio.sleep(0.05)


async def test_a_crowd_of_records_for_one_partition_is_written_in_their_order(kafka_log):
    """aiokafka has each batch wait for its turn, and would give some up long before their time."""
    producer = kafka_log.producer.get()
    crowd = (kafka_log.outstanding.append_one(0, b"key-%d" % number, b"value" * 200) for number in range(400))
    offsets = await asyncio.gather(*crowd)
    assert offsets == list(range(offsets[0], offsets[0] + 400))
    await kafka_log.deliveries.append({0: [(b"key", b"value")]})
    assert kafka_log.producer.get() is producer


async def test_who_reads_one_of_a_crowd_is_given_few_others(kafka_log):
    topic = kafka_log.outstanding
    values = [b"small" * 30] * 60 + [b"large" * 200_000] + [b"small" * 30] * 60
    offsets = await asyncio.gather(*(topic.append_one(0, b"key", value) for value in values))
    for offset, value in zip(offsets[::15], values[::15], strict=True):
        fetched = await kafka_log.requests.read(topic.name, 0, offset, bytes_max=1)
        assert fetched.records[0].offset == offset
        assert sum(len(record.value) for record in fetched.records) < max(20_000, len(value) + 1)


@pytest.fixture
async def own_kafka(tmp_path, monkeypatch):
    """A Kafka that may be stopped and killed, and the log on it."""
    monkeypatch.setitem(KafkaRequests.__init__.__kwdefaults__, "timeout_ms", 5_000)
    kafka = EmbeddedKafka(tmp_path / "data", heap_mib=256, progress=False)
    await kafka.start()
    settings = kafka.access.settings(partitions=PARTITIONS, flush_each_batch=True)
    table = topic_table(settings)
    await ensure_topics(settings, table)
    log = KafkaLog(settings)
    await log.start()
    yield kafka, log, table
    await log.stop()
    await kafka.stop()


@pytest.mark.parametrize("outage", ["stands still", "is killed"])
async def test_an_outage_is_told_in_time_and_what_was_acknowledged_is_there_after_it(own_kafka, outage):
    kafka, log, table = own_kafka
    acknowledged = {}
    for number in range(50):
        acknowledged[await log.messages.append(record(number))] = b"m-%d" % number
    if outage == "stands still":
        stop_still(kafka.pid)
    else:
        kafka.kill()
        await kafka.wait()
    writer = log.messages.writer
    patience_s = writer.timeout_s
    writer.timeout_s = writer.in_flight.timeout_s = log.control._timeout_s = 1.0
    try:
        began = time.monotonic()
        waiting = [log.messages.append(record(number)) for number in range(100, 110)]
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(result, InDoubt | LogUnavailable) for result in results)
        with pytest.raises(InDoubt):
            await log.control.append(queue_created("in doubt"))
        assert time.monotonic() - began < 14  # not the 15 s of Kafka's clients
        if outage == "stands still":
            with pytest.raises(LogUnavailable):  # said before anybody waits: nothing is acknowledged at the moment
                log.messages.append(record(111))
            began = time.monotonic()
            with pytest.raises(LogUnavailable):
                await log.messages.end_offsets()
            assert time.monotonic() - began < 9  # all tries together: each may take 5 s
            impatient = Appender(log.producer, table.deliveries.name, 0.1)
            for _ in range(TRIES):
                with pytest.raises(LogUnavailable):
                    await impatient.append({1: [(b"again", b"and again")]})
    finally:
        if outage == "stands still":
            os.kill(kafka.pid, signal.SIGCONT)
        else:
            await kafka.restart()

    back = await until_it_appends(log)
    writer.timeout_s = writer.in_flight.timeout_s = patience_s
    acknowledged[back] = b"m-%d" % 10**6
    for number in range(200, 250):
        acknowledged[await log.messages.append(record(number))] = b"m-%d" % number
    found = await read_all(log, table.messages.name)
    assert {place: found[place][0] for place in acknowledged} == acknowledged
    keys = [key for key, _ in found.values()]
    await log.deliveries.append({1: [(b"again", b"the last")]})
    (end,) = (await log.requests.offsets(table.deliveries.name, {1: LATEST})).values()
    assert end <= 3  # of the tries, the one that was under way and the one that followed it
    doubtful = {b"m-%d" % number for number in [*range(100, 112), 10**6]}
    assert len([key for key in keys if key not in doubtful]) == 100
