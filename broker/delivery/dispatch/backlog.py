"""The lagging streams of one dispatcher: which one gets messages next, and which messages leave because of retention.

For: one dispatcher. Not for: fetching (reading/catch_up.py), which offsets a stream lacks (broker/core/window.py),
which messages Kafka keeps (housekeeping/retention.py).
"""

from __future__ import annotations

from typing import Protocol

from broker.core.delivery import KEPT, MISSING, State
from broker.core.entities import Queue
from broker.core.events import UNDECODABLE
from broker.delivery.dispatch.room import Room
from broker.delivery.dispatch.stream import Delivery, Stream, message_of, now_ms
from broker.errors import UnknownEvent


class Lagging(Protocol):
    """The part of a dispatcher (the sender of one listener's messages) that is used to load older messages."""

    sending: bool
    queue: Queue
    memory: Room
    streams: dict[int, Stream]

    def room(self) -> bool: ...
    def pump(self) -> None: ...
    def activate(self) -> None: ...
    def settle(self, delivery: Delivery, state: State, /) -> None: ...
    def set_aside(self, delivery: Delivery, status: int | None, error: str | None, due_ms: int | None, /) -> None: ...


class Backlog:
    """The partitions in which one listener lags, so that it needs older messages from Kafka.

    Before retention deletes such messages, their deliveries move to the topic `outstanding` with their data. For this
    move, messages are loaded even if the listener has no room in memory. Without room, the next message is loaded only
    while fewer than `set_aside_together` messages are being moved, with less than `set_aside_bytes_max` bytes in all.
    """

    __slots__ = ("_dispatcher", "behind")

    def __init__(self, dispatcher: Lagging) -> None:
        self._dispatcher = dispatcher
        # The delivery streams of this listener that lag, in the order in which messages are requested for them.
        self.behind: dict[Stream, None] = {}

    def room_for(self, stream: Stream, offset: int) -> bool:
        """Return whether the message at this offset may be loaded into memory. Usually, it may if its listener has room
        for one more message. Without room, it may only be loaded to move it to the topic `outstanding`, and only if few
        messages are being moved there now.
        """
        dispatcher = self._dispatcher
        return dispatcher.room() or (
            dispatcher.sending and offset < stream.set_aside_below and dispatcher.memory.sets_aside_more
        )

    def refill(self) -> None:
        """Request older messages for the partitions in which the listener lags, as long as room_for() allows. Messages
        that the worker has in memory come at once. Stop at the first request that needs a read from Kafka: a listener
        has only one such request at a time.
        """
        behind = self.behind
        if not self._dispatcher.sending or any(stream.requested for stream in behind):
            return
        for stream in list(behind):
            wanted = stream.window.wanted()
            if wanted is not None and not self.room_for(stream, wanted):
                if not stream.set_aside_below:
                    return
                continue
            del behind[stream]
            if wanted is None:
                continue
            # Put this stream last: if it needs more than one read, the other lagging streams read first.
            behind[stream] = None
            stream.assignment.lagging(stream)
            if stream.requested:
                return

    def read_again(self, delivery: Delivery) -> None:
        """Record that a delivery's message was removed from memory, and must be read again before an attempt."""
        stream = delivery.stream
        delivery.state = MISSING
        stream.window.forget((delivery.offset,))
        self.behind[stream] = None

    # The following methods move deliveries to the topic `outstanding` before Kafka deletes their old messages.

    def set_aside_before(self, partition: int, below: int) -> None:
        """Begin to move the listener's unfinished deliveries below the offset `below` of a partition to the topic
        `outstanding`, because Kafka will soon delete their messages. A delivery moves when its message is in memory and
        it is ready for an attempt. If `below` is 0, stop moving deliveries.
        """
        dispatcher = self._dispatcher
        stream = dispatcher.streams.get(partition)
        if stream is None:  # The listener does not lag here.
            return
        stream.set_aside_below = below
        if below:
            dispatcher.pump()
        if self.sets_aside(partition):
            self.behind[stream] = None
            dispatcher.activate()
            self.refill()

    def sets_aside(self, partition: int) -> bool:
        """Return whether deliveries of this partition are moving to the topic `outstanding` because Kafka will soon
        delete their messages. Also return True if deliveries will move there as soon as their messages are read.
        """
        stream = self._dispatcher.streams.get(partition)
        setting_aside = self._dispatcher.memory.setting_aside
        if stream is None or not (stream.set_aside_below or setting_aside):
            return False
        wanted = stream.window.wanted()
        leaving = any(delivery.stream is stream for delivery in setting_aside)
        return leaving or (wanted is not None and wanted < stream.set_aside_below)

    def release(self, delivery: Delivery) -> None:
        """Move one delivery to the topic `outstanding` without an attempt, before Kafka deletes its message."""
        dispatcher, message = self._dispatcher, message_of(delivery)
        if not delivery.first_at_ms and delivery.stream.assignment.is_outstanding(delivery):
            dispatcher.settle(delivery, KEPT)
            return
        dispatcher.memory.setting_aside[delivery] = message.size
        try:
            message.body(dispatcher.queue)
        except UnknownEvent:
            dispatcher.set_aside(delivery, None, UNDECODABLE, None)
        else:
            dispatcher.set_aside(delivery, None, None, max(now_ms(), message.deliver_at_ms))
