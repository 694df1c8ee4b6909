"""A scan of a partition: one read after the other, from an offset to an end.

For: all code that reads a range of the log. Not for: one read (KafkaRequests.read()), several partitions in one order
(broker/audit/lanes.py), or waiting for new records (tail.py)."""

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
    """The read that a scan repeats (KafkaRequests.read())."""

    async def read(self, topic: str, partition: int, offset: int, *, bytes_max: int = ...) -> FetchResult: ...


def fail(damage: LogDamaged) -> NoReturn:
    """End a scan at an unreadable range."""
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
    """Yield the results of reads from an offset on, without records at or after the end. Raises LogUnavailable.

    The next read begins at next_offset of the last result.
    end: None: the partition's end, as each read reports it. Otherwise it is known to exist. If compaction has left
        nothing before it, the scan ends sooner.
    damaged: called for an unreadable range. If it returns, the scan yields a result without records and continues
        after the range.
    reads_max: the most reads, those of unreadable ranges included.
    patience_s: for how long to wait for a leader that reports an earlier end than `end`, before LogUnavailable is
        raised. None: the scan ends there.
    ahead: begin the next read before the caller has processed a result.
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
                    raise LogUnavailable(f"Kafka returned no records of {topic}/{partition} from offset {offset} on.")
                await asyncio.sleep(_BEHIND_PAUSE_S)
                continue
            offset, patient_until_s = fetched.next_offset, 0.0
            if ahead and offset < last:
                begun = asyncio.ensure_future(log.read(topic, partition, offset, bytes_max=bytes_max))
                # Yield once, so that the request is sent before the caller occupies the event loop.
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
