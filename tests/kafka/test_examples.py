"""The examples do what they say, with a real Kafka."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from broker.kafka.embedded.access import password_file
from broker.kafka.embedded.kafka import EmbeddedKafka
from broker.kafka.topics import Topics
from broker.settings import KafkaSettings
from tests.kafka.rig import running
from tests.listeners import until

EXAMPLES = Path(__file__).parents[2] / "examples"


async def test_a_plain_kafka_client_reads_the_events(
    kafka_server: EmbeddedKafka,
    kafka_settings: KafkaSettings,
    ready_topics: Topics,
):
    async with running(kafka_settings) as rig:
        rig.tune(set_aside_after_ms=0)
        queue = await rig.queue("orders")
        await rig.listen(queue, "a")
        rig.listeners.decide = lambda got: 500 if got.headers["everput-attempt"] == "1" else 200
        worker = await rig.work()
        ids = await rig.put(queue, "one", "two")
        await until(lambda: len(rig.listeners.got) == 2, what="both are taken the second time")
        await rig.end(worker)  # which buries what was owed
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(EXAMPLES / "read_topics.py"),
            kafka_settings.bootstrap,
            ready_topics.control.name,
            ready_topics.messages.name,
            ready_topics.deliveries.name,
            ready_topics.outstanding.name,
            "--password-file",
            str(password_file(kafka_server.data_dir)),
            stdout=asyncio.subprocess.PIPE,
        )
        said, _ = await process.communicate()
        lines = said.decode().splitlines()
        assert process.returncode == 0
        assert [line.split()[1] for line in lines].count("organization.created") == 1
        for kind in ("message.put", "delivery.set_aside", "delivery.attempted"):
            assert {line.split()[-1] for line in lines if f" {kind} " in line} == set(ids)
