"""The records of the topic `outstanding`: made from a delivery, and read again by the worker that owns the partition.

For: all records of a partition at a take-over, and the message of one record when it is due. Not for: reading them for
an API process (broker/kafka/outstanding.py), writing them (schedule.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

from msgspec import UNSET

from broker.clock import now_ms
from broker.core.codec import decode, encode
from broker.core.entities import Listener
from broker.core.events import BARE, DAMAGED, DeliveryParked, DeliverySetAside, KeptDelivery
from broker.core.outstanding_sum import KeySum, OutstandingSum
from broker.delivery.dispatch.stream import Delivery
from broker.delivery.outstanding.entry import Key, OutstandingEntry, entry_of, ids_in
from broker.delivery.outstanding.rebuild import Outcomes, Streams, outcomes_of, rebuilt
from broker.delivery.ports import Appender, LogReader
from broker.delivery.reading.message import Message, messages
from broker.delivery.tuning import TUNED, Tuning
from broker.errors import LogDamaged, LogUnavailable, UnknownEvent
from broker.ports import EARLIEST, LATEST, OffsetTooOld

log = logging.getLogger(__name__)

_TRIES_MAX: Final = 10
_PAUSE_S: Final = 0.2
_RECORD_BYTES: Final = 1  # If a fetch asks for 1 byte, Kafka returns one whole record batch.


class OutstandingRecords:
    """A reader of the topic `outstanding`. This topic holds deliveries that are parked, or that wait, for example for a
    retry.
    """

    def __init__(
        self,
        topic: Appender,
        requests: LogReader,
        messages_topic: str,
        deliveries_topic: str | None,
        tuning: Tuning = TUNED,
    ) -> None:
        self._more_bytes = tuning.record_bytes_more
        self._range_bytes = tuning.fetch_bytes_max
        self._requests = requests
        self._deliveries_topic = deliveries_topic
        self._topic = topic
        self.fillers: dict[int, set[bytes]] = {}
        self.ends: dict[int, int] = {}  # by partition: the offset at which the read of `outstanding` ended
        self._messages_topic = messages_topic

    async def all_of(
        self,
        partition: int,
        *,
        at_once: int,
        streams: Callable[[], Streams] = tuple,
        noted: OutstandingSum | None = None,
        found: Callable[[], KeySum | None] = KeySum,
    ) -> AsyncIterator[dict[Key, OutstandingEntry | None]]:
        """Yield the deliveries of a partition in batches, in the order of their records in the topic `outstanding`. If
        a delivery is yielded again, its new value replaces the former one. The value is None if the delivery has ended,
        or if only a newer version of Everput can decode its record. Raises LogUnavailable if Kafka does not answer.

        If records of `outstanding` are unreadable or missing, also yield the deliveries that can be computed from other
        topics, and then those of all readable records of `outstanding` once more.

        `noted` is the fingerprint of the deliveries that the partition should have, as its former owner committed it.
        `found` returns the fingerprint of the deliveries that were yielded until now, or None if the caller has
        stopped. If the two fingerprints differ, records are missing. They are not compared if records were written
        after `noted` was made.
        """
        name = self._topic.name
        at = (await self._requests.offsets(name, {partition: EARLIEST}))[partition]
        self.ends[partition] = end = await self._end(partition, 0 if noted is None else noted.end)
        try:
            async for rows in self._rows(partition, at, end, at_once, pass_damaged=False):
                yield rows
            if noted is not None and (now := found()) is not None and noted.agrees(now.until(end)) is False:
                damage = LogDamaged(name, partition, at, max(noted.end - 1, at))
                self._requests.report(damage)
                raise damage
        except LogDamaged:
            # If records of the topic `outstanding` are unreadable or missing, compute its deliveries from other topics.
            # First yield the computed deliveries: those that have not succeeded according to the topic `deliveries`.
            # Then yield all readable records of `outstanding`, but None in place of a delivery that has succeeded.
            outcomes = Outcomes()
            if self._deliveries_topic is not None:
                outcomes = await outcomes_of(self._requests, self._deliveries_topic, partition)
            every, count = streams(), 0
            async for some in rebuilt(
                self._requests, self._messages_topic, partition, outcomes, every, at_once=at_once
            ):
                count += len(some)
                yield dict(some)
            log.warning("outstanding.rebuilt partition=%d count=%d", partition, count)
            async for rows in self._rows(partition, at, end, at_once, pass_damaged=True):
                yield {
                    key: None if entry is None or outcomes.delivered(entry.listener_id, entry.message_offset) else entry
                    for key, entry in rows.items()
                }

    async def _end(self, partition: int, noted: int) -> int:
        """Return the end offset of the partition. `noted` is an earlier end offset. A new partition leader may report a
        lower end offset for a moment: then ask again, up to nine times.
        """
        for tried in range(_TRIES_MAX):
            end = (await self._requests.offsets(self._topic.name, {partition: LATEST}))[partition]
            if end >= noted or tried == _TRIES_MAX - 1:
                break
            await asyncio.sleep(_PAUSE_S)
        return end

    async def _rows(
        self, partition: int, at: int, end: int, at_once: int, *, pass_damaged: bool
    ) -> AsyncIterator[dict[Key, OutstandingEntry | None]]:
        some: dict[Key, OutstandingEntry | None] = {}
        async for record in self._requests.walk(self._topic.name, partition, at, end, pass_damaged=pass_damaged):
            if record.key is None:
                continue
            # An empty value: Kafka has lost the original record, and `everput serve` has put this record in its place.
            if record.value == b"":
                damage = LogDamaged(self._topic.name, partition, record.offset, record.offset)
                if not pass_damaged:
                    raise damage
                self._requests.report(damage)
                self.fillers.setdefault(partition, set()).add(record.key)
                continue
            event = None if record.value is None else _decoded(record.value, partition, record.offset)
            some[ids_in(record.key)] = None if event is None else entry_of(event, record.offset, found=True)
            if len(some) >= at_once:
                yield some
                some = {}
        yield some

    async def message(self, entry: OutstandingEntry) -> Message | None:
        """Read the message of a delivery from the topic `outstanding`, or else from `messages`. Return None if the
        delivery has ended, if neither topic has the message, or if this version of Everput can't decode the delivery's
        record. Raises LogUnavailable if Kafka may return the record later, and LogDamaged if the message can't be read
        because of damage.
        """
        if entry.record is not None:
            return await self._message(entry, entry.record, entry.record_offset)
        key, at, size, buried, behind = entry.key, entry.record_offset, _RECORD_BYTES, False, False
        damaged = at < 0  # negative if the record was unreadable or missing at the partition's take-over
        try:
            # Compaction may have left only a later record with the same key. So search to the end of the partition.
            while not damaged:
                fetched = await self._requests.read(self._topic.name, entry.partition, at, bytes_max=size)
                for record in fetched.records:
                    if record.key == key:
                        if record.value is not None:
                            return await self._message(entry, record.value, record.offset)
                        buried = True
                if fetched.next_offset <= at or fetched.next_offset >= fetched.end_offset:
                    behind = fetched.end_offset <= entry.record_offset
                    break
                at, size = fetched.next_offset, self._more_bytes
        except OffsetTooOld:
            pass
        except LogDamaged:
            damaged = True
        if buried:  # The newest record with this key is a tombstone: the delivery has ended.
            return None
        log.error("outstanding.record_gone partition=%d offset=%d", entry.partition, entry.record_offset)
        message = await self._of_log(entry.partition, entry.message_offset)
        if message is None and damaged:
            raise LogDamaged(self._messages_topic, entry.partition, entry.message_offset, entry.message_offset)
        # A new partition leader may lack the record for a moment. So raise an error: the caller will read again.
        if message is None and behind:
            raise LogUnavailable(
                f"Kafka returned no record of {self._topic.name}/{entry.partition} at offset {entry.record_offset}, "
                "although the partition should have a record there; Everput will try the read again"
            )
        return message

    async def _message(self, entry: OutstandingEntry, value: bytes, offset: int) -> Message | None:
        event = _decoded(value, entry.partition, offset)
        if event is None or event.error not in BARE:
            return None if event is None else kept_message(event)
        message = await self._of_log(entry.partition, event.offset)
        if message is None and event.error == DAMAGED:
            raise LogDamaged(self._messages_topic, entry.partition, event.offset, event.offset)
        return message

    async def messages_in(self, partition: int, first: int, last: int) -> tuple[list[Message], int]:
        """Return the first messages at these offsets of the topic `messages`, as one fetch reads them, and the offset
        at which the next read must begin. There may be no messages, because retention may have deleted them.

        Raises LogUnavailable if Kafka does not return a record that it should have, and LogDamaged if the first message
        is unreadable.
        """
        try:
            fetched = await self._requests.read(self._messages_topic, partition, first, bytes_max=self._range_bytes)
        except OffsetTooOld:
            begin = (await self._requests.offsets(self._messages_topic, {partition: EARLIEST}))[partition]
            # If Kafka has not deleted this offset, a new leader lacks its record for a moment: the caller retries.
            if first >= begin:
                raise
            return [], begin
        if fetched.next_offset <= first:
            raise LogUnavailable(
                f"Kafka returned no record of {self._messages_topic}/{partition} from offset {first} on, "
                "although the partition should have a record there; Everput will try the read again"
            )
        return [message for message in messages(fetched.records) if message.offset <= last], fetched.next_offset

    async def _of_log(self, partition: int, place: int) -> Message | None:
        """Read a message as it was put, from the topic `messages`. Return None if retention has deleted the message.
        Raises LogUnavailable if a new partition leader does not have the message yet.
        """
        try:
            fetched = await self._requests.read(self._messages_topic, partition, place, bytes_max=_RECORD_BYTES)
        except OffsetTooOld:
            return None
        if fetched.end_offset <= place:
            raise LogUnavailable(
                f"Kafka returned no record of {self._messages_topic}/{partition} from offset {place} on, "
                "although the partition should have a record there; Everput will try the read again"
            )
        return next((message for message in messages(fetched.records) if message.offset == place), None)


def _decoded(value: bytes, partition: int, offset: int) -> KeptDelivery | None:
    """Decode a record of the topic `outstanding`. Return None if the record is no delivery, or if only a newer version
    of Everput can decode it.
    """
    try:
        event = decode(value)
    except UnknownEvent:
        log.exception("outstanding.undecodable partition=%d offset=%d", partition, offset)
        return None
    return event if isinstance(event, KeptDelivery) else None


def kept_event(
    delivery: Delivery, message: Message, status: int | None, error: str | None, due_ms: int | None
) -> KeptDelivery:
    """Return the event to store in the topic `outstanding` for this delivery. `due_ms` is the time of the next attempt.
    If `due_ms` is None, the event says that the delivery is parked.
    """
    listener, entry = delivery.stream.dispatcher.listener, delivery.entry
    fields = message_fields(listener, delivery.stream.partition, message) | {
        "number": delivery.number,
        "status": status,
        "error": error,
        "first_at_ms": delivery.first_at_ms,
    }
    if entry is not None:
        fields |= {"redrives": entry.redrives, "forgiven": entry.forgiven, "since_ms": entry.since_ms}
    if due_ms is None:
        return DeliveryParked(**fields)
    return DeliverySetAside(**fields, next_at_ms=due_ms)


def message_fields(listener: Listener, partition: int, message: Message) -> dict[str, Any]:
    """Return the fields of an event of the topic `outstanding` for a delivery that had no attempt yet. Before this
    function, call message.body(), which decodes the message.
    """
    name, data = message.name_and_data()
    return {
        "at_ms": now_ms(),
        "organization_id": listener.organization_id,
        "actor": "worker",
        "listener_id": listener.id,
        "queue_id": listener.queue_id,
        "message_id": message.id.decode(),
        "partition": partition,
        "offset": message.offset,
        "number": 0,
        "status": None,
        "error": None,
        "put_at_ms": message.put_at_ms,
        "name": name,
        "data": data,
        "key": message.key,
        "redrives": listener.redrives.count,
        "since_ms": message.deliver_at_ms,
        "traceparent": message.traceparent or UNSET,
    }


def kept_message(event: KeptDelivery) -> Message:
    """Return the message that the listener gets, rebuilt from its record in the topic `outstanding`."""
    message = Message(event.offset, event.message_id.encode(), event.queue_id, event.put_at_ms, encode(event.put()))
    message.deliver_at_ms = event.since_ms
    return message
