"""What of the log can't be read: the fold of `log.damaged` and `log.mended`, and the ids that stand for it."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from broker.core import events as ev
from broker.core.damage import Damage, DamagedRange
from broker.core.digests import state_hash
from broker.core.directory import Directory
from broker.core.ids import damaged_id, message_id, parse_damaged_id, parse_message_id, partition_of

SPANS = st.tuples(st.integers(0, 20), st.integers(0, 6)).map(lambda span: (span[0], span[0] + span[1]))


@given(st.lists(st.tuples(st.booleans(), SPANS), max_size=12))
def test_ranges_are_the_set_of_their_offsets_and_touching_ones_are_one(steps: list[tuple[bool, tuple[int, int]]]):
    damage, offsets = Damage(), set[int]()
    for adds, (first, last) in steps:
        span = set(range(first, last + 1))
        one = DamagedRange("messages", 3, first, last)
        assert damage.covers(one) == (span <= offsets)
        if adds:
            assert damage.add(one) == (not span <= offsets)
            offsets |= span
        else:
            assert damage.remove(one) == bool(span & offsets)
            offsets -= span
        found = list(damage)
        assert {offset for row in found for offset in range(row.first, row.last + 1)} == offsets
        assert all(before.last + 1 < after.first for before, after in pairwise(found))
        assert damage.offsets().get("messages", 0) == len(offsets)
        assert bool(damage) == bool(offsets)


def test_the_same_damage_told_twice_changes_the_directory_once_and_mended_it_is_as_before():
    directory, empty = Directory(), state_hash(Directory())
    told = {"at_ms": 1, "organization_id": "", "topic": "control", "partition": 0, "first_offset": 4, "last_offset": 6}
    assert directory.apply(ev.LogDamaged(**told))
    assert state_hash(directory) != empty
    assert not directory.apply(ev.LogDamaged(**told | {"at_ms": 2}))
    assert list(map(str, directory.damage)) == ["control/0 offsets 4 to 6"]
    assert directory.apply(ev.LogMended(**told, given_up=False))
    assert not directory.apply(ev.LogMended(**told, given_up=False))
    assert state_hash(directory) == empty


def test_what_was_given_up_is_not_damage_again_until_it_was_mended():
    directory = Directory()
    told = {"at_ms": 1, "organization_id": "", "topic": "control", "partition": 0, "first_offset": 4, "last_offset": 6}
    directory.apply(ev.LogDamaged(**told))
    assert directory.apply(ev.LogMended(**told, given_up=True))
    assert not directory.damage
    assert not directory.apply(ev.LogDamaged(**told))
    assert not directory.damage
    assert directory.apply(ev.LogMended(**told, given_up=False))
    assert directory.apply(ev.LogDamaged(**told))
    assert directory.damage


def test_what_stands_for_the_ids_of_messages_is_no_message_id_and_is_read_back():
    text = damaged_id(17, 10, 2**63 - 1)
    assert parse_damaged_id(text) == (17, 10, 2**63 - 1)
    assert parse_message_id(text) is None
    assert partition_of(text) == 17
    assert partition_of(message_id(at_ms=1, partition=5, random_bits=1)) == 5
    assert partition_of("neither") is None
    assert parse_damaged_id("damaged-1-2") is None
    assert parse_damaged_id("damaged-1-2-٣") is None
    assert parse_damaged_id(text + " ") is None
