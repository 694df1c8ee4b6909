"""The examples do what they say, with a real Kafka."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from broker.kafka.topics import Topics
from broker.settings import KafkaSettings
from tests.kafka.rig import running

EXAMPLES = Path(__file__).parents[2] / "examples"


async def test_a_plain_kafka_client_reads_the_events(kafka_settings: KafkaSettings, ready_topics: Topics):
    async with running(kafka_settings) as rig:
        queue = await rig.queue("orders")
        ids = await rig.put(queue, "one", "two")
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(EXAMPLES / "read_topics.py"),
            kafka_settings.bootstrap,
            ready_topics.control.name,
            ready_topics.messages.name,
            stdout=asyncio.subprocess.PIPE,
        )
        said, _ = await process.communicate()
        lines = said.decode().splitlines()
        assert process.returncode == 0
        assert [line.split()[1] for line in lines].count("organization.created") == 1
        assert {line.split()[-1] for line in lines if " message.put " in line} == set(ids)
