"""A stream, the delivery of one partition's messages to one listener, and the deliveries in it.

For: what is known of each, where the stream stands, what a checkpoint writes of it. Not for: which offsets it takes
(broker/core/window.py), sending (dispatcher.py).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Protocol

from msgspec import UNSET

from broker.core import circuit
from broker.core.circuit import Circuit
from broker.core.cursor import Cursor
from broker.core.delivery import KEPT, MISSING, State
from broker.core.entities import Listener
from broker.core.events import DeliveriesSettled, DeliveryAttempted, Event
from broker.core.window import Window
from broker.delivery.dispatch.limits import Limits
from broker.delivery.dispatch.log_rate_limit import LogRateLimit
from broker.delivery.outstanding.entry import OutstandingEntry
from broker.delivery.reading.message import Message
from broker.delivery.tuning import Tuning

log = logging.getLogger(__name__)

_ROWS_MAX = 5_000  # An event has at most this many rows, about 300 KB.

Row = tuple[int, int, int, int, int]  # as in DeliveriesSettled.rows, and when the message was put, or its `deliver_at`
Made = tuple[DeliveryAttempted, int]  # likewise


class Assigned(Protocol):
    """The interface of an assignment for a dispatcher and its streams (assignment.py).

    known_changes: of messages; nearly always empty.
    touched: a stream became dirty.
    lagging: a stream needs a catch-up reader.
    set_aside: a delivery leaves the window, to be attempted at a time (ms), or parked (None). settle() follows.
    overtakes: whether a delivery would overtake one of its ordering key that has left the window.
    is_outstanding: the delivery has left the window already.
    delivered, returned: a delivery from `outstanding` was accepted, or can't be attempted now.
    hold: whether a change delays a delivery; cancel() or renewed() follows.
    """

    @property
    def known_changes(self) -> Mapping[tuple[int, int], object]: ...
    def touched(self, stream: Stream, /) -> None: ...
    def lagging(self, stream: Stream, /) -> None: ...
    def set_aside(self, delivery: Delivery, status: int | None, error: str | None, due_ms: int | None, /) -> None: ...
    def overtakes(self, delivery: Delivery, /) -> bool: ...
    def is_outstanding(self, delivery: Delivery, /) -> bool: ...
    def delivered(self, delivery: Delivery, /) -> None: ...
    def returned(self, delivery: Delivery, /) -> None: ...
    def hold(self, delivery: Delivery, /) -> bool: ...


class Dispatching(Protocol):
    """The interface of a dispatcher for its streams, and for the readers and checkpoints of these (dispatcher.py)."""

    tuning: Tuning
    assignment: Assigned
    listener: Listener
    circuit: Circuit
    limits: Limits
    streams: dict[int, Stream]
    behind: dict[Stream, None]
    failed_lines: LogRateLimit
    parked_lines: LogRateLimit

    @property
    def error(self) -> str | None: ...
    def room(self) -> bool: ...
    def room_for(self, stream: Stream, offset: int, /) -> bool: ...
    def stream(self, partition: int, /) -> Stream: ...
    def accept(self, delivery: Delivery, message: Message, /) -> None: ...
    def under_way(self) -> set[Delivery]: ...
    def attempting(self, partition: int, offset: int, /) -> Delivery | None: ...
    def settle(self, delivery: Delivery, state: State = KEPT, /) -> None: ...
    def cancel(self, delivery: Delivery, /) -> None: ...
    def renew(self, delivery: Delivery, /) -> None: ...
    def renewed(self, delivery: Delivery, message: Message, /) -> None: ...
    def park_unreadable(self, delivery: Delivery, /) -> None: ...
    def refill(self) -> None: ...
    def wake(self) -> None: ...


class Delivery:
    """The duty to bring one message to one listener.

    state: what it is doing, and what belongs to that (broker/core/delivery.py).
    message: None in the states that hold none.
    put_at_ms: the time of the put, kept when the message is let go; 0: not known.
    number: attempts begun. first_at_ms: the beginning of the first one here.
    again: it was sent again at once, on a new connection.
    first_of_key: no other delivery of its ordering key goes before it.
    entry: its entry in `outstanding`, when it comes from there and not from the window.
    """

    __slots__ = (
        *("again", "entry", "first_at_ms", "first_of_key", "message", "number", "offset", "put_at_ms"),
        *("state", "stream"),
    )

    def __init__(self, stream: Stream, offset: int, message: Message | None) -> None:
        self.stream = stream
        self.offset = offset
        self.message = message
        self.state: State = MISSING
        self.number = 0
        self.again = False
        self.first_of_key = False
        self.entry: OutstandingEntry | None = None
        self.first_at_ms = 0
        self.put_at_ms = 0


def message_of(delivery: Delivery) -> Message:
    """Return the message of a delivery in a state that holds one."""
    message = delivery.message
    if message is None:
        raise RuntimeError(f"a delivery that is {delivery.state} holds no message")
    return message


class Stream:
    """The delivery of one partition's messages to one listener.

    assignment: the one that its partition belongs to.
    rows: first attempts that succeeded, for the next checkpoint.
    attempts: all other attempts.
    behind_since_ms: when the first message that is behind was put; 0: none is, or unknown.
    dirty: changed since the last checkpoint.
    pressing: the next checkpoint must include it, whatever its priority.
    requested: a catch-up reader will come.
    fetch_bytes: how much of the log to read for it at once.
    from_outstanding: deliveries from `outstanding` that its dispatcher has now.
    wants: for a replay with picked messages, tests an offset.
    set_aside_below: unsettled deliveries below this offset leave the window without an attempt, because the log will be
        deleted up to there; 0: none do.
    """

    __slots__ = (
        "assignment",
        "attempts",
        "behind_since_ms",
        "dirty",
        "dispatcher",
        "fetch_bytes",
        "from_outstanding",
        "partition",
        "pressing",
        "requested",
        "rows",
        "set_aside_below",
        "wants",
        "window",
    )

    def __init__(self, dispatcher: Dispatching, partition: int, window: Window[Delivery]) -> None:
        self.dispatcher = dispatcher
        self.assignment = dispatcher.assignment
        self.partition = partition
        self.window = window
        self.rows: list[Row] = []
        self.attempts: list[Made] = []
        self.behind_since_ms = 0
        self.dirty = False
        self.pressing = False
        self.requested = False
        self.fetch_bytes = dispatcher.tuning.fetch_bytes_first
        self.set_aside_below = 0
        self.from_outstanding: set[Delivery] = set()
        replay = dispatcher.listener.replay
        self.wants = None if replay is None else replay.chooser(partition)

    def touch(self) -> None:
        """Have the next checkpoint include the stream, which has changed."""
        if not self.dirty:
            self.assignment.touched(self)

    @property
    def current(self) -> bool:
        """Whether this is its dispatcher's present stream of the partition."""
        return self.dispatcher.streams.get(self.partition) is self

    def cursor(self, tail: int, *, waiting: int = 0, since_ms: int | None = None) -> Cursor:
        """Return the stream's cursor. tail: where the partition's tail reader is.

        waiting: deliveries that have left the stream and are not settled. since_ms: the oldest put of these.
        """
        window = self.window
        tail = self.dispatcher.listener.reach(self.partition, tail)
        opened = window.opened()
        return Cursor(
            top=window.top(tail),
            open=opened,
            pending=len(opened) + waiting,
            oldest_at_ms=min((at for at in (self.oldest_at_ms, since_ms) if at is not None), default=None),
            state="down" if self.dispatcher.circuit.state is circuit.State.OPEN else "live",
            error=self.dispatcher.error,
            attempts=self._attempts_made(opened),
        )

    def _attempts_made(self, opened: Sequence[int]) -> tuple[int, ...]:
        """Return the number of finished attempts of each open delivery; empty when all are 0."""
        deliveries = [self.window.open[offset] for offset in opened]
        if not any(delivery.number for delivery in deliveries):
            return ()
        under_way = self.dispatcher.under_way()
        made = tuple(delivery.number - (delivery in under_way) for delivery in deliveries)
        return made if any(made) else ()

    @property
    def oldest_at_ms(self) -> int | None:
        """The time at which the oldest waiting message was put, as far as is known."""
        first = self.window.first
        if first is not None:
            delivery = self.window.open[first]
            return (delivery.put_at_ms if delivery.message is None else delivery.message.put_at_ms) or None
        return self.behind_since_ms or None

    def record(
        self,
        delivery: Delivery,
        outcome: str,
        status: int | None,
        error: str | None,
        took_ms: int,
        due_ms: int | None,
    ) -> None:
        """Keep an attempt's result for the next checkpoint. Log a failure now, unless too many are logged."""
        message, listener = delivery.message, self.dispatcher.listener
        if message is None:
            return
        at_ms, put_at_ms = now_ms(), message.deliver_at_ms or message.put_at_ms
        attempt = DeliveryAttempted(
            at_ms=at_ms,
            organization_id=listener.organization_id,
            actor="worker",
            listener_id=listener.id,
            queue_id=listener.queue_id,
            message_id=message.id.decode(),
            partition=self.partition,
            offset=delivery.offset,
            number=delivery.number,
            outcome=outcome,
            status=status,
            error=error,
            took_ms=took_ms,
            next_at_ms=due_ms,
            waited_ms=max(0, at_ms - put_at_ms) if outcome == "delivered" else UNSET,
        )
        self.attempts.append((attempt, put_at_ms))
        if outcome == "delivered":
            return
        result = error if status is None else status
        left_out = self.dispatcher.failed_lines.left_out(attempt.at_ms, result)
        if left_out is not None:
            log.info(
                "attempt.failed message=%s listener=%s number=%d status=%s error=%s took_ms=%d next_at_ms=%s %s",
                attempt.message_id,
                attempt.listener_id,
                attempt.number,
                status,
                error,
                took_ms,
                due_ms,
                left_out,
            )


def now_ms() -> int:
    """Milliseconds since the UTC epoch."""
    return time.time_ns() // 1_000_000


def take_outcomes(stream: Stream) -> tuple[list[Row], list[Made]]:
    """Take what has happened since the last checkpoint out of the stream."""
    rows, stream.rows = stream.rows, []
    attempts, stream.attempts = stream.attempts, []
    return rows, attempts


def outcome_events(stream: Stream, rows: Sequence[Row], attempts: Sequence[Made], at_ms: int) -> list[Event]:
    """Return the events that a checkpoint writes to `deliveries`. None is larger than Kafka accepts by default."""
    listener = stream.dispatcher.listener
    settled = [
        DeliveriesSettled(
            at_ms=at_ms,
            organization_id=listener.organization_id,
            actor="worker",
            listener_id=listener.id,
            queue_id=listener.queue_id,
            partition=stream.partition,
            rows=tuple([row[:4] for row in rows[first : first + _ROWS_MAX]]),
            waited_ms=tuple([max(0, row[1] - row[4]) for row in rows[first : first + _ROWS_MAX]]),
        )
        for first in range(0, len(rows), _ROWS_MAX)
    ]
    return [*(attempt for attempt, _ in attempts), *settled]
