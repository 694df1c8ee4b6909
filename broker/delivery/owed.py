"""One delivery in `outstanding`: what is held of it in memory, and its record, written and read again.

For: Owed, the event made of a delivery, the message made of an event. Not for: when it is due and who gets it then
(outstanding.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from broker.core.events import DeliveryParked, DeliverySetAside, KeptDelivery, MessagePut, encode
from broker.core.redrives import Redrives
from broker.delivery.message import Message
from broker.delivery.stream import Delivery, now_ms

Line = tuple[str, int, str]  # a listener's id, a partition, an ordering key


class Owed:
    """offset: of its record in `outstanding`. due_ms: None when it is parked. line: in which it waits with others of
    its ordering key; None without one. place: its message's offset, by which they go. The rest as in KeptDelivery, and:

    taken: it is due and waits for its courier, or its courier has it. noted_ms: for when it was noted down.
    message: kept only where the record's offset is not known. found: it was there when the partition was taken over,
    so its stream's window may bring it once more.
    """

    __slots__ = (
        "due_ms",
        "first_at_ms",
        "forgiven",
        "found",
        "key",
        "line",
        "listener_id",
        "message",
        "noted_ms",
        "number",
        "offset",
        "partition",
        "place",
        "redrives",
        "since_ms",
        "taken",
    )

    def __init__(self, key: bytes, partition: int, offset: int, event: KeptDelivery) -> None:
        self.key = key
        self.partition = partition
        self.offset = offset
        self.listener_id = event.listener_id
        self.line: Line | None = None if event.key is None else (event.listener_id, partition, event.key)
        self.place = event.offset
        self.number = event.number
        self.redrives = event.redrives
        self.forgiven = event.forgiven
        self.since_ms = event.since_ms
        self.first_at_ms = event.first_at_ms
        if event.number and not event.first_at_ms:  # an older program's
            self.first_at_ms = event.since_ms or event.put_at_ms
        self.due_ms = event.next_at_ms if isinstance(event, DeliverySetAside) else None
        self.taken = False
        self.noted_ms: int | None = None
        self.found = False
        self.message: Message | None = None

    @property
    def message_id(self) -> str:
        return self.key.partition(b":")[2].decode()

    @property
    def scheduled(self) -> bool:
        """Whether it waits for its message's time, or for another of its ordering key: no attempt was made."""
        return self.number == 0 and self.due_ms is not None

    def redrive(self, redrives: Redrives, at_ms: int) -> bool:
        """Take its listener's redrives into account. Whether it is due by them, with a fresh allowance.

        One that was not attempted is not concerned: it neither retries nor is parked.
        """
        since, self.redrives = self.redrives, redrives.count
        if since == redrives.count or self.scheduled or not redrives.concern(self.message_id, since=since):
            return False
        self.forgiven, self.since_ms, self.due_ms = self.number, at_ms, at_ms
        return True


def owed_key(listener_id: str, message_id: str) -> bytes:
    """The record's key in `outstanding`."""
    return f"{listener_id}:{message_id}".encode()


def owed_message_ids(keys: Iterable[bytes]) -> set[str]:
    """The ids of the messages that records with these keys are of."""
    return {key.partition(b":")[2].decode() for key in keys}


def kept_event(
    delivery: Delivery, message: Message, status: int | None, error: str | None, due_ms: int | None
) -> KeptDelivery:
    """The record of a delivery that leaves its window: parked when due_ms is None."""
    listener, owed = delivery.stream.courier.listener, delivery.owed
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
        "redrives": listener.redrives.count if owed is None else owed.redrives,
        "forgiven": 0 if owed is None else owed.forgiven,
        "since_ms": message.deliver_at_ms if owed is None else owed.since_ms,
        "first_at_ms": delivery.first_at_ms,
    }
    if due_ms is None:
        return DeliveryParked(**fields)
    return DeliverySetAside(**fields, next_at_ms=due_ms)


def kept_message(event: KeptDelivery) -> Message:
    """The message again, as its listener gets it."""
    put = MessagePut(
        at_ms=event.put_at_ms,
        organization_id=event.organization_id,
        message_id=event.message_id,
        queue_id=event.queue_id,
        name=event.name,
        data=event.data,
        key=event.key,
    )
    message = Message(event.offset, event.message_id.encode(), event.queue_id, event.put_at_ms, encode(put))
    message.deliver_at_ms = event.since_ms
    return message
