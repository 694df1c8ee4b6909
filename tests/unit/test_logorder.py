"""The order of the log: the same however it is read, and a cursor goes on exactly where it stopped."""

from __future__ import annotations

import contextlib
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.core.logorder import Lane, Merge, PageToken, Run

Times = list[list[int]]  # of the records of each lane
Position = tuple[int, int, int]  # log time, lane, offset
# Clocks that go back and forth; every third record is unwanted.
logs = st.lists(st.lists(st.integers(0, 12), max_size=12), min_size=1, max_size=4)


def wanted(lane: int, offset: int) -> bool:
    return (lane + offset) % 3 != 0


def in_order(log: Times) -> list[Position]:
    """By the definition."""
    return sorted(
        (log_ms, number, offset)
        for number, times in enumerate(log)
        for offset, log_ms in enumerate(accumulate(times, max))
        if wanted(number, offset)
    )


def test_a_page_token_is_of_its_partitions_only_and_one_of_an_older_version_of_as_many():
    token = PageToken.from_text(Merge([Lane(2, 0, 5, 9), Lane(2, 1, 7, 9)], 3).page_token().text())
    assert token.is_of([(2, 0), (2, 1)])
    for others in ([(3, 0), (3, 1)], [(2, 1), (2, 2)], [(2, 0)], [(2, 0), (3, 0)], []):
        assert not token.is_of(others)
    older = PageToken.from_text(token._replace(checksum=None).text())
    assert (older.passed_ms, older.lanes, older.checksum) == (3, ((5, 3), (7, 3)), None)
    assert older.is_of([(3, 0), (3, 1)])
    assert not older.is_of([(3, 0)])


def merge_of(log: Times, page_token: PageToken | None = None) -> Merge[Position]:
    places = [(0, 0)] * len(log) if page_token is None else page_token.lanes
    lanes: list[Lane[Position]] = [
        Lane(number, 0, at, len(times), floor_ms)
        for number, (times, (at, floor_ms)) in enumerate(zip(log, places, strict=True))
    ]
    return Merge(lanes, 0 if page_token is None else page_token.passed_ms)


def read(merge: Merge[Position], log: Times, fetch_max: int, before_ms: int = 99, limit: int = 999) -> list[Position]:
    given: list[Position] = []
    while (most := limit - len(given)) and (found := merge.next(before_ms, most=most, bytes_max=fetch_max)) is not None:
        if isinstance(found, Run):
            assert 1 <= len(found.records) <= min(most, fetch_max)
            assert found.size == len(found.records)
            assert all(held.item == (found.lane.rank, held.offset) for held in found.records)
            given += [(held.log_ms, found.lane.rank, held.offset) for held in found.records]
            continue
        end = min(found.at + fetch_max, found.end)
        rows = [
            (offset, log[found.rank][offset], 1, (found.rank, offset) if wanted(found.rank, offset) else None)
            for offset in range(found.at, end)
        ]
        merge.give(found, rows, end)
    return given


@given(logs, st.integers(1, 5))
def test_the_order_is_that_of_the_definition_however_long_the_stretches_are(log: Times, fetch_max: int):
    assert read(merge_of(log), log, fetch_max) == in_order(log)


@given(logs, st.integers(1, 5), st.integers(1, 5), st.integers(1, 9))
def test_a_cursor_goes_on_exactly_where_the_reading_stopped(log: Times, fetch_max: int, other: int, limit: int):
    first = merge_of(log)
    given = read(first, log, fetch_max, limit=limit)
    page_token = PageToken.from_text(first.page_token().text())
    assert given + read(merge_of(log, page_token), log, other) == in_order(log)


@given(logs, st.integers(1, 5), st.integers(0, 13))
def test_a_moment_divides_the_log_in_two(log: Times, fetch_max: int, before_ms: int):
    merge = merge_of(log)
    given = read(merge, log, fetch_max, before_ms)
    assert given == [place for place in in_order(log) if place[0] < before_ms]
    assert given + read(merge_of(log, merge.page_token()), log, fetch_max) == in_order(log)


@settings(max_examples=200)
@given(logs, st.lists(st.lists(st.integers(0, 12), max_size=6), min_size=4, max_size=4), st.integers(0, 13))
def test_what_is_appended_late_is_given_once_all_the_same(log: Times, later: Times, before_ms: int):
    merge = merge_of(log)
    given = read(merge, log, 2, before_ms)
    grown = [times + more for times, more in zip(log, later, strict=False)]
    merge.extend(map(len, grown))
    given += read(merge, grown, 2)
    assert sorted(place[1:] for place in given) == sorted(place[1:] for place in in_order(grown))
    by_lane = [[offset for _, lane, offset in given if lane == number] for number in range(len(log))]
    assert all(offsets == sorted(offsets) for offsets in by_lane)


@given(st.integers(0, 2**50), st.lists(st.tuples(st.integers(0, 2**60), st.integers(0, 2**40)), max_size=40))
def test_a_cursor_comes_back_from_its_text(passed_ms: int, rows: list[tuple[int, int]]):
    page_token = PageToken(passed_ms, tuple((offset, passed_ms + ahead) for offset, ahead in rows))
    assert PageToken.from_text(page_token.text()) == page_token


@given(st.text(max_size=30))
def test_no_text_raises_anything_but_value_error(text: str):
    with contextlib.suppress(ValueError):
        PageToken.from_text(text)


@pytest.mark.parametrize("text", ["", "!", "AA", "AQ", "AQEB", "AQEBAQ", "gICAgICAgICAgIABAQE", "Ag" + "A" * 40])
def test_what_is_no_cursor_is_refused(text: str):
    with pytest.raises(ValueError):
        PageToken.from_text(text)
