"""Deliveries that have left their stream's window: they try again later, or are parked.

For: keeping them in the topic `outstanding`, knowing when each is due, handing it to its courier then. The record is
written, and acknowledged, before the cursor may pass the message; only its key, offset and time are held in memory.
Not for: when an attempt is due (broker/core/retry.py), making it (courier.py), what waits in a window.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
from collections.abc import Container
from typing import Any, Final

from broker.core.events import DeliveryParked, DeliverySetAside, KeptDelivery, MessagePut, decode, encode
from broker.delivery.courier import Courier
from broker.delivery.message import Message
from broker.delivery.readers import Partition
from broker.delivery.stream import Delivery, now_ms
from broker.errors import LogUnavailable, UnknownEvent
from broker.kafka.outcomes import OutcomesTopic
from broker.kafka.requests import EARLIEST, LATEST, KafkaRequests

log = logging.getLogger(__name__)

_PAUSE_S: Final = 0.5
_AT_ONCE_MAX: Final = 64  # records read for due deliveries in one go


class Owed:
    """A delivery in `outstanding`. offset: of its record there. due_ms: None when it is parked.

    taken: a courier has it. message: kept only where the record's offset is not known.
    """

    __slots__ = ("due_ms", "key", "listener_id", "message", "number", "offset", "parked_at_ms", "partition", "taken")

    def __init__(self, key: bytes, partition: int, offset: int, event: KeptDelivery) -> None:
        self.key = key
        self.partition = partition
        self.offset = offset
        self.listener_id = event.listener_id
        self.number = event.number
        self.due_ms = event.next_at_ms if isinstance(event, DeliverySetAside) else None
        self.parked_at_ms = event.at_ms
        self.taken = False
        self.message: Message | None = None


class Outstanding:
    """Of one worker. partitions, couriers: the worker's own, as they are at each moment."""

    def __init__(
        self,
        topic: OutcomesTopic,
        requests: KafkaRequests,
        partitions: dict[int, Partition],
        couriers: dict[str, Courier],
    ) -> None:
        self._topic = topic
        self._requests = requests
        self._partitions = partitions
        self._couriers = couriers
        self._owed: dict[int, dict[bytes, Owed]] = {}
        self._due: list[tuple[int, int, Owed]] = []
        self._order = itertools.count()
        self._settled: dict[int, list[tuple[bytes, bytes | None]]] = {}

    async def read(self, partition: int) -> dict[bytes, Owed]:
        """What is owed on a partition, as it stands in the topic (LogUnavailable)."""
        name = self._topic.name
        at = (await self._requests.offsets(name, {partition: EARLIEST}))[partition]
        end = (await self._requests.offsets(name, {partition: LATEST}))[partition]
        owed: dict[bytes, Owed] = {}
        while at < end:
            stretch = await self._requests.read(name, partition, at)
            for record in stretch.records:
                if record.key is None:
                    continue
                owed.pop(record.key, None)
                if record.value is None:
                    continue
                try:
                    event = decode(record.value)
                except UnknownEvent:
                    log.exception("outstanding.undecodable partition=%d offset=%d", partition, record.offset)
                    continue
                if isinstance(event, KeptDelivery):
                    owed[record.key] = Owed(record.key, partition, record.offset, event)
            if stretch.next_offset <= at:
                break
            at = stretch.next_offset
        return owed

    def take_over(self, partition: int, owed: dict[bytes, Owed]) -> None:
        """The partition is ours, and this is what read() found."""
        self._owed[partition] = owed
        for one in owed.values():
            self._schedule(one)

    def forget(self) -> None:
        """The partitions are given up; their next owner reads it all again."""
        self._owed.clear()
        self._due.clear()
        self._settled.clear()

    async def put_aside(self, delivery: Delivery, status: int | None, error: str | None, due_ms: int | None) -> bool:
        """Write the delivery, to be tried at due_ms, or parked when that is None. Whether it was ours to write."""
        message, stream = delivery.message, delivery.stream
        if message is None:
            return False
        event = _event(delivery, message, status, error, due_ms)
        key = _key(event.listener_id, event.message_id)
        while stream.alive:
            try:
                offset = await self._topic.append_one(stream.partition, key, encode(event))
            except LogUnavailable:
                await asyncio.sleep(_PAUSE_S)
                continue
            owed = Owed(key, stream.partition, offset, event)
            if offset < 0:
                owed.message = message
            if stream.alive and stream.partition in self._owed:
                self._owed[stream.partition][key] = owed
                self._schedule(owed)
            if due_ms is None:
                log.warning("delivery.parked message=%s listener=%s", event.message_id, event.listener_id)
            return True
        return False

    def __len__(self) -> int:
        """How many deliveries are owed, the parked ones too."""
        return sum(map(len, self._owed.values()))

    def is_owed(self, delivery: Delivery) -> bool:
        """Whether a delivery of a window is here already: a crash came after its record and before the cursor."""
        owed, message = self._owed.get(delivery.stream.partition), delivery.message
        if not owed or message is None:
            return False
        return _key(delivery.stream.courier.listener.id, message.id.decode()) in owed

    def delivered(self, delivery: Delivery) -> None:
        """A delivery from here was taken by its listener. Its tombstone goes out with the next flush()."""
        if isinstance(delivery.owed, Owed):
            self._bury(delivery.owed)

    def _bury(self, owed: Owed) -> None:
        if self._owed.get(owed.partition, {}).pop(owed.key, None) is not None:
            self._settled.setdefault(owed.partition, []).append((owed.key, None))

    def listeners(self) -> set[str]:
        """The ids of the listeners that deliveries here are for."""
        return {one.listener_id for partition in self._owed.values() for one in partition.values()}

    def bury(self, listeners: Container[str]) -> None:
        """The deliveries of these listeners are cancelled. Their tombstones go out with the next flush()."""
        for owed in [one for partition in self._owed.values() for one in partition.values()]:
            if owed.listener_id in listeners:
                self._bury(owed)

    def returned(self, delivery: Delivery) -> None:
        """A courier could not try it after all (its listener is down): it is due as soon as the courier has room."""
        owed = delivery.owed
        if isinstance(owed, Owed):
            owed.taken = False
            self._schedule(owed)

    async def flush(self) -> None:
        """Write the tombstones (LogUnavailable: they go out with the next one)."""
        if self._settled:
            settled, self._settled = self._settled, {}
            try:
                await self._topic.append(settled)
            except LogUnavailable:
                for partition, records in settled.items():
                    self._settled.setdefault(partition, []).extend(records)
                raise

    def redrive(self, listener_id: str) -> None:
        """All of a listener's deliveries are due now, the parked ones too."""
        at_ms = now_ms()
        for owed in [one for partition in self._owed.values() for one in partition.values()]:
            if owed.listener_id == listener_id and not owed.taken:
                owed.due_ms = at_ms
                self._schedule(owed)

    async def serve_due(self) -> None:
        """Hand what is due to the couriers that have room for it; what they have not stays due."""
        at_ms = now_ms()
        wanted: list[Owed] = []
        waiting: list[Owed] = []
        while self._due and self._due[0][0] <= at_ms and len(wanted) < _AT_ONCE_MAX:
            due_ms, _, owed = heapq.heappop(self._due)
            if owed.taken or owed.due_ms != due_ms or self._owed.get(owed.partition, {}).get(owed.key) is not owed:
                continue
            courier, partition = self._couriers.get(owed.listener_id), self._partitions.get(owed.partition)
            ready = courier is not None and partition is not None and partition.routed(courier) and courier.room()
            (wanted if ready else waiting).append(owed)
        for owed in waiting:
            heapq.heappush(self._due, (at_ms + int(_PAUSE_S * 1000), next(self._order), owed))
            owed.due_ms = at_ms + int(_PAUSE_S * 1000)
        for owed in wanted:
            owed.taken = True
        for owed in wanted:
            try:
                message = owed.message or await self._read(owed)
            except LogUnavailable:
                owed.taken = False
                self._schedule(owed)
                continue
            self._hand_over(owed, message)

    def _hand_over(self, owed: Owed, message: Message | None) -> None:
        courier = self._couriers.get(owed.listener_id)
        if self._owed.get(owed.partition, {}).get(owed.key) is not owed or courier is None or message is None:
            return
        stream = courier.stream(owed.partition)
        delivery = Delivery(stream, message.offset, message)
        delivery.number = owed.number
        delivery.owed = owed
        stream.owed.add(delivery)
        courier.accept(delivery, message)

    async def _read(self, owed: Owed) -> Message | None:
        stretch = await self._requests.read(self._topic.name, owed.partition, owed.offset, bytes_max=1)
        record = next((one for one in stretch.records if one.key == owed.key and one.value is not None), None)
        if record is None or record.value is None:
            log.error("outstanding.record_gone partition=%d offset=%d", owed.partition, owed.offset)
            return None
        event = decode(record.value)
        if not isinstance(event, KeptDelivery):
            return None
        put = MessagePut(
            at_ms=event.put_at_ms,
            organization_id=event.organization_id,
            message_id=event.message_id,
            queue_id=event.queue_id,
            name=event.name,
            data=event.data,
            key=event.key,
        )
        return Message(event.offset, event.message_id.encode(), event.queue_id, event.put_at_ms, encode(put))

    def _schedule(self, owed: Owed) -> None:
        if owed.due_ms is not None:
            heapq.heappush(self._due, (owed.due_ms, next(self._order), owed))


def _key(listener_id: str, message_id: str) -> bytes:
    return f"{listener_id}:{message_id}".encode()


def _event(
    delivery: Delivery, message: Message, status: int | None, error: str | None, due_ms: int | None
) -> KeptDelivery:
    listener = delivery.stream.courier.listener
    name, data = message.name_and_data()
    fields: dict[str, Any] = {
        "at_ms": now_ms(),
        "organization_id": listener.organization_id,
        "actor": "worker",
        "listener_id": listener.id,
        "queue_id": listener.queue_id,
        "message_id": message.id.decode(),
        "partition": delivery.stream.partition,
        "offset": delivery.offset,
        "number": delivery.number,
        "status": status,
        "error": error,
        "put_at_ms": message.put_at_ms,
        "name": name,
        "data": data,
        "key": message.key,
    }
    if due_ms is None:
        return DeliveryParked(**fields)
    return DeliverySetAside(**fields, next_at_ms=due_ms)
