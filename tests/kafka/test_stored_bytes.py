"""What is counted as stored against what lies on the disk, on a real Kafka (broker/volume.py)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import httpx
import pytest

from broker.commands.organizations import create_key
from broker.kafka.embedded.kafka import EmbeddedKafka
from broker.kafka.topics import Topics
from broker.settings import KafkaSettings
from tests.apps import kafka_app_of
from tests.kafka.rig import running
from tests.listeners import until

PUTS = 12
REFUSED = (1, 5)  # of the messages with a key; those without one have a time, and are set aside until then


def on_disk(kafka: EmbeddedKafka, topics: Topics) -> int:
    """Bytes of the topics' log segments; `control` has other events, too."""
    names = [topic.name for topic in topics.all() if topic is not topics.control]
    # Other topics' directories may go meanwhile, so only these are looked into.
    files = [file for name in names for file in kafka.data_dir.glob(f"kafka/{name}-*/*.log")]
    assert files
    return sum(file.stat().st_size for file in files)


@pytest.mark.parametrize("size", [100, 100 << 10])
async def test_no_less_is_counted_than_lies_on_the_disk(
    kafka_server: EmbeddedKafka, kafka_settings: KafkaSettings, ready_topics: Topics, size: int
) -> None:
    async with running(kafka_settings) as rig:
        queue = await rig.queue()
        path = f"/v1/queues/{queue.id}/messages"
        rig.listeners.decide = lambda got: 500 if got.path == "refuses" and got.data[0] == "r" else 200
        later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
        view = rig.projections.directory
        _, key = await create_key(rig.log.control, view, organization_id=rig.organization_id, name="k")
        app = kafka_app_of(rig.settings, log=rig.log, view=view, stored=rig.stored)
        transport = httpx.ASGITransport(app)
        headers = {"x-api-key": key}
        async with httpx.AsyncClient(base_url="http://127.0.0.1", transport=transport, headers=headers) as client:
            before, counted = on_disk(kafka_server, ready_topics), rig.stored.stored(rig.organization_id)
            for _ in range(PUTS):  # each is a batch of its own, and the queue has no listener yet
                assert (await client.put(path, json={"data": "x" * size})).status_code == 200
            stored = on_disk(kafka_server, ready_topics) - before
            assert size * PUTS < stored <= rig.stored.stored(rig.organization_id) - counted
            for name in ("takes", "refuses"):
                await rig.listen(queue, name, max_attempts=1)
            worker = await rig.work()
            messages = []
            for number in range(PUTS):
                data = ("r" if number in REFUSED else "x") * size
                body = {"data": data, **({"key": f"key {number}"} if number % 2 else {"deliver_at": later})}
                once = {"idempotency-key": f"{number}"} if number % 3 else {}
                answer = await client.put(path, json=body, headers=once)
                assert answer.status_code == 200, answer.text
                messages.append(answer.json()["message"]["id"])
            many = {"messages": [{"data": "x" * size}] * 5}
            assert (await client.post(f"{path}/batch", json=many)).status_code == 200
            expected = 2 * (PUTS // 2 + 5) - len(REFUSED)
            await until(lambda: len(rig.listeners.got) >= expected, what="both listeners have taken what is due")
            await rig.noted(worker)
            for number, message in enumerate(messages):
                if number % 2:
                    answer = await client.put(f"{path}/{message}", json={"data": "y" * size})
                else:
                    answer = await client.delete(f"{path}/{message}")
                assert answer.status_code == 200, answer.text
            await rig.noted(worker)
        stored = on_disk(kafka_server, ready_topics) - before
        counted = rig.stored.stored(rig.organization_id) - counted
        assert stored > 3 * size * PUTS, "messages, updates and the copies of what was refused"
        assert stored <= counted < 3 * stored, (stored, counted)
