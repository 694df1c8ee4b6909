"""The lagging streams of one dispatcher: which one gets messages next, and which messages leave because of retention.

For: one dispatcher. Not for: fetching (reading/catch_up.py), which offsets a stream lacks (broker/core/window.py),
which messages Kafka keeps (housekeeping/retention.py).
"""

from __future__ import annotations

from typing import Protocol

from broker.clock import now_ms
from broker.core.delivery import KEPT, MISSING, State
from broker.core.entities import Queue
from broker.core.events import UNDECODABLE
from broker.delivery.dispatch.room import Room
from broker.delivery.dispatch.stream import Delivery, Stream, message_of
from broker.errors import UnknownEvent


class Lagging(Protocol):
    """The attributes and methods of a dispatcher that the class Backlog uses. A dispatcher sends the messages of one
    listener.
    """

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
    """The partitions in which one listener lags: it does not get new messages as soon as they are read, because it
    still needs older ones.

    Before retention deletes these messages, the listener's deliveries of them move to the topic `outstanding`, with the
    messages' data. For this move, a message is loaded even if the listener's memory is full. But it waits while
    `set_aside_together` messages are being moved, or messages with `set_aside_bytes_max` bytes together.
    """

    __slots__ = ("_dispatcher", "behind")

    def __init__(self, dispatcher: Lagging) -> None:
        self._dispatcher = dispatcher
        # The keys of `behind` are the delivery streams of this listener that lag; all values are None.
        # Older messages are requested for the streams in the order of `behind`.
        self.behind: dict[Stream, None] = {}

    def room_for(self, stream: Stream, offset: int) -> bool:
        """Return whether the message at this offset may be loaded into memory. Usually this depends on the listener's
        memory: it must have room for one more message. Without room, return True only if the message must move to the
        topic `outstanding`, and few messages are moving there now. Return False while Kafka does not store the results
        of the partition's deliveries.
        """
        dispatcher = self._dispatcher
        if stream.partition in stream.assignment.held:
            return False
        return dispatcher.room() or (
            dispatcher.sending and offset < stream.set_aside_below and dispatcher.memory.sets_aside_more
        )

    def refill(self) -> None:
        """Request older messages for the partitions in which the listener lags. Messages that the worker has in memory
        are handed over at once. Stop when a request needs a read from Kafka, because a listener has only one such
        request at a time. Also stop when the listener's memory has no more room, except for messages that must move to
        the topic `outstanding`.
        """
        behind = self.behind
        if not self._dispatcher.sending or any(stream.requested for stream in behind):
            return
        for stream in list(behind):
            wanted = stream.window.wanted()
            if wanted is not None and not self.room_for(stream, wanted):
                continue
            del behind[stream]
            if wanted is None:
                continue
            # Put this stream at the end of `behind`, so that the listener's other lagging streams get messages next.
            behind[stream] = None
            stream.assignment.lagging(stream)
            if stream.requested:
                return

    def read_again(self, delivery: Delivery) -> None:
        """Record that a delivery's message is no longer in memory, so that it is read again before the next attempt."""
        stream = delivery.stream
        delivery.state = MISSING
        stream.window.forget((delivery.offset,))
        self.behind[stream] = None

    # The following methods move deliveries to the topic `outstanding` before Kafka deletes their old messages.

    def set_aside_before(self, partition: int, below: int) -> None:
        """Begin to move the listener's unfinished deliveries below the offset `below` of a partition to the topic
        `outstanding`, because Kafka will soon delete their messages. Each delivery moves when its message is in memory
        and the delivery is ready for an attempt. If `below` is 0, stop moving deliveries.
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
        """Return True if deliveries of this partition are moving to the topic `outstanding`, or will move there after
        their messages are read from Kafka. They move because Kafka will soon delete their messages. Otherwise, return
        False.
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
