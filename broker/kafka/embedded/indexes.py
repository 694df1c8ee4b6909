"""Checks a broker's index files against the record batches in the segment files.

For: every entry of the offset indexes and time indexes of a topic, also while the broker runs. Index files have no
checksum. Not for: damage that makes a start of Kafka unsafe (segments.lying_indexes), look-ups that must be right
despite a damaged index (broker/time_offsets.py).
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from broker.kafka.embedded.segments import HEADER, PREFIX_BYTES, partitions

# An entry of an `.index` file says at which byte of the `.log` file the record batch with a certain offset begins.
# An entry of an `.index` file has two numbers: the offset minus the segment's first offset, and the byte position.
_PLACE: Final = struct.Struct(">ii")
# An entry of a `.timeindex` file says what the highest record time in the segment is up to a certain offset.
# An entry of a `.timeindex` file has two numbers: the record time, and the offset minus the segment's first offset.
_TIME: Final = struct.Struct(">qi")


class WrongIndex(NamedTuple):
    """An index file of Kafka that contradicts the record batches of its segment.

    `offset` is the offset of the first wrong entry. If the index is a time index that only lacks its last entries,
    `offset` is the first offset of the segment.
    """

    topic: str
    partition: int
    path: Path
    offset: int

    def __str__(self) -> str:
        place = self.path.with_suffix(".index")
        return (
            f"the index {self.path} has a wrong entry: stop the server, delete {place}, and start again; Kafka then "
            "rebuilds both indexes of the segment"
        )


class _Batches(NamedTuple):
    """The record batches of a segment file, in four lists of the same length. For each batch, the lists hold its
    position in the file, its first offset, its last offset, and the highest record time up to the end of this batch.
    """

    at: list[int]
    first: list[int]
    last: list[int]
    youngest_ms: list[int]


def wrong_indexes(log_dir: Path, topic: str, *, compacted: bool = False) -> Iterator[WrongIndex]:
    """Yield each index file of a topic that has a wrong entry. Also yield each time index that lacks the highest record
    time of its segment. The time index of a partition's newest segment may lack this time, because Kafka still writes
    to the segment.

    If the topic is compacted, index entries of removed records are right, and a time index may lack the highest record
    time.
    """
    for number, folder in partitions(log_dir, topic):
        paths = sorted(folder.glob("*.log"))
        for path in paths:
            for suffix, wrong in ((".index", _wrong_place), (".timeindex", _wrong_time)):
                index = path.with_suffix(suffix)
                try:
                    # Read the index first. If Kafka appends a batch meanwhile, the index may lack it without an error.
                    raw = index.read_bytes()
                    batches = _batches(path)
                except FileNotFoundError:
                    continue
                found = wrong(raw, batches, int(path.stem), compacted=compacted)
                if found is None and wrong is _wrong_time and path != paths[-1] and not compacted:
                    found = _ends_early(raw, batches)
                if found is not None and index.exists() and path.exists():  # otherwise Kafka has deleted the segment
                    yield WrongIndex(topic, number, index, found)


def _wrong_place(raw: bytes, batches: _Batches, base: int, *, compacted: bool) -> int | None:
    for relative, at in _entries(raw, _PLACE):
        offset, number = base + relative, bisect_right(batches.at, at) - 1
        if number < 0 or batches.at[number] != at or batches.first[number] > offset:
            return offset
        if not compacted and batches.last[number] < offset:
            return offset
    return None


def _wrong_time(raw: bytes, batches: _Batches, base: int, *, compacted: bool) -> int | None:
    for at_ms, relative in _entries(raw, _TIME):
        offset = base + relative
        number = bisect_right(batches.first, offset) - 1
        before_ms = batches.youngest_ms[number - 1] if number > 0 else -1
        if before_ms > at_ms:
            return offset
        if not compacted and (number < 0 or batches.last[number] < offset or batches.youngest_ms[number] != at_ms):
            return offset
    return None


def _ends_early(raw: bytes, batches: _Batches) -> int | None:
    """Return the segment's first offset if the time index is wrong because it lacks the segment's highest record time.
    Otherwise, return None.

    Call this function only for segments to which Kafka writes no more records.
    """
    last_ms = max((at_ms for at_ms, _ in _entries(raw, _TIME)), default=-1)
    return batches.first[0] if batches.first and last_ms != batches.youngest_ms[-1] else None


def _entries(raw: bytes, entry: struct.Struct) -> Iterator[tuple[int, int]]:
    """Yield the entries of an index file. Leave out the zeros at its end, which are space that Kafka has reserved."""
    used = -(-len(raw.rstrip(b"\0")) // entry.size) * entry.size
    return entry.iter_unpack(raw[:used].ljust(used, b"\0"))


def _batches(path: Path) -> _Batches:
    """Read the headers of a segment's record batches. Stop at a batch whose length field can't be right."""
    found, youngest_ms, at = _Batches([], [], [], []), -1, 0
    with path.open("rb") as file:
        while len(header := file.read(HEADER.size)) == HEADER.size and any(header):
            first, length, _, _, _, _, last, _, at_ms, *_ = HEADER.unpack(header)
            if length < HEADER.size - PREFIX_BYTES:
                break
            youngest_ms = max(youngest_ms, at_ms)
            for column, value in zip(found, (at, first, first + last, youngest_ms), strict=True):
                column.append(value)
            at += PREFIX_BYTES + length
            file.seek(at)
    return found
