"""The index finds what a dict of the same rows has, and keeps its rows on disk."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.core.ids import message_id, parse_message_id
from broker.delivery.outstanding.entry import Key, OutstandingEntry
from broker.delivery.outstanding.index import BEGIN, OutstandingIndex

NOW_MS, LATER_MS = 7, 60_000  # the time now, and the `deliver_at` of some
LISTENERS, PARTITIONS, KEYS = ("l-1", "l-2"), (0, 1), (None, None, "a", "b")


def made(
    listener_id: str = "l-1",
    number: int = 0,
    *,
    partition: int = 0,
    ordering_key: str | None = None,
    due_ms: int | None = None,
    attempts: int = 0,
    redrives: int = 0,
) -> OutstandingEntry:
    one = message_id(at_ms=1_000 + number, partition=partition, random_bits=number)
    queued_ms = due_ms if ordering_key is None else None
    return OutstandingEntry(
        0, partition, listener_id, one, number, ordering_key, 7, attempts, redrives, 0, 0, 0, due_ms, queued_ms, 0, None
    )


rows = st.builds(
    made,
    st.sampled_from(LISTENERS),
    st.integers(0, 5),
    partition=st.sampled_from(PARTITIONS),
    ordering_key=st.sampled_from(KEYS),
    due_ms=st.sampled_from((None, 5, 6, 7, LATER_MS)),
    attempts=st.integers(0, 2),
    redrives=st.integers(0, 2),
)


def check(index: OutstandingIndex, model: dict[tuple[int, Key], OutstandingEntry], at_ms: int = NOW_MS) -> None:
    """Whatever one may ask of it."""

    def ids(found: list[OutstandingEntry]) -> list[int]:
        return [entry.id for entry in found]

    assert len(index) == len(model)
    assert set(index.counts) == {one.listener_id for one in model.values()}
    lined = [one for one in model.values() if one.ordering_key is not None and one.due_ms is not None]
    assert index.queued_keys == len(lined)
    for listener_id, partition in product(LISTENERS, PARTITIONS):
        waiting = [
            one.message_id
            for one in model.values()
            if (one.listener_id, one.partition) == (listener_id, partition)
            and one.due_ms is not None
            and (one.number or one.due_ms <= at_ms)
        ]
        since = parse_message_id(min(waiting)) if waiting else None
        expected = len(waiting), None if since is None else since[0]
        assert index.waiting(partition, listener_id, at_ms) == expected
    for listener_id in LISTENERS:
        mine = [one for one in model.values() if one.listener_id == listener_id]
        queued = sorted((one.queued_ms, one.id) for one in mine if one.queued_ms is not None)
        assert ids(index.due(listener_id, 6, after=BEGIN, limit=99)) == [row_id for ms, row_id in queued if ms <= 6]
        after = queued[0] if queued else BEGIN
        assert ids(index.due(listener_id, LATER_MS, after=after, limit=99)) == [row_id for _, row_id in queued[1:]]
        assert index.next_ms(listener_id) == min((ms for ms, _ in queued), default=None)
        tried = [one.id for one in mine if one.redrives < 2 and (one.number or one.due_ms is None)]
        assert sorted(ids(index.attempted_before(listener_id, 2, limit=99))) == sorted(tried)
        assert sorted(ids(index.of_listener(listener_id, limit=99))) == sorted(one.id for one in mine)
        for partition in PARTITIONS:
            due = [one for one in mine if one.partition == partition and one.due_ms is not None]
            count = index.counts.get(listener_id)
            assert (0 if count is None else count.due.get(partition, 0)) == len(due)
            for key in ("a", "b"):
                line = sorted((one.message_offset, one.id) for one in due if one.ordering_key == key)
                assert index.offsets((listener_id, partition, key), 2) == [
                    (row_id, place) for place, row_id in line[:2]
                ]
                first = min((place for place, _ in line), default=9)
                assert [index.begins_before((listener_id, partition, key), place) for place in range(7)] == [
                    first < place for place in range(7)
                ]
    for partition in PARTITIONS:
        kept = {one.message_id: 1_000 + one.message_offset for one in model.values() if one.partition == partition}
        assert index.oldest_put_ms(partition) == min(kept.values(), default=None)
        assert [index.has_message(partition, one) for one in kept] == [True] * len(kept)
        assert not index.has_message(partition, message_id(at_ms=1, partition=partition, random_bits=1))
        assert len(index.of_partition(partition, limit=99)) == sum(place == partition for place, _ in model)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from((*("write",) * 4, "gone", "remove", "queue", "redriven", "later", "close")), rows)
    )
)
def test_it_finds_what_a_dict_of_the_same_rows_has(steps: list[tuple[str, OutstandingEntry]]):
    index = OutstandingIndex()
    model: dict[tuple[int, Key], OutstandingEntry] = {}
    at_ms = NOW_MS
    for what, drawn in steps:
        entry = drawn if what == "write" or not model else list(model.values())[drawn.message_offset % len(model)]
        key = entry.listener_id, entry.message_id
        there = model.get((entry.partition, key))
        if what in ("write", "gone"):
            before = index.write(entry.partition, {key: entry if what == "write" else None}, at_ms)
            assert [one.id for one in before] == ([] if there is None else [there.id])
            model.pop((entry.partition, key), None)
            if what == "write":
                model[entry.partition, key] = entry
        elif what == "later":
            at_ms = LATER_MS
        elif what == "close":
            index.close()
            model.clear()
        elif there is not None and what == "remove":
            assert index.remove(there)
            assert not index.remove(model.pop((entry.partition, key)))
        elif there is not None and what == "queue":
            index.queue(there, entry.due_ms)
        elif there is not None:
            was_parked, there.due_ms, there.redrives = there.due_ms is None, 7, there.redrives + 1
            index.redriven(there, at_ms, was_parked=was_parked)
        check(index, model, at_ms)


def test_some_that_are_new_and_some_that_are_not_are_written_together():
    index = OutstandingIndex()
    first = [made(number=number, due_ms=5) for number in range(3)]
    index.write(0, {("l-1", one.message_id): one for one in first}, NOW_MS)
    second = [made(number=number) for number in range(1, 5)]
    before = index.write(
        0, {("l-1", one.message_id): one for one in second} | {("l-1", first[0].message_id): None}, NOW_MS
    )
    assert sorted(one.message_offset for one in before) == [0, 1, 2]
    assert (len(index), index.counts["l-1"].due.get(0, 0)) == (4, 0)


def test_very_many_that_become_due_together_are_counted_one_part_after_another():
    index = OutstandingIndex()
    rows = [made(number=number, due_ms=LATER_MS) for number in range(1_200)]
    index.write(0, {("l-1", one.message_id): one for one in rows}, NOW_MS)
    index.changed.clear()
    assert index.waiting(0, "l-1", LATER_MS - 1) == (0, None)
    assert not index.changed  # a checkpoint has nothing to commit
    counted = []
    while not counted or index.changed:
        index.changed.clear()
        counted.append(index.waiting(0, "l-1", LATER_MS)[0])
    assert counted == [500, 1_000, 1_200, 1_200]
    assert index.remove(rows[0])
    assert index.waiting(0, "l-1", LATER_MS) == (1_199, 1_001)


def on_disk() -> int:
    """Bytes of the temporary files of SQLite that this process has open."""
    files = [one for one in Path("/proc/self/fd").iterdir() if one.is_symlink()]
    return sum(one.stat().st_size for one in files if "etilqs_" in str(one.readlink()))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="there is no /proc")
def test_its_rows_are_on_disk_and_their_file_goes_with_them():
    index = OutstandingIndex(cache_kib=64)
    before = on_disk()
    for begin in range(0, 5_000, 500):
        some = [made(number=begin + number, due_ms=5, ordering_key=f"key-{number}") for number in range(500)]
        index.write(0, {("l-1", one.message_id): one for one in some}, NOW_MS)
    assert on_disk() - before > 500_000
    index.close()
    assert on_disk() == before
