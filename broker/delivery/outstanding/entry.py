"""One delivery in `outstanding`: what is known of it.

For: OutstandingEntry, and what it says of its record. Not for: the record (records.py), when it is due and who gets it
then (due.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from broker.core.events import BARE, DAMAGED, DeliverySetAside, KeptDelivery
from broker.core.redrives import Redrives

UNREAD: Final = 2
Key = tuple[str, str]  # the key of an entry: the ids of a listener and of a message
KeyQueue = tuple[str, int, str]  # the queue of an ordering key: a listener's id, a partition, an ordering key


@dataclass(slots=True, eq=False)
class OutstandingEntry:
    """A delivery in `outstanding`: a row of the index (index.py), as it was when it was read.

    id: changes each time that the entry is written.
    ordering_key: None when the message has none.
    record_offset: of the record in `outstanding`, below 0 when it is not known; `record` then has the record's value.
    due_ms: None when the delivery is parked. queued_ms: see index.py.
    found: the record was there at the take-over, so the stream's window may bring the delivery once more.
    bare: the record has no payload, so the message must stay in the log; UNREAD: because it could not be read.
    key_queue: the queue of the ordering key in which it waits.
    The other fields are as in KeptDelivery.
    """

    id: int
    partition: int
    listener_id: str
    message_id: str
    message_offset: int
    ordering_key: str | None
    record_offset: int
    number: int
    redrives: int
    forgiven: int
    since_ms: int
    first_at_ms: int
    due_ms: int | None
    queued_ms: int | None
    found: int
    record: bytes | None
    bare: int = False
    key_queue: KeyQueue | None = field(init=False)

    def __post_init__(self) -> None:
        key = self.ordering_key
        self.key_queue = None if key is None else (self.listener_id, self.partition, key)

    @property
    def key(self) -> bytes:
        """Its record's."""
        return entry_key(self.listener_id, self.message_id)

    @property
    def scheduled(self) -> bool:
        """Whether the entry waits for its `deliver_at`, or for another delivery of its ordering key. No attempt was
        made.
        """
        return self.number == 0 and self.due_ms is not None

    def redrive(self, redrives: Redrives, at_ms: int) -> bool:
        """Apply the listener's redrives. Return whether they make the entry due, with a fresh allowance.

        An entry without an attempt is not concerned: it is neither retrying nor parked.
        """
        since, self.redrives = self.redrives, redrives.count
        if since == redrives.count or self.scheduled or not redrives.concern(self.message_id, since=since):
            return False
        self.forgiven, self.since_ms, self.due_ms = self.number, at_ms, at_ms
        return True


def entry_key(listener_id: str, message_id: str) -> bytes:
    """Return the record key in `outstanding`."""
    return f"{listener_id}:{message_id}".encode()


def ids_in(key: bytes) -> tuple[str, str]:
    """Return the listener's and the message's id from a record key."""
    listener_id, _, message_id = key.decode().partition(":")
    return listener_id, message_id


def entry_of(event: KeptDelivery, offset: int, *, found: bool, record: bytes | None = None) -> OutstandingEntry:
    """Make an entry from a record, which is not in the index yet. With an ordering key it is queued when its turn
    comes.

    record: see the entry's field.
    """
    since_ms, due_ms = event.since_ms, event.next_at_ms if isinstance(event, DeliverySetAside) else None
    first_at_ms = event.first_at_ms
    if event.number and not first_at_ms:  # an older program's
        first_at_ms = since_ms or event.put_at_ms
    return OutstandingEntry(
        0,
        event.partition,
        event.listener_id,
        event.message_id,
        event.offset,
        event.key,
        offset,
        event.number,
        event.redrives,
        event.forgiven,
        since_ms,
        first_at_ms,
        due_ms,
        due_ms if event.key is None else None,
        found,
        record,
        UNREAD if event.error == DAMAGED else event.error in BARE,
    )
