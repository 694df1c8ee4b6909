"""Deliveries that are outstanding, found without their records in the topic `outstanding`.

For: a partition whose records there can't all be read. A message below a stream's cursor is settled or outstanding. It
is outstanding if `deliveries` has no success of it. Its ordering key and its time are read from the message.
Not for: the records that can be read (records.py).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Final

import msgspec

from broker.clock import now_ms
from broker.core.codec import decode, message_texts
from broker.core.cursor import Cursor
from broker.core.entities import Listener
from broker.core.events import DeliveriesSettled, DeliveryAttempted
from broker.delivery.outstanding.entry import UNREAD, Key, OutstandingEntry
from broker.delivery.ports import LogReader
from broker.errors import LogDamaged, UnknownEvent
from broker.ports import EARLIEST, LATEST, Record

_DELIVERED: Final = "delivered"
_BITS: Final = 1 << 16  # offsets of one bitmap

Streams = Sequence[tuple[Listener, Cursor]]  # listeners of a partition with cursors


class Outcomes:
    """The results of a partition's deliveries, read from the topic `deliveries`."""

    def __init__(self) -> None:
        # By listener id and message id: the newest failed attempt of the delivery.
        # A delivery in `failed` may have succeeded in a later attempt. delivered() says whether it has.
        self.failed: dict[Key, DeliveryAttempted] = {}
        self.whole = True  # whether all records could be read
        # By listener id and offset // _BITS: one bit for each of _BITS offsets. The bit is 1 if the message at this
        # offset was delivered. Several bitmaps need little memory even if the offsets are high.
        self._delivered: dict[tuple[str, int], bytearray] = {}

    def delivered(self, listener_id: str, offset: int) -> bool:
        """Return whether the readable results say that the listener has accepted the message at this offset."""
        bits = self._delivered.get((listener_id, offset // _BITS))
        return bits is not None and bool(bits[offset % _BITS // 8] >> offset % 8 & 1)

    def note(self, value: bytes) -> None:
        """Read a record of the topic `deliveries`, and remember the results of attempts in it. Ignore a record that
        can't be decoded.
        """
        try:
            event = decode(value)
        except (UnknownEvent, msgspec.MsgspecError):
            return
        if isinstance(event, DeliveriesSettled):
            for offset, *_ in event.rows:
                self._set(event.listener_id, offset)
        elif isinstance(event, DeliveryAttempted):
            key = event.listener_id, event.message_id
            self.failed.pop(key, None)
            if event.outcome == _DELIVERED:
                self._set(event.listener_id, event.offset)
            else:
                self.failed[key] = event

    def _set(self, listener_id: str, offset: int) -> None:
        place = listener_id, offset // _BITS
        bits = self._delivered.get(place)
        if bits is None:
            bits = self._delivered[place] = bytearray(_BITS // 8)
        bits[offset % _BITS // 8] |= 1 << offset % 8


async def outcomes_of(requests: LogReader, topic: str, partition: int) -> Outcomes:
    """Read the results of a partition's deliveries from the topic `deliveries`, except unreadable ones. Raises
    LogUnavailable if Kafka does not answer.
    """
    found = Outcomes()
    at, end = [(await requests.offsets(topic, {partition: moment}))[partition] for moment in (EARLIEST, LATEST)]
    while at < end:
        try:
            async for record in requests.walk(topic, partition, at, end):
                found.note(record.value or b"")
            break
        except LogDamaged as damage:
            found.whole = False
            at = damage.last + 1
    return found


async def rebuilt(
    requests: LogReader, topic: str, partition: int, outcomes: Outcomes, streams: Streams, *, at_once: int
) -> AsyncIterator[dict[Key, OutstandingEntry]]:
    """Yield the deliveries to these listeners that the topic `outstanding` should hold. Do not read this topic, because
    some of its records are damaged or missing. A delivery should be in the topic if the listener's cursor counts the
    message as settled, but no result in `outcomes` says that it was delivered. Deliveries of readable messages come
    first, in the order of the messages. Then come those of unreadable messages for which `outcomes` has a failed
    attempt.

    `topic` is the name of the topic `messages`. Raises LogUnavailable if Kafka does not answer.
    """
    begin, end = [(await requests.offsets(topic, {partition: moment}))[partition] for moment in (EARLIEST, LATEST)]
    by_queue: dict[bytes, list[_Stream]] = {}
    for listener, cursor in streams:
        by_queue.setdefault(listener.queue_id.encode(), []).append(_Stream(listener, cursor, partition))
    every = [stream for several in by_queue.values() for stream in several]
    begin = max(begin, min((stream.start for stream in every), default=end))
    end = min(end, max((stream.top for stream in every), default=begin))
    left, rows = dict(outcomes.failed), dict[Key, OutstandingEntry]()
    async for record in requests.walk(topic, partition, begin, end, pass_damaged=True):
        queue_id = record.headers[0][1] if record.headers else b""
        for stream in by_queue.get(queue_id or b"", ()):
            if stream.passed(record.offset) and not outcomes.delivered(stream.listener.id, record.offset):
                key = stream.listener.id, (record.key or b"").decode()
                rows[key] = _entry_of(record, partition, key, left.pop(key, None), known=outcomes.whole)
        if len(rows) >= at_once:
            yield rows
            rows = {}
    yield rows
    passed = {stream.listener.id: stream for stream in every}
    for some in _parts((one for one in left.values() if one.listener_id in passed), at_once):
        yield {
            (event.listener_id, event.message_id): _entry_after(event)
            for event in some
            if passed[event.listener_id].passed(event.offset)
            and not outcomes.delivered(event.listener_id, event.offset)
        }


class _Stream:
    """A listener's progress in one partition, taken from its committed offset. passed() returns whether the listener's
    delivery stream has finished a message: delivered it, or moved its delivery to the topic `outstanding`.
    """

    def __init__(self, listener: Listener, cursor: Cursor, partition: int) -> None:
        self.listener = listener
        self.start = listener.start_offsets[partition]
        self.top = min(cursor.top, listener.reach(partition, cursor.top))
        self._open = frozenset(cursor.open)
        self._takes = None if listener.replay is None else listener.replay.chooser(partition)

    def passed(self, offset: int) -> bool:
        if not self.start <= offset < self.top or offset in self._open:
            return False
        return self._takes is None or self._takes(offset)


def _entry_of(
    record: Record, partition: int, key: Key, failed: DeliveryAttempted | None, *, known: bool
) -> OutstandingEntry:
    """Return the SQLite index row for the delivery of this message. `failed` is the newest failed attempt of the
    delivery, or None if no failed attempt is known. `known` is false if some results of attempts are unreadable.
    """
    ordering_key, deliver_at_ms = None, 0
    try:
        texts = message_texts(record.value or b"")
        ordering_key, deliver_at_ms = texts.key, 0 if texts.deliver_at_ms is msgspec.UNSET else texts.deliver_at_ms
    except (UnknownEvent, msgspec.MsgspecError):  # The attempt will log this error.
        pass
    if failed is not None:
        return _entry_after(failed, ordering_key)
    # If some results are unreadable, the message may have been delivered. So park the delivery, and do not send it.
    due_ms = (deliver_at_ms or now_ms()) if known else None
    return _row(
        partition,
        key,
        record.offset,
        ordering_key,
        since_ms=deliver_at_ms,
        due_ms=due_ms,
        bare=True if known else UNREAD,
    )


def _entry_after(event: DeliveryAttempted, ordering_key: str | None = None) -> OutstandingEntry:
    """Return the SQLite index row for a delivery. `event` is its newest readable attempt, which has failed."""
    return _row(
        event.partition,
        (event.listener_id, event.message_id),
        event.offset,
        ordering_key,
        number=event.number,
        first_at_ms=event.at_ms,
        due_ms=event.next_at_ms,
        bare=True,
    )


def _row(
    partition: int,
    key: Key,
    offset: int,
    ordering_key: str | None,
    *,
    due_ms: int | None,
    bare: int,
    number: int = 0,
    since_ms: int = 0,
    first_at_ms: int = 0,
) -> OutstandingEntry:
    queued_ms = due_ms if ordering_key is None else None
    return OutstandingEntry(
        0,
        partition,
        *key,
        offset,
        ordering_key,
        -1,
        number,
        0,
        0,
        since_ms,
        first_at_ms,
        due_ms,
        queued_ms,
        True,
        None,
        bare,
    )


def _parts(events: Iterable[DeliveryAttempted], at_once: int) -> Iterable[list[DeliveryAttempted]]:
    some: list[DeliveryAttempted] = []
    for event in events:
        some.append(event)
        if len(some) >= at_once:
            yield some
            some = []
    yield some
