"""The topic `outstanding`, as one assignment writes it: it knows whether an append is under way.

For: telling at which moments the index says what the topic holds (schedule.py, note()). Not for: writing
(broker/kafka/appender.py).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, MutableMapping
from contextlib import contextmanager

from broker.delivery.ports import Appender, KeyAndValue


class WatchedAppender:
    """An appender (ports.Appender). By partition:

    changes: counts the beginnings and ends of appends.
    under_way: counts the appends that have not ended.
    """

    def __init__(self, topic: Appender) -> None:
        self._topic = topic
        self.changes: defaultdict[int, int] = defaultdict(int)
        self.under_way: defaultdict[int, int] = defaultdict(int)

    @property
    def name(self) -> str:
        return self._topic.name

    async def append(self, outcomes: MutableMapping[int, list[KeyAndValue]]) -> None:
        with self._writing(list(outcomes)):
            await self._topic.append(outcomes)

    async def append_one(self, partition: int, key: bytes, value: bytes) -> int:
        with self._writing([partition]):
            return await self._topic.append_one(partition, key, value)

    @contextmanager
    def _writing(self, partitions: Iterable[int]) -> Iterator[None]:
        for partition in partitions:
            self.changes[partition] += 1
            self.under_way[partition] += 1
        try:
            yield
        finally:
            for partition in partitions:
                self.changes[partition] += 1
                self.under_way[partition] -= 1
