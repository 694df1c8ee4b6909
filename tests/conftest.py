"""A real Kafka for the tests that need one, started once and only when the first of them asks.

For: the fixtures of every folder. Each test has topics of its own, by a prefix of its own, and they go with it."""

from __future__ import annotations

import asyncio
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Iterator

import pytest

from broker.kafka.embedded.kafka import EmbeddedKafka
from broker.kafka.topics import Topics
from broker.kafka.topics import topics as topic_table
from broker.settings import KafkaSettings
from tests.legal import check_every_transition


def pytest_configure() -> None:
    """SIGTERM ends a run as Ctrl-C does: with what the tests have started.

    What they start must heed signals though the run itself is in the background (SIGINT) or behind nohup (SIGHUP):
    it would inherit that they are ignored.
    """
    check_every_transition()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)


@pytest.fixture(scope="session", autouse=True)
async def end_of_chromium() -> AsyncIterator[None]:
    yield
    if "tests.browser" in sys.modules:
        from tests.browser import end_chromium

        await end_chromium()


@pytest.fixture(autouse=True)
def event_loop_policy_kept() -> Iterator[None]:
    """A command that a test runs in this process sets uvloop's, with which the next test could start no process."""
    before = asyncio.get_event_loop_policy()
    yield
    if asyncio.get_event_loop_policy() is not before:
        asyncio.set_event_loop_policy(before)


@pytest.fixture(scope="session")
async def kafka_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EmbeddedKafka]:
    """One embedded Kafka for the whole run. A test that kills Kafka makes its own: `EmbeddedKafka(tmp_path)`."""
    kafka = EmbeddedKafka(tmp_path_factory.mktemp("kafka"))
    await kafka.start()
    yield kafka
    await kafka.stop()


@pytest.fixture
def kafka_settings(kafka_server: EmbeddedKafka) -> KafkaSettings:
    """The session's Kafka, with a prefix that no other test has."""
    prefix = f"test-{uuid.uuid4().hex[:12]}."
    return kafka_server.access.settings(topic_prefix=prefix, partitions=4, flush_each_batch=True)


@pytest.fixture
def topics(kafka_settings: KafkaSettings) -> Topics:
    """The table of this test's topics, which may not exist yet."""
    return topic_table(kafka_settings)


@pytest.fixture
async def ready_topics(kafka_settings: KafkaSettings, topics: Topics) -> AsyncIterator[Topics]:
    """This test's topics, created; deleted after it."""
    from aiokafka.admin import AIOKafkaAdminClient

    from broker.kafka.admin import ensure_topics
    from broker.kafka.client import client_options

    await ensure_topics(kafka_settings, topics)
    yield topics
    admin = AIOKafkaAdminClient(**client_options(kafka_settings))
    await admin.start()
    try:
        await admin.delete_topics([topic.name for topic in topics.all()])
    finally:
        await admin.close()
