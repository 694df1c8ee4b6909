"""The projections on real Kafka: the fold, reading one's own writes, starting and ending."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient

from broker.core import events as ev
from broker.core.digests import state_hash
from broker.errors import ViewBehind
from broker.kafka.client import client_options
from broker.kafka.log import KafkaLog
from broker.kafka.topics import Topics
from broker.settings import KafkaSettings
from projections import app
from projections.app import Projections


@pytest.fixture
async def log(kafka_settings: KafkaSettings, ready_topics: Topics) -> AsyncIterator[KafkaLog]:
    opened = KafkaLog(kafka_settings)
    await opened.start()
    yield opened
    await opened.stop()


@contextlib.asynccontextmanager
async def projections_of(kafka: KafkaSettings, log: KafkaLog) -> AsyncIterator[Projections]:
    started = Projections(kafka, log.control)
    await started.start()
    try:
        yield started
    finally:
        await started.stop()


def organization(name: str) -> ev.OrganizationCreated:
    return ev.OrganizationCreated(at_ms=1, organization_id=name, name=name)


def queue(name: str) -> ev.QueueCreated:
    return ev.QueueCreated(at_ms=1, organization_id="o", queue_id=f"id of {name}", name=name)


async def test_a_projection_built_anew_from_the_log_equals_the_live_one(kafka_settings, log):
    async with projections_of(kafka_settings, log) as live:
        for number in range(50):
            await log.control.append(queue(f"q{number % 40}"))
            await log.control.append(organization(f"o{number}"))
        await live.directory.caught_up()
        async with projections_of(kafka_settings, log) as anew:
            assert anew.position == live.position == 100
            assert state_hash(anew.directory.state) == state_hash(live.directory.state)
            assert len(anew.directory.state.queues) == 40


async def test_a_write_through_one_process_is_read_through_another(kafka_settings, log):
    async with projections_of(kafka_settings, log), projections_of(kafka_settings, log) as other:
        for number in range(20):
            await log.control.append(queue(f"q{number}"))
            await other.directory.caught_up()
            assert f"id of q{number}" in other.directory.state.queues


async def test_a_writer_sees_its_own_event_and_whether_it_was_passed_over(kafka_settings, log):
    async with projections_of(kafka_settings, log) as projections:
        first, second = (
            await log.control.append(queue("same")),
            await log.control.append(ev.QueueCreated(at_ms=1, organization_id="o", queue_id="loser", name="same")),
        )
        await projections.directory.seen(second)
        assert not projections.directory.passed_over(first)
        assert projections.directory.passed_over(second)


async def test_an_event_is_folded_within_milliseconds_of_its_append(kafka_settings, log):
    async with projections_of(kafka_settings, log) as projections:
        took_s = []
        for number in range(50):
            offset = await log.control.append(organization(f"o{number}"))
            appended = time.monotonic()
            await projections.directory.seen(offset)
            took_s.append(time.monotonic() - appended)
        assert sorted(took_s)[25] < 0.5  # a few milliseconds where the machine has nothing else to do


async def test_waiting_for_what_is_not_in_the_log_ends_in_view_behind(kafka_settings, log):
    async with projections_of(kafka_settings, log) as projections:
        with pytest.raises(ViewBehind):
            await projections.directory.seen(10, timeout_s=0.2)


async def test_a_record_that_is_no_known_event_is_passed_over_and_counted(kafka_settings, topics, log, caplog):
    producer = AIOKafkaProducer(**client_options(kafka_settings))
    await producer.start()
    async with projections_of(kafka_settings, log) as projections:
        for value in (b"not json", b'{"type":"queue.painted","v":1}', b'{"type":"queue.created","v":99}', b"", None):
            await producer.send_and_wait(topics.control.name, value=value, key=b"o")
        offset = await log.control.append(queue("after"))
        await projections.directory.seen(offset)
        assert offset == 5
        assert "id of after" in projections.directory.state.queues
        assert "projection.event_unknown" in caplog.text
    await producer.stop()


async def test_every_event_is_called_back_once_in_order_and_a_failing_callback_stops_nothing(kafka_settings, log):
    heard: list[str] = []

    def fails(_event: ev.Event) -> None:
        raise ValueError("not ours")

    for number in range(3):
        await log.control.append(organization(f"o{number}"))
    projections = Projections(kafka_settings, log.control)
    projections.on_change(fails)
    projections.on_change(lambda event: heard.append(event.organization_id))
    await projections.start()
    for number in range(3, 6):
        await projections.directory.seen(await log.control.append(organization(f"o{number}")))
    await projections.stop()
    assert heard == [f"o{number}" for number in range(6)]


async def test_nothing_is_left_behind_but_the_log(kafka_settings, log, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    async with projections_of(kafka_settings, log) as projections:
        await projections.directory.seen(await log.control.append(organization("o")))
    assert await projections.crashed() is None
    assert list(tmp_path.iterdir()) == []
    admin = AIOKafkaAdminClient(**client_options(kafka_settings))
    await admin.start()
    groups = [name for name, _ in await admin.list_consumer_groups() if name.startswith(kafka_settings.topic_prefix)]
    for group in groups:
        assert await admin.list_consumer_group_offsets(group) == {}
    await admin.close()


async def test_a_crash_of_faust_is_told(kafka_settings, log):
    projections = Projections(kafka_settings, log.control)
    await projections.start()
    crashed = asyncio.ensure_future(projections.crashed())
    await asyncio.sleep(0)
    reason = RuntimeError("broken")
    await projections._app.crash(reason)
    assert await asyncio.wait_for(crashed, 60) is reason
    await projections.stop()


async def test_an_error_in_the_fold_ends_the_projections(kafka_settings, log, monkeypatch):
    projections = Projections(kafka_settings, log.control)
    await projections.start()

    def broken(_event: ev.Event) -> bool:
        raise ZeroDivisionError

    monkeypatch.setattr(projections.directory.state, "apply", broken)
    await log.control.append(organization("o"))
    assert isinstance(await asyncio.wait_for(projections.crashed(), 60), ZeroDivisionError)
    await projections.stop()


async def test_a_consumer_that_stops_reading_is_told(kafka_settings, log, monkeypatch):
    monkeypatch.setattr(app, "_STALLED_S", 0.5)
    projections = Projections(kafka_settings, log.control)
    await projections.start()
    crashed = asyncio.ensure_future(projections.crashed())
    await asyncio.sleep(2)
    assert not crashed.done()  # it has read all that there is
    projections._app.consumer.stop_flow()
    await log.control.append(organization("o"))
    assert "has read nothing" in str(await asyncio.wait_for(crashed, 60))
    await projections.stop()
