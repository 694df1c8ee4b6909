"""What the consumers of new records make of damage on a real Kafka. What single requests make of it: test_damage.py."""

from __future__ import annotations

import asyncio
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition

from broker.errors import LogDamaged
from broker.kafka.admin import ensure_topics
from broker.kafka.log import KafkaLog
from broker.kafka.reachability import reachable
from broker.kafka.tail import poll
from broker.kafka.topics import topics
from tests.damage import flip, holding, partition_folder
from tests.kafka.test_damage import SIZE, kafka, settings, value
from tests.listeners import until

__all__ = ["kafka", "settings"]  # fixtures

COUNT = 20


async def test_a_tail_steps_over_no_record_whose_batch_has_an_altered_length(kafka, settings):
    topic = topics(settings).messages
    await ensure_topics(settings, topics(settings))
    log = KafkaLog(settings)
    await log.start()
    for number in range(COUNT):
        for partition in range(2):
            await asyncio.gather(*log.producer.send_all(topic.name, partition, [(b"key", value(topic, number, SIZE))]))
    await log.stop()
    await kafka.running_process.stop()
    for partition, byte in ((0, 9), (1, 8)):  # 64 KiB more than it is, and 16 MiB
        flip(holding(partition_folder(kafka.data_dir, topic.name, partition), 10), at=byte)
    await kafka.restart()

    log = KafkaLog(settings)
    await log.start()
    consumer = AIOKafkaConsumer(
        **await reachable(settings), enable_auto_commit=False, check_crcs=True, fetch_max_wait_ms=100
    )
    await consumer.start()
    try:
        positions = {TopicPartition(topic.name, partition): 0 for partition in range(2)}
        consumer.assign(list(positions))
        for partition in positions:
            consumer.seek(partition, 0)
        got: dict[int, list[Any]] = {0: [], 1: []}
        damaged = set[tuple[int, int]]()

        async def both_ended() -> bool:
            try:
                for number, records in (await poll(consumer, log.requests, positions, timeout_ms=100)).items():
                    got[number] += records
            except LogDamaged as damage:
                damaged.update((damage.partition, offset) for offset in range(damage.first, damage.last + 1))
                at = TopicPartition(topic.name, damage.partition)
                positions[at] = damage.last + 1
                consumer.seek(at, damage.last + 1)
            return all(position == COUNT for position in positions.values())

        await until(both_ended, what="both partitions are read to their ends")
        assert {(0, 10), (1, 10)} <= damaged
        for partition, records in got.items():
            offsets = [record.offset for record in records]
            assert offsets == sorted(set(offsets)), "none twice"
            assert set(offsets) == set(range(COUNT)) - {offset for number, offset in damaged if number == partition}
            assert all(record.value == value(topic, record.offset, SIZE) for record in records)
    finally:
        await consumer.stop()
        await log.stop()
