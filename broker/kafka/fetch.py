"""Fetch requests, packed and parsed by hand.

For: the request that a worker sends for each record batch, where aiokafka's generic encoding of a request takes most of
the time. Not for: any other request, checking the fetched bytes (batches.py), choosing the broker (requests.py).

The bytes are those of aiokafka's own FetchRequest, version 11 (Kafka protocol guide, Fetch API). A broker that does
not know this version gets aiokafka's request. Kafka 2.3 is the first release that knows it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from io import BytesIO
from typing import Any, Final, NamedTuple

from aiokafka.protocol.fetch import FetchRequest, FetchRequest_v11

from broker.kafka.packed import INT16, INT32, PackedRequest

API_KEY: Final = 1
VERSION: Final = 11
# The start of a fetch request: replica_id, three limits, isolation_level, session_id, session_epoch, number of topics.
_BEGIN: Final = struct.Struct(">iiiibiii")
# A partition in a fetch request: partition number, current_leader_epoch, fetch_offset, log_start_offset, max_bytes.
_PARTITION: Final = struct.Struct(">iiqqi")
_END: Final = struct.pack(">ih", 0, 0)  # no forgotten topics, no rack
# A partition in a fetch answer: partition number, error code, three offsets, number of aborted transactions.
_ANSWER: Final = struct.Struct(">ihqqqi")
_REPLICA_AND_SIZE: Final = struct.Struct(">ii")  # preferred_read_replica, number of bytes
_ABORTED_BYTES: Final = 16  # one aborted transaction: two int64

Wanted = tuple[int, int, int]  # partition, offset, largest number of bytes


class Fetched(NamedTuple):
    """Kafka's answer for one partition: an error code, the partition's end offset, and record bytes that are not
    checked yet.
    """

    partition: int
    error_code: int
    end_offset: int
    raw: bytes


class _Answer:
    """The decoder of Kafka's answer to a fetch request for one topic. aiokafka calls it when the answer arrives."""

    @classmethod
    def decode(cls, data: BytesIO) -> list[Fetched]:
        # getbuffer() would copy all bytes, and `data` could not be closed as long as the buffer exists.
        return parse_answer(memoryview(data.getvalue()), data.tell())


def parse_answer(data: memoryview | bytes, at: int = 0) -> list[Fetched]:
    """Parse the body of Kafka's fetch response (version 11), which begins at the position `at` of the bytes.

    Raises struct.error or ValueError if the bytes are too short.
    """
    at += 4  # throttle_time_ms
    (error_code,) = INT16.unpack_from(data, at)
    at += 2 + 4  # session_id
    (topics,) = INT32.unpack_from(data, at)
    at += 4
    found: list[Fetched] = []
    for _ in range(topics):
        (name_bytes,) = INT16.unpack_from(data, at)
        at += 2 + name_bytes
        (partitions,) = INT32.unpack_from(data, at)
        at += 4
        for _ in range(partitions):
            partition, code, end_offset, _, _, aborted = _ANSWER.unpack_from(data, at)
            at += _ANSWER.size + _ABORTED_BYTES * max(aborted, 0)
            _, size = _REPLICA_AND_SIZE.unpack_from(data, at)
            at += _REPLICA_AND_SIZE.size
            size = max(size, 0)
            if at + size > len(data):
                raise ValueError("Kafka's fetch answer is shorter than its length fields say")
            found.append(Fetched(partition, code or error_code, end_offset, bytes(data[at : at + size])))
            at += size
    return found


class Fetch(FetchRequest):  # type: ignore[misc]
    """A fetch request for some partitions of one topic. The broker answers as soon as a partition has a record at or
    after its wanted offset. Without such a record, the broker answers after `max_wait_ms`.
    """

    def __init__(self, topic: str, wanted: Sequence[Wanted], *, max_wait_ms: int = 0, bytes_max: int) -> None:
        super().__init__(max_wait_ms, 1 if max_wait_ms else 0, bytes_max, 0, [(topic, list(wanted))])

    def build(self, request_struct_class: Any) -> Any:
        """Return the request that aiokafka sends. `request_struct_class` is aiokafka's class of the newest version that
        aiokafka and the broker both know. For version 11, return a request that is already packed. For any other
        version, return aiokafka's own request.
        """
        if request_struct_class is not FetchRequest_v11:
            return super().build(request_struct_class)
        ((topic, wanted),) = self._topics
        name = topic.encode()
        rows = b"".join([_PARTITION.pack(number, -1, offset, -1, most) for number, offset, most in wanted])
        body = b"%b%b%b%b%b%b" % (
            _BEGIN.pack(-1, self._max_wait_ms, self._min_bytes, self._max_bytes, self._isolation_level, 0, -1, 1),
            INT16.pack(len(name)),
            name,
            INT32.pack(len(wanted)),
            rows,
            _END,
        )
        return PackedRequest(API_KEY, VERSION, body, _Answer)


def rows_of(answer: Any) -> list[Fetched]:
    """Return the partitions in a fetch response of Kafka.

    The response of an older broker was already parsed by aiokafka.
    """
    if isinstance(answer, list):
        return answer
    return [
        Fetched(partition, code, end_offset, raw or b"")
        for _, partitions in answer.topics
        for partition, code, end_offset, *_, raw in partitions
    ]
