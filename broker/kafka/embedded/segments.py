"""The segment files of a stopped broker: finding damaged record batches, and restoring them.

For: what is damaged in a partition's folder, and writing a batch back to its position. Not for: reading a log that is
in use (requests.py), rebuilding a batch (rebuild.py), finding its records (cli/commands/mend.py).
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import struct
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, pairwise
from pathlib import Path
from typing import Final, NamedTuple

from aiokafka.record.default_records import DefaultRecordBatch

from broker.errors import ConfigurationError

MAGIC: Final = 2
BATCH_BYTES_MAX: Final = 16 << 20
# A record batch begins with its base offset and its length field. The length does not include these 12 bytes.
PREFIX_BYTES: Final = 12
# Kafka's header of a record batch begins with base offset, length, leader epoch, magic, CRC and attributes.
# The header of a record batch ends with last offset delta, first and highest time, producer fields, record count.
HEADER: Final = struct.Struct(">qiibIhiqqqhii")
# An entry of a segment's offset index maps an offset to the position of its record batch in the `.log` file.
# An entry of an offset index has two numbers: the offset minus the segment's first offset, and the position in bytes.
_ENTRY: Final = struct.Struct(">ii")
_CLEAN: Final = ".kafka_cleanshutdown"
_ACKNOWLEDGED: Final = "replication-offset-checkpoint"
_SYNCED: Final = "recovery-point-offset-checkpoint"


class DamagedBatch(NamedTuple):
    """A damaged record batch in a segment file of Kafka.

    The batch begins at the byte `at` of the file, and should have the offsets from `first` to `last`. `until` is the
    first offset of the next batch, or None if it is unknown. `header` has the bytes of the batch's header as they are
    in the file, including any damage.
    """

    path: Path
    at: int
    first: int
    last: int
    until: int | None
    header: bytes


# A record batch in a file: its position, its header, and all its bytes. The bytes are None if the header is invalid.
_Row = tuple[int, bytes, bytes | None]


def partitions(log_dir: Path, topic: str) -> Iterator[tuple[int, Path]]:
    """Yield the partitions of a topic in a broker's log directory, with their folders."""
    found = [path for path in log_dir.glob(f"{topic}-*") if path.is_dir()]
    for path in sorted(found):
        number = path.name.removeprefix(f"{topic}-")
        if number.isdecimal():
            yield int(number), path


@contextmanager
def stopped(log_dir: Path) -> Iterator[None]:
    """Hold the lock of a Kafka log directory, so that no broker starts on it.

    Raises ConfigurationError if a broker or another `everput mend` uses the directory, if it is no log directory, or if
    its lock file can't be opened.
    """
    if not (log_dir / "meta.properties").is_file():
        raise ConfigurationError(
            f"{log_dir} is no log directory of a Kafka broker (it has no meta.properties): choose another --data-dir, "
            "or one of the broker's log.dirs with --log-dir"
        )
    try:
        # While no broker runs, the lock file may be missing. Opening for appending creates the file.
        file = (log_dir / ".lock").open("a+b")
    except OSError as error:
        raise ConfigurationError(
            f"can't open {log_dir / '.lock'}: {error.strerror}; check that this user may write to the directory"
        ) from error
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigurationError(f"a Kafka broker or another `everput mend` uses {log_dir}: stop it") from None
        yield


def damaged(folder: Path, *, since: int = 0) -> Iterator[DamagedBatch]:
    """Yield the damaged record batches of a partition. A batch counts as damaged if its checksum or its length field is
    wrong, or if its offsets contradict the order of the batches.

    Segment files that end before the offset `since` are skipped. If the length field of a batch is wrong, the rest of
    the file can't be read, and is skipped.
    """
    for path in _files(folder, since):
        expected = int(path.stem)
        rows: Iterator[_Row | None] = chain(_batches(path), (None,))
        for row, following in pairwise(rows):
            if row is None:
                break
            at, header, whole = row
            base, last_delta = HEADER.unpack(header)[0], max(0, HEADER.unpack(header)[6])
            after = base + last_delta + 1
            # In a compacted topic, there can be gaps between the offsets of batches, but the offsets must ascend.
            beyond = following is None or HEADER.unpack(following[1])[0] >= after
            out_of_order = base < expected or (base > expected and not beyond)
            if whole is None or out_of_order or not DefaultRecordBatch(whole).validate_crc():
                until = _begin(following, after=expected)
                last = expected + last_delta
                if until is not None and not expected <= last < until:  # the batch's own header is damaged
                    last = max(expected, until - 1)
                yield DamagedBatch(path, at, expected, last, until, header)
                after = last + 1
            expected = after


