"""One delivery in `outstanding`: what is known of it.

For: Owed, and what it says of its record. Not for: the record (records.py), when it is due and who gets it then
(schedule.py).
"""

from __future__ import annotations

from typing import Final

from broker.core.events import BARE, DAMAGED, DeliverySetAside, KeptDelivery
from broker.core.redrives import Redrives

UNREAD: Final = 2
Key = tuple[str, str]  # the ids of a listener and of a message
Line = tuple[str, int, str]  # a listener's id, a partition, an ordering key


class Owed:
    """A row of the ledger (index.py), as it was when it was read.

    id: changes each time that it is written. place: its message's offset. ordering_key: None when it has none.
    offset: of its record in `outstanding`, below 0 when that is not known: then `record` has its value. due_ms: None
    when it is parked. queued_ms: see index.py. found: it was there when the partition was taken over, so its stream's
    window may bring it once more. bare: its record has no payload, so its message must stay in the log; UNREAD: because
    its message could not be read. line: in which it waits with others of its ordering key. The rest as in KeptDelivery.
    """

    __slots__ = (
        "bare",
        "due_ms",
        "first_at_ms",
        "forgiven",
        "found",
        "id",
        "line",
        "listener_id",
        "message_id",
        "number",
        "offset",
        "ordering_key",
        "partition",
        "place",
        "queued_ms",
        "record",
        "redrives",
        "since_ms",
    )

    def __init__(
        self,
        row_id: int,
        partition: int,
        listener_id: str,
        message_id: str,
        place: int,
        ordering_key: str | None,
        offset: int,
        number: int,
        redrives: int,
        forgiven: int,
        since_ms: int,
        first_at_ms: int,
        due_ms: int | None,
        queued_ms: int | None,
        found: int,
        record: bytes | None,
        bare: int = False,
    ) -> None:
        self.id = row_id
        self.partition = partition
        self.listener_id = listener_id
        self.message_id = message_id
        self.place = place
        self.ordering_key = ordering_key
        self.offset = offset
        self.number = number
        self.redrives = redrives
        self.forgiven = forgiven
        self.since_ms = since_ms
        self.first_at_ms = first_at_ms
        self.due_ms = due_ms
        self.queued_ms = queued_ms
        self.found = found
        self.record = record
        self.bare = bare
        self.line: Line | None = None if ordering_key is None else (listener_id, partition, ordering_key)

    @property
    def key(self) -> bytes:
        """Its record's."""
        return owed_key(self.listener_id, self.message_id)

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


def ids_in(key: bytes) -> tuple[str, str]:
    """The ids of the listener and of the message that a record with this key is of."""
    listener_id, _, message_id = key.decode().partition(":")
    return listener_id, message_id


def owed_by(event: KeptDelivery, offset: int, *, found: bool, record: bytes | None = None) -> Owed:
    """What a record at an offset says, not in the ledger yet: what has an ordering key is queued when it is its turn.

    record: see Owed."""
    since_ms, due_ms = event.since_ms, event.next_at_ms if isinstance(event, DeliverySetAside) else None
    first_at_ms = event.first_at_ms
    if event.number and not first_at_ms:  # an older program's
        first_at_ms = since_ms or event.put_at_ms
    return Owed(
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
