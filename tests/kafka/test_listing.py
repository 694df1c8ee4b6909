"""A queue's messages listed from a real log: by time, newest first, a page at a time."""

from __future__ import annotations

import asyncio

import pytest
from aiokafka import AIOKafkaProducer

from broker.core.codec import decode_message, encode
from broker.core.events import MessagePut
from broker.core.ids import message_id
from broker.kafka import messages as messages_module
from broker.kafka.appends import QUEUE_HEADER
from broker.kafka.client import client_options
from broker.kafka.topics import Topics
from broker.settings import KafkaSettings
from tests.kafka.rig import running


async def test_the_pages_of_a_queue_are_all_its_messages_newest_first(
    kafka_settings: KafkaSettings, ready_topics: Topics
):
    async with running(kafka_settings) as rig:
        queue, other = await rig.queue("orders"), await rig.queue("others")
        ids: set[str] = set()
        for _ in range(5):
            puts = await asyncio.gather(*(rig.put(one, "m") for one in [queue, other] * 200))
            ids |= {made for (made,) in puts[::2]}
        messages = rig.log.messages
        begin, end = await messages.offsets_at(0), list(await messages.end_offsets())
        listed = []
        while any(at < to for at, to in zip(begin, end, strict=True)):
            values, end = await messages.newest(queue.id, begin=begin, end=end, limit=70, organization_id="o")
            assert len(values) <= 70
            listed += [decode_message(record.value) for record in values]
        assert len(listed) == len(ids) == 1000
        assert {message.message_id for message in listed} == ids
        times = [message.at_ms for message in listed]
        assert times == sorted(times, reverse=True)


async def test_large_messages_make_short_pages_and_none_is_left_out(
    kafka_settings: KafkaSettings, ready_topics: Topics, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(messages_module, "_PAGE_BYTES_MAX", 3 << 20)
    async with running(kafka_settings) as rig:
        queue = await rig.queue()
        ids = [(await rig.put(queue, "x" * (900 << 10)))[0] for _ in range(24)]
        messages = rig.log.messages
        begin, end = await messages.offsets_at(0), list(await messages.end_offsets())
        listed: list[str] = []
        while any(at < to for at, to in zip(begin, end, strict=True)):
            values, end = await messages.newest(queue.id, begin=begin, end=end, limit=1000, organization_id="o")
            assert sum(len(record.value) for record in values) <= 3 << 20
            listed += [decode_message(record.value).message_id for record in values]
        assert sorted(listed) == sorted(ids)


async def test_of_writers_whose_clocks_differ_every_message_is_listed_once(
    kafka_settings: KafkaSettings, ready_topics: Topics
):
    producer = AIOKafkaProducer(**client_options(kafka_settings))
    await producer.start()
    async with running(kafka_settings) as rig:
        queue = await rig.queue()
        now_ms, ids = rig.context.at_ms, []
        for number in range(900):
            at_ms = now_ms - 1000 + number - (number % 3) * 200  # three writers take turns
            partition = number % ready_topics.messages.partitions
            ids.append(message_id(at_ms=at_ms, partition=partition, random_bits=number))
            event = MessagePut(
                at_ms=at_ms, organization_id="o", message_id=ids[-1], queue_id=queue.id, name="n", data=str(number)
            )
            await producer.send(
                ready_topics.messages.name,
                encode(event),
                key=ids[-1].encode(),
                partition=partition,
                timestamp_ms=at_ms,
                headers=[(QUEUE_HEADER, queue.id.encode())],
            )
        await producer.stop()
        messages = rig.log.messages
        begin, end = await messages.offsets_at(0), list(await messages.end_offsets())
        listed: list[str] = []
        while any(at < to for at, to in zip(begin, end, strict=True)):
            values, after = await messages.newest(queue.id, begin=begin, end=end, limit=70, organization_id="o")
            assert sum(after) < sum(end), "each page is nearer the beginning"
            listed += [decode_message(record.value).message_id for record in values]
            end = after
        assert len(listed) == len(ids)
        assert set(listed) == set(ids)
