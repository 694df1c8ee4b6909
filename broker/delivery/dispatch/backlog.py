"""The streams of one dispatcher that lag: whose messages are fetched next, or set aside because the log is to go.

For: one dispatcher. Not for: fetching (reading/catch_up.py), which offsets a stream lacks (broker/core/window.py),
which messages the log is to keep (housekeeping/retention.py).
"""

from __future__ import annotations

from typing import Protocol

from broker.core.delivery import KEPT, State
from broker.core.entities import Queue
from broker.core.events import UNDECODABLE
from broker.delivery.dispatch.room import Room
from broker.delivery.dispatch.stream import Delivery, Stream, message_of, now_ms
from broker.errors import UnknownEvent


class Lagging(Protocol):
    """The interface of a dispatcher for its backlog (dispatcher.py)."""

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
    """The messages that one dispatcher has yet to take from the log.

    behind: the streams that lag; the next one to be served first.
    Retention sets a stream's `set_aside_below`. Unsettled deliveries below that offset leave the window for
    `outstanding`, with their payload and without an attempt, a few at a time.
    """

    __slots__ = ("_dispatcher", "behind")

    def __init__(self, dispatcher: Lagging) -> None:
        self._dispatcher = dispatcher
        self.behind: dict[Stream, None] = {}

    def room_for(self, stream: Stream, offset: int) -> bool:
        """Return whether there is room for the stream's message at this offset: to send it, or to set it aside."""
        dispatcher = self._dispatcher
        return dispatcher.room() or (
            dispatcher.sending and offset < stream.set_aside_below and dispatcher.memory.sets_aside_more
        )

    def refill(self) -> None:
        """Have messages of the lagging streams fetched, as far as there is room, one stream after the other."""
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
            # The stream goes to the end of the queue, in case this read does not bring everything.
            behind[stream] = None
            stream.assignment.lagging(stream)
            if stream.requested:
                return

    # Setting aside what the log will no longer keep

    def set_aside_before(self, partition: int, below: int) -> None:
        """Have all below an offset that is not settled leave the window. below: 0 ends that, however far it is."""
        dispatcher = self._dispatcher
        stream = dispatcher.streams.get(partition)
        if stream is None:  # it stands where the tail is
            return
        stream.set_aside_below = below
        if below:
            dispatcher.pump()
        if self.sets_aside(partition):
            self.behind[stream] = None
            dispatcher.activate()
            self.refill()

    def sets_aside(self, partition: int) -> bool:
        """Return whether there is more to be set aside of a partition than what is under way or first of its key."""
        stream = self._dispatcher.streams.get(partition)
        if stream is None:
            return False
        wanted = stream.window.wanted()
        leaving = any(delivery.stream is stream for delivery in self._dispatcher.memory.setting_aside)
        return leaving or (wanted is not None and wanted < stream.set_aside_below)

    def release(self, delivery: Delivery) -> None:
        """Set one delivery aside, without an attempt."""
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
