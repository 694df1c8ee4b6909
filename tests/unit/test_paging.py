"""A page of messages out of partitions read backwards: nothing twice, nothing left out, newest first."""

from __future__ import annotations

from itertools import accumulate

from hypothesis import given
from hypothesis import strategies as st

from broker.core.paging import Chunk, Found, newest

Log = list[tuple[int, bool]]  # of one partition, in order: when, and whether it is the queue's


def logs_of(steps_ms: st.SearchStrategy[int]) -> st.SearchStrategy[list[Log]]:
    """By partition. steps_ms: from one record to the next; each is stamped by its own writer's clock."""
    steps = st.lists(st.lists(st.tuples(steps_ms, st.booleans()), max_size=40), min_size=1, max_size=4)
    return steps.map(
        lambda partitions: [
            [(at_ms, own) for at_ms, (_, own) in zip(accumulate(step for step, _ in log), log, strict=True)]
            for log in ([(1000 + log[0][0], log[0][1]), *log[1:]] if log else [] for log in partitions)
        ]
    )


def chunk_of(log: Log, number: int, end: int, size: int, kept_max: int) -> Chunk[tuple[int, int, int]]:
    """The last `size` records before end, and of the queue's among them no more than kept_max."""
    start = max(0, end - size)
    oldest_at_ms = log[start][0] if start < end else None
    own = [offset for offset in range(start, end) if log[offset][1]]
    for dropped in own[: max(0, len(own) - kept_max)]:
        start, oldest_at_ms = dropped + 1, log[dropped][0]
    found = [Found(log[offset][0], offset, (log[offset][0], number, offset)) for offset in own[-kept_max:]]
    return Chunk(0, start, end, oldest_at_ms, found)


def pages(logs: list[Log], size: int, kept_max: int, limit: int) -> list[tuple[int, int, int]]:
    """(time, partition, offset) of all that the pages show together."""
    shown: list[tuple[int, int, int]] = []
    ends = [len(log) for log in logs]
    while any(ends):
        chunks = [
            chunk_of(log, number, end, size, kept_max) for number, (log, end) in enumerate(zip(logs, ends, strict=True))
        ]
        page, after = newest(chunks, limit)
        assert len(page) <= limit
        assert sum(after) < sum(ends), "every page brings an end nearer"
        assert all(now <= before for now, before in zip(after, ends, strict=True))
        shown += page
        ends = after
    return shown


SIZES = {"size": st.integers(1, 12), "kept_max": st.integers(1, 12), "limit": st.integers(1, 7)}


@given(logs=logs_of(st.integers(-20, 20)), **SIZES)
def test_the_pages_together_are_all_of_the_queue_s_records_once_and_a_partition_s_the_last_first(
    logs: list[Log], size: int, kept_max: int, limit: int
):
    shown = pages(logs, size, kept_max, limit)
    for number, log in enumerate(logs):
        own = [(at_ms, number, offset) for offset, (at_ms, own) in enumerate(log) if own]
        assert [one for one in shown if one[1] == number] == own[::-1]
    assert {number for _, number, _ in shown} <= set(range(len(logs)))


@given(logs=logs_of(st.integers(0, 3)), **SIZES)
def test_where_no_clock_goes_back_the_pages_are_newest_first(logs: list[Log], size: int, kept_max: int, limit: int):
    times = [at_ms for at_ms, _, _ in pages(logs, size, kept_max, limit)]
    assert times == sorted(times, reverse=True)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 60))
def test_a_page_holds_no_more_bytes_than_it_may_but_always_one_record(sizes: list[int], bytes_max: int):
    found = [Found(number, number, size, size) for number, size in enumerate(sizes)]
    shown, ends = newest([Chunk(0, 0, len(sizes), 0, found)], 100, bytes_max=bytes_max)
    assert shown == sizes[::-1][: len(shown)]
    assert len(shown) == 1 or sum(shown) <= bytes_max
    assert ends == [len(sizes) - len(shown)]
