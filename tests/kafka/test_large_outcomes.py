"""What a checkpoint writes is taken by Kafka, however much has happened since the last one."""

from __future__ import annotations

from types import SimpleNamespace

from broker.core.codec import decode, encode
from broker.core.events import DeliveriesSettled
from broker.delivery.dispatch.stream import outcome_events
from broker.kafka.log import KafkaLog

ROWS = 100_000  # of one stream: more than a megabyte's worth


async def test_what_one_stream_settled_is_written_though_it_is_more_than_a_record_may_have(
    kafka_settings, ready_topics
):
    listener = SimpleNamespace(organization_id="o" * 36, id="l" * 36, queue_id="q" * 36)
    answers = SimpleNamespace(take=lambda *_: [])
    stream = SimpleNamespace(dispatcher=SimpleNamespace(listener=listener, answers=answers), partition=1)
    far = 10**15
    rows = [(far + number, 1_767_225_630_000 + number, 200, 86_400_000, 0) for number in range(ROWS)]
    records = [(b"l", encode(event)) for event in outcome_events(stream, rows, [], 1)]
    assert sum(len(value) for _, value in records) > 2 << 20
    log = KafkaLog(kafka_settings)
    await log.start()
    try:
        await log.deliveries.append({1: records})
        walk = log.requests.walk(ready_topics.deliveries.name, 1, 0, len(records))
        found = [decode(record.value or b"") async for record in walk]
    finally:
        await log.stop()
    assert all(isinstance(event, DeliveriesSettled) for event in found)
    assert [row for event in found for row in event.rows] == [row[:4] for row in rows]
