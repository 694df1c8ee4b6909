"""Reads the newest changes of messages, for the worker that owns their partitions.

For: getting a change within milliseconds of its append. Not for: which worker owns which partition (tail.py), applying
a change (broker/delivery/changes/honour.py).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping

from broker.core.codec import decode
from broker.core.events import MessageChange
from broker.errors import LogDamaged, UnknownEvent
from broker.kafka.long_poll import LongPoll
from broker.kafka.requests import KafkaRequests
from broker.kafka.topics import topics
from broker.settings import KafkaSettings


class ChangesTail:
    """A reader of new changes to messages. The caller says which partitions it reads."""

    def __init__(self, kafka: KafkaSettings, requests: KafkaRequests) -> None:
        self._long_poll = LongPoll(requests, topics(kafka).changes.name)
        self._follows = asyncio.Event()

    async def stop(self) -> None:
        await self._long_poll.stop()

    def follow(self, offsets: Mapping[int, int]) -> None:
        """Read only the partitions in `offsets` from now on, each from its offset in `offsets`."""
        self._long_poll.forget()
        self._long_poll.begin(offsets)
        self._follows.set()

    async def read(self) -> list[tuple[int, int, MessageChange]]:
        """Return new updates and deletions of messages, as (partition, offset, event). If there are none, return an
        empty list after about a second. Until follow() is called for the first time, wait.

        If Kafka can't be reached, also return an empty list. Unreadable changes are skipped and have no effect.
        """
        await self._follows.wait()
        try:
            batches = await self._long_poll.read()
        except LogDamaged as damage:  # An unreadable change has no effect.
            self._long_poll.begin({damage.partition: damage.last + 1})
            return []
        found = []
        for partition, records in batches.items():
            for record in records:
                with contextlib.suppress(UnknownEvent):
                    event = decode(record.value or b"")
                    if isinstance(event, MessageChange):
                        found.append((partition, record.offset, event))
        return found
