"""A partition is scanned once, to its end and no further, whatever a new leader says of its end."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest

from broker.errors import LogDamaged, LogUnavailable, Unavailable
from broker.kafka.requests import KafkaRequests
from broker.kafka.scan import scan
from broker.ports import FetchResult, Record
from broker.settings import KafkaSettings
from tests.apps import said_to_clients


def record(offset: int) -> Record:
    return Record(offset, 0, b"k", b"v", ())


class Partition:
    """The partition that a scan reads: three offsets a read.

    gone: offsets that compaction has removed. damaged: offsets of unreadable batches, each of one offset.
    """

    def __init__(self, end: int, *, gone: Iterable[int] = (), damaged: Iterable[int] = ()) -> None:
        self.end = end
        self.asked: list[int] = []
        self.fails_at: int | None = None
        self._gone = frozenset(gone)
        self._damaged = frozenset(damaged)

    async def read(self, topic: str, partition: int, offset: int, *, bytes_max: int = 1) -> FetchResult:
        self.asked.append(offset)
        if self.fails_at is not None and offset >= self.fails_at:
            raise Unavailable("away")
        if offset in self._damaged:
            raise LogDamaged(topic, partition, offset, offset)
        there = itertools.takewhile(lambda one: one not in self._damaged, range(offset, self.end))
        found = [one for one in there if one not in self._gone][:3]
        return FetchResult([record(one) for one in found], found[-1] + 1 if found else offset, self.end)


async def read(of: Partition, begin: int, end: int | None, **options) -> list[int]:
    return [one.offset async for fetched in scan(of, "t", 0, begin, end, **options) for one in fetched.records]


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize(("begin", "end"), [(0, 10), (2, 9), (3, 4), (0, 3), (5, 5)])
async def test_each_record_of_the_range_comes_once_in_order(begin: int, end: int, ahead: bool):
    of = Partition(10)
    assert await read(of, begin, end, ahead=ahead) == list(range(begin, end))
    assert of.asked == list(range(begin, end, 3))  # and none is asked for twice, nor behind the end


async def test_a_scan_without_an_end_stops_at_that_of_the_partition():
    of = Partition(7)
    assert await read(of, 0, None) == list(range(7))
    assert of.asked == [0, 3, 6]
    assert await read(of, 7, None) == []


async def test_the_next_read_begins_while_a_result_is_looked_through():
    of = Partition(10)
    results = scan(of, "t", 0, 0, 10, ahead=True)
    await anext(results)
    assert of.asked == [0, 3]
    await results.aclose()


async def test_what_compaction_removed_at_the_end_is_not_waited_for():
    assert await read(Partition(10, gone={1, 7, 8, 9}), 0, 10) == [0, 2, 3, 4, 5, 6]
    assert await read(Partition(3, gone={0, 1, 2}), 0, 3) == []


async def test_a_log_that_ends_before_it_should_is_an_error_unless_the_caller_bears_it():
    with pytest.raises(Unavailable, match="from offset 10 on") as refused:
        await read(Partition(10), 0, 11)
    assert said_to_clients(refused.value) == "Kafka does not return records that it should have. Try again."
    assert await read(Partition(10), 0, 11, patience_s=None) == list(range(10))


async def test_whoever_stops_in_the_middle_does_not_hear_of_an_error_further_on():
    of = Partition(10)
    of.fails_at = 3
    results = scan(of, "t", 0, 0, 10, ahead=True)
    await anext(results)
    await results.aclose()
    with pytest.raises(Unavailable, match="away"):
        await read(of, 0, 10)


async def test_an_unreadable_range_ends_the_scan_or_is_named_and_skipped():
    with pytest.raises(LogDamaged):
        await read(Partition(10, damaged={4}), 0, 10)
    damage: list[LogDamaged] = []
    assert await read(Partition(10, damaged={4, 9}), 0, 10, damaged=damage.append) == [0, 1, 2, 3, 5, 6, 7, 8]
    assert [(one.first, one.last) for one in damage] == [(4, 4), (9, 9)]
    assert await read(Partition(10, damaged={9}), 0, None, damaged=damage.append) == list(range(9))


async def test_no_more_is_read_than_the_caller_allows_and_where_the_scan_stopped_is_known():
    of = Partition(30, damaged={3})
    results = [one async for one in scan(of, "t", 0, 0, 30, reads_max=3, damaged=lambda _: None)]
    assert of.asked == [0, 3, 4]
    assert [one.next_offset for one in results] == [3, 4, 7]


class Leader(KafkaRequests):
    """Answers reads with these, one after the other, and the last one again and again."""

    def __init__(self, *answers: FetchResult) -> None:
        super().__init__(KafkaSettings(bootstrap="localhost:1"), timeout_ms=600)
        self.answers = list(answers)

    async def read(self, *_: object, **__: object) -> FetchResult:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


async def walked(leader: Leader) -> list[int]:
    return [one.offset async for one in leader.walk("t", 0, 0, 3)]


async def test_a_leader_that_does_not_know_the_end_yet_is_waited_for():
    behind, there = FetchResult([], 1, 1), FetchResult([record(1), record(2)], 3, 3)
    assert await walked(Leader(FetchResult([record(0)], 1, 1), behind, behind, there)) == [0, 1, 2]


async def test_a_leader_that_never_gives_what_there_is_is_an_error():
    with pytest.raises(LogUnavailable, match="from offset 1"):
        await walked(Leader(FetchResult([record(0)], 1, 1), FetchResult([], 1, 1)))


async def test_where_compaction_has_left_nothing_the_walk_ends():
    assert await walked(Leader(FetchResult([record(0)], 1, 3), FetchResult([], 1, 3))) == [0]
