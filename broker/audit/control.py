"""Reads the topic `control`, usually from its beginning.

For: code that needs past states. Not for: the present state (projections/).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

from broker.audit.records import FETCH_BYTES, Records
from broker.errors import Unavailable
from broker.kafka.scan import scan
from broker.ports import EARLIEST, Record


async def control_records(
    records: Records, topic: str, end: int, *, begin: int | None = None
) -> AsyncGenerator[list[Record], None]:
    """Yield the records of the topic `control` before the offset `end`: one list for each read. Start at the offset
    `begin`, or at the topic's start if `begin` is None.

    Raises Unavailable if Kafka does not answer or returns too few records, or if a record is unreadable.
    """
    at = (await records.offsets(topic, {0: EARLIEST}))[0] if begin is None else begin
    async for fetched in scan(records, topic, 0, at, end, bytes_max=FETCH_BYTES):
        at = fetched.next_offset
        yield fetched.records
    if at < end:
        raise Unavailable("Kafka returned fewer records of the topic `control` than the topic has. Try again.")
