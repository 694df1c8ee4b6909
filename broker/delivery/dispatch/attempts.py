"""The attempts of one listener's deliveries: sending the request, reading the result, and acting on what judge()
decides.

For: connections, the request and its signatures, the effect of an answer on the delivery, the limits and the circuit.
Not for: which delivery is next (dispatcher.py), deciding what follows an attempt (broker/core/delivery.py), one
connection (broker/outbound/connection.py).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Protocol

from msgspec import UnsetType

from broker.core.circuit import Circuit
from broker.core.delivery import (
    CONNECTING,
    DELIVERED,
    DROPPED,
    SENT,
    Decision,
    Failure,
    History,
    State,
    Verdict,
    judge,
    taken,
)
from broker.core.entities import Listener, Queue
from broker.core.formats import RENDER
from broker.core.retry import RetryPolicy
from broker.delivery.dispatch.connections import Connections, Network
from broker.delivery.dispatch.delivery_queue import DeliveryQueue
from broker.delivery.dispatch.kept_answers import KeptAnswers
from broker.delivery.dispatch.limits import Limits
from broker.delivery.dispatch.room import Room
from broker.delivery.dispatch.stream import Assigned, Delivery, Stream, message_of, now_ms
from broker.delivery.reading.message import Message
from broker.delivery.tuning import Tuning
from broker.outbound.addresses import parse_url
from broker.outbound.connection import ConnectFailed, Connection, NotTried
from broker.outbound.request import Opened, also_signed, post_head
from broker.ports import Span

log = logging.getLogger(__name__)


class Attempting(Protocol):
    """The interface of a listener's dispatcher that its attempts use."""

    tuning: Tuning
    assignment: Assigned
    queue: Queue
    listener: Listener
    circuit: Circuit
    limits: Limits
    deliveries: DeliveryQueue
    memory: Room
    behind: dict[Stream, None]

    def pump(self) -> None: ...
    def refill(self) -> None: ...
    def settle(self, delivery: Delivery, state: State, /) -> None: ...
    def set_aside(self, delivery: Delivery, status: int | None, error: str | None, due_ms: int | None, /) -> None: ...
    def stand_down(self) -> None: ...
    def stand_down_if_away(self) -> bool: ...
    def gone(self) -> None: ...
    def touch(self, partition: int, /) -> bool: ...


