"""One of the servers of --kafka is silent: whoever starts turns to the others."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pytest

from broker.errors import LogUnavailable
from broker.kafka import importing
from broker.kafka.admin import ensure_topics
from broker.kafka.log import KafkaLog
from broker.kafka.reachability import reachable
from broker.settings import KafkaSettings
from projections.app import Projections
from tests.listeners import nobody

STEPS = (importing.is_begun, importing.begin, importing.end)


@pytest.fixture
def silent() -> Iterator[str]:
    """The kernel takes the connections, nobody answers: a process that hangs."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
def refusing() -> Iterator[int]:
    with nobody() as port:
        yield port


async def test_only_servers_that_answer_are_asked_and_all_where_none_does(
    kafka_settings: KafkaSettings, silent: str, refusing: int
):
    real, refused = kafka_settings.bootstrap, f"127.0.0.1:{refusing}"

    async def servers(*given: str, within_s: float = 0.3) -> list[str]:
        settings = replace(kafka_settings, bootstrap=",".join(given))
        return (await reachable(settings, within_s=within_s))["bootstrap_servers"]

    assert await servers(refused, real, within_s=10.0) == [real]
    assert await servers(silent, refused) == [silent, refused]
    assert await servers(silent) == [silent]


async def test_all_clients_start_though_a_server_is_silent(kafka_settings: KafkaSettings, topics, silent: str):
    settings = replace(kafka_settings, bootstrap=f"{silent},{kafka_settings.bootstrap},{silent},{silent}")
    await ensure_topics(settings, topics)
    log = KafkaLog(settings)
    await log.start()
    projections = Projections(settings, log.control)
    await projections.start(timeout_s=60)
    assert (await log.messages.append(lambda _partition: (b"id", b"value", b"queue")))[1] == 0
    await projections.stop()
    await log.stop()


@pytest.mark.parametrize("away", ["silent", "refusing"])
@pytest.mark.parametrize(
    "ask", [importing.refuse_unfinished, *(partial(one, manifest_sha256="0" * 64) for one in STEPS)]
)
async def test_no_step_of_an_import_waits_for_ever_for_a_kafka_that_is_away(
    silent: str, refusing: int, away: str, ask, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(importing, "_WITHIN_S", 0.1)
    settings = KafkaSettings(bootstrap=silent if away == "silent" else f"127.0.0.1:{refusing}")
    with pytest.raises(LogUnavailable, match=r"no answer within 0\.1 s; check Kafka"):
        async with asyncio.timeout(30):
            await ask(settings)
