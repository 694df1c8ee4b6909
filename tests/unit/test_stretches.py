"""A partition is walked through once, to its end and no further, with the next stretch asked for ahead."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from broker.audit.stretches import stretches
from broker.errors import Unavailable
from broker.kafka.requests import Record, Stretch


class Partition:
    """What stretches() asks of Kafka: three offsets a read. gone: offsets that compaction has removed."""

    def __init__(self, end: int, gone: frozenset[int] = frozenset()) -> None:
        self.end = end
        self.asked: list[int] = []
        self.fails_at: int | None = None
        self._gone = gone

    async def offsets(self, topic: str, at_ms: Mapping[int, int]) -> dict[int, int]:
        raise NotImplementedError

    async def read(self, topic: str, partition: int, offset: int, *, bytes_max: int = 1) -> Stretch:
        self.asked.append(offset)
        if self.fails_at is not None and offset >= self.fails_at:
            raise Unavailable("away")
        there = [one for one in range(offset, self.end) if one not in self._gone][:3]
        records = [Record(one, 0, b"k", b"v", ()) for one in there]
        return Stretch(records, there[-1] + 1 if there else offset, self.end)


async def read(of: Partition, begin: int, end: int) -> list[int]:
    return [one.offset async for stretch in stretches(of, "t", 0, begin, end) for one in stretch.records]


@pytest.mark.parametrize(("begin", "end"), [(0, 10), (2, 9), (3, 4), (0, 3), (5, 5)])
async def test_each_record_of_the_range_comes_once_in_order(begin: int, end: int):
    of = Partition(10)
    assert await read(of, begin, end) == list(range(begin, end))
    assert of.asked == list(range(begin, end, 3))  # and none is asked for twice, nor behind the end


async def test_the_next_stretch_is_asked_for_while_one_is_looked_through():
    of = Partition(10)
    walk = stretches(of, "t", 0, 0, 10)
    await anext(walk)
    assert of.asked == [0, 3]
    await walk.aclose()


async def test_what_compaction_removed_at_the_end_is_not_waited_for():
    assert await read(Partition(10, gone=frozenset({1, 7, 8, 9})), 0, 10) == [0, 2, 3, 4, 5, 6]
    assert await read(Partition(3, gone=frozenset({0, 1, 2})), 0, 3) == []


async def test_a_log_that_ends_before_it_should_is_an_error():
    with pytest.raises(Unavailable, match="from offset 10 on"):
        await read(Partition(10), 0, 11)


async def test_whoever_stops_in_the_middle_does_not_hear_of_an_error_further_on():
    of = Partition(10)
    of.fails_at = 3
    walk = stretches(of, "t", 0, 0, 10)
    await anext(walk)
    await walk.aclose()
    with pytest.raises(Unavailable, match="away"):
        await read(of, 0, 10)