class Attempts:
    """The attempts of one dispatcher to deliver messages, and its connections to the listener."""

    __slots__ = (
        *("_circuit", "_deliveries", "_dice", "_former", "_head", "_limits", "_loop", "_queue", "_signer"),
        *("_render", "_spans", "_timeout_s", "_tracing", "_tuning", "answers", "connections", "dispatcher", "error"),
        "policy",
    )

    def __init__(
        self,
        dispatcher: Attempting,
        network: Network,
        dice: Callable[[], float],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.dispatcher = dispatcher
        self._queue = dispatcher.queue
        self._circuit = dispatcher.circuit
        self._limits = dispatcher.limits
        self._deliveries = dispatcher.deliveries
        self._tuning = dispatcher.tuning
        self._dice = dice  # draws the jitter of retries
        self._loop = loop
        self.error: str | None = None  # of the last attempt
        self._tracing = network.tracing
        self._spans: dict[Delivery, Span] = {}  # spans of requests in flight
        self.answers = KeptAnswers(dispatcher.touch)
        target = parse_url(dispatcher.listener.notify_url)
        self.connections = Connections(self, network, target, dispatcher.tuning)

    def update(self, listener: Listener, opened: Opened) -> None:
        """Use the listener's new settings from the next attempt on. `opened` holds its decrypted secrets and
        headers.
        """
        self._signer, self._former = opened.signer, opened.former
        self.connections.aim(parse_url(listener.notify_url))
        settings = listener.settings
        self._timeout_s = settings.timeout_ms / 1000
        self.policy = RetryPolicy(
            delay_ms_first=settings.retry_first_ms,
            delay_ms_max=settings.retry_max_s * 1000,
            max_attempts=settings.max_attempts,
            max_age_ms=settings.max_age_s * 1000,
        )
        self._head = post_head(self.connections.target, opened)
        self._render = None if isinstance(settings.format, UnsetType) else RENDER.get(settings.format)
        self.answers.update(listener, opened)

    def under_way(self) -> set[Delivery]:
        """Return the deliveries of which a request was sent and is not answered yet."""
        return {connection.work for connection in self.connections.sent}

    def attempting(self, partition: int, offset: int) -> Delivery | None:
        """Return the delivery of the message at this offset, if a request of it was sent and is not answered yet."""
        for delivery in self.under_way():
            if delivery.offset == offset and delivery.stream.partition == partition:
                return delivery
        return None

    # An attempt begins

    def connect(self, delivery: Delivery) -> None:
        """Open a connection, and send the delivery on it."""
        delivery.state = CONNECTING
        self.connections.make(delivery, self._connect(delivery))

    async def _connect(self, delivery: Delivery) -> None:
        try:
            began_s = self._loop.time()
            target, found = await self.connections.connect()
            if isinstance(found, ConnectFailed):
                tried = not isinstance(found, NotTried)
                failure = Failure(error=str(found), tried=tried, connected=False, tunnel=target.tunnel)
                if self._tracing is not None and tried:
                    self._begin_span(delivery, delivery.number + 1)
                    self._end_span(delivery, None, str(found))
                if self._failed(delivery, failure, int((self._loop.time() - began_s) * 1000)):
                    self.answers.unanswered(delivery.stream.partition, delivery.offset, delivery.number, found.times)
                return
            assignment = delivery.stream.assignment
            changed = bool(assignment.known_changes) and delivery.state is CONNECTING and assignment.hold(delivery)
            if changed or delivery.state is DROPPED:  # while connecting
                self.released(found)
            else:
                self.send(found, delivery)
        finally:
            self._loop.call_soon(self.dispatcher.pump)

    def send(self, connection: Connection, delivery: Delivery) -> None:
        """Send the HTTP request of an attempt."""
        message = message_of(delivery)
        delivery.state = SENT
        delivery.number += 1
        body = message.body(self._queue)
        if self._render is not None:
            body = self._render(body)
        timestamp = b"%d" % time.time()
        signed = self._signer.sign(message.id, timestamp, body)
        if self._former:
            more = also_signed(self._former, now_ms(), message_id=message.id, timestamp=timestamp, body=body)
            signed += more
            if not more:  # The former secrets have expired.
                self._former = ()
        head = self._head if message.traceparent is None else self._head + self._trace_line(delivery, message)
        self.connections.sent[connection] = None
        connection.send(
            b"%bwebhook-id: %b\r\nwebhook-timestamp: %b\r\nwebhook-signature: %b\r\neverput-attempt: %d\r\n"
            b"content-length: %d\r\n\r\n%b" % (head, message.id, timestamp, signed, delivery.number, len(body), body),
            delivery,
            self._loop.time(),
        )

    def _trace_line(self, delivery: Delivery, message: Message) -> bytes:
        """Return the `traceparent` header line of an attempt. Call it only for a message that is part of a trace."""
        span = self._begin_span(delivery, delivery.number)
        place = message.traceparent if span is None else span.traceparent
        return f"traceparent: {place}\r\n".encode()

    def _begin_span(self, delivery: Delivery, number: int) -> Span | None:
        message = message_of(delivery)
        if self._tracing is None or message.traceparent is None:
            return None
        span = self._tracing.attempt(message.traceparent, self.dispatcher.listener, message.id.decode(), number)
        self._spans[delivery] = span
        return span

    def _end_span(self, delivery: Delivery, status: int | None, error: str | None) -> None:
        span = self._spans.pop(delivery, None)
        if span is not None:
            span.end(status=status, error=error)

    def expire(self) -> None:
        """End the attempts that have taken longer than the listener's timeout."""
        before_s = self._loop.time() - self._timeout_s
        while (connection := self.connections.expired(before_s)) is not None:
            connection.expire()
            self._loop.call_soon(self.dispatcher.pump)

    # A connection calls the following methods when an attempt gets its answer or fails.

    def answered(self, connection: Connection, status: int, retry_after_s: int | None) -> None:
        """Handle the status line of an answer, which decides the outcome of the attempt. The answer's body may follow
        later.
        """
        delivery: Delivery = connection.work
        took_ms = int((self._loop.time() - connection.at) * 1000)
        connection.well = status < 500
        if self._tracing is not None:
            self._end_span(delivery, status, None)
        if not taken(status):
            tunnel = connection.target.tunnel
            if self._failed(delivery, Failure(status=status, retry_after_s=retry_after_s, tunnel=tunnel), took_ms):
                self.answers.answered(delivery.stream.partition, delivery.offset, delivery.number, connection)
            if status == 410 and connection.target is self.connections.target:
                self.dispatcher.gone()
            return
        if delivery.state is not DROPPED:
            self._delivered(delivery, status, took_ms)
        self._limits.succeeded()
        circuit = self._circuit
        if circuit.faults or circuit.allowance is not None:
            circuit.succeeded()

    def failed(self, connection: Connection, error: str) -> None:
        """Handle an attempt that got no answer, or an answer that can't be parsed."""
        took_ms = int((self._loop.time() - connection.at) * 1000)
        if error == "timeout":
            self._limits.timed_out(took_ms)
        stale = connection.used > 0 and connection.fresh
        delivery: Delivery = connection.work
        if self._tracing is not None:
            self._end_span(delivery, None, error)
        failure = Failure(error=error, tunnel=connection.target.tunnel, stale=stale)
        if self._failed(delivery, failure, took_ms) and connection.used == 0:
            self.answers.unanswered(delivery.stream.partition, delivery.offset, delivery.number, connection.times)

    def released(self, connection: Connection) -> None:
        """Handle the end of an answer. From now on, the connection can carry another request."""
        self._note_took(connection)
        connection.at = self._loop.time()
        self.connections.release(connection)
        dispatcher = self.dispatcher
        dispatcher.pump()
        if dispatcher.behind and dispatcher.memory.running_low:
            dispatcher.refill()

    def lost(self, connection: Connection) -> None:
        """Handle the closing of a connection."""
        if self.connections.lost(connection):
            self._note_took(connection)
            self._loop.call_soon(self.dispatcher.pump)

    def _note_took(self, connection: Connection) -> None:
        """Record how long it took until the whole answer was read. A listener that sends the body slowly then does not
        count as fast.
        """
        if connection.well:
            connection.well = False
            self._limits.took(int((self._loop.time() - connection.at) * 1000))

    # What follows an attempt

    def _delivered(self, delivery: Delivery, status: int, took_ms: int) -> None:
        stream = delivery.stream
        if delivery.number == 1:
            message = message_of(delivery)
            put_at_ms = message.deliver_at_ms or message.put_at_ms
            stream.rows.append((delivery.offset, now_ms(), status, took_ms, put_at_ms))
        else:
            stream.record(delivery, "delivered", status, None, took_ms, None)
        if self.error is not None:
            self._note_error(None, stream)
        if delivery.entry is not None:
            stream.assignment.delivered(delivery)
        self.dispatcher.settle(delivery, DELIVERED)

    def _failed(self, delivery: Delivery, failure: Failure, took_ms: int) -> bool:
        """Decide what follows a failed attempt, and do it. Return whether the failure counts.

        If the delivery was dropped meanwhile, nothing changes.
        """
        if delivery.state is DROPPED:
            return False
        at_ms, stream = now_ms(), delivery.stream
        history = self._history(delivery, failure, at_ms - took_ms)
        verdict = judge(
            failure,
            history,
            self.policy,
            at_ms=at_ms,
            set_aside_after_ms=self._tuning.set_aside_after_ms,
            jitter=self._dice(),
        )
        match verdict.decision:
            case Decision.AGAIN:
                delivery.again = True
                self._take_back(delivery, failure)
                self.dispatcher.stand_down_if_away()
            case Decision.AWAY:
                self._take_back(delivery, failure)
                self._away(stream)
            case Decision.PUT_OFF:
                self._note_error("dns", stream)
                self._deliveries.wait(delivery, at_ms + self._tuning.put_off_ms, "put off")
                stream.touch()
                self.dispatcher.stand_down_if_away()
            case _:
                delivery.number += not failure.connected
                delivery.first_at_ms = history.first_at_ms
                self._count_failure(delivery, failure, verdict, at_ms, took_ms)
                return True
        return False

    def _history(self, delivery: Delivery, failure: Failure, began_ms: int) -> History:
        entry = delivery.entry
        number = delivery.number if failure.connected else delivery.number + 1
        first_at_ms = delivery.first_at_ms or began_ms
        memory = self.dispatcher.memory
        return History(
            number=number if entry is None else number - entry.forgiven,
            first_at_ms=first_at_ms,
            since_ms=first_at_ms if entry is None else max(first_at_ms, entry.since_ms),
            again=delivery.again,
            outstanding=entry is not None,
            crowded=memory.many_fail or (delivery.first_of_key and memory.many_wait),
        )

    def _take_back(self, delivery: Delivery, failure: Failure) -> None:
        """Make the delivery ready to be attempted again, without counting this attempt."""
        if failure.connected:
            delivery.number -= 1
        self._deliveries.put_first(delivery)

    def _count_failure(self, delivery: Delivery, failure: Failure, verdict: Verdict, at_ms: int, took_ms: int) -> None:
        """Record the failed attempt, and update the limits and the circuit breaker. Then the delivery is retried, moved
        to `outstanding`, or parked.
        """
        stream, status, error, due_ms = delivery.stream, failure.status, failure.error, verdict.due_ms
        self._note_error(error or str(status), stream)
        limits, circuit = self._limits, self._circuit
        limits.failed()
        if verdict.slow_down:
            limits.pushed_back(at_ms, failure.retry_after_s)
        opened = False
        if verdict.fault:
            opened = circuit.failed(at_ms, new=limits.new)
        else:
            circuit.succeeded()
        parked = verdict.decision is Decision.PARK
        stream.record(delivery, "parked" if parked else "failed", status, error, took_ms, due_ms)
        if verdict.decision is Decision.RETRY and due_ms is not None:
            self._deliveries.wait(delivery, due_ms, "retry")
        else:
            self.dispatcher.set_aside(delivery, status, error, due_ms)
        if opened or parked:
            stream.pressing = True
        if opened:
            self._log_opened()
        self.dispatcher.stand_down_if_away()
        stream.touch()

    def _away(self, stream: Stream) -> None:
        """Open the circuit breaker, because no client is connected to the listener's tunnel. Attempts start again after
        a successful probe.
        """
        self._note_error("not-connected", stream)
        if self._circuit.trip(now_ms()):
            stream.pressing = True
            self._log_opened()
        self.dispatcher.stand_down()
        stream.touch()

    def _log_opened(self) -> None:
        self.dispatcher.assignment.changed(self.dispatcher.listener.id)
        log.warning("circuit.opened listener=%s error=%s", self.dispatcher.listener.id, self.error)

    def _note_error(self, error: str | None, stream: Stream) -> None:
        """Record the last error, which the next checkpoint stores with the committed offset."""
        if error != self.error:
            self.error = error
            stream.pressing = True
