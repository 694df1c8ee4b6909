"""A stream, which delivers one partition's messages to one listener, and the deliveries in it.

For: the state of each delivery, the stream's cursor, what a checkpoint writes. Not for: which offsets it takes
(broker/core/window.py), sending (dispatcher.py).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Protocol

from msgspec import UNSET

from broker.clock import now_ms
from broker.core import circuit
from broker.core.circuit import Circuit
from broker.core.cursor import Cursor
from broker.core.delivery import KEPT, MISSING, SENT, State
from broker.core.entities import Listener
from broker.core.events import DeliveriesSettled, DeliveryAttempted, Event
from broker.core.health import Recent
from broker.core.window import Window
from broker.delivery.dispatch.limits import Limits
from broker.delivery.dispatch.log_rate_limit import LogRateLimit
from broker.delivery.outstanding.entry import OutstandingEntry
from broker.delivery.reading.message import Message
from broker.delivery.tuning import Tuning

log = logging.getLogger(__name__)

_ROWS_MAX = 5_000  # One event `deliveries.settled` has at most this many deliveries: about 300 KB.

# A `Row` is an accepted first attempt: offset of the message, time, HTTP status, duration in ms, and message time.
# The message time is the message's `deliver_at`, or its put time if it has none. Times are in ms since the UTC epoch.
Row = tuple[int, int, int, int, int]
Attempt = tuple[int, int, int]  # the message's partition and offset, and the number of the attempt, from 1
# A `Made` is the event of an attempt, and its message's `deliver_at` in ms (the put time if there is no `deliver_at`).
Made = tuple[DeliveryAttempted, int]


class Assigned(Protocol):
    """The part of an assignment (the partitions that a worker owns) that the deliveries to one listener use."""

    @property
    def known_changes(self) -> Mapping[tuple[int, int], object]: ...
    # Of these partitions, no more messages are loaded into memory, because Kafka does not store their results.
    @property
    def held(self) -> Collection[int]: ...
    # Call changed() when the listener goes down or comes back. The listener's offsets are then committed soon.
    def changed(self, listener_id: str, /) -> None: ...
    def touched(self, stream: Stream, /) -> None: ...
    def lagging(self, stream: Stream, /) -> None: ...
    def set_aside(self, delivery: Delivery, status: int | None, error: str | None, due_ms: int | None, /) -> None: ...
    def delivers(self, partition: int, dispatcher: Dispatching, /) -> bool: ...
    def overtakes(self, delivery: Delivery, /) -> bool: ...
    def is_outstanding(self, delivery: Delivery, /) -> bool: ...
    def delivered(self, delivery: Delivery, /) -> None: ...
    def returned(self, delivery: Delivery, /) -> None: ...
    def hold(self, delivery: Delivery, /) -> bool: ...


class AnswersToStore(Protocol):
    """The answers of one listener to failed attempts. A checkpoint collects the answers from this object, to write them
    to the log.
    """

    def take(self, listener: Listener, partition: int, at_ms: int, /) -> Sequence[Event]: ...


class Dispatching(Protocol):
    """The part of a dispatcher (the sender of one listener's messages) that delivery streams, readers of older messages
    and checkpoints use. A delivery stream is the delivery of one partition's messages to one listener.
    """

    tuning: Tuning
    assignment: Assigned
    listener: Listener
    circuit: Circuit
    limits: Limits
    streams: dict[int, Stream]
    recent: dict[int, Recent]
    behind: dict[Stream, None]
    failed_lines: LogRateLimit
    parked_lines: LogRateLimit

    @property
    def answers(self) -> AnswersToStore: ...
    @property
    def error(self) -> str | None: ...
    def room(self) -> bool: ...
    def room_for(self, stream: Stream, offset: int, /) -> bool: ...
    def stream(self, partition: int, /) -> Stream: ...
    def accept(self, delivery: Delivery, message: Message, /) -> None: ...
    def attempting(self, partition: int, offset: int, /) -> Delivery | None: ...
    def settle(self, delivery: Delivery, state: State = KEPT, /) -> None: ...
    def cancel(self, delivery: Delivery, /) -> None: ...
    def renew(self, delivery: Delivery, /) -> None: ...
    def renewed(self, delivery: Delivery, message: Message, /) -> None: ...
    def park_unreadable(self, delivery: Delivery, /) -> None: ...
    def refill(self) -> None: ...
    def wake(self) -> None: ...


class Delivery:
    """The duty to bring one message to one listener, with the state of its attempts."""

    __slots__ = (
        *("again", "entry", "first_at_ms", "first_of_key", "message", "number", "offset", "put_at_ms"),
        *("state", "stream"),
    )

    def __init__(self, stream: Stream, offset: int, message: Message | None) -> None:
        self.stream = stream
        self.offset = offset
        self.message = message  # None while the delivery does not need its message in memory
        self.state: State = MISSING
        self.number = 0  # attempts so far: an attempt counts when its request is sent, or when connecting has failed
        # True if an attempt was repeated at once, because the listener had closed the idle connection that it used.
        self.again = False
        self.first_of_key = False  # True while later deliveries with the same ordering key must wait for this one
        # For a delivery from the topic `outstanding`: its row in the worker's index of this topic; None for all others.
        self.entry: OutstandingEntry | None = None
        self.first_at_ms = 0  # 0 until an attempt has failed; then the time in ms at which the first attempt began
        self.put_at_ms = 0  # the message's put time in ms, used while `message` is None; 0 if unknown


def attempts_of(deliveries: Iterable[Delivery]) -> list[Attempt]:
    """Return the newest attempt of each delivery, as (partition of the message, its offset, number of the attempt from
    1).
    """
    return [(delivery.stream.partition, delivery.offset, delivery.number) for delivery in deliveries]


def message_of(delivery: Delivery) -> Message:
    """Return the delivery's message. Raises RuntimeError if the message is not in memory."""
    message = delivery.message
    if message is None:
        raise RuntimeError(f"internal error: a delivery in the state {delivery.state} has no message in memory")
    return message


class Stream:
    """The delivery of one partition's messages to one listener. The attribute `window` holds the unfinished deliveries,
    and knows from which offset on messages must still be read for the listener.
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
        self.rows: list[Row] = []  # first attempts that succeeded
        self.attempts: list[Made] = []  # all other attempts
        self.behind_since_ms = 0  # put time in ms of the oldest message not taken yet; 0 if unknown or none
        self.dirty = False  # True if the stream has changes that no checkpoint has collected yet
        # True if the next checkpoint must include this stream, even if the listener is slow or failing
        self.pressing = False
        self.requested = False  # waits for a catch-up reader
        self.fetch_bytes = dispatcher.tuning.fetch_bytes_first  # bytes of the next catch-up read
        # Kafka will soon delete the messages below the offset `set_aside_below`. If it is 0, there are none.
        # Unfinished deliveries of messages below `set_aside_below` move to the topic `outstanding`.
        self.set_aside_below = 0
        self.from_outstanding: set[Delivery] = set()  # deliveries taken back from `outstanding`
        replay = dispatcher.listener.replay
        self.wants = None if replay is None else replay.chooser(partition)  # tests an offset

    def touch(self) -> None:
        """Include this listener's deliveries of this partition in the next checkpoint, or in a later one if the
        listener is slow or failing.
        """
        if not self.dirty:
            self.assignment.touched(self)

    @property
    def current(self) -> bool:
        """Whether this worker still delivers to the listener with this object. It is False, for example, after a
        rebalance.
        """
        return self.dispatcher.streams.get(self.partition) is self

    def cursor(
        self, tail: int, *, waiting: int = 0, since_ms: int | None = None, parked: int = 0, retrying: int = 0
    ) -> Cursor:
        """Return the offset, with its metadata, that a checkpoint commits for this listener and partition.

        `tail` is the offset of the partition's next new message. The other parameters are about the listener's
        deliveries in the topic `outstanding`: `waiting`, `parked` and `retrying` say how many of them wait, are parked,
        or will be retried. `since_ms` is the put time of the oldest message that waits.
        """
        window = self.window
        tail = self.dispatcher.listener.reach(self.partition, tail)
        opened = window.opened()
        attempts = self._attempts_made(opened)
        retrying += len(attempts) - attempts.count(0)
        return Cursor(
            top=window.top(tail),
            open=opened,
            pending=len(opened) + waiting,
            oldest_at_ms=min((at for at in (self.oldest_at_ms, since_ms) if at is not None), default=None),
            state="down" if self.dispatcher.circuit.state is circuit.State.OPEN else "live",
            error=self.dispatcher.error,
            attempts=attempts,
            counts=counts_text(self.dispatcher, self.partition, parked, retrying),
        )

    @property
    def retrying(self) -> int:
        """The number of unfinished deliveries that have failed at least once. Deliveries in the topic `outstanding` are
        left out.
        """
        attempts = self._attempts_made(self.window.opened())
        return len(attempts) - attempts.count(0)

    def _attempts_made(self, opened: Sequence[int]) -> tuple[int, ...]:
        """Return, for the delivery at each offset in `opened`, how many of its attempts have ended. If no attempt of
        any of these deliveries has ended, return an empty tuple.
        """
        deliveries = [self.window.open[offset] for offset in opened]
        if not any(delivery.number for delivery in deliveries):
            return ()
        # The newest attempt of a delivery in the state SENT has no result yet, so do not count this attempt.
        made = tuple(delivery.number - (delivery.state is SENT) for delivery in deliveries)
        return made if any(made) else ()

    @property
    def oldest_at_ms(self) -> int | None:
        """The put time, in ms, of the partition's oldest message that waits for the listener. None if no message waits,
        or if the time is unknown.
        """
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
        """Keep the result of an attempt until a checkpoint writes it. Log a failure now, unless the log's rate limit is
        reached.
        """
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


def counts_text(dispatcher: Dispatching, partition: int, parked: int, retrying: int) -> str:
    """Return the counts that are committed with an offset, as text: how many of the partition's deliveries to the
    listener are parked and retrying, and how many of their attempts in the latest minutes were accepted or failed.
    """
    recent, alive = dispatcher.recent.get(partition), dispatcher.circuit.alive
    if recent is None:
        return Recent().text(parked, retrying, alive=alive) if parked or retrying or alive else ""
    return recent.text(parked, retrying, alive=alive)


def note_attempts(stream: Stream, rows: Sequence[Row], attempts: Sequence[Made]) -> None:
    """Add the results of these attempts to the counts of the listener's recent attempts."""
    if not rows and not attempts:
        return
    recent = stream.dispatcher.recent.get(stream.partition)
    if recent is None:
        recent = stream.dispatcher.recent[stream.partition] = Recent()
    if rows:
        recent.add(rows[-1][1], accepted=len(rows))
    for attempt, _ in attempts:
        accepted = attempt.outcome == "delivered"
        recent.add(attempt.at_ms, accepted=accepted, refused=not accepted)


def take_outcomes(stream: Stream) -> tuple[list[Row], list[Made]]:
    """Remove the results of attempts from the stream, and return them to the checkpoint that writes them. A message
    that was accepted at the first attempt has a row. Each other attempt has an event.
    """
    rows, stream.rows = stream.rows, []
    attempts, stream.attempts = stream.attempts, []
    return rows, attempts


def outcome_events(stream: Stream, rows: Sequence[Row], attempts: Sequence[Made], at_ms: int) -> list[Event]:
    """Return the events that a checkpoint writes to the topic `deliveries` for one partition and listener: the results
    of attempts, and the kept HTTP answers. The kept answers are removed from memory. No event is larger than Kafka
    accepts by default.
    """
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
    return [
        *(attempt for attempt, _ in attempts),
        *settled,
        *stream.dispatcher.answers.take(listener, stream.partition, at_ms),
    ]
