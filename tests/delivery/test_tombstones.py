"""What is owed no more is said so in `outstanding`, whatever becomes of who is saying it. The topic is in memory."""

from __future__ import annotations

import asyncio

from broker.core.codec import encode
from broker.core.outstanding_sum import OutstandingSum, parse_sum
from broker.delivery.outstanding.entry import entry_key
from broker.delivery.outstanding.schedule import Outstanding
from broker.delivery.reading.partition import Partition
from tests.delivery.test_due import set_aside
from tests.outstanding_topic import OutstandingTopic


async def ours() -> None: ...


async def test_tombstones_whose_writing_is_cancelled_go_out_with_the_next():
    topic = OutstandingTopic()
    outstanding = Outstanding(topic, topic, "messages", {0: Partition(0, 0)}, {}, ours)
    await topic.keep(set_aside(1))
    await outstanding.read(0)
    outstanding.take_over(0)
    outstanding.cancel(0, "l-1", "m-1")
    writing = asyncio.create_task(outstanding.flush())
    await asyncio.sleep(0)
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    assert topic.kept().keys() == {b"l-1:m-1"}
    await outstanding.flush()
    assert not topic.kept()


class SlowPartition(OutstandingTopic):
    """It stores at once what is written to partition 0, and never what is written to partition 1."""

    async def append(self, outcomes):
        await super().append({0: outcomes.pop(0)})
        await asyncio.Event().wait()


async def test_what_was_buried_before_the_burying_was_cancelled_is_there_no_more():
    topic = SlowPartition()
    outstanding = Outstanding(topic, topic, "messages", {0: Partition(0, 0), 1: Partition(1, 0)}, {}, ours)
    for partition, number in ((0, 1), (0, 2), (1, 3)):
        event = set_aside(number, partition=partition)
        topic.write(partition, entry_key(event.listener_id, event.message_id), encode(event))
    for partition in (0, 1):
        await outstanding.read(partition)
        outstanding.take_over(partition)
    burying = asyncio.create_task(outstanding.bury({"l-1"}))
    await asyncio.sleep(0.01)
    burying.cancel()
    await asyncio.gather(burying, return_exceptions=True)
    assert topic.kept().keys() == {b"l-1:m-3"}
    assert [outstanding.state(partition, "l-1", f"m-{number}") for partition, number in ((0, 1), (0, 2), (1, 3))] == [
        None,
        None,
        "retrying",
    ]
    await outstanding.note()
    notes = outstanding.notes()
    assert parse_sum(notes[0]) == OutstandingSum(4, 0, 0)
    assert notes[1] == ""  # It is in doubt.
