"""Every character there is, through the API, Kafka and a worker to a listener."""

from __future__ import annotations

import httpx

from broker.commands.organizations import create_key
from broker.kafka.topics import Topics
from broker.settings import KafkaSettings
from tests.apps import kafka_app_of
from tests.kafka.rig import running
from tests.listeners import until

SURROGATES = range(0xD800, 0xE000)
CHUNK = 100_000


async def test_each_character_of_unicode_arrives_byte_for_byte(kafka_settings: KafkaSettings, ready_topics: Topics):
    everything = "".join(chr(code) for code in range(0x110000) if code not in SURROGATES)
    texts = [everything[at : at + CHUNK] for at in range(0, len(everything), CHUNK)]
    async with running(kafka_settings) as rig:
        view = rig.projections.directory
        _, key = await create_key(rig.log.control, view, organization_id=rig.organization_id, name="key")
        queue = await rig.queue()
        await rig.listen(queue, "a")
        await rig.work()
        app = kafka_app_of(rig.settings, log=rig.log, view=view)
        ids = {}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://api") as client:
            for text in texts:
                answer = await client.put(
                    f"/v1/queues/{queue.id}/messages", json={"data": text}, headers={"x-api-key": key}
                )
                ids[answer.json()["message"]["id"]] = text.encode()
        await until(lambda: len(rig.listeners.taken("a")) == len(texts), what="all deliveries")
        assert {got.message_id: got.data.encode() for got in rig.listeners.taken("a")} == ids