def _begin(row: _Row | None, *, after: int) -> int | None:
    """Return the first offset of a record batch. Return None if the batch is damaged, or if its offset is not greater
    than `after`.
    """
    if row is None or row[2] is None or not DefaultRecordBatch(row[2]).validate_crc():
        return None
    base = int(HEADER.unpack(row[1])[0])
    return base if base > after else None


def cut_off(log_dir: Path) -> Iterator[tuple[str, DamagedBatch]]:
    """Yield the partitions in which a Kafka broker would delete records if it started now. Yield each partition's name,
    and the first damaged record batch that the broker would delete. After a clean stop, yield nothing.

    After a crash, a starting broker checks the batches that may not have been synced to disk. It deletes the first
    damaged batch and all batches after it. A damaged batch at the end of a partition is not yielded, because the crash
    may have interrupted its write. Kafka's own topics are not checked.
    """
    if not log_dir.is_dir() or (log_dir / _CLEAN).exists():
        return
    synced = {f"{topic}-{number}": offset for topic, number, offset in _checkpoint(log_dir / _SYNCED)}
    for folder in sorted(path for path in log_dir.iterdir() if path.is_dir() and not path.name.startswith("__")):
        for batch in damaged(folder, since=synced.get(folder.name, 0)):
            if _goes_on(folder, batch):
                yield folder.name, batch
                break


def lying_indexes(log_dir: Path) -> Iterator[Path]:
    """Yield the offset indexes whose last entry does not point to the right record batch. When Kafka starts after a
    clean stop, it looks for the end of a partition from this entry on. If the entry is wrong, Kafka assumes a wrong
    end. After a crash, yield nothing, because Kafka rebuilds its indexes.
    """
    if not (log_dir / _CLEAN).exists():  # After a crash, Kafka rebuilds its offset indexes, so they need no check.
        return
    for index in sorted(log_dir.glob("*/*.index")):
        raw = index.read_bytes()
        used = len(raw.rstrip(b"\0"))
        at = (used - 1) // _ENTRY.size * _ENTRY.size
        if used and not _names_a_batch(index, *_ENTRY.unpack(raw[at : at + _ENTRY.size].ljust(_ENTRY.size, b"\0"))):
            yield index


class LostEnd(NamedTuple):
    """The lost end of a partition: offsets that Kafka has acknowledged, but whose records its files no longer have."""

    topic: str
    partition: int
    first: int
    last: int


def lost_ends(log_dir: Path) -> Iterator[LostEnd]:
    """Yield the partitions whose files have lost their last records: the files end before the high watermark that the
    broker saved. Kafka's own topics are not checked.

    Kafka does not notice the loss, and would give the lost offsets to new records. A crash can't cause this loss if
    Kafka syncs each batch to disk.
    """
    for (topic, partition), noted in acknowledged(log_dir).items():
        folder = log_dir / f"{topic}-{partition}"
        if folder.is_dir() and not topic.startswith("__"):
            paths = sorted(folder.glob("*.log"))
            end = end_of(paths[-1])[0] if paths else 0
            if end < noted:
                yield LostEnd(topic, partition, end, noted - 1)


def acknowledged(log_dir: Path) -> dict[tuple[str, int], int]:
    """Return the high watermark of each topic and partition, from the file in which the Kafka broker saves it.

    Kafka has acknowledged all records below a partition's high watermark.
    """
    return {(topic, partition): noted for topic, partition, noted in _checkpoint(log_dir / _ACKNOWLEDGED)}


