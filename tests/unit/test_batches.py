"""A batch in which a bit has changed is never read as good, whichever bit it is."""

from __future__ import annotations

import pytest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder

from broker.kafka.batches import FOLLOWING_BYTES, damaged_range, parse, to_confirm
from broker.ports import Record

EPOCH_BYTES = range(12, 16)  # of the leader; nothing depends on it, and no checksum covers it


def batch(first: int, count: int = 3, *, packed: int = 0) -> bytes:
    builder = DefaultRecordBatchBuilder(2, packed, 0, -1, -1, -1, 1 << 20)
    for place in range(count):
        builder.append(place, 1_000, b"key", b"value-%d" % (first + place), [("queue", b"q")])
    raw = bytearray(builder.build())
    raw[:8] = first.to_bytes(8, "big")
    return bytes(raw)


def legacy(first: int, magic: int, packed: int = 0) -> bytes:
    builder = LegacyRecordBatchBuilder(magic, packed, 1 << 20)
    builder.append(first, 1_000, b"key", b"value-%d" % first)
    return bytes(builder.build())


def flipped(raw: bytes, bit: int) -> bytes:
    changed = bytearray(raw)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def shown(records: list[Record]) -> list[tuple[int, bytes | None]]:
    return [(record.offset, record.value) for record in records]


def as_written(first: int, after: int) -> list[tuple[int, bytes]]:
    return [(offset, b"value-%d" % offset) for offset in range(first, after)]


@pytest.mark.parametrize("packed", [0, 1], ids=["plain", "gzip"])
@pytest.mark.parametrize("number", [0, 1, 2], ids=["first", "middle", "last"])
@pytest.mark.parametrize("holes", [False, True], ids=["whole", "compacted"])
async def test_whichever_bit_of_a_batch_is_flipped_only_what_was_written_is_read(number: int, packed: int, holes: bool):
    whole = [batch(3 * one, packed=packed) for one in range(3)]
    for bit in range(8 * len(whole[number])):
        if bit // 8 in EPOCH_BYTES:
            continue
        raw = b"".join(flipped(one, bit) if place == number else one for place, one in enumerate(whole))
        found = await parse(raw, 0, 9, holes=holes)
        if found is None:
            assert number == 0 or (holes and bit < 64), bit
        else:
            assert shown(found.records) == as_written(0, found.next_offset), bit
            # Where offsets may be missing, a batch counts only if the next one does not claim to begin before its end.
            assert found.next_offset == 3 * number or (holes and bit < 64 and found.next_offset < 3 * number), bit


async def test_where_the_damage_ends_is_told_by_the_batch_after_it_whichever_bit_is_flipped():
    first, second, third = batch(3), batch(6), batch(9)
    for bit in range(8 * len(first)):
        if bit // 8 in EPOCH_BYTES:
            continue
        found = damaged_range(flipped(first, bit) + second + third, 4, 12)
        if found is not None:  # else its length is altered, and the bytes do not tell
            assert found[0] in (3, 4), bit
            assert found[1] == 5, bit
    assert damaged_range(flipped(first, 8 * 80), 4, 6) == (3, 5)


async def test_a_hole_is_damage_but_not_where_compaction_leaves_holes():
    raw = batch(0) + batch(6)
    assert shown((await parse(raw, 0, 9, holes=False)).records) == as_written(0, 3)
    assert await parse(batch(6), 3, 9, holes=False) is None
    assert damaged_range(batch(6) + batch(9), 3, 12) == (3, 5)
    assert shown((await parse(raw, 0, 9, holes=True)).records) == as_written(0, 3) + as_written(6, 9)
    damaged = flipped(batch(0), 8 * 80)
    assert await parse(damaged + batch(6), 0, 9, holes=True) is None, "the hole may be what the damaged batch held"
    assert damaged_range(damaged + batch(6), 0, 9) == (0, 5)
    assert shown((await parse(damaged + batch(3), 3, 6, holes=True)).records) == as_written(3, 6)


@pytest.mark.parametrize("magic", [0, 1])
@pytest.mark.parametrize("packed", [0, 1], ids=["plain", "gzip"])
async def test_the_old_formats_are_checked_too(magic: int, packed: int):
    raw = legacy(0, magic, packed)
    assert shown((await parse(raw, 0, 1, holes=False)).records) == as_written(0, 1)
    for bit in range(8 * 12, 8 * len(raw)):
        assert await parse(flipped(raw, bit), 0, 1, holes=False) is None, bit


async def test_a_control_batch_is_checked_and_passed():
    control = bytearray(batch(0, 1))
    control[22] |= 0x20
    from aiokafka.record._crecords.cutil import crc32c_cython

    control[17:21] = crc32c_cython(bytes(control[21:])).to_bytes(4, "big")
    found = await parse(bytes(control) + batch(1), 0, 4, holes=False)
    assert shown(found.records) == as_written(1, 4)
    assert await parse(flipped(bytes(control), 8 * 70), 0, 1, holes=False) is None


async def test_a_cut_off_last_batch_is_read_the_next_time_and_a_cut_off_first_one_is_damage():
    raw = batch(0) + batch(3)
    assert (await parse(raw[:-5], 0, 6, holes=False)).next_offset == 3
    assert await parse(batch(0)[:-5], 0, 3, holes=False) is None


async def test_a_batch_that_begins_before_the_offset_is_read_only_if_what_follows_confirms_where_it_begins():
    moved = bytearray(batch(6))
    moved[:8] = (4).to_bytes(8, "big")  # 4 to 6, not 6 to 8
    assert to_confirm(bytes(moved), 6, 12) == (7, len(moved))
    assert await parse(bytes(moved) + batch(9)[:FOLLOWING_BYTES], 6, 12, holes=False) is None
    assert await parse(bytes(moved), 6, 12, holes=False) is None
    assert to_confirm(batch(6), 6, 12) is None
    assert to_confirm(batch(6), 7, 9) is None  # nothing can follow
    confirmed = await parse(batch(6) + batch(9)[:FOLLOWING_BYTES], 7, 12, holes=False)
    assert shown(confirmed.records) == as_written(7, 9)
