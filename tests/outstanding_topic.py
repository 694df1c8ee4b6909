"""The topic `outstanding` in memory, and the requests that read it.

For: tests of who writes it and who reads it, without Kafka. Not for: what only Kafka can show (tests/kafka)."""

from __future__ import annotations

import asyncio
from collections import defaultdict

from broker.core.codec import decode, encode
from broker.core.events import Event, KeptDelivery
from broker.errors import LogUnavailable
from broker.kafka.requests import KafkaRequests
from broker.ports import EARLIEST, LATEST, FetchResult, Record


class OutstandingTopic:
    """Stands for Appender and KafkaRequests. unavailable: raised by all that is asked. records_a_read: the most."""

    name = "outstanding"
    walk = KafkaRequests.walk
    _timeout_ms = 30_000

    def __init__(self, *, records_a_read: int = 1_000) -> None:
        self.records: dict[int, list[Record | None]] = defaultdict(list)  # None: compacted away
        self.unavailable: LogUnavailable | None = None
        self.reads = 0
        self.records_a_read = records_a_read

    async def append_one(self, partition: int, key: bytes, value: bytes) -> int:
        await self.append({partition: [(key, value)]})
        return len(self.records[partition]) - 1

    async def append(self, outcomes) -> None:
        await self._asked()
        for partition in list(outcomes):
            for key, value in outcomes.pop(partition):
                self.write(partition, key, value)

    def write(self, partition: int, key: bytes, value: bytes | None) -> int:
        """Store a record, and return its offset. Its time is that of its event, or for a tombstone that of
        the record before.
        """
        before = next((one.timestamp for one in reversed(self.records[partition]) if one is not None), 0)
        at_ms = before if value is None else decode(value).at_ms
        self.records[partition].append(Record(len(self.records[partition]), at_ms, key, value, ()))
        return len(self.records[partition]) - 1

    async def _asked(self) -> None:
        await asyncio.sleep(0)
        if self.unavailable is not None:
            raise self.unavailable

    async def keep(self, *events: KeptDelivery) -> None:
        """Write these, as a worker does."""
        for event in events:
            key = f"{event.listener_id}:{event.message_id}".encode()
            await self.append_one(event.partition, key, encode(event))

    async def offsets(self, _topic: str, at_ms) -> dict[int, int]:
        found = {}
        for number, at in at_ms.items():
            records = [one for one in self.records[number] if one is not None]
            later = next((one.offset for one in records if one.timestamp >= at), -1)
            found[number] = {EARLIEST: 0, LATEST: len(self.records[number])}.get(at, later)
        return found

    async def read(self, _topic: str, partition: int, offset: int, *, bytes_max: int = 1 << 20) -> FetchResult:
        await self._asked()
        self.reads += 1
        all_of_it = self.records[partition]
        records = [record for record in all_of_it[offset:] if record is not None]
        more = len(records) > self.records_a_read or bytes_max == 1
        records = records[: 1 if bytes_max == 1 else self.records_a_read]
        end = len(all_of_it)
        return FetchResult(records, records[-1].offset + 1 if records and more else end, end)

    def kept(self) -> dict[bytes, Event]:
        """By key, what no tombstone has taken."""
        last = {record.key: record.value for rows in self.records.values() for record in rows if record is not None}
        return {key: decode(value) for key, value in last.items() if value is not None}