def end_of(path: Path) -> tuple[int, int]:
    """Return the offset after the last whole batch of a segment file, and the position in bytes where this batch ends.

    To save time, the search begins at the batch to which the last entry of the offset index points.
    """
    end, at = int(path.stem), 0
    with contextlib.suppress(OSError):
        raw = path.with_suffix(".index").read_bytes()
        used = len(raw.rstrip(b"\0"))
        if used:
            last = (used - 1) // _ENTRY.size * _ENTRY.size
            offset, place = _ENTRY.unpack(raw[last : last + _ENTRY.size].ljust(_ENTRY.size, b"\0"))
            at = place if _names_a_batch(path.with_suffix(".index"), offset, place) else 0
    with path.open("rb") as file:
        file.seek(at)
        while len(header := file.read(HEADER.size)) == HEADER.size and any(header):
            first, length, _, magic, _, _, last_delta, *_ = HEADER.unpack(header)
            behind = at + PREFIX_BYTES + length
            if magic != MAGIC or length <= 0 or behind > path.stat().st_size:
                break
            end, at = max(end, first + last_delta + 1), behind
            file.seek(at)
    return end, at


def _names_a_batch(index: Path, offset: int, at: int) -> bool:
    """Return whether an entry of an offset index is right: the batch at the byte `at` of the segment file contains the
    entry's offset. The entry stores its offset as `offset`: a distance from the segment's first offset. Return True
    also if the segment file can't be read.
    """
    try:
        with index.with_suffix(".log").open("rb") as file:
            file.seek(at)
            header = file.read(HEADER.size)
    except OSError:
        return True  # An index without a segment file does no harm: Kafka deletes it.
    if len(header) < HEADER.size:
        return False
    first, _, _, magic, _, _, last, *_ = HEADER.unpack(header)
    return bool(magic == MAGIC and first <= int(index.stem) + offset <= first + last)


def _checkpoint(path: Path) -> list[tuple[str, int, int]]:
    """Read (topic, partition, offset) from the lines of a checkpoint file, after its two header lines. Return an empty
    list if the file can't be read or has an invalid line.
    """
    try:
        rows = [line.split() for line in path.read_text().splitlines()[2:]]
        return [(topic, int(partition), int(offset)) for topic, partition, offset in rows]
    except (OSError, ValueError):
        return []


def _goes_on(folder: Path, batch: DamagedBatch) -> bool:
    """Return whether more batches follow a damaged batch in its partition: an intact batch in the same file, or any
    batch in a later file. If none follows, the damaged batch may be the partition's last batch, and a crash may have
    interrupted its write.
    """
    if any(next(_batches(path), None) is not None for path in _files(folder, 0) if path.name > batch.path.name):
        return True
    following = (whole for at, _, whole in _batches(batch.path) if at > batch.at)
    return any(whole is not None and DefaultRecordBatch(whole).validate_crc() for whole in following)


def _files(folder: Path, since: int) -> list[Path]:
    """Return the partition's segment files in order, without the files that end before the offset `since`."""
    paths = sorted(folder.glob("*.log"))
    return paths[max(0, bisect_right([int(path.stem) for path in paths], since) - 1) :]


def _batches(path: Path) -> Iterator[_Row]:
    """Yield the position, header and bytes of each record batch of a segment file. If a header is invalid, yield the
    position and the header with None instead of the bytes, and stop.
    """
    if path.stat().st_size == 0:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as raw:
        at = 0
        while at + HEADER.size <= len(raw):
            header = raw[at : at + HEADER.size]
            if not any(header):  # Zeros after the last batch are space that Kafka has reserved in the file.
                return
            _, length, _, magic, *_ = HEADER.unpack(header)
            size = PREFIX_BYTES + length
            if magic != MAGIC or not HEADER.size <= size <= BATCH_BYTES_MAX or at + size > len(raw):
                yield at, header, None
                return
            yield at, header, raw[at : at + size]
            at += size


def put_back(batch: DamagedBatch, whole: bytes) -> None:
    """Write a rebuilt batch to its position in the segment file, and sync the file."""
    with batch.path.open("r+b") as file:
        file.seek(batch.at)
        file.write(whole)
        file.flush()
        os.fsync(file.fileno())
