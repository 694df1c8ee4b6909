"""Cursors in Kafka: any Kafka tool sees them as the group's offsets, and they come back as they were."""

from __future__ import annotations

import asyncio

import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition
from confluent_kafka.admin import AdminClient

from broker.core.cursor import OPEN_MAX, Cursor
from broker.errors import LogUnavailable
from broker.kafka.cursors import KafkaCursors
from broker.kafka.requests import KafkaRequests
from broker.kafka.topics import listener_group
from tests.kafka_clients import librdkafka


@pytest.fixture
async def cursors(kafka_settings, ready_topics):
    requests = KafkaRequests(kafka_settings)
    await requests.start([ready_topics.messages.name])
    yield KafkaCursors(kafka_settings, requests)
    await requests.stop()


FULL = tuple(range(1_000, 1_000 + 3 * OPEN_MAX, 3))
SOME = {
    0: Cursor(top=17),
    1: Cursor(top=90, open=(12, 40, 89), pending=5, oldest_at_ms=1_767_225_630_123, state="down", error="timeout"),
    3: Cursor(top=FULL[-1] + 1, open=FULL, pending=10_000),
}


async def test_cursors_come_back_as_they_were_stored(cursors):
    await cursors.store({"l-1": SOME, "l-2": {2: Cursor(top=5)}})
    assert await cursors.load(["l-1", "l-2", "l-3"], range(4)) == {"l-1": SOME, "l-2": {2: Cursor(top=5)}, "l-3": {}}
    assert await cursors.load(["l-1"], [1]) == {"l-1": {1: SOME[1]}}
    assert await cursors.load([], range(4)) == {}


async def test_the_last_one_stored_counts(cursors):
    for top in range(10):
        await cursors.store({"l-1": {0: Cursor(top=top)}})
    assert await cursors.load(["l-1"], [0]) == {"l-1": {0: Cursor(top=9)}}


async def test_another_kafka_client_sees_the_groups_offsets_and_their_metadata(cursors, kafka_settings, ready_topics):
    await cursors.store({"l-1": SOME})
    group, topic = listener_group(kafka_settings, "l-1"), ready_topics.messages.name
    admin = AdminClient(librdkafka(kafka_settings))
    asked = ConsumerGroupTopicPartitions(group, [TopicPartition(topic, number) for number in range(4)])
    answer = admin.list_consumer_group_offsets([asked])[group]
    rows = (await asyncio.to_thread(answer.result, 60)).topic_partitions
    assert {row.partition: row.offset for row in rows if row.offset >= 0} == {0: 17, 1: 12, 3: 1_000}
    for row in rows:
        if row.offset >= 0:
            assert metadata(row).startswith(SOME[row.partition].metadata().encode())


async def test_an_offset_that_another_tool_has_reset_is_taken_as_it_is(cursors, kafka_settings, ready_topics):
    await cursors.store({"l-1": SOME})
    group, topic = listener_group(kafka_settings, "l-1"), ready_topics.messages.name
    admin = AdminClient(librdkafka(kafka_settings))
    reset = ConsumerGroupTopicPartitions(group, [TopicPartition(topic, 1, 3)])
    await asyncio.to_thread(admin.alter_consumer_group_offsets([reset])[group].result, 60)
    assert await cursors.load(["l-1"], range(4)) == {"l-1": {**SOME, 1: Cursor(top=3)}}


async def test_hundreds_of_listeners_are_stored_and_loaded_at_once(cursors):
    many = {f"l-{number}": {part: Cursor(top=number + part) for part in range(4)} for number in range(600)}
    await cursors.store(many)
    assert await cursors.load(many, range(4)) == many


async def test_when_one_is_refused_nothing_is_under_way_any_more(cursors, monkeypatch):
    groups, stored = cursors._requests.groups, []
    commit = groups.commit

    async def refuse_the_first(group, *rest):
        if group.endswith("l-0"):
            raise LogUnavailable("refused")
        await commit(group, *rest)
        stored.append(group)

    groups.commit = refuse_the_first  # this test has its own
    with pytest.raises(LogUnavailable, match="refused"):
        await cursors.store({f"l-{number}": {0: Cursor(top=1)} for number in range(20)})
    assert len(stored) == 19


def metadata(row: TopicPartition) -> bytes:
    """librdkafka's text may run on after its end, with anything: it is not terminated there."""
    try:
        return row.metadata.encode()
    except UnicodeDecodeError as error:
        return error.object
