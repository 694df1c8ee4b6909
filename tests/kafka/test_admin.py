"""ensure_topics on a real Kafka: it makes what is missing, touches nothing else, and refuses what would lose data."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaConnectionError
from confluent_kafka.admin import AdminClient, ConfigResource

from broker.errors import ConfigurationError, LogUnavailable
from broker.kafka.admin import ensure_topics
from broker.kafka.client import client_options
from broker.kafka.topics import topics
from broker.kafka.topics import topics as everput_topics
from tests.kafka_clients import librdkafka
from tests.listeners import nobody


def configs(kafka_settings, names):
    """As another client sees them."""
    client = AdminClient(librdkafka(kafka_settings))
    wanted = [ConfigResource(ConfigResource.Type.TOPIC, name) for name in names]
    described = {one.name: future.result(60) for one, future in client.describe_configs(wanted).items()}
    return {name: {key: entry.value for key, entry in found.items()} for name, found in described.items()}


def names(kafka_settings):
    """Of this test's topics that there are."""
    listed = AdminClient(librdkafka(kafka_settings)).list_topics(timeout=60).topics
    return [name for name in listed if name.startswith(kafka_settings.topic_prefix)]


async def create(kafka_settings, *new: NewTopic) -> None:
    client = AIOKafkaAdminClient(**client_options(kafka_settings))
    await client.start()
    try:
        answer = await client.create_topics(list(new))
        assert all(code == 0 for _name, code, _message in answer.topic_errors)
    finally:
        await client.close()


async def test_the_topics_have_the_settings_of_the_table(kafka_settings):
    table = topics(kafka_settings)
    await ensure_topics(kafka_settings, table)
    found = await asyncio.to_thread(configs, kafka_settings, [topic.name for topic in table.all()])
    for topic in table.all():
        assert topic.config.items() <= found[topic.name].items()
        assert found[topic.name]["flush.messages"] == "1"
    listed = AdminClient(librdkafka(kafka_settings)).list_topics(timeout=60).topics
    assert [len(listed[topic.name].partitions) for topic in table.all()] == [1, 4, 4, 4, 4, 4, 1]


async def test_created_topics_are_logged_unless_it_is_quiet(kafka_settings, topics, caplog):
    caplog.set_level(logging.INFO, "broker.kafka.admin")
    names = [topic.name for topic in topics.all()]
    await ensure_topics(kafka_settings, topics, quiet=True)
    assert not [one for one in caplog.messages if "topic.created" in one]
    other = replace(kafka_settings, topic_prefix=f"{kafka_settings.topic_prefix}other.")
    await ensure_topics(other, everput_topics(other))
    assert len([one for one in caplog.messages if "topic.created" in one]) == len(names)


async def test_many_processes_may_create_them_at_once(kafka_settings, topics):
    await asyncio.gather(*(ensure_topics(kafka_settings, topics) for _ in range(5)))
    await ensure_topics(kafka_settings, topics)


async def test_a_topic_that_would_lose_data_is_refused_and_left_as_it_is(kafka_settings, topics):
    bad = {"retention.ms": "604800000", "max.message.bytes": "1048588"}
    await create(kafka_settings, NewTopic(topics.messages.name, 4, 1, topic_configs=bad))
    with pytest.raises(ConfigurationError) as refused:
        await ensure_topics(kafka_settings, topics)
    said = str(refused.value)
    assert f"{topics.messages.name} has retention.ms=604800000" in said
    assert "max.message.bytes=1048588" in said  # both in one go
    assert topics.changes.name not in said
    found = await asyncio.to_thread(configs, kafka_settings, [topics.messages.name])
    assert found[topics.messages.name]["retention.ms"] == "604800000"


async def test_another_number_of_partitions_is_refused(kafka_settings, ready_topics):
    more = replace(kafka_settings, partitions=5)
    with pytest.raises(ConfigurationError, match="set --partitions 4"):
        await ensure_topics(more, topics(more))


async def test_a_topic_that_is_not_synced_is_refused(kafka_settings, topics):
    config = {name: value for name, value in topics.messages.config.items() if name != "flush.messages"}
    await create(kafka_settings, NewTopic(topics.messages.name, 4, 1, topic_configs=config))
    with pytest.raises(ConfigurationError, match=rf"{topics.messages.name} .*flush\.messages=1$"):
        await ensure_topics(kafka_settings, topics)


async def test_one_copy_that_is_not_synced_is_refused_before_anything_is_made(kafka_settings):
    lazy = replace(kafka_settings, flush_each_batch=False)
    with pytest.raises(ConfigurationError, match="--flush-each-batch"):
        await ensure_topics(lazy, topics(lazy))
    assert not await asyncio.to_thread(names, kafka_settings)


async def test_three_copies_on_one_broker_are_refused_before_anything_is_made(kafka_settings):
    wanted = replace(kafka_settings, replication=3, min_insync=2, flush_each_batch=False)
    with pytest.raises(ConfigurationError, match="--replication 1 --min-insync 1 --flush-each-batch"):
        await ensure_topics(wanted, topics(wanted), brokers_within_s=0.5)
    assert not await asyncio.to_thread(names, kafka_settings)


async def test_a_kafka_that_does_not_answer_is_waited_for_and_then_named(kafka_settings, topics):
    started = time.monotonic()
    with nobody() as port, pytest.raises(LogUnavailable, match=(nowhere := f"127.0.0.1:{port}")):
        await ensure_topics(replace(kafka_settings, bootstrap=nowhere), topics, within_s=1.0)
    assert time.monotonic() - started < 25  # not the 30 s of before


async def test_a_connection_that_breaks_when_the_brokers_are_asked_for_is_made_anew(
    kafka_settings, ready_topics, monkeypatch
):
    real, broken = AIOKafkaAdminClient.describe_cluster, [KafkaConnectionError("cut"), OSError("cut")]

    async def describe_cluster(admin):
        if broken:
            raise broken.pop()
        return await real(admin)

    monkeypatch.setattr(AIOKafkaAdminClient, "describe_cluster", describe_cluster)
    await ensure_topics(kafka_settings, ready_topics)
    assert broken == []
