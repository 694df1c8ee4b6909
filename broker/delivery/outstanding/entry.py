"""One delivery in the topic `outstanding`, as a row of the worker's index.

For: OutstandingEntry, and its relation to the Kafka record. Not for: the record (records.py), when a delivery is due
and which dispatcher gets it (due.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from broker.core.events import BARE, DAMAGED, DeliverySetAside, KeptDelivery
from broker.core.redrives import Redrives

UNREAD: Final = 2
Key = tuple[str, str]  # ids of a listener and message
KeyQueue = tuple[str, int, str]  # listener id, partition, ordering key


@dataclass(slots=True, eq=False)
class OutstandingEntry:
    """A delivery in the topic `outstanding`, as a row of the SQLite index at the time when the row was read. A field
    without a comment means the same as in the event KeptDelivery. Two fields have other names there: `message_offset`
    is called `offset`, and `ordering_key` is called `key`.
    """

    # The id of the row in the SQLite index. If the row of a delivery is replaced, the new row has a new id.
    id: int
    partition: int
    listener_id: str
    message_id: str
    message_offset: int
    ordering_key: str | None
    record_offset: int  # offset of the record in `outstanding`; negative if unknown
    number: int
    redrives: int
    forgiven: int
    since_ms: int
    first_at_ms: int
    due_ms: int | None  # None if the delivery is parked
    queued_ms: int | None  # when the row is examined next
    # `found` is 1 if this worker read or rebuilt the delivery when it took the partition over, or if the delivery was
    # dropped while its record was being written. Otherwise, it is 0.
    # If `found` is 1, attempts wait until the worker has read beyond this message for the listener: see may_leave().
    found: int
    record: bytes | None  # the value of the Kafka record, kept only if the record's offset is unknown
    # `bare` is true if the delivery's record has no copy of the message's data, which is only in the topic `messages`.
    # `bare` is UNREAD if the delivery is parked because its message, its update or its earlier results can't be read.
    bare: int = False
    # A redrive changes `forgiven`, `since_ms` and `due_ms`. undo() restores the values of `undo_…`.
    # If the delivery was not redriven since its newest attempt, `undo_forgiven` is None.
    undo_forgiven: int | None = None
    undo_since_ms: int = 0
    undo_due_ms: int | None = None
    waits: bool = False  # whether the index counts this message as waiting for the listener
    key_queue: KeyQueue | None = field(init=False)  # identifies its ordering key

    def __post_init__(self) -> None:
        key = self.ordering_key
        self.key_queue = None if key is None else (self.listener_id, self.partition, key)

    @property
    def key(self) -> bytes:
        """The key of the delivery's record in the topic `outstanding`."""
        return entry_key(self.listener_id, self.message_id)

    @property
    def scheduled(self) -> bool:
        """Whether the delivery is not parked, and no attempt was made yet. For example, it waits for its `deliver_at`
        time, or for an earlier delivery with the same ordering key.
        """
        return self.number == 0 and self.due_ms is not None

    def waits_at(self, at_ms: int) -> bool:
        """Return whether the message waits for the listener at the time `at_ms`. A message whose delivery is parked
        does not wait. A message that was not attempted yet waits only from its `deliver_at` on.
        """
        return self.due_ms is not None and (self.number > 0 or self.due_ms <= at_ms)

    def redrive(self, redrives: Redrives, at_ms: int) -> bool:
        """Apply the listener's redrives (requests to retry deliveries now) to this delivery. If a redrive concerns the
        delivery, make it due now, with all its attempts again, and return True. The caller must then update the row in
        the index. A delivery that waits for its first attempt does not become due.
        """
        since = self.redrives
        if since == redrives.count or self.scheduled or not redrives.concern(self.message_id, since=since):
            # If a cancelled redrive is not undone yet, keep its number in `redrives`, for is_cancelled().
            if not self.is_cancelled(redrives):
                self.redrives = redrives.count
            return False
        self.redrives = redrives.count
        if self.undo_forgiven is None:
            self.undo_forgiven, self.undo_since_ms, self.undo_due_ms = self.forgiven, self.since_ms, self.due_ms
        self.forgiven, self.since_ms, self.due_ms = self.number, at_ms, at_ms
        return True

    def is_cancelled(self, redrives: Redrives) -> bool:
        """Return whether a redrive (a request to retry now) has made the delivery due, and was cancelled before the
        next attempt.
        """
        return self.undo_forgiven is not None and self.redrives <= redrives.cancelled

    def undo(self) -> None:
        """Undo all redrives (requests to retry now) since the delivery's newest attempt. If the delivery was parked
        (kept without further attempts) before the redrives, it is parked again. Otherwise, it waits for its next retry
        again.
        """
        self.forgiven, self.since_ms, self.due_ms = self.undo_forgiven or 0, self.undo_since_ms, self.undo_due_ms
        self.undo_forgiven = None


def entry_key(listener_id: str, message_id: str) -> bytes:
    """Return the key of the delivery's record in the topic `outstanding`."""
    return f"{listener_id}:{message_id}".encode()


def ids_in(key: bytes) -> tuple[str, str]:
    """Return the listener's id and the message's id from a record key of the topic `outstanding`."""
    listener_id, _, message_id = key.decode().partition(":")
    return listener_id, message_id


def entry_of(event: KeptDelivery, offset: int, *, found: bool, record: bytes | None = None) -> OutstandingEntry:
    """Return a row of the SQLite index for a record of the topic `outstanding`. The row is not inserted yet. If the
    offset of the record is unknown, pass the record's bytes as `record`.
    """
    since_ms, due_ms = event.since_ms, event.next_at_ms if isinstance(event, DeliverySetAside) else None
    first_at_ms = event.first_at_ms
    if event.number and not first_at_ms:  # written by an older version
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
