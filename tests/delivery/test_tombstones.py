"""What is owed no more is said so in `outstanding`, whatever becomes of who is saying it. The topic is in memory."""

from __future__ import annotations

import asyncio

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
