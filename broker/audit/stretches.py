"""Walks through a stretch of a partition, a MiB at a time, and asks for the next while one is looked through.

For: commands that read all of the log (verify, export-all). Not for: readings in a process that answers others
(reader.py, control.py), nor for waiting until a leader is found that has all (KafkaRequests.walk())."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Final

from broker.audit.records import Records
from broker.errors import LogDamaged, Unavailable
from broker.kafka.requests import Stretch

_BYTES: Final = 1 << 20


async def stretches(
    records: Records,
    topic: str,
    partition: int,
    begin: int,
    end: int,
    *,
    damaged: Callable[[LogDamaged], None] | None = None,
) -> AsyncGenerator[Stretch, None]:
    """Yield what is in [begin, end), in order and without records from the end on (LogUnavailable).

    damaged: called for an unreadable range, which is then skipped; None: such a range ends the reading (LogDamaged).
    """
    at = begin
    asked: asyncio.Task[Stretch] | None = None
    try:
        while at < end:
            try:
                stretch = await (asked or records.read(topic, partition, at, bytes_max=_BYTES))
            except LogDamaged as damage:
                if damaged is None:
                    raise
                damaged(damage)
                at = damage.last + 1
                continue
            finally:
                asked = None
            if stretch.next_offset <= at:
                if stretch.end_offset >= end:
                    return  # compaction has left nothing
                raise Unavailable(f"Kafka gives nothing of {topic}/{partition} from offset {at} on")
            at = stretch.next_offset
            if at < end:
                asked = asyncio.ensure_future(records.read(topic, partition, at, bytes_max=_BYTES))
                await asyncio.sleep(0)  # so that it is sent before the caller keeps the loop to itself
            elif stretch.records and stretch.records[-1].offset >= end:
                stretch = stretch._replace(records=[record for record in stretch.records if record.offset < end])
            yield stretch
    finally:
        if asked is not None:
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
