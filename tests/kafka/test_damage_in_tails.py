"""How the long polls of new records pass damage on a real Kafka. What single requests make of it: test_damage.py."""

from __future__ import annotations

import asyncio
from typing import Any

from broker.errors import LogDamaged
from broker.kafka.admin import ensure_topics
from broker.kafka.log import KafkaLog
from broker.kafka.long_poll import LongPoll
from broker.kafka.topics import Topic, topics
from tests.damage import flip, holding, partition_folder
from tests.kafka.test_damage import SIZE, kafka, settings, value
from tests.listeners import until

__all__ = ["kafka", "settings"]  # fixtures

COUNT = 20


async def log_with_damage(kafka: Any, settings: Any, altered: dict[int, int]) -> tuple[Topic, KafkaLog]:
    """A started log, in whose partitions a byte of the batch with the record 10 is altered: which byte, by partition.
    Each of these partitions has `COUNT` records, a batch each.
    """
    topic = topics(settings).messages
    await ensure_topics(settings, topics(settings))
    log = KafkaLog(settings)
    await log.start()
    for number in range(COUNT):
        for partition in altered:
            await asyncio.gather(*log.producer.send_all(topic.name, partition, [(b"key", value(topic, number, SIZE))]))
    await log.stop()
    await kafka.running_process.stop()
    for partition, byte in altered.items():
        flip(holding(partition_folder(kafka.data_dir, topic.name, partition), 10), at=byte)
    await kafka.restart()
    log = KafkaLog(settings)
    await log.start()
    return topic, log


async def test_damage_is_reported_although_another_partition_always_has_new_records(kafka, settings):
    topic, log = await log_with_damage(kafka, settings, {0: 100})
    long_poll = LongPoll(log.requests, topic.name)

    read = log.requests.read

    async def put() -> None:
        await asyncio.gather(*log.producer.send_all(topic.name, 1, [(b"key", b"value")]))

    async def read_while_others_put(*arguments: Any) -> Any:
        try:
            return await read(*arguments)
        finally:
            await put()

    log.requests.read = read_while_others_put  # reads a partition with damage once more
    await put()
    try:
        long_poll.begin({0: 10, 1: 0})
        got: dict[int, list[int]] = {0: [], 1: []}
        damaged = set[int]()

        async def ended() -> bool:
            try:
                for number, records in (await long_poll.read()).items():
                    got[number] += [record.offset for record in records]
            except LogDamaged as damage:
                damaged.update(range(damage.first, damage.last + 1))
                long_poll.begin({damage.partition: damage.last + 1})
            return long_poll.positions[0] == COUNT

        await until(ended, what="the partition with damage is read to its end")
        assert 10 in damaged
        assert got[0] == [offset for offset in range(10, COUNT) if offset not in damaged]
        assert got[1] == list(range(len(got[1]))), "none left out, none twice"
    finally:
        await long_poll.stop()
        await log.stop()


async def test_a_tail_steps_over_no_record_whose_batch_has_an_altered_length(kafka, settings):
    topic, log = await log_with_damage(kafka, settings, {0: 9, 1: 8})  # lengths: 64 KiB more than it is, and 16 MiB
    long_poll = LongPoll(log.requests, topic.name)
    try:
        long_poll.begin({0: 0, 1: 0})
        got: dict[int, list[Any]] = {0: [], 1: []}
        damaged = set[tuple[int, int]]()

        async def both_ended() -> bool:
            try:
                for number, records in (await long_poll.read()).items():
                    got[number] += records
            except LogDamaged as damage:
                damaged.update((damage.partition, offset) for offset in range(damage.first, damage.last + 1))
                long_poll.begin({damage.partition: damage.last + 1})
            return all(position == COUNT for position in long_poll.positions.values())

        await until(both_ended, what="both partitions are read to their ends")
        assert {(0, 10), (1, 10)} <= damaged
        for partition, records in got.items():
            offsets = [record.offset for record in records]
            assert offsets == sorted(set(offsets)), "none twice"
            assert set(offsets) == set(range(COUNT)) - {offset for number, offset in damaged if number == partition}
            assert all(record.value == value(topic, record.offset, SIZE) for record in records)
    finally:
        await long_poll.stop()
        await log.stop()
