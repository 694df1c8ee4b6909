"""The readers alone, without sockets: who is told, who is served when. What they read is made up here."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from types import SimpleNamespace

import pytest

from broker.core.window import Window
from broker.delivery.dispatch.stream import Delivery, Stream
from broker.delivery.reading.catch_up import CatchUp
from broker.delivery.reading.message import Message
from broker.delivery.reading.partition import Partition
from broker.delivery.tuning import Tuning
from broker.errors import LogUnavailable
from tests.delivery.office import until


class SomeDispatcher(SimpleNamespace):
    """What of a dispatcher a reader looks at."""

    __hash__ = object.__hash__
    tuning = Tuning(stuck_pause_s=0)


class CountsComparisons(SomeDispatcher):
    compared = 0
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        CountsComparisons.compared += 1
        return self is other


def test_a_queues_thousandth_listener_is_placed_and_removed_without_a_look_at_the_others():
    partition = Partition(0, 0)
    listener = SimpleNamespace(queue_id="q-1", replay=None)
    dispatchers = [CountsComparisons(listener=listener, streams={}) for _ in range(1_000)]
    for dispatcher in (*dispatchers, *dispatchers):
        partition.place(dispatcher)
    for dispatcher in dispatchers:
        partition.remove(dispatcher)
    assert CountsComparisons.compared < 1_000  # of equal hashes, if there are any
    assert not any(partition.placed(dispatcher) for dispatcher in dispatchers)


def test_a_listener_that_has_ended_is_told_nothing_more():
    partition = Partition(0, 0)

    def dispatcher() -> SomeDispatcher:
        made = SomeDispatcher(
            listener=SimpleNamespace(queue_id="q-1", replay=None),
            streams={},
            stream=lambda number: made.streams.setdefault(number, Stream(made, number, Window())),
            room=lambda: True,
            room_for=lambda _stream, _offset: True,
            taken=[],
            accept=lambda _, message: made.taken.append(message.offset),
            assignment=SimpleNamespace(touched=lambda _: None),
        )
        partition.place(made)
        return made

    ended, other = dispatcher(), dispatcher()
    partition.feed([Message(0, b"m-0", "q-1", 1, b"{}")])
    partition.remove(ended)
    partition.feed([Message(1, b"m-1", "q-1", 1, b"{}")])
    assert (ended.taken, other.taken) == ([0], [0, 1])


class Lagging:
    """A worker's partitions, streams that lag there, and a log of which everybody knows what is in it. Is the Source.

    log: by partition and offset, the queue; 10 offsets are read at once. read: each partition and queues looked for.
    errors: of the first reads.
    """

    def __init__(self, partitions: int, log: Mapping[tuple[int, int], str]) -> None:
        self.partitions = {number: Partition(number, 1_000_000) for number in range(partitions)}
        self.log = log
        self.catch_up = CatchUp(self, self.partitions, SomeDispatcher.tuning)
        self.read: list[tuple[int, set[str]]] = []
        self.errors: list[Exception] = []
        self.may_end = asyncio.Event()
        self.may_end.set()

    def lag(self, number: int, queue_id: str, *, scan_from: int = 0, first: bool = False) -> Stream:
        dispatcher = SomeDispatcher(
            listener=SimpleNamespace(queue_id=queue_id, replay=None, reach=lambda _, tail: tail),
            limits=SimpleNamespace(low_priority=not first),
            assignment=SimpleNamespace(touched=lambda _: None),
            streams={},
            room=lambda: True,
            room_for=lambda _stream, _offset: True,
            taken=[],
            accept=lambda _, message: dispatcher.taken.append(message.offset),
            behind={},
            refill=lambda: self.catch_up.request(stream),  # it lacks more at once
        )
        stream = dispatcher.streams[number] = Stream(dispatcher, number, Window(scan_from=scan_from))
        self.catch_up.request(stream)
        return stream

    async def fetch(
        self, partition: int, offset: int, _bytes_max: int, queue_ids: Collection[str]
    ) -> tuple[list[Message], int]:
        self.read.append((partition, set(queue_ids)))
        await asyncio.sleep(0)
        await self.may_end.wait()
        if self.errors:
            raise self.errors.pop()
        found = [(at, self.log.get((partition, at))) for at in range(offset, offset + 10)]
        return [Message(at, b"m", one, 1, b"{}") for at, one in found if one in queue_ids], offset + 10

    def start(self) -> None:
        self.reading = [asyncio.create_task(loop()) for loop in self.catch_up.loops()]

    async def stop(self) -> None:
        for task in self.reading:
            task.cancel()
        await asyncio.gather(*self.reading, return_exceptions=True)

    async def reads(self, count: int) -> list[int]:
        """The partitions of the first so many reads."""
        self.start()
        for _ in range(100 * count):
            if len(self.read) < count:
                await asyncio.sleep(0)
        await self.stop()
        assert len(self.read) >= count
        return [partition for partition, _ in self.read[:count]]


async def test_who_goes_first_need_not_wait_for_a_reader_behind_hundreds_of_others():
    lagging = Lagging(301, {})
    for number in range(301):
        lagging.lag(number, "q", first=number == 300)
    assert 300 in (await lagging.reads(300))[:3]


async def test_the_others_are_served_while_those_who_go_first_always_lack_something():
    lagging = Lagging(24, {})
    for number in range(24):
        lagging.lag(number, "q", first=number < 4)
    read = await lagging.reads(200)
    assert set(range(4, 24)) <= set(read)
    assert sum(number < 4 for number in read) >= 100, "but those who go first, more often"


async def test_only_the_queues_of_those_are_looked_for_whom_a_read_may_serve():
    lagging = Lagging(2, {})
    lagging.lag(0, "a")
    lagging.lag(0, "b", scan_from=9)
    lagging.lag(0, "c", scan_from=900_000)
    lagging.lag(1, "d")
    await lagging.reads(1)
    assert lagging.read[0] == (0, {"a", "b"})


async def test_whose_queue_was_not_looked_for_is_not_taken_past_its_messages():
    lagging = Lagging(1, {(0, 3): "b", (0, 7): "a", (0, 15): "b"})
    lagging.may_end.clear()
    a = lagging.lag(0, "a")
    lagging.start()
    while not lagging.read:
        await asyncio.sleep(0)
    b = lagging.lag(0, "b")  # the read for the other one has begun
    lagging.may_end.set()
    await lagging.reads(20)
    assert (a.dispatcher.taken, b.dispatcher.taken) == ([7], [3, 15])


async def test_who_asks_again_at_once_keeps_its_place_in_the_line():
    lagging = Lagging(1, {})
    lagging.partitions[0].tail = 2_000
    stream = lagging.lag(0, "a")
    lagging.start()
    await until(lambda: stream.window.attached)  # nobody else asks for it
    await lagging.stop()


async def test_who_lacks_something_earlier_by_the_time_that_a_read_ends_is_not_forgotten():
    lagging = Lagging(1, {(0, 3): "a"})
    lagging.may_end.clear()
    stream = lagging.lag(0, "a", scan_from=100)
    lagging.start()
    while not lagging.read:
        await asyncio.sleep(0)
    stream.window.open[3] = Delivery(stream, 3, None)
    stream.window.forget((3,))  # its listener is down: what it held is let go
    lagging.may_end.set()
    await until(lambda: not stream.requested)  # it may ask again
    lagging.catch_up.request(stream)
    await until(lambda: stream.dispatcher.taken == [3])
    await lagging.stop()


@pytest.mark.parametrize("error", [LogUnavailable("away"), ValueError("a mistake")])
async def test_a_stream_whose_read_went_wrong_is_served_when_it_asks_again(error):
    lagging = Lagging(1, {(0, 3): "a"})
    lagging.errors.append(error)
    stream = lagging.lag(0, "a")
    lagging.start()
    await until(lambda: not lagging.errors)
    for _ in range(9):
        await asyncio.sleep(0)
    lagging.catch_up.request(stream)
    await until(lambda: stream.dispatcher.taken == [3])
    await lagging.stop()


async def test_listeners_that_lag_together_are_in_the_queue_once_each_and_keep_nobody_waiting():
    lagging = Lagging(2, {})
    for _ in range(20):
        lagging.lag(0, "q")  # one read serves them all, and each lacks more at once
    await lagging.reads(50)
    assert lagging.catch_up.waiting <= 20
    lagging.read.clear()
    lagging.lag(1, "q")
    assert 1 in (await lagging.reads(30))
