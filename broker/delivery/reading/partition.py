"""An owned partition: hands each message to the streams of its queue's listeners, and keeps recent messages in memory.

For: the fan-out of messages that the tail reader and the catch-up readers bring. Not for: which offsets a stream takes
(broker/core/window.py), reading for streams that lag (catch_up.py).
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Collection, Iterable, Sequence
from operator import attrgetter

from broker.delivery.dispatch.stream import Delivery, Dispatching, Stream
from broker.delivery.reading.message import Message
from broker.delivery.tuning import TUNED, Tuning

log = logging.getLogger(__name__)

_offset = attrgetter("offset")


class Partition:
    """A partition that this worker owns. It hands new messages to the listeners that keep up, and keeps recent messages
    in memory for listeners that lag a little.
    """

    def __init__(self, number: int, tail: int, tuning: Tuning = TUNED, *, held: Collection[int] = ()) -> None:
        self._held = held  # of the partitions in `held`, no listener gets a message into memory
        self._ring_max, self._ring_bytes_max = tuning.ring_max, tuning.ring_bytes_max
        self.number = number
        self.tail = tail  # offset of the next new message
        self._placed: set[Dispatching] = set()  # dispatchers whose cursor is known
        self._fed: dict[str, dict[Dispatching, None]] = {}  # by queue id, for new messages
        self._ring: list[Message] = []
        self._ring_bytes = 0
        self._ring_from = tail

    def feed(self, messages: Iterable[Message]) -> None:
        """Hand each new message to the dispatchers of its queue's listeners. Listeners that lag, or have no room in
        memory, get the message later.
        """
        number, fed, ring = self.number, self._fed, self._ring
        loads = not self.held
        for message in messages:
            offset = message.offset
            if offset < self.tail:
                continue
            self.tail = offset + 1
            ring.append(message)
            self._ring_bytes += message.size
            dispatchers = fed.get(message.queue_id)
            if dispatchers is None:
                continue
            scanning: list[Dispatching] = []
            for dispatcher in dispatchers:
                stream = dispatcher.streams.get(number)
                if stream is None:
                    stream = dispatcher.stream(number)
                window = stream.window
                delivery = (
                    Delivery(stream, offset, message) if loads and dispatcher.room() and not window.full else None
                )
                if window.seen(offset, delivery) and delivery is not None:
                    dispatcher.accept(delivery, message)
                elif not window.attached:
                    stream.behind_since_ms = stream.behind_since_ms or message.put_at_ms
                    if window.scan_from is not None:
                        scanning.append(dispatcher)
                    if stream in dispatcher.behind:  # The stream's cursor has not moved.
                        continue
                    dispatcher.behind[stream] = None
                if not stream.dirty:
                    stream.assignment.touched(stream)
            for dispatcher in scanning:
                del dispatchers[dispatcher]
        if len(ring) > self._ring_max or self._ring_bytes > self._ring_bytes_max:
            self._trim()

    @property
    def held(self) -> bool:
        """Whether no more messages are loaded, because Kafka does not store the results of the deliveries."""
        return self.number in self._held

    @property
    def recent(self) -> int:
        """The number of messages kept in memory for listeners that lag a little."""
        return len(self._ring)

    @property
    def recent_bytes(self) -> int:
        return self._ring_bytes

    def pass_over(self, last: int) -> None:
        """Skip the unreadable records up to the offset `last`, so that newer messages are delivered. For each listener
        that needs these records, a catch-up reader tries once more to read them. If it can't, it parks their deliveries
        (keeps them without further attempts).
        """
        if last < self.tail:
            return
        begin, self.tail = self.tail, last + 1
        self._ring.clear()
        self._ring_bytes, self._ring_from = 0, self.tail
        for dispatchers in list(self._fed.values()):
            for dispatcher in list(dispatchers):
                stream = dispatcher.stream(self.number)
                # A listener that begins after the offset `last` needs none of the unreadable records, so skip it.
                if stream.window.begin > last:
                    continue
                del dispatchers[dispatcher]
                stream.window.scan(begin)
                dispatcher.behind[stream] = None
                if not stream.dirty:
                    stream.assignment.touched(stream)
                dispatcher.wake()

    def pass_damage(self, stream: Stream, own: Iterable[int], begin: int | None, last: int) -> None:
        """Record that one listener no longer waits for unreadable records: its next messages are the ones after them.
        `own` has the offsets of unreadable messages that are known to be for this listener. If `begin` is not None,
        also skip all records from `begin` to `last`.
        """
        window = stream.window
        reach = stream.dispatcher.listener.reach(self.number, self.tail)
        for offset in own:
            window.gone(offset)
        if begin is not None:
            window.passed(begin, min(last + 1, self.tail), reach)
        if window.scan_from is None:
            self._feed_to(stream.dispatcher)
        stream.touch()
        note_caught_up(stream)

    def place(self, dispatcher: Dispatching) -> None:
        """Record that the listener's committed offset on this partition is loaded. From now on, new messages are handed
        to the listener as soon as they are read. There are two exceptions: a replay gets no new messages, and a
        listener that still needs older messages gets these first.
        """
        self._placed.add(dispatcher)
        stream = dispatcher.streams.get(self.number)
        if stream is None or stream.window.scan_from is None:
            self._feed_to(dispatcher)

    def remove(self, dispatcher: Dispatching) -> None:
        """Stop handing messages to a dispatcher, because the worker stops delivery to its listener."""
        self._placed.discard(dispatcher)
        self._fed.get(dispatcher.listener.queue_id, {}).pop(dispatcher, None)

    def placed(self, dispatcher: Dispatching) -> bool:
        """Return whether the committed offset of this dispatcher's listener on the partition is loaded."""
        return dispatcher in self._placed

    def feeds(self, dispatcher: Dispatching) -> bool:
        """Return True if new messages are handed to the listener as soon as they are read. Return False if older
        messages must be read for the listener first, or if the listener is a replay.
        """
        return dispatcher in self._fed.get(dispatcher.listener.queue_id, {})

    def _feed_to(self, dispatcher: Dispatching) -> None:
        if dispatcher.listener.replay is None:
            self._fed.setdefault(dispatcher.listener.queue_id, {})[dispatcher] = None

    def _trim(self) -> None:
        """Drop the older half of the recent messages. Repeat this until their number and bytes are within limits."""
        ring = self._ring
        while len(ring) > self._ring_max or self._ring_bytes > self._ring_bytes_max:
            cut = (len(ring) + 1) // 2
            self._ring_bytes -= sum(message.size for message in ring[:cut])
            del ring[:cut]
            self._ring_from = ring[0].offset if ring else self.tail

    def from_ring(self, stream: Stream) -> bool:
        """Hand a lagging listener its next messages from the recent messages in memory, as many as the listener can
        take. Return False if the listener needs no message, or if its next message is older than the messages in
        memory.
        """
        wanted = stream.window.wanted()
        if wanted is None or wanted < self._ring_from:
            return False
        self.bring(stream, self._ring, wanted, self.tail)
        return True

    def bring(self, stream: Stream, messages: Sequence[Message], start: int, end: int) -> None:
        """Hand a listener the messages of its queue, as many as the listener can take. `messages` has at least the
        messages of this partition from offset `start` to before `end`.
        """
        window, dispatcher, wants = stream.window, stream.dispatcher, stream.wants
        queue_id = dispatcher.listener.queue_id
        reach = dispatcher.listener.reach(self.number, self.tail)
        end = min(end, reach)
        wanted = window.wanted()
        for at in range(bisect_left(messages, start if wanted is None else wanted, key=_offset), len(messages)):
            message = messages[at]
            if message.queue_id != queue_id:
                continue
            offset = message.offset
            if offset >= end:
                break
            if wants is not None and not wants(offset):
                continue
            missing = offset in window.missing
            if not missing and not window.may_take(offset):
                continue
            if not dispatcher.room_for(stream, offset) or (window.full and not missing):
                stream.behind_since_ms = message.put_at_ms
                return
            if missing:
                found = window.found(offset)
                if found is not None:
                    dispatcher.accept(found, message)
                continue
            delivery = Delivery(stream, offset, message)
            window.take(offset, delivery)
            dispatcher.accept(delivery, message)
        window.passed(start, end, reach)
        if window.scan_from is None:
            self._feed_to(dispatcher)
        stream.touch()
        note_caught_up(stream)


def report_messages_gone(partition: int, wanted: int, begins: int) -> None:
    """Log a warning that Kafka has deleted records that this worker wanted to read, from offset `wanted` to before
    `begins`.
    """
    log.warning("worker.messages_gone partition=%d wanted=%d begins=%d", partition, wanted, begins)


def note_caught_up(stream: Stream) -> None:
    """Check whether the listener still needs older messages of this partition. If not, it no longer counts as lagging
    here.
    """
    if stream.window.wanted() is None:
        stream.dispatcher.behind.pop(stream, None)
        stream.behind_since_ms = 0
