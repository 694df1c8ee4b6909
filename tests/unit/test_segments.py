"""A damaged batch in a file is found, and put back only as what its checksum says it was."""

from __future__ import annotations

from pathlib import Path

import pytest
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from broker.errors import ConfigurationError
from broker.kafka.embedded.rebuild import rebuilt, why_not
from broker.kafka.embedded.segments import cut_off, damaged, partitions, put_back, stopped
from broker.ports import Record

RECORDS = [Record(at, 1_000 + at, b"key", b"value %d" % at, (("queue", b"q"),)) for at in range(9)]
EPOCH = b"\x00\x00\x00\x07"


def batch(first: int, count: int = 3) -> bytes:
    builder = DefaultRecordBatchBuilder(2, 0, 0, 77, 3, first, 1 << 20)
    for record in RECORDS[first : first + count]:
        builder.append(record.offset - first, record.timestamp, record.key, record.value, list(record.headers))
    raw = bytearray(builder.build())
    raw[:8], raw[12:16] = first.to_bytes(8, "big"), EPOCH
    return bytes(raw)


WHOLE = batch(0) + batch(3) + batch(6)
MIDDLE = range(len(batch(0)), len(batch(0) + batch(3)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "messages-0"
    folder.mkdir()
    return folder


def segment(folder: Path, raw: bytes, first: int = 0) -> Path:
    path = folder / f"{first:020}.log"
    path.write_bytes(raw)
    return path


def flipped(raw: bytes, byte: int, bit: int) -> bytes:
    changed = bytearray(raw)
    changed[byte] ^= 1 << bit
    return bytes(changed)


def test_whichever_bit_of_a_batch_is_flipped_it_is_found_and_put_back(folder: Path):
    assert list(damaged(folder)) == []
    segment(folder, WHOLE + bytes(100))
    assert list(damaged(folder)) == []
    for byte in MIDDLE:
        for bit in range(8):
            path = segment(folder, flipped(WHOLE, byte, bit))
            if byte - MIDDLE.start in range(12, 16):
                continue  # the leader's epoch, on which nothing depends
            found = next(damaged(folder))
            assert (found.path, found.at, found.first) == (path, MIDDLE.start, 3)
            whole = rebuilt(found, RECORDS)
            assert whole == batch(3), (byte - MIDDLE.start, bit)
            put_back(found, whole)
            assert path.read_bytes() == WHOLE


def test_an_altered_count_of_offsets_is_not_taken_for_damage_of_the_batch_behind(folder: Path):
    for bit in range(8):
        segment(folder, flipped(WHOLE, MIDDLE.start + 26, bit))
        assert [(one.first, one.last) for one in damaged(folder)] == [(3, 3 if bit == 1 else 5)]


def test_a_compressed_batch_is_refused_and_said_to_be_one(folder: Path):
    builder = DefaultRecordBatchBuilder(2, 1, 0, 77, 3, 0, 1 << 20)
    for record in RECORDS:
        builder.append(record.offset, record.timestamp, record.key, record.value, list(record.headers))
    segment(folder, flipped(bytes(builder.build()), 80, 0))
    (found,) = damaged(folder)
    assert rebuilt(found, RECORDS) is None
    assert "compressed with gzip" in why_not(found, RECORDS)
    assert "no records with these offsets" in why_not(found, [])


def test_what_is_not_what_was_there_is_not_put_back(folder: Path):
    segment(folder, flipped(WHOLE, MIDDLE.stop - 1, 0))
    (found,) = damaged(folder)
    other = [record._replace(value=b"value 9") if record.offset == 4 else record for record in RECORDS]
    assert rebuilt(found, other) is None
    assert rebuilt(found, RECORDS[:5]) is None
    assert rebuilt(found, []) is None
    assert rebuilt(found, [record._replace(timestamp=1) for record in RECORDS]) is None


def test_kafka_would_cut_off_what_follows_only_if_it_did_not_end_in_order_and_had_not_noted_it_as_synced(folder: Path):
    log_dir = folder.parent
    segment(folder, flipped(WHOLE, MIDDLE.stop - 1, 0))
    ((name, found),) = cut_off(log_dir)
    assert (name, found.first) == ("messages-0", 3)
    segment(folder, batch(0) + flipped(batch(3), 80, 0))
    assert list(cut_off(log_dir)) == []  # nothing follows
    segment(folder, batch(6), first=6)
    assert len(list(cut_off(log_dir))) == 1
    (log_dir / "recovery-point-offset-checkpoint").write_text("0\n1\nmessages 0 6\n")
    assert list(cut_off(log_dir)) == []
    (log_dir / "recovery-point-offset-checkpoint").write_text("0\n1\nmessages 0 5\n")
    assert len(list(cut_off(log_dir))) == 1
    (log_dir / ".kafka_cleanshutdown").touch()
    assert list(cut_off(log_dir)) == []


def test_only_a_broker_s_folder_is_mended(tmp_path: Path):
    with pytest.raises(ConfigurationError, match="no log directory of a Kafka broker"), stopped(tmp_path):
        pass
    (tmp_path / "meta.properties").touch()
    with stopped(tmp_path):
        pass
    for name in ("everput.messages-0", "everput.messages-11", "everput.messages-x", "everput.other-1"):
        (tmp_path / name).mkdir()
    assert [number for number, _ in partitions(tmp_path, "everput.messages")] == [0, 11]
