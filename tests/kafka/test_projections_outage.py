"""The projections while Kafka is away, and when it is back."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator

import pytest

from broker.core import events as ev
from broker.errors import BrokerError, LogUnavailable, ViewBehind
from broker.kafka.admin import ensure_topics
from broker.kafka.embedded.kafka import EmbeddedKafka
from broker.kafka.log import KafkaLog
from broker.kafka.topics import topics
from projections.agents import run_delivery_streams
from projections.app import Projections
from tests.listeners import until


def organization(name: str) -> ev.OrganizationCreated:
    return ev.OrganizationCreated(at_ms=1, organization_id=name, name=name)


async def append(log: KafkaLog, event: ev.OrganizationCreated) -> int:
    """Again and again until it is there: an event that is in the log twice is folded once."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return await log.control.append(event)
        except BrokerError:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.2)


class Streams:
    """The delivery streams of no listener. told: the organizations of the events that their agent came to."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def concerned(self, event: ev.Event) -> tuple[str, ...]:
        self.told.append(event.organization_id)
        return ()

    def tell(self, _event: ev.Event) -> None: ...


@pytest.fixture
async def kafka(tmp_path) -> AsyncIterator[EmbeddedKafka]:
    """One of the test's own, which it may kill."""
    kafka = EmbeddedKafka(tmp_path / "data", heap_mib=256, progress=False)
    await kafka.start()
    yield kafka
    await kafka.stop()


@pytest.fixture
async def log(kafka: EmbeddedKafka) -> AsyncIterator[KafkaLog]:
    settings = kafka.access.settings(partitions=2, flush_each_batch=True)
    await ensure_topics(settings, topics(settings))
    log = KafkaLog(settings)
    await log.start()
    yield log
    await log.stop()


async def test_the_fold_goes_on_where_it_was_when_kafka_is_back_after_kill_9(kafka, log):
    heard: list[str] = []
    streams = Streams()
    projections = Projections(kafka.access.settings(), log.control)
    projections.on_change(lambda event: heard.append(event.organization_id))
    agent = run_delivery_streams(projections.directory, streams, projections.failed)
    projections.add_agent("delivery_streams", agent)
    await projections.start()
    crashed = asyncio.ensure_future(projections.crashed())
    try:
        await projections.directory.seen(await append(log, organization("before")))
        for outage in range(2):
            kafka.kill()
            assert await kafka.wait() == -signal.SIGKILL
            with pytest.raises((LogUnavailable, ViewBehind)):
                await projections.directory.caught_up(timeout_s=1)
            await kafka.restart()
            await projections.directory.seen(await append(log, organization(f"after {outage}")), timeout_s=60)
        assert list(dict.fromkeys(heard)) == ["before", "after 0", "after 1"]
        await until(lambda: len(streams.told) >= len(heard), what="the agent of the delivery streams is as far")
        assert streams.told == heard, "it comes to each event once, and in order"
        assert not crashed.done()
    finally:
        await projections.stop()
    assert await crashed is None
