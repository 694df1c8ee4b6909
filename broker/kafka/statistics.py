"""The statistics over time, read from the topic `statistics`.

For: reading the counts of a series of intervals, and reading the topic on from an offset. Not for: counting
(counting.py), which counting events are valid (broker/core/statistics.py).
"""

from __future__ import annotations

import asyncio
from typing import Final

from broker.core.codec import decode
from broker.core.events import StatisticsCounted
from broker.core.statistics import LATE_MAX, Coverage, Series
from broker.errors import LogDamaged, UnknownEvent
from broker.kafka.read_slots import ReadSlots
from broker.kafka.requests import KafkaRequests
from broker.kafka.topics import topics
from broker.ports import EARLIEST, OffsetTooOld, Record
from broker.settings import KafkaSettings
from broker.time_offsets import offsets_since

# Clocks differ, so a record of `statistics` may count a minute that is up to ten minutes later than the record's time.
_CLOCKS_MS: Final = 600_000
# A reader of statistics yields to the event loop after each 64 records, which take about a millisecond.
_RECORDS_AT_ONCE: Final = 64
_SERIES_READS_MAX: Final = 1_024  # A request for statistics makes at most this many reads of 1 MiB.


class KafkaStatistics:
    """The reader of the statistics over time, for API requests. It reads Kafka each time, and caches nothing."""

    def __init__(self, kafka: KafkaSettings, requests: KafkaRequests, read_slots: ReadSlots) -> None:
        self._topic = topics(kafka).statistics.name
        self._requests = requests
        self._read_slots = read_slots

    async def read(self, organization_id: str, series: Series) -> None:
        """See ports.Statistics."""
        async with self._read_slots.slot(organization_id):
            await self._read(series)

    async def _read(self, series: Series) -> None:
        topic = self._topic
        at = (await offsets_since(self._requests, topic, {0: series.from_ms - _CLOCKS_MS}))[0]
        first = (await self._requests.offsets(topic, {0: EARLIEST}))[0]
        at = max(first, at - 2 * LATE_MAX)
        coverage = Coverage()
        for _ in range(_SERIES_READS_MAX):
            records, end = await read_on(self._requests, topic, 0, at)
            if not records and end > at:
                series.lost()
            for place, record in enumerate(records, 1):
                _add(record, coverage, series)
                if place % _RECORDS_AT_ONCE == 0:
                    await asyncio.sleep(0)
            if end <= at:
                break
            at = end
        else:
            series.lost()
        series.close()


def _add(record: Record, coverage: Coverage, series: Series) -> None:
    event = counting_event(record)
    if event is None:
        series.lost()
    elif coverage.accept(record.offset, event):
        series.add(event)


def counting_event(record: Record) -> StatisticsCounted | None:
    """Decode a record of the topic `statistics`. Return None for an event that only a newer Everput knows."""
    try:
        event = decode(record.value or b"")
    except UnknownEvent:
        return None
    return event if isinstance(event, StatisticsCounted) else None


async def read_on(requests: KafkaRequests, topic: str, partition: int, offset: int) -> tuple[list[Record], int]:
    """Read records of a partition from an offset on. Return the records, and the offset at which the next read must
    begin. If both offsets are equal, the partition has no more records. Unreadable and deleted records are skipped.
    """
    try:
        fetched = await requests.read(topic, partition, offset)
    except LogDamaged as damage:
        return [], damage.last + 1
    except OffsetTooOld:
        begin = (await requests.offsets(topic, {partition: EARLIEST}))[partition]
        return [], max(begin, offset)
    return fetched.records, fetched.next_offset
