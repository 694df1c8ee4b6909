"""Record batches as Kafka sends them, each checked before its records are used.

For: the checksum of every batch, and whether batches follow each other without a gap. Not for: fetching (requests.py),
the meaning of records.

The checksum (CRC-32C) covers a batch from its attributes on, but neither its base offset nor its length. Both are
therefore compared with the requested offset, the batch before, and the end of the partition.
"""

from __future__ import annotations

import asyncio
import itertools
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Final

from aiokafka.record.default_records import DefaultRecordBatch
from aiokafka.record.legacy_records import LegacyRecordBatch

from broker.ports import FetchResult, Record

# A record batch begins with two numbers: its base offset, and the number of bytes that follow.
_LENGTH: Final = struct.Struct(">qi")
_MAGIC_AT: Final = 16
_LAST_DELTA_AT: Final = 23
# The first 12 bytes of a record batch are enough to read its base offset and its length.
FOLLOWING_BYTES: Final = _LENGTH.size
_OLD_CRC_AT: Final = 12  # in the old batch formats 0 and 1, the batch's CRC-32 checksum begins at this byte
_MAGIC: Final = 2  # format since Kafka 0.11
_BYTES_MIN: Final = {0: 26, 1: 34, _MAGIC: 61}  # smallest sizes, by format
_BYTES_MAX: Final = 9 << 20  # a little more than 8 MiB, the largest max.message.bytes that Everput sets for a topic
_CHECKED_AT_ONCE: Final = 256 << 10  # checked before a yield
RECORDS_AT_ONCE: Final = 500  # parsed before a yield


async def parse(
    raw: bytes, offset: int, end_offset: int, worth: Callable[[bytes], bool] | None = None, *, holes: bool
) -> FetchResult | None:
    """Check the record batches in `raw`, the bytes that Kafka has sent. Return the records of the intact batches from
    `offset` on, up to the first damaged batch. Return None if the first batch is damaged, or if Kafka sent no bytes
    although the partition should have more records.

    `holes` is true if offsets may be missing, as in a compacted topic. `worth` is a function that takes `raw`, and
    returns False if no record in these bytes is wanted. Then the batches are checked, but no records are parsed or
    returned. If a batch may be compressed, `worth` is not called, and all records are parsed.
    """
    batches, next_offset, left = list[Any](), offset, _CHECKED_AT_ONCE
    for batch, size in good(raw, offset, end_offset, holes=holes):
        batches.append(batch)
        next_offset, left = batch.next_offset, left - size
        if left <= 0:
            await asyncio.sleep(0)
            left = _CHECKED_AT_ONCE
    if not batches and (raw or (offset < end_offset and not holes)):
        # If the length field of a batch is damaged and points beyond the end of the file, Kafka sends no bytes.
        return None
    batches = [batch for batch in batches if not batch.is_control_batch]
    # For batches of formats 0 and 1, aiokafka does not tell if they are compressed. So treat them as compressed.
    packed = any(getattr(batch, "compression_type", True) for batch in batches)
    if batches and worth is not None and not packed and not worth(raw):
        return FetchResult([], next_offset, end_offset, len(raw), max(batch.max_timestamp for batch in batches))
    records: list[Record] = []
    rest = itertools.chain.from_iterable(batches)
    while some := list(itertools.islice(rest, RECORDS_AT_ONCE)):
        # Kafka returns whole record batches. So drop the records that come before the requested offset.
        if some[0].offset < offset:
            some = [record for record in some if record.offset >= offset]
        records += some
        if len(some) == RECORDS_AT_ONCE:
            await asyncio.sleep(0)
    return FetchResult(records, next_offset, end_offset, len(raw))


def good(raw: bytes, offset: int, end_offset: int, *, holes: bool) -> Iterator[tuple[Any, int]]:
    """Yield the intact record batches, each with its size in bytes. Stop before the first damaged batch.

    There is one exception: if `raw` begins with damaged batches, and a later batch begins exactly at `offset`, skip the
    damaged ones. Their records are then all before `offset`. `holes` is true if offsets may be missing before a batch,
    as in a compacted topic. After a skipped batch, no offset may be missing, because the skipped batch may have the
    missing record.
    """
    began = passed = False
    for batch, follows_at, size in _framed(raw):
        exact, missing = passed or began, holes and not passed
        if batch is not None and _is_good(batch, follows_at, offset, end_offset, holes=missing, exact=exact):
            began, offset = True, batch.next_offset
            yield batch, size
        elif batch is None or began:
            return
        else:
            passed = True


