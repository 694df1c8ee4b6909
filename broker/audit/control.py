"""Walks through `control`, as a rule from its beginning.

For: whoever must know what was, not only what is. Not for: the present (projections/)."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from broker.audit.records import STRETCH_BYTES, Records
from broker.errors import Unavailable
from broker.kafka.requests import EARLIEST, Record


async def control_records(
    records: Records, topic: str, end: int, *, begin: int | None = None
) -> AsyncGenerator[list[Record], None]:
    """Yield the records before the offset end, one read at a time, from the beginning or from this offset on
    (LogUnavailable).
    """
    at = (await records.offsets(topic, {0: EARLIEST}))[0] if begin is None else begin
    while at < end:
        stretch = await records.read(topic, 0, at, bytes_max=STRETCH_BYTES)
        if stretch.next_offset <= at:
            raise Unavailable("Kafka does not give what it said it has.")
        yield [record for record in stretch.records if record.offset < end]
        at = stretch.next_offset
