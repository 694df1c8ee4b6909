"""The readers alone, without sockets: who is told, who is served when. What they read is made up here."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace

from broker.core.window import Window
from broker.delivery.message import Message
from broker.delivery.readers import CatchUp, Partition
from broker.delivery.stream import Stream


class CountsComparisons(SimpleNamespace):
    """A courier as far as a partition looks at it that keeps up."""

    compared = 0
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        CountsComparisons.compared += 1
        return self is other


def test_a_queues_thousandth_listener_is_placed_and_dismissed_without_a_look_at_the_others():
    partition = Partition(0, 0)
    listener = SimpleNamespace(queue_id="q-1", replay=None)
    couriers = [CountsComparisons(listener=listener, streams={}) for _ in range(1_000)]
    for courier in (*couriers, *couriers):
        partition.place(courier)
    for courier in couriers:
        partition.dismiss(courier)
    assert CountsComparisons.compared < 1_000  # of equal hashes, if there are any
    assert not any(partition.placed(courier) for courier in couriers)


class Source:
    """A log that has nothing of anybody's. read: by read, its partition."""

    def __init__(self) -> None:
        self.read: list[int] = []

    async def stretch(self, partition: int, offset: int, _bytes_max: int) -> tuple[list[Message], int]:
        await asyncio.sleep(0)
        self.read.append(partition)
        return [], offset + 10


class Lagging:
    """A worker's partitions, each with one stream that lags; goes_first says in which its listener goes first."""

    def __init__(self, goes_first: Sequence[bool]) -> None:
        self.partitions = {number: Partition(number, 1_000_000) for number in range(len(goes_first))}
        self.source = Source()
        self.catch_up = CatchUp(self.source, self.partitions)
        self.streams = [self.stream(number, first=first) for number, first in enumerate(goes_first)]

    def stream(self, number: int, *, first: bool) -> Stream:
        courier = SimpleNamespace(
            listener=SimpleNamespace(queue_id=f"q-{number}", replay=None, reach=lambda _, tail: tail),
            limits=SimpleNamespace(gives_way=not first),
            depot=SimpleNamespace(touched=lambda _: None),
            behind={},
            refill=lambda: self.catch_up.request(stream),  # it lacks more at once
        )
        stream = Stream(courier, number, Window(scan_from=0))
        return stream

    async def reads(self, count: int) -> list[int]:
        """Have them all ask for a reader; the partitions of the first so many reads."""
        for stream in self.streams:
            self.catch_up.request(stream)
        self.catch_up.start()
        while len(self.source.read) < count:
            await asyncio.sleep(0)
        await self.catch_up.stop()
        return self.source.read[:count]


async def test_who_goes_first_need_not_wait_for_a_reader_behind_hundreds_of_others():
    assert 300 in (await Lagging([False] * 300 + [True]).reads(300))[:3]


async def test_the_others_are_served_while_those_who_go_first_always_lack_something():
    read = await Lagging([True] * 4 + [False] * 20).reads(200)
    assert set(range(4, 24)) <= set(read)
    assert sum(number < 4 for number in read) >= 100, "but those who go first, more often"
