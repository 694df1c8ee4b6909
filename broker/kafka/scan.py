"""Reads a partition from an offset to an end, one read after another.

For: all code that reads a range of the log. Not for: a single read (KafkaRequests.read()), several partitions in one
order (broker/audit/lanes.py), waiting for new records (tail.py).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from typing import Final, NoReturn, Protocol

from broker.errors import LogDamaged, LogUnavailable
from broker.ports import FetchResult

_BEHIND_PAUSE_S: Final = 0.2
_BYTES: Final = 1 << 20


class Reads(Protocol):
    """The interface of the Kafka client from which scan() reads. scan() calls the client's method read() repeatedly."""

    async def read(self, topic: str, partition: int, offset: int, *, bytes_max: int = ...) -> FetchResult: ...


def fail(damage: LogDamaged) -> NoReturn:
    """Raise the error of an unreadable range. This ends the scan that has found the range."""
    raise damage


async def scan(
    log: Reads,
    topic: str,
    partition: int,
    offset: int,
    end: int | None = None,
    *,
    damaged: Callable[[LogDamaged], None] = fail,
    reads_max: int | None = None,
    bytes_max: int = _BYTES,
    patience_s: float | None = 0.0,
    ahead: bool = False,
) -> AsyncGenerator[FetchResult, None]:
    """Read a partition from `offset` to before `end`, and yield the result of each read. If `end` is None, read to the
    partition's end. If `reads_max` is given, stop after this many reads. If `ahead` is true, begin the next read while
    the caller handles a result.

    For each unreadable range, call `damaged` with the error LogDamaged. By default, this function raises the error,
    which ends the scan. If the function returns, continue after the range.

    A new partition leader may lack the newest records before `end` for a moment. Wait up to `patience_s` seconds for
    these records, and then raise LogUnavailable. If `patience_s` is None, do not wait, and end without an error.
    """
    reads, patient_until_s = 0, 0.0
    begun: asyncio.Task[FetchResult] | None = None
    try:
        while (end is None or offset < end) and (reads_max is None or reads < reads_max):
            reads += 1
            try:
                fetched = await (begun or log.read(topic, partition, offset, bytes_max=bytes_max))
            except LogDamaged as damage:
                damaged(damage)
                offset = damage.last + 1
                yield FetchResult([], offset, offset + 1 if end is None else end)
                continue
            finally:
                begun = None
            last = fetched.end_offset if end is None else end
            if fetched.next_offset <= offset:
                if fetched.end_offset >= last or patience_s is None:
                    return
                now_s = time.monotonic()
                patient_until_s = patient_until_s or now_s + patience_s
                if now_s >= patient_until_s:
                    raise LogUnavailable(
                        f"Kafka returned no records of {topic}/{partition} from offset {offset} on. Try again.",
                        public="Kafka does not return records that it should have. Try again.",
                    )
                await asyncio.sleep(_BEHIND_PAUSE_S)
                continue
            offset, patient_until_s = fetched.next_offset, 0.0
            if ahead and offset < last:
                begun = asyncio.ensure_future(log.read(topic, partition, offset, bytes_max=bytes_max))
                # Let the event loop run, so that it sends the next request before the caller processes the records.
                await asyncio.sleep(0)
            elif fetched.records and fetched.records[-1].offset >= last:
                fetched = fetched._replace(records=[record for record in fetched.records if record.offset < last])
            yield fetched
            if end is None and offset >= last:
                return
    finally:
        if begun is not None:
            begun.cancel()
            await asyncio.gather(begun, return_exceptions=True)
