"""Deliveries of messages that can't be read from Kafka: they are parked, and delivered once the messages are readable.

For: the record of such a delivery in `outstanding`, and what follows when it is redriven, mended or given up. If the
messages and their queues are unknown, one record stands for all deliveries that a listener may have in the unreadable
range (`broker/core/ids.py`, damaged_id).
Not for: finding the damage (broker/kafka), all other deliveries (schedule.py).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence

from broker.clock import now_ms
from broker.core.codec import encode
from broker.core.entities import Listener, Queue
from broker.core.events import DAMAGED, UNDECODABLE, DeliveryParked, DeliverySetAside, KeptDelivery
from broker.core.ids import damaged_id, parse_damaged_id, parse_message_id
from broker.delivery.dispatch.dispatcher import Dispatcher
from broker.delivery.outstanding.entry import OutstandingEntry, entry_key, entry_of
from broker.delivery.outstanding.records import OutstandingRecords, message_fields
from broker.delivery.outstanding.sync import WatchedAppender
from broker.delivery.reading.message import Message
from broker.delivery.tuning import TUNED, Tuning
from broker.errors import UnknownEvent


class DamagedDeliveries:
    """The deliveries in a worker's partitions whose messages can't be read from Kafka."""

    def __init__(
        self,
        topic: WatchedAppender,
        records: OutstandingRecords,
        owned: Collection[int],
        dispatchers: Mapping[str, Dispatcher],
        enter: Callable[[OutstandingEntry], None],
        remove: Callable[[OutstandingEntry], bool],
        retry: Callable[[OutstandingEntry], None],
        assure: Callable[[], Awaitable[None]],
        tuning: Tuning = TUNED,
    ) -> None:
        self._at_once = tuning.damaged_at_once
        self._topic = topic
        self._records = records
        self._owned = owned  # the partitions that this worker owns; empty after it has handed over or lost them
        self._dispatchers = dispatchers
        self._enter = enter  # adds a record to the index
        self._remove = remove  # removes a record from the index
        self._retry = retry  # makes a parked delivery due now
        self._assure = assure  # raises if partitions are lost

    async def park(self, partition: int, ranges: Iterable[tuple[Listener, int, int]]) -> None:
        """Park deliveries, which then get no further attempts: store them in the topic `outstanding`, and in the index.
        Each item of `ranges` is a listener, and the first and last offset of a range of messages that can't be read.

        Raises LogUnavailable if Kafka does not answer or the worker has lost the partition.
        """
        events = [_parked(listener, partition, first, last) for listener, first, last in ranges]
        for at in range(0, len(events), self._at_once):
            await self._write(partition, events[at : at + self._at_once])

    async def park_again(self, entry: OutstandingEntry) -> None:
        """Park a delivery whose message can't be read. It is attempted again only after a redrive, or after `everput
        mend` has restored the message. Raises LogUnavailable if Kafka does not answer.
        """
        dispatcher = self._dispatchers.get(entry.listener_id)
        if dispatcher is None:
            return
        event = _parked(dispatcher.listener, entry.partition, entry.message_offset, entry.message_offset, entry)
        await self._write(entry.partition, [event], instead_of=entry)

    async def again(self, entry: OutstandingEntry) -> None:
        """Begin to replace a record that stands for a range of unreadable messages, because these messages can be read
        again. Read the first messages of the range, and write one record for each of them that the listener should
        receive. Another record then stands for the rest of the range, and is due now. So a long range needs little
        memory, and other deliveries go on meanwhile. Raises LogDamaged if the first messages are still unreadable.
        """
        where, dispatcher = parse_damaged_id(entry.message_id), self._dispatchers.get(entry.listener_id)
        if where is None or dispatcher is None:
            return
        partition, first, last = where
        listener, queue = dispatcher.listener, dispatcher.queue
        takes = None if listener.replay is None else listener.replay.chooser(partition)
        found, rest_from = await self._records.messages_in(partition, first, last)
        wanted = [
            message
            for message in found
            if message.queue_id == queue.id
            and message.offset >= listener.start_offsets[partition]
            and (takes is None or takes(message.offset))
        ]
        if len(wanted) > self._at_once:
            rest_from = wanted[self._at_once].offset
            del wanted[self._at_once :]
        events = [_readable(listener, queue, partition, message) for message in wanted]
        rest = _parked(listener, partition, rest_from, last) if rest_from <= last else None
        await self._write(partition, events, instead_of=entry, rest=rest)

    async def _write(
        self,
        partition: int,
        events: Sequence[KeptDelivery],
        *,
        instead_of: OutstandingEntry | None = None,
        rest: DeliveryParked | None = None,
    ) -> None:
        """Store these events in the topic `outstanding`, and in the index. They replace the delivery `instead_of`. Also
        store `rest`, which parks deliveries, and make these deliveries due now.
        """
        await self._assure()
        every = [*events, *(() if rest is None else (rest,))]
        rows = [_record(event) for event in every]
        ended = [] if instead_of is None or instead_of.key in dict(rows) else [instead_of]

        def stored(partition: int) -> None:
            if partition not in self._owned:
                return  # The worker lost the partition during the write. Its index is closed, so do not update it.
            for event, (_, record) in zip(every, rows, strict=True):
                row = entry_of(event, -1, found=False, record=record)
                self._enter(row)
                if event is rest:
                    self._retry(row)
            for entry in ended:
                self._remove(entry)

        await self._topic.append({partition: [*rows, *((entry.key, None) for entry in ended)]}, stored)


def _record(event: KeptDelivery) -> tuple[bytes, bytes | None]:
    return entry_key(event.listener_id, event.message_id), encode(event)


def _parked(
    listener: Listener, partition: int, first: int, last: int, entry: OutstandingEntry | None = None
) -> DeliveryParked:
    """Return an event that parks deliveries to a listener. A parked delivery gets no more attempts until a client
    redrives it, or until its message can be read again.

    Without `entry`, the event parks all deliveries that the listener may have of the partition's messages from offset
    `first` to `last` (inclusive), which can't be read.

    With `entry`, which is one delivery's row in the index of the topic `outstanding`, the event parks only this
    delivery.
    """
    place = None if entry is None else parse_message_id(entry.message_id)
    return DeliveryParked(
        at_ms=now_ms(),
        organization_id=listener.organization_id,
        actor="worker",
        listener_id=listener.id,
        queue_id=listener.queue_id,
        message_id=damaged_id(partition, first, last) if entry is None else entry.message_id,
        partition=partition,
        offset=first,
        number=0 if entry is None else entry.number,
        status=None,
        error=DAMAGED,
        put_at_ms=now_ms() if place is None else place[0],
        name="",
        data="",
        key=None if entry is None else entry.ordering_key,
        redrives=listener.redrives.count,
        forgiven=0 if entry is None else entry.forgiven,
        since_ms=0 if entry is None else entry.since_ms,
        first_at_ms=0 if entry is None else entry.first_at_ms,
    )


def _readable(listener: Listener, queue: Queue, partition: int, message: Message) -> KeptDelivery:
    """Return the event that stores a delivery and its message in the topic `outstanding`. The delivery is due at the
    message's `deliver_at`, or now if the message has none. If the message can't be decoded, the event parks the
    delivery.
    """
    try:
        message.body(queue)
    except UnknownEvent:
        return DeliveryParked(**message_fields(listener, partition, message) | {"error": UNDECODABLE})
    fields = message_fields(listener, partition, message)
    return DeliverySetAside(**fields, next_at_ms=message.deliver_at_ms or now_ms())
