"""A message's way through broker/, counted while it is delivered on real Kafka.

A module is on the way if one of its functions holds the message: its record, its `Message`, `Delivery` or `Stream`, or
the `Cursor` that passes it. A reader who follows a message opens these modules. The others are only asked, such as
limits, signatures and counters. Looser bounds hold for all modules of which anything is called.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from aiokafka.record.default_records import DefaultRecord

import broker
from broker.core.cursor import Cursor
from broker.core.delivery import KEPT
from broker.delivery.dispatch.stream import Delivery, Stream
from broker.delivery.reading.message import Message
from broker.delivery.worker import Worker
from broker.kafka.topics import Topics
from broker.settings import KafkaSettings
from tests.kafka.rig import Rig, running
from tests.listeners import until

HAPPY_MAX = 18
LEAVES_MAX = 8
# Of all modules in which anything is called, core/ and the reading from Kafka included.
HAPPY_CALLED_MAX, LEAVES_CALLED_MAX = 47, 36
ROOT = f"{Path(broker.__file__).parent}/"
CARRIERS = (DefaultRecord, Message, Delivery, Stream, Cursor)
# The API's side, which runs in the same process here, and has timers of its own.
PUT = {f"kafka/{name}.py" for name in ("appends", "group_commit", "in_flight", "pauses")}


@pytest.fixture
async def rig(kafka_settings: KafkaSettings, ready_topics: Topics):
    async with running(kafka_settings) as made:
        yield made


def carries(value: Any, depth: int = 4) -> bool:
    """Whether a message is in a value that a function has."""
    if isinstance(value, CARRIERS):
        return True
    if not depth or not isinstance(value, dict | list | tuple | set):
        return False
    inside = [*value, *value.values()] if isinstance(value, dict) else value
    return any(carries(one, depth - 1) for one in inside)


class Way:
    """holds: the modules that hold the message, in their order. called: all of which anything was called."""

    def __init__(self) -> None:
        self.holds: list[str] = []
        self.called: list[str] = []

    def note(self, frame: FrameType, event: str, value: Any) -> None:
        module = frame.f_code.co_filename.removeprefix(ROOT)
        if event not in ("call", "return") or module == frame.f_code.co_filename or module in PUT:
            return
        if module not in self.called:
            self.called.append(module)
        if event == "return" and module not in self.holds and carries([*frame.f_locals.values(), value]):
            self.holds.append(module)

    def __str__(self) -> str:
        return "\n".join([f"held by {len(self.holds)}:", *self.holds, f"called {len(self.called)}:", *self.called])


@contextlib.contextmanager
def traced() -> Iterator[Way]:
    way = Way()
    sys.setprofile(way.note)
    try:
        yield way
    finally:
        sys.setprofile(None)


async def only_worker(rig: Rig) -> Worker:
    """A worker whose loops have been stopped: nothing happens in it but what the test does."""
    worker = await rig.work()
    for task in worker._tasks:
        task.cancel()
    await asyncio.gather(*worker._tasks, return_exceptions=True)
    await worker.assignment.pause()
    return worker


async def bring(worker: Worker) -> None:
    """What the tail loop does, until it has brought a message."""
    tails = {number: partition.tail for number, partition in worker.assignment.partitions.items()}
    while all(partition.tail == tails[number] for number, partition in worker.assignment.partitions.items()):
        await worker.tail_loop.read_once()


async def test_from_kafka_to_the_commit_of_its_cursor_a_message_goes_through_few_modules(rig: Rig):
    queue = await rig.queue()
    listener = await rig.listen(queue, "a")
    worker = await only_worker(rig)
    dispatcher = worker.dispatchers[listener.id]
    for _ in ("on a new connection", "on the same one"):
        await rig.put(queue, "m")
        await worker.assignment.pause()  # once more: a rebalance begins with new loops
        with traced() as way:
            await bring(worker)
            await until(lambda: not dispatcher.busy, what="it is answered")
            await worker.assignment.checkpoints.checkpoint()
        assert (await rig.where.condition(listener)).lag == 0
    print(way)
    assert {"delivery/reading/partition.py", "outbound/connection.py"} <= set(way.holds)
    assert len(way.holds) <= HAPPY_MAX
    assert len(way.called) <= HAPPY_CALLED_MAX


async def test_a_delivery_that_leaves_its_window_goes_through_few_modules(rig: Rig):
    rig.tune(set_aside_after_ms=0)
    queue = await rig.queue()
    listener = await rig.listen(queue, "a")
    worker = await only_worker(rig)
    rig.listeners.status["a"] = 422
    rig.listeners.hangs.add("a")
    await rig.put(queue, "m")
    await bring(worker)
    await until(lambda: rig.listeners.hanging, what="it is under way")
    (delivery,) = worker.dispatchers[listener.id].attempts.under_way()
    await worker.assignment.pause()
    with traced() as way:
        rig.listeners.let_go()
        await until(lambda: delivery.state is KEPT, what="it is in outstanding, and has left its window")
    print(way)
    assert "delivery/outstanding/schedule.py" in way.holds
    assert len(way.holds) <= LEAVES_MAX
    assert len(way.called) <= LEAVES_CALLED_MAX
