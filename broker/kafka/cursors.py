"""The cursors of listeners, stored in Kafka as committed offsets of one consumer group for each listener.

For: reading, storing and deleting cursors. Not for: what a cursor means, and its metadata (broker/core/cursor.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Final

from broker.core.cursor import Cursor
from broker.errors import LogUnavailable
from broker.kafka.requests import KafkaRequests
from broker.kafka.topics import group_listener, listener_group, topics
from broker.ports import NotStored
from broker.settings import KafkaSettings

# Send at most 32 requests to Kafka's group coordinators at once: more would block the event loop too long.
_UNDER_WAY_MAX: Final = 32


class KafkaCursors:
    """The cursors of all listeners, stored in Kafka as committed offsets of the topic `messages`. Each listener has its
    own consumer group, `<prefix>listener.<id>`. A committed offset means that the listener's deliveries of all earlier
    messages of the partition are settled: delivered, parked, cancelled or kept in the topic `outstanding`.
    """

    def __init__(self, kafka: KafkaSettings, requests: KafkaRequests) -> None:
        self._kafka = kafka
        self._requests = requests
        self._topic = topics(kafka).messages.name
        self._semaphore = asyncio.Semaphore(_UNDER_WAY_MAX)

    async def load(self, listener_ids: Iterable[str], partitions: Iterable[int]) -> dict[str, dict[int, Cursor]]:
        """Load the newest committed offsets with their metadata, by listener and partition. Offsets that were never
        committed are left out. Raises LogUnavailable if Kafka does not answer.
        """
        wanted = list(partitions)

        async def one(listener_id: str) -> tuple[str, dict[int, Cursor]]:
            async with self._semaphore:
                rows = await self._requests.groups.committed(
                    listener_group(self._kafka, listener_id), self._topic, wanted
                )
            return listener_id, {
                partition: Cursor.from_metadata(offset, text) for partition, (offset, text) in rows.items()
            }

        return dict(await asyncio.gather(*(one(listener_id) for listener_id in listener_ids)))

    async def store(self, cursors: Mapping[str, Mapping[int, Cursor]]) -> None:
        """Commit the listeners' offsets to Kafka, with one request for each listener. If some requests fail, NotStored
        is raised after all requests have ended. The error names the listeners of the failed requests.
        """
        failed: dict[str, LogUnavailable] = {}

        async def one(listener_id: str, rows: Mapping[int, Cursor]) -> None:
            async with self._semaphore:
                try:
                    await self._requests.groups.commit(
                        listener_group(self._kafka, listener_id),
                        self._topic,
                        {partition: (cursor.offset, cursor.metadata()) for partition, cursor in rows.items()},
                    )
                except LogUnavailable as error:
                    failed[listener_id] = error

        for done in await asyncio.gather(*(one(*row) for row in cursors.items()), return_exceptions=True):
            if isinstance(done, BaseException):
                raise done
        if failed:
            raise NotStored(failed)

    async def listeners(self) -> set[str]:
        """Return the ids of all listeners with committed offsets. They include deleted listeners and ended replays
        whose offsets were not deleted yet. Raises LogUnavailable if Kafka does not answer.
        """
        found = (group_listener(self._kafka, group) for group in await self._requests.groups.names())
        return {listener_id for listener_id in found if listener_id is not None}

    async def delete(self, listener_id: str) -> None:
        """Delete a listener's committed offsets. Raises LogUnavailable if Kafka does not answer."""
        async with self._semaphore:
            await self._requests.groups.delete(listener_group(self._kafka, listener_id))
