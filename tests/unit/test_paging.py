"""A page of messages out of partitions read backwards: nothing twice, nothing left out, newest first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.core.paging import Chunk, Found, newest

# By partition, the records in order: (milliseconds since the one before, whether it is the queue's).
PARTITIONS = st.lists(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=40), min_size=1, max_size=4)


@given(PARTITIONS, st.integers(1, 12), st.integers(1, 7))
def test_the_pages_together_are_all_of_the_queue_s_records_newest_first(
    partitions: list[list[tuple[int, bool]]], size: int, limit: int
):
    logs = []
    for records in partitions:
        at_ms, log = 1000, []
        for step_ms, own in records:
            at_ms += step_ms
            log.append((at_ms, own))
        logs.append(log)
    ends = [len(log) for log in logs]
    shown: list[tuple[int, int, int]] = []
    for _ in range(sum(ends) + 1):
        chunks = []
        for number, (log, end) in enumerate(zip(logs, ends, strict=True)):
            start = max(0, end - size)
            found = [
                Found(at_ms, offset, (at_ms, number, offset))
                for offset, (at_ms, own) in enumerate(log)
                if own and start <= offset < end
            ]
            chunks.append(Chunk(0, start, end, log[start][0] if start < end else None, found))
        page, after = newest(chunks, limit)
        assert len(page) <= limit
        assert after != ends or not any(ends), "every page brings the end nearer"
        shown += page
        ends = after
        if not any(ends):
            break
    everything = [
        (at_ms, number, offset) for number, log in enumerate(logs) for offset, (at_ms, own) in enumerate(log) if own
    ]
    assert sorted(shown) == sorted(everything)
    assert [at_ms for at_ms, *_ in shown] == sorted((at_ms for at_ms, *_ in everything), reverse=True)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 60))
def test_a_page_holds_no_more_bytes_than_it_may_but_always_one_record(sizes: list[int], bytes_max: int):
    found = [Found(number, number, size, size) for number, size in enumerate(sizes)]
    shown, ends = newest([Chunk(0, 0, len(sizes), 0, found)], 100, bytes_max=bytes_max)
    assert shown == sizes[::-1][: len(shown)]
    assert len(shown) == 1 or sum(shown) <= bytes_max
    assert ends == [len(sizes) - len(shown)]
