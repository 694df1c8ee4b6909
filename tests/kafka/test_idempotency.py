"""Idempotency-Keys on a real Kafka: processes that race, and one that starts when the others are gone."""

from __future__ import annotations

import asyncio

from broker.commands.idempotency import Idempotency
from broker.commands.puts import new_put
from broker.core.entities import Queue
from broker.errors import KeyInFlight, KeyReused
from broker.kafka.log import KafkaLog

QUEUE = Queue(id="q", organization_id="o", name="orders", created_at_ms=0)


async def put(log: KafkaLog, key: str, *data: str, again: bool = True) -> list[str]:
    """The ids; asked again while the answer is that it is under way."""
    idempotency = Idempotency(log.claims, log.messages, append_timeout_ms=60_000)
    while True:
        puts = [new_put(QUEUE, one, None, None, "", "") for one in data]
        try:
            stored = await idempotency.put(
                QUEUE, puts, idempotency_key=key.encode(), body_sha256=" ".join(data), actor="", request_id=""
            )
            return [one.id for one in stored]
        except KeyInFlight:
            assert again
            await asyncio.sleep(0.02)


async def test_two_processes_and_one_after_a_restart_store_each_key_s_messages_once(kafka_settings, ready_topics):
    one, other = KafkaLog(kafka_settings), KafkaLog(kafka_settings)
    await one.start()
    await other.start()
    try:
        bodies = {f"k{number}": [f"m{number}.{part}" for part in range(1 + number % 3)] for number in range(30)}
        asked = [put(log, key, *data) for key, data in bodies.items() for log in (one, other, one, other)]
        answers = await asyncio.gather(*asked)
        for number, data in enumerate(bodies.values()):
            theirs = answers[4 * number : 4 * number + 4]
            assert all(answer == theirs[0] for answer in theirs)
            assert len(set(theirs[0])) == len(data)
        assert sum(await one.messages.end_offsets()) == sum(map(len, bodies.values()))
    finally:
        await one.stop()
        await other.stop()

    restarted = KafkaLog(kafka_settings)
    await restarted.start()
    try:
        for number, (key, data) in enumerate(bodies.items()):
            assert await put(restarted, key, *data, again=False) == answers[4 * number]
        try:
            await put(restarted, "k0", "other")
        except KeyReused:
            pass
        else:
            raise AssertionError("another body was taken")
        assert sum(await restarted.messages.end_offsets()) == sum(map(len, bodies.values()))
        assert len(restarted.claims._index) >= 30
    finally:
        await restarted.stop()
