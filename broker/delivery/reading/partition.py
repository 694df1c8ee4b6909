"""An owned partition: which streams the tail feeds, the ring of recent messages, how far the tail has come.

For: the fan-out of what the tail and the catch-up readers bring. Not for: which offsets a stream takes
(broker/core/window.py), reading for streams that lag (catch_up.py).
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from operator import attrgetter

from broker.delivery.dispatch.stream import Delivery, Dispatching, Stream
from broker.delivery.reading.message import Message
from broker.delivery.tuning import TUNED, Tuning

log = logging.getLogger(__name__)

_offset = attrgetter("offset")


class Partition:
    """An owned partition. tail: the next offset the tail reader will bring.

    A dispatcher is *placed* once its cursor here is known. The tail feeds the
    dispatchers of a message's queue whose streams keep up. One that must scan the log costs the tail nothing until a
    catch-up reader has brought it back.
    """

    def __init__(self, number: int, tail: int, tuning: Tuning = TUNED) -> None:
        self._ring_max, self._ring_bytes_max = tuning.ring_max, tuning.ring_bytes_max
        self.number = number
        self.tail = tail
        self._placed: set[Dispatching] = set()
        self._fed: dict[
            str, dict[Dispatching, None]
        ] = {}  # The dispatchers that the tail feeds, by queue id; there may be thousands.
        self._ring: list[Message] = []
        self._ring_bytes = 0
        self._ring_from = tail

    def feed(self, messages: Iterable[Message]) -> None:
        """Give the tail's next messages to the streams that keep up."""
        number, fed, ring = self.number, self._fed, self._ring
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
                delivery = Delivery(stream, offset, message) if dispatcher.room() and not window.full else None
                if window.seen(offset, delivery) and delivery is not None:
                    dispatcher.accept(delivery, message)
                elif not window.attached:
                    stream.behind_since_ms = stream.behind_since_ms or message.put_at_ms
                    if window.scan_from is not None:
                        scanning.append(dispatcher)
                    if stream in dispatcher.behind:  # The stream's cursor has not moved, so there is nothing to commit.
                        continue
                    dispatcher.behind[stream] = None
                if not stream.dirty:
                    stream.assignment.touched(stream)
            for dispatcher in scanning:
                del dispatchers[dispatcher]
        if len(ring) > self._ring_max or self._ring_bytes > self._ring_bytes_max:
            self._trim()

    @property
    def recent(self) -> int:
        """Messages kept for streams that lag a little."""
        return len(self._ring)

    @property
    def recent_bytes(self) -> int:
        return self._ring_bytes

    def pass_over(self, last: int) -> None:
        """Pass over messages up to this offset, which the tail can't read.

        A catch-up reader looks for each stream, and the stream parks what can't be read.
        """
        if last < self.tail:
            return
        begin, self.tail = self.tail, last + 1
        self._ring.clear()
        self._ring_bytes, self._ring_from = 0, self.tail
        for dispatcher in [dispatcher for dispatchers in self._fed.values() for dispatcher in dispatchers]:
            stream = dispatcher.stream(self.number)
            stream.window.scan(begin)
            dispatcher.behind[stream] = None
            if not stream.dirty:
                stream.assignment.touched(stream)
            dispatcher.wake()
        self._fed.clear()

    def pass_damage(self, stream: Stream, own: Iterable[int], begin: int | None, last: int) -> None:
        """Go on after what a stream has parked: its own offsets, and what it would have scanned from begin on."""
        window = stream.window
        reach = stream.dispatcher.listener.reach(self.number, self.tail)
        for offset in own:
            window.gone(offset)
        if begin is not None:
            window.passed(begin, min(last + 1, self.tail), reach)
        if window.scan_from is None:
            self._feed_to(stream.dispatcher)
        if not stream.dirty:
            stream.assignment.touched(stream)
        note_caught_up(stream)

    def place(self, dispatcher: Dispatching) -> None:
        """Note that the place of the dispatcher's stream is known: where its stream stands, or else the tail."""
        self._placed.add(dispatcher)
        stream = dispatcher.streams.get(self.number)
        if stream is None or stream.window.scan_from is None:
            self._feed_to(dispatcher)

    def remove(self, dispatcher: Dispatching) -> None:
        """Bring nothing more to a dispatcher whose listener has ended."""
        self._placed.discard(dispatcher)
        self._fed.get(dispatcher.listener.queue_id, {}).pop(dispatcher, None)

    def placed(self, dispatcher: Dispatching) -> bool:
        """Whether its place here is known."""
        return dispatcher in self._placed

    def _feed_to(self, dispatcher: Dispatching) -> None:
        if dispatcher.listener.replay is None:
            self._fed.setdefault(dispatcher.listener.queue_id, {})[dispatcher] = None

    def _trim(self) -> None:
        """Keep the newer half of the ring, so that trimming is rare."""
        ring = self._ring
        while len(ring) > self._ring_max or self._ring_bytes > self._ring_bytes_max:
            cut = (len(ring) + 1) // 2
            self._ring_bytes -= sum(message.size for message in ring[:cut])
            del ring[:cut]
            self._ring_from = ring[0].offset if ring else self.tail

    def from_ring(self, stream: Stream) -> bool:
        """Give the stream the messages that it missed, if the ring still has them; else return False."""
        wanted = stream.window.wanted()
        if wanted is None or wanted < self._ring_from:
            return False
        self.bring(stream, self._ring, wanted, self.tail)
        return True

    def bring(self, stream: Stream, messages: Sequence[Message], start: int, end: int) -> None:
        """Give a stream what it can take of the messages that were read in [start, end). end: at most the tail."""
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
        if not stream.dirty:
            stream.assignment.touched(stream)
        note_caught_up(stream)


def report_messages_gone(partition: int, wanted: int, begins: int) -> None:
    """Log that the log begins after the messages that are still to be read."""
    log.warning("worker.messages_gone partition=%d wanted=%d begins=%d", partition, wanted, begins)


def note_caught_up(stream: Stream) -> None:
    if stream.window.wanted() is None:
        stream.dispatcher.behind.pop(stream, None)
        stream.behind_since_ms = 0