def _is_good(batch: Any, follows_at: int | None, offset: int, end_offset: int, *, holes: bool, exact: bool) -> bool:
    """Return whether a record batch is intact and is the next batch to read. The next batch includes the record at
    `offset`. If `holes` is true, the next batch may also begin after `offset`. If `exact` is true, the next batch must
    not begin before `offset`.
    """
    base, after = _base(batch, offset), batch.next_offset
    if not offset < after <= end_offset or not batch.validate_crc():
        return False
    if holes:
        return (base >= offset or not exact) and (follows_at is None or follows_at >= after)
    if exact or base >= offset:
        return base == offset
    return after in (follows_at, end_offset)  # the next batch must confirm it


def to_confirm(raw: bytes, offset: int, end_offset: int) -> tuple[int, int] | None:
    """Return what to fetch before the single record batch in `raw` can be trusted: the offset of the batch after it.
    Also return the size of the batch in `raw`, in bytes. Return None if nothing must be fetched.

    The batch after it is needed if the batch in `raw` begins before `offset`, the requested offset. The batch in `raw`
    is then trusted only if the batch after it begins exactly where the batch in `raw` ends.
    """
    if len(raw) < _BYTES_MIN[_MAGIC]:
        return None
    base, length = _LENGTH.unpack_from(raw)
    size = _LENGTH.size + length
    after = base + int.from_bytes(raw[_LAST_DELTA_AT : _LAST_DELTA_AT + 4]) + 1
    if base < offset < after < end_offset and len(raw) - size in range(FOLLOWING_BYTES):
        return after, size
    return None


def damaged_range(raw: bytes, offset: int, end_offset: int) -> tuple[int, int] | None:
    """Return the first and the last unreadable offset of the damage with which `raw` begins. Return None if the bytes
    in `raw` do not show where the damage ends.
    """
    first = None
    for number, (batch, follows_at, _) in enumerate(_framed(raw)):
        if batch is None:
            return None
        base, after = _base(batch, offset), batch.next_offset
        if number == 0:
            first = batch
            if after == end_offset and follows_at is None:
                return _first(first, offset, after), end_offset - 1
        if not (offset < base < after <= end_offset and batch.validate_crc()):
            continue
        if follows_at is None or follows_at >= after:  # otherwise a base offset is damaged
            return _first(first, offset, base), base - 1
    return None


def bytes_wanted(raw: bytes) -> int:
    """Return how many bytes to fetch so that they include the first record batch and the batch after it.

    This assumes that the length field of the first record batch is right.
    """
    length = _LENGTH.unpack_from(raw)[1] if len(raw) >= _LENGTH.size else 0
    return (min(length, _BYTES_MAX) if length > 0 else 0) + _BYTES_MAX


def _framed(raw: bytes) -> Iterator[tuple[Any, int | None, int]]:
    """Split fetched bytes into record batches, by the length field of each batch. Yield each batch with two numbers:
    the base offset of the batch after it, and the size of the batch itself in bytes. The base offset is None if the
    bytes end before the batch after it.

    If the next bytes can't be a batch, yield None instead of a batch, and stop. Kafka cuts its answer at the requested
    size. So leave out an incomplete batch at the end, unless it is the first batch.
    """
    at = 0
    while len(raw) - at > _MAGIC_AT:
        _, length = _LENGTH.unpack_from(raw, at)
        magic, size = raw[at + _MAGIC_AT], _LENGTH.size + length
        if size < _BYTES_MIN.get(magic, len(raw) + 1) or (size > len(raw) and at == 0):
            yield None, None, 0
            return
        if at + size > len(raw):
            return
        batch, end = raw[at : at + size], at + size
        follows_at = _LENGTH.unpack_from(raw, end)[0] if len(raw) - end >= FOLLOWING_BYTES else None
        if magic == _MAGIC:
            yield DefaultRecordBatch(batch), follows_at, size
        elif zlib.crc32(batch[_MAGIC_AT:]) == int.from_bytes(batch[_OLD_CRC_AT:_MAGIC_AT]):
            yield LegacyRecordBatch(batch, magic), follows_at, size
        # Compare the checksum first: the parser of old batches would read beyond the end of a damaged batch.
        else:
            yield None, None, 0
            return
        at += size


def _base(batch: Any, otherwise: int) -> int:
    """Return the first offset of a record batch. If the batch has an old format (0 or 1), return `otherwise`, because
    aiokafka does not tell the first offset of such a batch.
    """
    return int(getattr(batch, "base_offset", otherwise))


def _first(batch: Any, offset: int, after: int) -> int:
    """Return the first unreadable offset of a damaged batch: usually `offset`, the requested offset. If the damaged
    batch's header says that the batch ends at `after`, where the next batch begins, trust the header: return the
    header's first offset if it is lower than `offset`.
    """
    if batch is None or batch.next_offset != after:
        return offset
    return min(offset, max(0, _base(batch, offset)))
