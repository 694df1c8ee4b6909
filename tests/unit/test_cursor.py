"""The cursor in Kafka's offset and metadata: nothing lost on the way, nothing skipped when it is unreadable."""

from __future__ import annotations

import base64
from dataclasses import replace
from itertools import accumulate

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from broker.core.cursor import METADATA_BYTES_MAX, OPEN_MAX, Cursor

OFFSET_MAX = 2**63 - 1
WORDS = st.one_of(st.none(), st.sampled_from(["refused", "timeout", "address-not-allowed", "503", "too-large"]))


@st.composite
def cursors(draw: st.DrawFn, *, distance_max: int = 2**35 - 1) -> Cursor:
    """Any cursor whose open offsets are not absurdly far apart (34 thousand million records)."""
    first = draw(st.integers(0, 2**40))
    distances = draw(st.lists(st.integers(1, distance_max), max_size=OPEN_MAX))
    places = list(accumulate(distances, initial=first))
    return Cursor(
        top=places[-1],
        open=tuple(places[:-1]),
        pending=draw(st.integers(0, 10**6)),
        oldest_at_ms=draw(st.one_of(st.none(), st.integers(0, 2**48 - 1))),
        state=draw(st.sampled_from(["live", "down"])),
        error=draw(WORDS),
        attempts=tuple(draw(st.sampled_from([(), [draw(st.integers(1, 300))] * (len(places) - 1)]))),
    )


@settings(deadline=None)
@given(cursors())
def test_a_cursor_comes_back_from_its_offset_and_metadata_as_it_was(cursor: Cursor):
    text = cursor.metadata()
    assert len(text.encode()) <= METADATA_BYTES_MAX
    again = Cursor.from_metadata(cursor.offset, text)
    assert again in (cursor, replace(cursor, attempts=()))
    if len(cursor.open) <= 100:
        assert again == cursor


@settings(deadline=None)
@given(st.lists(st.integers(0, OFFSET_MAX - 1), min_size=1, max_size=OPEN_MAX, unique=True))
@example(list(range(0, 2**62, 2**53)))
@example(list(range(0, 2**63 - 1, 2**54)))
def test_metadata_fits_kafka_however_far_apart_the_open_offsets_are_and_then_skips_nothing(places: list[int]):
    opened = tuple(sorted(places))
    cursor = Cursor(top=OFFSET_MAX, open=opened, pending=len(opened))
    text = cursor.metadata()
    assert len(text.encode()) <= METADATA_BYTES_MAX
    again = Cursor.from_metadata(cursor.offset, text)
    assert again.offset == cursor.offset
    assert not any(again.settled(offset) for offset in opened)


def test_the_fullest_window_fits_with_distances_of_thousands_of_millions():
    opened = tuple(range(0, OPEN_MAX * (2**35 - 1), 2**35 - 1))
    cursor = Cursor(
        top=OPEN_MAX * 2**35,
        open=opened,
        pending=10**9,
        oldest_at_ms=2**48 - 1,
        state="down",
        error="address-not-allowed",
    )
    assert len(cursor.metadata().encode()) <= METADATA_BYTES_MAX
    assert Cursor.from_metadata(cursor.offset, cursor.metadata()) == cursor


@settings(deadline=None)
@given(st.integers(0, OFFSET_MAX), st.text(max_size=200))
@example(0, "")
@example(5, "1 AA 0 - live")
@example(5, "1 AA zero - live -")
@example(5, "1 AA 0 never live -")
@example(5, "1 AA -7 - live -")
@example(5, "1 AA 0 - asleep -")
@example(5, "1  0 - live -")
@example(5, "1 gA 0 - live -")
@example(5, "1 ä 0 - live -")
@example(5, "1 A 0 - live -")
@example(5, "2 AA 0 - live -")
@example(5, "1 AA 0 - live - AQ")
@example(5, "1 AA 0 - live - ä")
@example(5, "1 AA 0 - live - AQ AQ")
@example(5, "consumer-1-6a9f0c1e")
@example(5, f"1 AA {'9' * 5000} - live -")
def test_metadata_that_is_not_ours_counts_for_nothing_and_never_raises(offset: int, text: str):
    assert Cursor.from_metadata(offset, text) == Cursor(top=offset)


@settings(deadline=None)
@given(st.integers(0, 2**40), st.lists(st.integers(0, 2**20), min_size=1, max_size=20))
def test_numbers_that_make_no_cursor_count_for_nothing(offset: int, numbers: list[int]):
    packed = b"".join(bytes(_leb128(number)) for number in numbers)
    text = f"1 {base64.urlsafe_b64encode(packed).rstrip(b'=').decode()} 0 - live -"
    cursor = Cursor.from_metadata(offset, text)
    assert cursor.offset == offset
    assert list(cursor.open) == sorted(set(cursor.open))
    assert all(offset <= at < cursor.top for at in cursor.open)


def _leb128(number: int) -> list[int]:
    return [number] if number < 128 else [number % 128 | 128, *_leb128(number // 128)]


@settings(deadline=None)
@given(cursors(distance_max=9))
def test_what_is_committed_is_the_lowest_open_offset_else_the_top(cursor: Cursor):
    assert cursor.offset == min(cursor.open, default=cursor.top)


@settings(deadline=None)
@given(cursors(distance_max=9), st.data())
def test_settled_is_what_is_below_the_top_and_not_open(cursor: Cursor, data: st.DataObject):
    offset = data.draw(st.integers(max(0, cursor.offset - 2), cursor.top + 2))
    assert cursor.settled(offset) == (offset < cursor.top and offset not in cursor.open)
    assert not cursor.settled(cursor.offset)


def test_a_reader_that_knows_nothing_of_the_metadata_repeats_and_skips_nothing():
    cursor = Cursor(top=12, open=(3, 7))
    plain = Cursor.from_metadata(cursor.offset, "")
    assert plain == Cursor(top=3)
    assert all(not plain.settled(offset) for offset in cursor.open)


@pytest.mark.parametrize("number", [0, 1, 127, 128, 16383, 16384, 2**35, 2**56])
def test_each_length_of_varint_comes_back(number: int):
    cursor = Cursor(top=number + 1, open=(0, number) if number else (0,))
    assert Cursor.from_metadata(0, cursor.metadata()) == cursor


def test_attempts_that_do_not_fit_are_left_out_and_no_open_offset_is():
    opened = tuple(range(0, OPEN_MAX * (2**35 - 1), 2**35 - 1))
    cursor = Cursor(top=OPEN_MAX * 2**35, open=opened, attempts=(9,) * len(opened))
    assert Cursor.from_metadata(cursor.offset, cursor.metadata()) == replace(cursor, attempts=())


def test_metadata_of_before_there_were_attempts_is_read_and_without_any_is_as_it_was():
    cursor = Cursor(top=9, open=(5, 7), pending=2, state="down", error="503")
    assert cursor.metadata() == "1 BAAC 2 - down 503"
    assert Cursor.from_metadata(5, "1 BAAC 2 - down 503") == cursor
    assert Cursor.from_metadata(5, "1 BAAC 2 - down 503 AwA") == replace(cursor, attempts=(3, 0))
