"""Damage to the files of a Kafka that is stopped: what disks, cables and operators do to them.

For: finding the batches in a partition's segments, flipping a bit, cutting, removing. Not for: what is expected then.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_HEADER = struct.Struct(">qiibIhi")
_RECORDS_AT = 61


class Batch(NamedTuple):
    """Where a record batch is. first, last: its offsets. at, size: bytes of the file."""

    path: Path
    at: int
    size: int
    first: int
    last: int


def partition_folder(data_dir: Path, topic: str, partition: int) -> Path:
    """Below the folder of a broker."""
    (found,) = data_dir.rglob(f"{topic}-{partition}")
    return found


def batches(folder: Path) -> Iterator[Batch]:
    """All of a partition, in order."""
    for path in sorted(folder.glob("*.log")):
        raw, at = path.read_bytes(), 0
        while at + _RECORDS_AT <= len(raw):
            first, length, *_, last = _HEADER.unpack_from(raw, at)
            if length <= 0:  # Kafka reserves the file's room ahead
                break
            yield Batch(path, at, 12 + length, first, first + last)
            at += 12 + length


def holding(folder: Path, offset: int) -> Batch:
    """The batch with this offset."""
    return next(batch for batch in batches(folder) if batch.first <= offset <= batch.last)


def flip(batch: Batch, *, at: int = -10, bit: int = 0) -> None:
    """Flip a bit. at: a byte of the batch, counted from its end when negative."""
    with batch.path.open("r+b") as file:
        file.seek(batch.at + at % batch.size)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ (1 << bit)]))


def flip_within(batch: Batch, text: bytes) -> int:
    """Flip a bit of this text, which is in the batch; the byte of the batch."""
    raw = batch.path.read_bytes()[batch.at : batch.at + batch.size]
    at = raw.index(text)
    flip(batch, at=at)
    return at


def cut(batch: Batch) -> None:
    """The file ends before this batch."""
    with batch.path.open("r+b") as file:
        file.truncate(batch.at)


def split(batch: Batch) -> Path:
    """Have a segment file of its own begin with this batch, as when Kafka begins a new one; that file."""
    raw = batch.path.read_bytes()
    path = batch.path.with_name(f"{batch.first:020}.log")
    path.write_bytes(raw[batch.at :])
    cut(batch)
    for suffix in (".index", ".timeindex"):
        batch.path.with_suffix(suffix).unlink(missing_ok=True)  # Kafka makes them again
    return path


def antedate(folder: Path, by_ms: int) -> int:
    """Let a partition's index files of times say earlier times. Return how many of their entries were altered."""
    altered = 0
    for path in folder.glob("*.timeindex"):
        raw = bytearray(path.read_bytes())
        for at in range(0, len(raw) - 11, 12):  # a time in eight bytes, an offset in four
            if any(raw[at : at + 12]):
                raw[at : at + 8] = (int.from_bytes(raw[at : at + 8]) - by_ms).to_bytes(8)
                altered += 1
        path.write_bytes(raw)
    return altered


def with_text(data_dir: Path, topic: str, text: bytes) -> tuple[int, Batch]:
    """The partition and the batch of a topic that hold this text."""
    for folder in sorted(data_dir.rglob(f"{topic}-*")):
        for batch in batches(folder):
            if text in batch.path.read_bytes()[batch.at : batch.at + batch.size]:
                return int(folder.name.rpartition("-")[2]), batch
    raise LookupError(text)
