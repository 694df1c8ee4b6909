"""A listener's outstanding deliveries, read from the topic `outstanding` for API requests.

For: ports.Outstanding. Not for: writing or attempting them (broker/delivery/outstanding/schedule.py).

A record counts only if no later record of its partition has the same key, so each request reads a partition to its end.
Partitions are read one after another, and only the records of a page are in memory. A delivery that is written again
moves towards the end of its partition, so a client that continues from a position misses none.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from typing import Final

from broker.core.codec import decode, encode
from broker.core.entities import Listener
from broker.core.events import BARE, DeliverySetAside, KeptDelivery
from broker.core.ids import partition_of
from broker.errors import LogDamaged, UnknownEvent
from broker.kafka.read_slots import ReadSlots
from broker.kafka.requests import KafkaRequests
from broker.kafka.scan import scan
from broker.kafka.topics import topics
from broker.ports import EARLIEST, LATEST, OffsetTooOld, OutstandingDelivery, Position, Record
from broker.settings import KafkaSettings
from broker.time_offsets import offsets_since

_SEPARATOR: Final = b":"


class KafkaOutstanding:
    """The reader of the deliveries in the Kafka topic `outstanding`: parked ones, retrying ones, and ones that are not
    attempted yet. It keeps no state of its own.
    """

    def __init__(self, kafka: KafkaSettings, requests: KafkaRequests, read_slots: ReadSlots) -> None:
        self._topic = topics(kafka).outstanding
        self._requests = requests
        self._read_slots = read_slots

    async def page(
        self, listener: Listener, *, state: str | None, after: Position, limit: int
    ) -> tuple[list[OutstandingDelivery], Position | None]:
        """See ports.Outstanding."""
        async with self._read_slots.slot(listener.organization_id):
            return await self._page(listener, state, after, limit)

    async def _page(
        self, listener: Listener, state: str | None, after: Position, limit: int
    ) -> tuple[list[OutstandingDelivery], Position | None]:
        shown: list[OutstandingDelivery] = []
        partition, offset = after
        while partition < self._topic.partitions:
            if len(shown) >= limit:
                return shown, (partition, offset)
            found: dict[bytes, OutstandingDelivery] = {}
            more_from: int | None = None
            async for record in self._records(partition, offset, _prefix(listener)):
                record_key = record.key or b""
                found.pop(record_key, None)
                row = _row(record, listener)
                if row is None or more_from is not None or (state is not None and row.state != state):
                    continue
                if len(found) < limit - len(shown):
                    found[record_key] = row
                else:
                    more_from = record.offset
            shown += found.values()
            if more_from is not None:
                return shown, (partition, more_from)
            partition, offset = partition + 1, 0
        return shown, None

    async def count(self, listener: Listener, *, redriven: bool = False) -> int:
        """See ports.Outstanding."""
        number = 0
        async with self._read_slots.slot(listener.organization_id):
            for partition in range(self._topic.partitions):
                number += len(await self._there(listener, partition, None, redriven=redriven))
        return number

    async def those(self, listener: Listener, message_ids: Sequence[str]) -> list[str]:
        """See ports.Outstanding."""
        prefix = _prefix(listener)
        wanted = {prefix + message_id.encode() for message_id in message_ids}
        partitions = {partition_of(message_id) for message_id in message_ids}
        there: set[bytes] = set()
        async with self._read_slots.slot(listener.organization_id):
            for partition in partitions:
                if partition is not None and partition < self._topic.partitions:
                    there |= await self._there(listener, partition, wanted)
        return [one for one in dict.fromkeys(message_ids) if prefix + one.encode() in there]

    async def _there(
        self, listener: Listener, partition: int, wanted: Collection[bytes] | None, *, redriven: bool = False
    ) -> set[bytes]:
        """Return the keys of a listener's retrying and parked deliveries in a partition of the topic `outstanding`. If
        `wanted` is given, return only keys that are in `wanted`. If `redriven` is true, return only keys of deliveries
        that were redriven and not attempted since then.
        """
        there: set[bytes] = set()
        async for record in self._records(partition, 0, _prefix(listener)):
            record_key = record.key or b""
            there.discard(record_key)
            row = _row(record, listener) if wanted is None or record_key in wanted else None
            if row is not None and row.state != "pending" and (row.redriven or not redriven):
                there.add(record_key)
        return there

    async def kept(
        self, partition: int, message_id: str, listeners: Collection[Listener], *, reads_max: int
    ) -> tuple[Mapping[str, OutstandingDelivery], bool]:
        """Return a message's deliveries in the topic `outstanding`, by listener id. Also return True if no delivery can
        be missing, and otherwise False.

        Deliveries can be missing if records are unreadable, or if `reads_max` reads are not enough. All listeners must
        belong to one organization. Raises Unavailable if Kafka does not answer, or if too many large reads are running.
        """
        by_key = {_prefix(one) + message_id.encode(): one for one in listeners}
        found: dict[str, OutstandingDelivery] = {}
        complete = True

        # Drop the deliveries that were found so far: the unreadable range may have newer records of them.
        def damaged(_damage: LogDamaged) -> None:
            nonlocal complete
            complete = False
            found.clear()

        if not by_key:
            return found, complete
        try:
            async with self._read_slots.slot(next(iter(listeners)).organization_id):
                async for record in self._records(partition, 0, b"", reads_max, damaged=damaged):
                    listener = by_key.get(record.key or b"")
                    if listener is not None:
                        row = _row(record, listener)
                        found.pop(listener.id, None)
                        if row is not None:
                            found[listener.id] = row
        except _TooMany:
            return {}, False
        return found, complete

    async def of_listeners(
        self,
        listeners: Sequence[Listener],
        since_ms: Mapping[int, int],
        *,
        message_ids: Collection[str] | None = None,
        reads_max: int,
    ) -> tuple[dict[tuple[str, str], OutstandingDelivery], set[int]]:
        """Return the listeners' deliveries in the topic `outstanding`, by (listener id, message id). All listeners must
        belong to one organization. Also return the partitions that could not be read completely. Deliveries in these
        partitions are left out.

        The keys of `since_ms` are the partitions to read. The values are times in ms: deliveries of messages that were
        put earlier may be left out. If `message_ids` is given, only deliveries of these messages are returned. At most
        `reads_max` reads are made in all partitions together. Raises Unavailable if Kafka does not answer, or if too
        many large reads are running.
        """
        found: dict[tuple[str, str], OutstandingDelivery] = {}
        incomplete: set[int] = set()
        if not listeners or not since_ms:
            return found, incomplete
        by_id = {one.id.encode(): one for one in listeners}
        wanted = None if message_ids is None else {one.encode() for one in message_ids}
        name = self._topic.name
        async with self._read_slots.slot(listeners[0].organization_id):
            begins = await offsets_since(self._requests, name, since_ms)
            ends = await self._requests.offsets(name, dict.fromkeys(since_ms, LATEST))
            for partition, begin in begins.items():
                last: dict[tuple[bytes, bytes], Record] = {}
                at, end = begin, ends[partition]

                def damaged(_damage: LogDamaged, partition: int = partition) -> None:
                    incomplete.add(partition)

                results = scan(
                    self._requests, name, partition, at, end, damaged=damaged, reads_max=reads_max, patience_s=None
                )
                try:
                    async for fetched in results:
                        reads_max, at = reads_max - 1, fetched.next_offset
                        for record in fetched.records:
                            listener_id, _, message_id = (record.key or b"").partition(_SEPARATOR)
                            if listener_id in by_id and (wanted is None or message_id in wanted):
                                last[listener_id, message_id] = record
                except OffsetTooOld:  # Kafka has deleted the next record, so the partition is not read completely.
                    incomplete.add(partition)
                if at < end or partition in incomplete:
                    # The unread part may have newer records of the found deliveries. So leave out this partition.
                    incomplete.add(partition)
                    continue
                for (listener_id, _), record in last.items():
                    row = _row(record, by_id[listener_id])
                    if row is not None:
                        found[listener_id.decode(), row.message_id] = row
        return found, incomplete

    async def message(self, partition: int, message_id: str, organization_id: str) -> tuple[int, bytes] | None:
        """Find a message that Kafka has deleted from the topic `messages`. The record of one of its deliveries in
        `outstanding` may have a copy of the message. Return the message's offset in `messages`, and its encoded event.

        Return None if no delivery in `outstanding` has a copy, or if another organization owns the message. Raises
        Unavailable if Kafka does not answer, or if too many large reads are running.
        """
        found: dict[bytes, bytes | None] = {}
        ending = _SEPARATOR + message_id.encode()
        async with self._read_slots.slot(organization_id):
            async for record in self._records(partition, 0, b""):
                if record.key is not None and record.key.endswith(ending):
                    found[record.key] = record.value
        for value in found.values():
            event = None if value is None else _decoded(value)
            if event is not None and event.organization_id == organization_id and event.error not in BARE:
                return event.offset, encode(event.put())
        return None

    async def _records(
        self,
        partition: int,
        offset: int,
        prefix: bytes,
        reads_max: int = sys.maxsize,
        *,
        damaged: Callable[[LogDamaged], None] = lambda _: None,
    ) -> AsyncIterator[Record]:
        """Yield the records of a partition of `outstanding` whose key begins with `prefix`, from an offset on.
        Tombstones are included. Unreadable ranges are skipped, and `damaged` is called for each of them.

        Raises _TooMany if more than `reads_max` reads are needed.
        """
        name = self._topic.name
        while True:
            if reads_max <= 0:
                raise _TooMany
            try:
                async for fetched in scan(
                    self._requests, name, partition, offset, damaged=damaged, reads_max=reads_max
                ):
                    reads_max -= 1
                    offset = fetched.next_offset
                    for record in fetched.records:
                        if record.key is not None and record.key.startswith(prefix):
                            yield record
                    if reads_max == 0 and offset < fetched.end_offset:
                        raise _TooMany
            except OffsetTooOld:
                reads_max -= 1
                begin = (await self._requests.offsets(name, {partition: EARLIEST}))[partition]
                if begin <= offset:
                    return
                offset = begin
                continue
            return


class _TooMany(Exception):
    """A search that needs more reads than allowed."""


def _prefix(listener: Listener) -> bytes:
    return listener.id.encode() + _SEPARATOR


def _decoded(value: bytes) -> KeptDelivery | None:
    try:
        event = decode(value)
    except UnknownEvent:
        return None
    return event if isinstance(event, KeptDelivery) else None


def _row(record: Record, listener: Listener) -> OutstandingDelivery | None:
    """Convert a record of the topic `outstanding` into a delivery to the listener. Return None for a tombstone, or for
    an event of a newer version.
    """
    event = None if record.value is None else _decoded(record.value)
    if event is None:
        return None
    redriven = listener.redrives.concern(event.message_id, since=event.redrives)
    next_at_ms = event.next_at_ms if isinstance(event, DeliverySetAside) else None
    state = "retrying" if event.number else "pending"
    if next_at_ms is None:
        state = "retrying" if redriven else "parked"
    return OutstandingDelivery(
        message_id=event.message_id,
        offset=event.offset,
        name=event.name,
        put_at_ms=event.put_at_ms,
        state=state,
        attempts=event.number,
        status=event.status,
        error=event.error,
        last_attempt_at_ms=event.at_ms if event.number else None,
        next_attempt_at_ms=None if redriven and state != "pending" else next_at_ms,
    )
