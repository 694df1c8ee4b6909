"""Rebuilds a damaged record batch from the records of an export.

For: the original bytes, with proof: the result must have the checksum (CRC-32C) that the producer of the batch
computed. If the checksum itself is damaged, all bytes that it covers must be in the file. Not for: finding damaged
batches and writing to files (segments.py).

A damaged header field is computed from the records, or tried with each of its bits flipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c

from broker.kafka.embedded.segments import BATCH_BYTES_MAX, HEADER, MAGIC, DamagedBatch
from broker.ports import Record

_EPOCH_AT: Final = slice(12, 16)  # not covered by the checksum
_CRC_AT: Final = slice(17, 21)
_COVERED_FROM: Final = 21
_LAST_DELTA_AT: Final = slice(23, 27)
_PRODUCER_AT: Final = range(43, 57)  # producer id, epoch, first sequence number
_CODECS: Final = {1: "gzip", 2: "snappy", 3: "lz4", 4: "zstd"}
_CODEC_BITS: Final = 0b111


def rebuilt(batch: DamagedBatch, records: Sequence[Record]) -> bytes | None:
    """Rebuild a damaged record batch from the records of an export. Return None if nothing proves that the result is
    the original batch. Usually, the proof is the checksum in the batch's header. If the checksum itself is damaged, the
    proof is that the result has the same bytes as the file. The bytes before the checksum need not be the same.

    `records` must include all records of the batch, in order.
    """
    fields = HEADER.unpack(batch.header)
    last_delta, count = fields[6], fields[12]
    there = [record for record in records if record.offset >= batch.first]
    tried: set[int] = set()
    for last in (batch.first + last_delta, batch.last, there[count - 1].offset if 0 < count <= len(there) else -1):
        wanted = [record for record in there if record.offset <= last]
        if last not in tried and wanted and (whole := _proven(batch, wanted, last)) is not None:
            return whole
        tried.add(last)
    return None


def why_not(batch: DamagedBatch, records: Sequence[Record]) -> str:
    """Explain why a damaged record batch could not be rebuilt from the export, and what to do about it."""
    if not any(batch.first <= record.offset <= batch.last for record in records):
        return "the export has no records with these offsets: use a newer export"
    codec = _CODECS.get(HEADER.unpack(batch.header)[5] & _CODEC_BITS)
    if codec is not None:
        return f"it is compressed with {codec}, and compressing again gives other bytes: use another broker's copy"
    return "the checksum in its header does not match the export's records: use another export or another broker's copy"


def _proven(batch: DamagedBatch, records: Sequence[Record], last: int) -> bytes | None:
    """Build a record batch from these records. Return None if nothing proves that the result is the original batch. One
    proof is that the result has the checksum in the damaged header. Another proof is that the result has the same bytes
    as the file, in the part that the checksum covers.
    """
    fields = HEADER.unpack(batch.header)
    crc, producer = fields[4], fields[9:12]
    builder = DefaultRecordBatchBuilder(MAGIC, 0, 0, *producer, BATCH_BYTES_MAX)
    for record in records:
        place = record.offset - batch.first
        builder.append(place, record.timestamp, record.key, record.value, list(record.headers))
    whole = bytearray(builder.build())
    whole[:8] = batch.first.to_bytes(8)
    whole[_EPOCH_AT] = batch.header[_EPOCH_AT]
    whole[_LAST_DELTA_AT] = (last - batch.first).to_bytes(4)
    made = calc_crc32c(whole[_COVERED_FROM:])
    if made != crc and not _with_flipped_bit(whole, crc):
        with batch.path.open("rb") as file:
            file.seek(batch.at + _COVERED_FROM)
            if file.read(len(whole) - _COVERED_FROM) != whole[_COVERED_FROM:]:
                return None
        crc = made  # The checksum field itself was damaged.
    whole[_CRC_AT] = crc.to_bytes(4)
    return bytes(whole)


def _with_flipped_bit(whole: bytearray, crc: int) -> bool:
    """Look for one damaged bit in the fields of the record batch `whole` that identify its producer. If the bit is
    flipped back, the batch has the checksum `crc`.

    Leave this bit flipped in `whole`, and return True. Return False if there is no such bit. `whole` is then unchanged.
    """
    for at in _PRODUCER_AT:
        for bit in range(8):
            whole[at] ^= 1 << bit
            if calc_crc32c(whole[_COVERED_FROM:]) == crc:
                return True
            whole[at] ^= 1 << bit
    return False
