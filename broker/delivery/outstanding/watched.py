"""The topic `outstanding`, as one assignment writes it: it knows which appends are under way, and which are in doubt.

For: telling at which moments the index says what the topic holds (sync.py). Not for: writing
(broker/kafka/appender.py).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import MutableMapping

from broker.delivery.ports import Appender, KeyAndValue


class WatchedAppender:
    """An appender (ports.Appender) that remembers its appends, by partition."""

    def __init__(self, topic: Appender) -> None:
        self._topic = topic
        # This number grows when an append begins, and when it ends.
        self.changes: defaultdict[int, int] = defaultdict(int)
        self.records: defaultdict[int, int] = defaultdict(int)  # The number of records that Kafka has certainly stored.
        self._under_way: defaultdict[int, int] = defaultdict(int)
        # The keys of records of which nobody knows whether Kafka has stored them.
        self._in_doubt: defaultdict[int, set[bytes]] = defaultdict(set)

    @property
    def name(self) -> str:
        return self._topic.name

    def settled(self, partition: int) -> bool:
        """Return whether no append to this partition is under way or has an unknown result."""
        return not self._under_way[partition] and not self._in_doubt[partition]

    def doubt(self, partition: int, key: bytes) -> None:
        """Note that Kafka may have a record with this key that the index lacks. A later record with the same key ends
        this doubt.
        """
        self._in_doubt[partition].add(key)

    async def append(self, outcomes: MutableMapping[int, list[KeyAndValue]]) -> None:
        keys = {partition: [key for key, _ in records] for partition, records in outcomes.items()}
        self._begin(*keys)
        try:
            await self._topic.append(outcomes)
        finally:
            for partition, some in keys.items():
                self._end(partition, some, written=partition not in outcomes)

    async def append_one(self, partition: int, key: bytes, value: bytes) -> int:
        self._begin(partition)
        written = False
        try:
            offset = await self._topic.append_one(partition, key, value)
            written = True
        finally:
            self._end(partition, [key], written=written)
        return offset

    def _begin(self, *partitions: int) -> None:
        for partition in partitions:
            self.changes[partition] += 1
            self._under_way[partition] += 1

    def _end(self, partition: int, keys: list[bytes], *, written: bool) -> None:
        self.changes[partition] += 1
        self._under_way[partition] -= 1
        if written:
            self.records[partition] += len(keys)
            self._in_doubt[partition].difference_update(keys)
        else:
            self._in_doubt[partition].update(keys)
