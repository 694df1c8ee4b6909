"""A read's bytes become records: which are left out, and that others run meanwhile."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from unittest.mock import AsyncMock, MagicMock

from aiokafka.record.default_records import DefaultRecordBatchBuilder

from broker.delivery.reading.message import may_be_in, messages
from broker.kafka.batches import RECORDS_AT_ONCE
from broker.kafka.requests import KafkaRequests
from broker.settings import KafkaSettings

QUEUE, OTHER = "queue-1", "queue-2"


def batch(first: int, queue_ids: list[str]) -> bytes:
    builder = DefaultRecordBatchBuilder(2, 0, 1, -1, -1, -1, 1 << 20)
    for place, queue_id in enumerate(queue_ids):
        builder.append(place, 1_000 + place, b"m", b'{"a":1}', [("queue", queue_id.encode())])
    raw = bytearray(builder.build())
    raw[:8] = first.to_bytes(8, "big")
    return bytes(raw)


def kafka(*batches: bytes, end_offset: int = 100) -> KafkaRequests:
    """It has these."""
    requests = KafkaRequests(KafkaSettings(bootstrap="none"))
    answer = SimpleNamespace(topics=[("t", [(0, 0, end_offset, b"".join(batches))])])
    requests.client = MagicMock(send=AsyncMock(return_value=answer))
    return requests


async def test_others_run_while_a_read_is_parsed_and_none_of_it_is_lost():
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    running = asyncio.create_task(others())
    many = 6 * RECORDS_AT_ONCE
    batches = batch(0, [QUEUE] * many), batch(many, [QUEUE]), batch(many + 1, [QUEUE] * many)
    fetched = await kafka(*batches, end_offset=2 * many + 1).read("t", 0, 3)
    running.cancel()
    assert turns >= 10
    assert [record.offset for record in fetched.records] == list(range(3, 2 * many + 1))
    assert fetched.next_offset == 2 * many + 1


async def test_what_holds_none_of_a_few_queues_is_not_parsed_and_of_the_rest_only_theirs_become_messages():
    foreign = await kafka(batch(0, [OTHER] * 30)).read("t", 0, 0, worth=may_be_in([QUEUE]))
    assert (foreign.records, foreign.next_offset, foreign.left_out_ms) == ([], 30, 1_029)
    mixed = await kafka(batch(0, [OTHER] * 29 + [QUEUE])).read("t", 0, 0, worth=may_be_in(["queue-3", QUEUE]))
    assert len(mixed.records) == 30
    assert [(one.offset, one.queue_id) for one in messages(mixed.records, [QUEUE])] == [(29, QUEUE)]
    assert len(list(messages(mixed.records))) == 30


def test_of_many_queues_it_is_not_asked_whether_they_are_there():
    assert may_be_in([f"queue-{number}" for number in range(5)]) is None
