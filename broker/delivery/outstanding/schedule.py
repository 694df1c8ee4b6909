"""Deliveries that have left their stream's window: they wait for their next attempt, or are parked.

For: storing them in the topic `outstanding`, knowing when each is due, and handing it to its dispatcher then. The
record is written and acknowledged before the cursor may pass the message. The index holds what is known of each
delivery.
Not for: the record (records.py), a row of the index (entry.py), when an attempt is due (broker/core/retry.py), sending
it (dispatcher.py), deliveries in a window.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Container, Mapping, Sequence

from broker.clock import now_ms
from broker.core.codec import encode
from broker.core.delivery import DROPPED
from broker.core.entities import Listener
from broker.core.events import DeliveryParked, KeptDelivery
from broker.core.ids import parse_damaged_id
from broker.core.key_order import ArrivingOffsets
from broker.delivery.dispatch.dispatcher import Dispatcher
from broker.delivery.dispatch.log_rate_limit import LogRateLimit
from broker.delivery.dispatch.stream import Delivery
from broker.delivery.outstanding.damaged import DamagedDeliveries
from broker.delivery.outstanding.due import Due
from broker.delivery.outstanding.entry import KeyQueue, OutstandingEntry, entry_key, entry_of
from broker.delivery.outstanding.index import OutstandingIndex
from broker.delivery.outstanding.mending import Mending
from broker.delivery.outstanding.rebuild import Streams
from broker.delivery.outstanding.records import OutstandingRecords, kept_event
from broker.delivery.outstanding.redriving import Redrives
from broker.delivery.outstanding.sync import IndexSync, WatchedAppender
from broker.delivery.ports import Appender, LogReader
from broker.delivery.reading.message import Message
from broker.delivery.reading.partition import Partition
from broker.delivery.tuning import TUNED, Tuning
from broker.errors import LogDamaged, LogUnavailable
from broker.ports import Count

log = logging.getLogger(__name__)


class Outstanding:
    """The deliveries of a worker's partitions that are stored in the topic `outstanding`. Each is parked (no more
    attempts) or waits, for example for a retry or for its `deliver_at` time.
    """

    def __init__(
        self,
        topic: Appender,
        requests: LogReader,
        messages_topic: str,
        partitions: dict[int, Partition],
        dispatchers: Mapping[str, Dispatcher],
        assure: Callable[[], Awaitable[None]],
        count: Count | None = None,
        deliveries_topic: str | None = None,
        tuning: Tuning = TUNED,
    ) -> None:
        self._tuning = tuning
        topic = self._written = WatchedAppender(topic)
        self._assure = assure
        self._count = count
        self._topic = topic
        self._records = OutstandingRecords(topic, requests, messages_topic, deliveries_topic, tuning)
        self._dispatchers = dispatchers
        self._index = OutstandingIndex(tuning.index_cache_kib)
        self._owned: set[int] = set()
        # By ordering key: deliveries that are being written to `outstanding`. The key's later deliveries must wait.
        self._coming: ArrivingOffsets[KeyQueue] = ArrivingOffsets()
        self._redrives = Redrives(self._index, self._owned, tuning)
        self._due = due = Due(
            self._index, self._coming, self._redrives, partitions, dispatchers, self._message_of, tuning
        )
        self.pause = due.pause
        self._sync = IndexSync(self._index, self._records, topic, requests, due, tuning)
        self.notes = self._sync.notes
        self._settled: dict[int, list[tuple[bytes, bytes | None]]] = {}
        self.unflushed: frozenset[int] = frozenset()  # the partitions whose tombstones the last flush() did not write
        self._damaged = DamagedDeliveries(
            topic, self._records, self._owned, dispatchers, self._enter, due.remove, due.retry, assure, tuning
        )
        mending = Mending(self._index, due, self._owned, self._damaged.park_again, self.cancel, tuning)
        self.review = mending.review

    # Ownership

    async def read(self, partition: int, streams: Callable[[], Streams] = tuple, *, noted: str = "") -> None:
        """Read a partition's deliveries from the topic `outstanding` into the index. take_over() must be called
        afterwards. Raises LogUnavailable if Kafka does not answer.

        `streams` returns the listeners' committed offsets, which are needed only if records are damaged or missing.
        `noted` is the fingerprint of the partition's deliveries, which the former owner committed, as text.
        """
        # The index now has the deliveries whose records were lost, so flush() may delete the empty records for them.
        for key in await self._sync.read(partition, streams, noted):
            self._settled.setdefault(partition, []).append((key, None))

    def take_over(self, partition: int) -> None:
        """Begin to serve the deliveries that read() has found. Call this when the worker owns the partition and the
        listeners' dispatchers exist.
        """
        self._owned.add(partition)
        for listener_id, count in self._index.counts.items():
            if partition in count.due:
                self._due.note(listener_id, 0)
            dispatcher = self._dispatchers.get(listener_id)
            if dispatcher is not None:
                self._redrives.begin(dispatcher.listener, self._due)

    def close(self) -> None:
        """Close the index, because the worker lost the partitions. The next owner builds an index of its own."""
        self._owned.clear()
        self._sync.close()
        self._index.close()

    async def note(self) -> None:
        """Update the fingerprint of each partition: the number of its stored deliveries, and a hash of their keys. A
        partition keeps its former fingerprint if it is not certain what is stored, such as during a write.
        """
        await self._sync.note(one for one in self._owned if one not in self._settled)

    # Deliveries that are stored

    def overtakes(self, delivery: Delivery) -> bool:
        """Return whether an attempt of this delivery would break the order of its ordering key. This is so if an
        earlier delivery with the key is being written to `outstanding`, or is stored there and not parked.
        """
        key_queue = _key_queue(delivery) if self._coming or self._index.queued_keys else None
        if key_queue is None:
            return False
        first = self._coming.first(key_queue)
        return (first is not None and first < delivery.offset) or self._index.begins_before(key_queue, delivery.offset)

    def expect(
        self, delivery: Delivery, message: Message, status: int | None, error: str | None, due_ms: int | None
    ) -> KeptDelivery:
        """Announce that a delivery will be written to the topic `outstanding`, and return its event. Unless the
        delivery is parked, later ones of its ordering key now wait. If it is not written, call expect_no_more().
        """
        key_queue = _key_queue(delivery)
        if key_queue is not None and due_ms is not None:
            self._coming.join(key_queue, delivery.offset)
        # The event has the listener's number of redrives until now. So a redrive with a higher number came later.
        return kept_event(delivery, message, status, error, due_ms)

    def expect_no_more(self, delivery: Delivery) -> None:
        """Undo expect(), because the delivery was not stored. Later deliveries of its ordering key need not wait."""
        key_queue = _key_queue(delivery)
        if key_queue is not None:
            self._coming.leave(key_queue, delivery.offset)
            self._due.advance(key_queue)

    async def set_aside(self, delivery: Delivery, event: KeptDelivery) -> bool:
        """Write a delivery's event, which expect() returned, to the topic `outstanding`. Repeat the write until Kafka
        has stored the event, and return True. Return False if the delivery was dropped before that, because the worker
        lost the partition or the listener was deleted.
        """
        stream = delivery.stream
        key, value = entry_key(event.listener_id, event.message_id), encode(event)
        message = delivery.message
        # Count the first record of a delivery in `outstanding` as stored bytes of the organization.
        # Count a later record of the delivery only if the message was updated: unchanged data was counted before.
        counts = delivery.entry is None or (message is not None and message.change() >= 0)
        while delivery.state is not DROPPED:
            try:
                # Before each try, check that this worker owns the partition: a new owner may have sent the message.
                await self._assure()
                if delivery.state is DROPPED:
                    break
                offset = await self._topic.append_one(stream.partition, key, value)
            except LogUnavailable:
                await asyncio.sleep(self._tuning.append_pause_s)
                continue
            if self._count is not None and counts:
                # Count the bytes twice, because outdated records may take as much space until Kafka compacts the topic.
                self._count(event.organization_id, 2 * len(value))
            # If the delivery was dropped because its listener was deleted, bury() will find it in the index. If the
            # listener comes back, its new dispatcher may still read the message: `found` lets the delivery wait for it.
            if stream.partition in self._owned:
                found = delivery.state is DROPPED
                self._enter(entry_of(event, offset, found=found, record=value if offset < 0 else None))
            if isinstance(event, DeliveryParked):
                _log_parked(event, stream.dispatcher.parked_lines)
            return True
        return False

    async def park_damaged(self, partition: int, ranges: Sequence[tuple[Listener, int, int]]) -> bool:
        """Park the deliveries that these listeners may have at unreadable offsets: keep them without further attempts.
        Return False if this worker has not taken the partition over. Raises LogUnavailable if Kafka does not answer.
        """
        await self._damaged.park(partition, ranges)
        return partition in self._owned

    def damaged(self) -> int:
        """Return how many deliveries in the index stand for a range of unreadable messages."""
        return sum(map(self._index.damaged, self._owned))

    def _enter(self, entry: OutstandingEntry) -> None:
        """Add a record that was written to the topic `outstanding` to the index. If a redrive (a request to retry now)
        came during the write, the delivery is due now.
        """
        dispatcher, key_queue = self._dispatchers.get(entry.listener_id), entry.key_queue
        if dispatcher is not None and entry.redrive(dispatcher.listener.redrives, now_ms()) and key_queue is None:
            entry.queued_ms = entry.due_ms
        for before in self._index.write(entry.partition, {(entry.listener_id, entry.message_id): entry}, now_ms()):
            self._due.taken.pop(before.id, None)
        if key_queue is not None:
            self._coming.leave(key_queue, entry.message_offset)
            self._due.advance(key_queue)
        elif entry.due_ms is not None:
            self._due.note(entry.listener_id, entry.due_ms)

    # State of the stored deliveries

    def __len__(self) -> int:
        """Return how many deliveries of this worker, including parked ones, the topic `outstanding` holds."""
        return len(self._index)

    def is_outstanding(self, delivery: Delivery) -> bool:
        """Return whether this delivery is already stored in the topic `outstanding`. This is possible after a crash: if
        the listener's offset was not committed before, the worker reads the message again.
        """
        message, listener_id = delivery.message, delivery.stream.dispatcher.listener.id
        if message is None or listener_id not in self._index.counts:
            return False
        return self._index.find(delivery.stream.partition, listener_id, message.id.decode()) is not None

    def state(self, partition: int, listener_id: str, message_id: str) -> str | None:
        """Return the state of a delivery in the topic `outstanding`: `pending`, `retrying` or `parked`. Return None if
        it is not stored there.
        """
        entry = self._index.find(partition, listener_id, message_id)
        if entry is None:
            return None
        dispatcher = self._dispatchers.get(listener_id)
        if dispatcher is not None:
            entry.redrive(dispatcher.listener.redrives, now_ms())
        if entry.scheduled:
            return "pending"
        return "parked" if entry.due_ms is None else "retrying"

    def retrying(self, partition: int, listener_id: str) -> bool:
        """Return whether a delivery from this partition to the listener waits in `outstanding` for an attempt. Also
        return True while a redrive is still making parked deliveries of the listener due.
        """
        count = self._index.counts.get(listener_id)
        return count is not None and (listener_id in self._redrives or count.due.get(partition, 0) > 0)

    def waiting(self, partition: int, listener_id: str) -> tuple[int, int | None]:
        """Return how many messages in this partition of `outstanding` wait for the listener, and when the oldest of
        them was put. Parked deliveries, and messages whose `deliver_at` is later, do not wait.
        """
        return self._index.waiting(partition, listener_id, now_ms())

    def held(self, partition: int, listener_id: str) -> tuple[int, int]:
        """Return how many of the listener's deliveries in this partition are parked, and how many will be retried after
        a failed attempt.
        """
        count = self._index.counts.get(listener_id)
        return (0, 0) if count is None else (count.parked.get(partition, 0), count.retrying.get(partition, 0))

    def held_of(self, listener_id: str) -> tuple[int, int]:
        """Return how many parked and how many retrying deliveries the listener has in this worker's partitions."""
        count = self._index.counts.get(listener_id)
        return (0, 0) if count is None else (sum(count.parked.values()), sum(count.retrying.values()))

    def take_changed(self) -> dict[str, set[int]]:
        """Return, by listener id, the partitions in which the listener's stored deliveries have changed since the
        previous call of this method.
        """
        changed, self._index.changed = self._index.changed, {}
        return changed

    def listeners(self) -> set[str]:
        """Return the ids of the listeners with deliveries in this worker's partitions of the topic `outstanding`."""
        return set(self._index.counts)

    def has_message(self, partition: int, message_id: str) -> bool:
        """Return whether this partition of `outstanding` has a delivery of this message to at least one listener."""
        return self._index.has_message(partition, message_id)

    def oldest_put_ms(self, partition: int) -> int | None:
        """Return the put time of the oldest message with a delivery in this partition of `outstanding`, or None if
        there is no delivery. If one delivery stands for a range of unreadable messages, return 0.
        """
        return self._index.oldest_put_ms(partition)

    def oldest_bare_put_ms(self, partition: int) -> int | None:
        """Return the put time of the oldest message of which this partition of `outstanding` has a delivery, but no
        copy. Return None if there is none. If one delivery stands for a range of unreadable messages, return 0.
        """
        return self._index.oldest_bare_put_ms(partition)

    # Deliveries that end

    def delivered(self, delivery: Delivery) -> None:
        """End a delivery that came from the topic `outstanding`: the listener has accepted it, or its message was
        deleted. The next flush() writes its tombstone.
        """
        if delivery.entry is not None:
            self.cancel(delivery.entry.partition, delivery.entry.listener_id, delivery.entry.message_id)

    def cancel(self, partition: int, listener_id: str, message_id: str) -> None:
        """Cancel a delivery that is stored in the topic `outstanding`. The next flush() writes its tombstone."""
        entry = self._index.find(partition, listener_id, message_id)
        if entry is not None and self._due.remove(entry):
            self._settled.setdefault(partition, []).append((entry.key, None))

    async def bury(self, listeners: Container[str]) -> None:
        """Cancel all stored deliveries of these listeners, and write their tombstones. Raises LogUnavailable if Kafka
        does not store them.
        """
        self._coming.forget(lambda key_queue: key_queue[0] in listeners)
        for listener_id in [one for one in self._index.counts if one in listeners]:
            while rows := self._index.of_listener(listener_id, limit=self._tuning.rows_at_once):
                await _bury(self._topic, rows, self._due.remove)

    async def flush(self) -> None:
        """Write the tombstones of ended deliveries to the topic `outstanding`. Raises LogUnavailable if Kafka does not
        store some of them. `unflushed` then has their partitions, and the next call tries again.
        """
        settled, self._settled = self._settled, {}
        self.unflushed = frozenset()
        try:
            if settled:
                await self._topic.append(settled)
        except BaseException:  # including CancelledError
            self.unflushed = frozenset(settled)
            for partition, records in settled.items():
                self._settled.setdefault(partition, []).extend(records)
            raise

    def returned(self, delivery: Delivery) -> None:
        """Schedule a delivery from the topic `outstanding` again, because it could not be attempted now. If a cancelled
        redrive had made the delivery due, restore the delivery's state from before the redrive instead.
        """
        if delivery.entry is not None:
            self._due.put_back(delivery.entry)

    def removed(self, listener_id: str) -> None:
        """Schedule the deliveries of a listener's removed dispatcher again: the listener may get a new one. Its
        deliveries no longer wait for earlier ones of their ordering key that are being written to `outstanding`.
        """
        key_queues = self._coming.forget(lambda key_queue: key_queue[0] == listener_id)
        for entry in [one for one in self._due.taken.values() if one.listener_id == listener_id]:
            self._due.put_back(entry)
        for key_queue in key_queues:
            self._due.advance(key_queue)

    # Deliveries that are due

    async def serve_due(self) -> bool:
        """Hand some due deliveries to the dispatchers of their listeners. Return True if the caller should call this
        method again at once, because more deliveries may be due.
        """
        return await self._due.serve(owns_any=bool(self._owned))

    def redrive(self, listener: Listener) -> None:
        """Begin the listener's new redrives, which make retrying and parked deliveries due now."""
        self._redrives.begin_now(listener, self._due)

    async def undo_cancelled(self, listener: Listener) -> None:
        """Undo the cancelled redrives of this listener. A delivery that was not attempted since its redrive is parked
        or retrying again, as it was before.
        """
        await self._redrives.undo_cancelled(listener, self._due)

    async def _message_of(self, entry: OutstandingEntry) -> Message | LogUnavailable | None:
        try:
            try:
                if parse_damaged_id(entry.message_id) is not None:
                    await self._damaged.again(entry)
                    return None
                message = await self._records.message(entry)
                # If the message is None, the delivery leaves the index. Kafka may still have the delivery's record.
                if message is None:
                    self._written.doubt(entry.partition, entry.key)
            except LogDamaged:
                await self._damaged.park_again(entry)
                return None
            # The read may have taken long, so check that the worker still owns the partition.
            await self._assure()
        except LogUnavailable as error:
            return error
        return message


async def _bury(
    topic: WatchedAppender, rows: Sequence[OutstandingEntry], remove: Callable[[OutstandingEntry], object]
) -> None:
    tombstones: dict[int, list[tuple[bytes, bytes | None]]] = {}
    for entry in rows:
        tombstones.setdefault(entry.partition, []).append((entry.key, None))

    def stored(partition: int) -> None:
        for entry in rows:
            if entry.partition == partition:
                remove(entry)

    await topic.append(tombstones, stored)


def _key_queue(delivery: Delivery) -> KeyQueue | None:
    key = None if delivery.message is None else delivery.message.key
    return None if key is None else (delivery.stream.dispatcher.listener.id, delivery.stream.partition, key)


def _log_parked(event: DeliveryParked, lines: LogRateLimit) -> None:
    result = event.error if event.status is None else event.status
    left_out = lines.left_out(event.at_ms, result)
    if left_out is not None:
        log.warning(
            "delivery.parked message=%s listener=%s queue=%s attempts=%d status=%s error=%s age_ms=%d %s",
            event.message_id,
            event.listener_id,
            event.queue_id,
            event.number,
            event.status,
            event.error,
            event.at_ms - event.put_at_ms,
            left_out,
        )
