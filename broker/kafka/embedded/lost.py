"""Offsets that no file of a partition has, and restoring their records while the broker is stopped.

For: a missing segment file, or one that was cut off: which offsets it had, and a new segment file for their records
from an export. Not for: damaged batches that are still in a file (segments.py, rebuild.py), finding the records
(cli/commands/mend.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from aiokafka.record.default_records import DefaultRecordBatchBuilder

from broker.errors import ConfigurationError
from broker.kafka.embedded import segments
from broker.kafka.embedded.segments import HEADER, MAGIC, PREFIX_BYTES, DamagedBatch
from broker.ports import Record

CONTROL: Final = "control"
_BATCH_BYTES: Final = 1 << 20
_NOBODY: Final = (-1, -1, -1)  # these batches have no producer
_EPOCH_AT: Final = slice(12, 16)


class Lost(NamedTuple):
    """A range of offsets whose records are in none of a partition's files. `first` and `last` belong to the range."""

    folder: Path
    first: int
    last: int

    def __str__(self) -> str:
        topic, _, partition = self.folder.name.rpartition("-")
        offsets = f"offset {self.first}" if self.first == self.last else f"offsets {self.first} to {self.last}"
        return f"{topic}/{partition} {offsets}"


def lost(folder: Path, noted: int, *, begin: int | None = None) -> Iterator[Lost]:
    """Yield the ranges of offsets that no file of a partition has. Do not call this function for a compacted topic, in
    which missing offsets are normal.

    `noted` is the high watermark that the broker saved: Kafka has acknowledged all records before this offset. `begin`
    is the offset at which the partition must begin. Pass None if Kafka may have deleted old records.
    """
    at = begin
    for path in sorted(folder.glob("*.log")):
        if at is not None and at < int(path.stem):
            yield Lost(folder, at, int(path.stem) - 1)
        at = segments.end_of(path)[0]
    if (at or 0) < noted:
        yield Lost(folder, at or 0, noted - 1)


def refuse_lost_control(log_dir: Path) -> None:
    """Raise ConfigurationError if the files of the topic `control` lack offsets. Everput computes accounts, queues and
    listeners from this topic.
    """
    noted = {f"{topic}-{number}": offset for (topic, number), offset in segments.acknowledged(log_dir).items()}
    names = {path.name for path in log_dir.glob(f"*{CONTROL}-0")} | noted.keys()
    for folder in (log_dir / name for name in sorted(names) if name.endswith(f"{CONTROL}-0")):
        for lost_offsets in lost(folder, noted.get(folder.name, 0), begin=0):
            raise ConfigurationError(
                f"the files in {folder} lack {lost_offsets}. Everput computes all state from the topic `{CONTROL}`, "
                "so it can't start. Restore these records with `everput mend --export DIR`, which reads an export from "
                "DIR. Without an export, give up the lost events: everput mend --give-up "
                f"{CONTROL}/0:{lost_offsets.first}-{lost_offsets.last}"
            )


def batches_of(records: Sequence[Record], first: int) -> bytes:
    """Encode these records as Kafka record batches. The first batch gets the base offset `first`."""
    whole = bytearray()
    at = 0
    while at < len(records):
        builder = DefaultRecordBatchBuilder(MAGIC, 0, 0, *_NOBODY, _BATCH_BYTES)
        base = first if at == 0 else records[at].offset
        begin = at
        while at < len(records):
            one = records[at]
            added = builder.append(one.offset - base, one.timestamp, one.key, one.value, list(one.headers))
            if added is None and at > begin:
                break
            at += 1
        batch = bytearray(builder.build())
        batch[:8], batch[_EPOCH_AT] = base.to_bytes(8), bytes(4)
        whole += batch
    return bytes(whole)


def put_in(folder: Path, first: int, batches: bytes) -> None:
    """Write record batches to a new segment file that begins at the offset `first`, and sync it. If the previous
    segment ends with an incomplete batch, remove this batch first.

    Kafka rebuilds the indexes at its next start.
    """
    before = [path for path in sorted(folder.glob("*.log")) if int(path.stem) <= first]
    # After its last whole batch, the previous segment may have half a batch, or space reserved by Kafka. Cut that off.
    if before:
        os.truncate(before[-1], segments.end_of(before[-1])[1])
        _forget_indexes(before[-1])
    path = folder / f"{first:020}.log"
    _forget_indexes(path)
    with path.open("ab") as file:
        file.write(batches)
        file.flush()
        os.fsync(file.fileno())
    _sync(folder)


def replace(batch: DamagedBatch, batches: bytes) -> None:
    """Replace a damaged record batch in its segment file by these batches, and sync the file.

    Raises ConfigurationError if the end of the damaged batch is unknown.
    """
    raw = batch.path.read_bytes()
    behind = batch.at + PREFIX_BYTES + HEADER.unpack(batch.header)[1]
    following = raw[behind : behind + 8]
    if batch.at >= behind or behind > len(raw) or (any(following) and following != (batch.last + 1).to_bytes(8)):
        raise ConfigurationError(
            f"the damaged batch at byte {batch.at} of {batch.path} has a wrong length field, so its end is unknown and "
            "Everput can't give it up: restore the batch from an export in DIR with `everput mend --export DIR`"
        )
    draft = batch.path.with_suffix(".log.mending")
    with draft.open("wb") as file:
        file.write(raw[: batch.at] + batches + raw[behind:])
        file.flush()
        os.fsync(file.fileno())
    _forget_indexes(batch.path)
    draft.replace(batch.path)
    _sync(batch.path.parent)


def _forget_indexes(path: Path) -> None:
    for suffix in (".index", ".timeindex"):
        path.with_suffix(suffix).unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
