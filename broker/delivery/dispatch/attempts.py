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
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from msgspec import UnsetType

from broker.clock import now_ms
from broker.core.circuit import Circuit
from broker.core.delivery import (
    AGAIN,
    AWAY,
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
from broker.delivery.dispatch.delivery_batch import DeliveryBatch
from broker.delivery.dispatch.delivery_queue import DeliveryQueue
from broker.delivery.dispatch.kept_answers import KeptAnswers
from broker.delivery.dispatch.limits import Limits
from broker.delivery.dispatch.room import Room
from broker.delivery.dispatch.spans import Spans
from broker.delivery.dispatch.stream import Assigned, Delivery, Stream, attempts_of, message_of
from broker.delivery.tuning import Tuning
from broker.outbound.addresses import parse_url
from broker.outbound.connection import BODY_BYTES_MAX, ConnectFailed, Connection, NotTried
from broker.outbound.request import Opened, also_signed, post_head

log = logging.getLogger(__name__)


class Batched(Protocol):
    """The methods for a listener's batches (several messages in one request): send() sends a batch, and answered()
    handles the answer to a batch.
    """

    def send(self, connection: Connection, deliveries: DeliveryBatch, /) -> None: ...
    def answered(
        self, deliveries: DeliveryBatch, status: int, took_ms: int, connection: Connection, raw: bytes, /
    ) -> None: ...


class Attempting(Protocol):
    """The part of a dispatcher (the sender of one listener's messages) that the attempts use."""

    tuning: Tuning
    assignment: Assigned
    queue: Queue
    listener: Listener
    circuit: Circuit
    limits: Limits
    deliveries: DeliveryQueue
    memory: Room
    behind: dict[Stream, None]

    @property
    def batches(self) -> Batched: ...
    def pump(self) -> None: ...
    def refill(self) -> None: ...
    def settle(self, delivery: Delivery, state: State, /) -> None: ...
    def set_aside(self, delivery: Delivery, status: int | None, error: str | None, due_ms: int | None, /) -> None: ...
    def stand_down_if_away(self) -> bool: ...
    def gone(self) -> None: ...
    def touch(self, partition: int, /) -> bool: ...


class Attempts:
    """The attempts to deliver messages to one listener, and the connections to the listener."""

    __slots__ = (
        *("_circuit", "_deliveries", "_dice", "_former", "head", "_limits", "_loop", "_queue", "_signer"),
        *("_render", "_timeout_s", "_tuning", "answers", "batch", "connections", "dispatcher", "error"),
        *("policy", "spans"),
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
        self.error: str | None = None  # the listener's newest error or HTTP status; None after an accepted attempt
        self.spans = Spans(network.tracing)
        self.answers = KeptAnswers(dispatcher.touch)
        target = parse_url(dispatcher.listener.notify_url)
        self.connections = Connections(self, network, target, dispatcher.tuning)

    def update(self, listener: Listener, opened: Opened) -> None:
        """Apply the listener's settings. Its timeout and its rules for retries also apply to attempts in flight.
        `opened` holds the listener's decrypted secrets and headers.
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
        self.head = post_head(self.connections.target, opened)
        self._render = None if isinstance(settings.format, UnsetType) else RENDER.get(settings.format)
        # Only HTTP requests in the format `standard` carry batches. E-mails and other formats carry one message each.
        self.batch = None if self._render is not None or self.connections.target.mail else listener.batch
        self.answers.update(listener, opened)

    def under_way(self) -> set[Delivery]:
        """Return the deliveries whose request was sent, and whose answer was not read to the end yet."""
        return {delivery for connection in self.connections.sent for delivery in connection.work or ()}

    def attempting(self, partition: int, offset: int) -> Delivery | None:
        """Return the delivery of the message at this offset, if its request was sent and the answer has not ended."""
        for delivery in self.under_way():
            if delivery.offset == offset and delivery.stream.partition == partition:
                return delivery
        return None

    # An attempt begins

    def connect(self, deliveries: DeliveryBatch | tuple[Delivery]) -> None:
        """Start a task that opens a connection, and then sends the messages of these deliveries in one request."""
        for delivery in deliveries:
            delivery.state = CONNECTING
        self.connections.make(deliveries, self._connect(deliveries))

    async def _connect(self, deliveries: DeliveryBatch | tuple[Delivery]) -> None:
        try:
            began_s = self._loop.time()
            target, found = await self.connections.connect()
            if isinstance(found, ConnectFailed):
                tried = not isinstance(found, NotTried)
                failure = Failure(error=str(found), tried=tried, connected=False, tunnel=target.tunnel)
                if tried:
                    for delivery in deliveries:
                        self.spans.begin(delivery, delivery.number + 1, self.dispatcher.listener)
                    self.spans.end(deliveries, None, str(found))
                counted = self.follow_up(deliveries, failure, int((self._loop.time() - began_s) * 1000))
                self.answers.unanswered(attempts_of(counted), found.times)
                return
            going_on = [delivery for delivery in deliveries if not self._changed(delivery)]
            if isinstance(deliveries, DeliveryBatch) != (self.batch is not None):  # changed while connecting
                self._deliveries.put_first(*going_on)
                going_on.clear()
                self.dispatcher.stand_down_if_away()
            if not going_on:
                self.released(found)
            elif isinstance(deliveries, DeliveryBatch):
                self.dispatcher.batches.send(found, DeliveryBatch(going_on))
            else:
                self.send(found, going_on[0])
        finally:
            self._loop.call_soon(self.dispatcher.pump)

    @staticmethod
    def _changed(delivery: Delivery) -> bool:
        """Return whether the delivery must not be sent now. Return True if the delivery was dropped, or if its message
        was deleted or updated, while the connection was being opened. After a deletion, cancel the delivery. After an
        update, start to read the new data, which is sent later.
        """
        assignment = delivery.stream.assignment
        changed = bool(assignment.known_changes) and delivery.state is CONNECTING and assignment.hold(delivery)
        return changed or delivery.state is DROPPED

    def send(self, connection: Connection, delivery: Delivery) -> None:
        """Send the HTTP request of an attempt."""
        message = message_of(delivery)
        delivery.state = SENT
        delivery.number += 1
        body = message.body(self._queue)
        if self._render is not None:
            body = self._render(body)
        head = self.head
        if message.traceparent is not None:
            traceparent = self.spans.begin(delivery, delivery.number, self.dispatcher.listener)
            head += f"traceparent: {traceparent}\r\n".encode()
        self.post(connection, (delivery,), head, message.id, b"everput-attempt", delivery.number, body)

    def post(
        self,
        connection: Connection,
        deliveries: tuple[Delivery, ...],
        head: bytes,
        webhook_id: bytes,
        header: bytes,
        number: int,
        body: bytes,
    ) -> None:
        """Sign an HTTP request with the messages of these deliveries, and send it. The request begins with `head`. The
        headers of the signature follow. The next header has the name `header` and the value `number`.
        """
        timestamp = b"%d" % time.time()
        signed = self._signer.sign(webhook_id, timestamp, body)
        if self._former:
            others = also_signed(self._former, now_ms(), message_id=webhook_id, timestamp=timestamp, body=body)
            signed += others
            if not others:  # The former secrets have expired.
                self._former = ()
        self.connections.sent[connection] = None
        connection.send(
            b"%bwebhook-id: %b\r\nwebhook-timestamp: %b\r\nwebhook-signature: %b\r\n%b: %d\r\ncontent-length: %d\r\n"
            b"\r\n%b" % (head, webhook_id, timestamp, signed, header, number, len(body), body),
            deliveries,
            self._loop.time(),
        )

    def expire(self) -> None:
        """Time out the requests that were sent longer ago than the listener's timeout, and close their connections."""
        before_s = self._loop.time() - self._timeout_s
        while (connection := self.connections.expired(before_s)) is not None:
            connection.expire()
            self._loop.call_soon(self.dispatcher.pump)

    # The following methods handle the answer to a request, or its failure. A Connection calls most of them.

    def answered(self, connection: Connection, status: int, retry_after_s: int | None) -> None:
        """Handle an answer when its status and headers have arrived. The status decides the outcome of the attempt.
        After a 2xx status for a batch, wait for the body: the body can still reject some messages.
        """
        deliveries: tuple[Delivery, ...] = connection.work
        took_ms = int((self._loop.time() - connection.at) * 1000)
        connection.well = status < 500
        accepted = taken(status)
        if accepted and isinstance(deliveries, DeliveryBatch):
            ended = partial(self.dispatcher.batches.answered, deliveries, status, took_ms, connection)
            connection.keep(ended, BODY_BYTES_MAX)
            return
        if self.spans.open:
            self.spans.end(deliveries, status, None)
        if not accepted:
            failure = Failure(status=status, retry_after_s=retry_after_s, tunnel=connection.target.tunnel)
            counted = self.follow_up(deliveries, failure, took_ms)
            if counted:
                self.answers.answered(attempts_of(counted), connection)
            if status == 410 and connection.target is self.connections.target:
                self.dispatcher.gone()
            return
        delivery = deliveries[0]
        if delivery.state is not DROPPED:
            self.delivered(delivery, status, took_ms)
        self.succeeded()

    def succeeded(self) -> None:
        """Update the limits and the circuit breaker after an attempt that the listener accepted."""
        self._limits.succeeded()
        circuit = self._circuit
        if circuit.faults or circuit.allowance is not None:
            circuit.succeeded()

    def failed(self, connection: Connection, error: str) -> None:
        """Handle an attempt without a valid answer: for example, it timed out, or the answer can't be parsed."""
        took_ms = int((self._loop.time() - connection.at) * 1000)
        if error == "timeout":
            self._limits.timed_out(took_ms)
        stale = connection.used > 0 and connection.fresh
        deliveries: tuple[Delivery, ...] = connection.work
        self.spans.end(deliveries, None, error)
        failure = Failure(error=error, tunnel=connection.target.tunnel, stale=stale)
        counted = self.follow_up(deliveries, failure, took_ms)
        if connection.used == 0:
            self.answers.unanswered(attempts_of(counted), connection.times)

    def released(self, connection: Connection) -> None:
        """Handle the end of an answer. Keep the connection if the URL is unchanged and sockets are not scarce."""
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
        """Record how long an answer took until the end of its body, if its status is below 500. Because the body
        counts, a listener that sends the body slowly does not count as fast.
        """
        if connection.well:
            connection.well = False
            self._limits.took(int((self._loop.time() - connection.at) * 1000))

    # What follows an attempt

    def delivered(self, delivery: Delivery, status: int, took_ms: int) -> None:
        """Record that the listener has accepted the message, and end the delivery."""
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

    def follow_up(
        self, deliveries: Sequence[Delivery], failure: Failure, took_ms: int, *, limited: bool = True
    ) -> list[Delivery]:
        """Retry or park each delivery of a failed request, as judge() decides. Leave out dropped ones. Return the
        deliveries for which the attempt counts.

        If `limited` is true, the listener's limits and circuit breaker count one failure. All deliveries get the same
        jitter (random part of the wait), so that those with equally many attempts are retried together.
        """
        at_ms, jitter = now_ms(), self._dice()
        counted, again = list[Delivery](), list[Delivery]()
        for delivery in deliveries:
            if delivery.state is DROPPED:
                continue
            history = self._history(delivery, failure, at_ms - took_ms)
            verdict = judge(
                failure,
                history,
                self.policy,
                at_ms=at_ms,
                set_aside_after_ms=self._tuning.set_aside_after_ms,
                jitter=jitter,
            )
            match verdict.decision:
                case Decision.AGAIN | Decision.AWAY:  # The attempt does not count, and the delivery is ready again.
                    delivery.number -= failure.connected
                    delivery.again = delivery.again or verdict is AGAIN
                    again.append(delivery)
                    if verdict is AWAY:
                        self._away(delivery.stream)
                case Decision.PUT_OFF:
                    self._note_error("dns", delivery.stream)
                    self._deliveries.wait(delivery, at_ms + self._tuning.put_off_ms, "put off")
                    delivery.stream.touch()
                case _:
                    if limited and not counted:
                        self._count_failure(delivery.stream, failure, verdict, at_ms)
                    delivery.number += not failure.connected
                    delivery.first_at_ms = history.first_at_ms
                    self._try_later(delivery, failure, verdict, took_ms)
                    counted.append(delivery)
        self._deliveries.put_first(*again)
        self.dispatcher.stand_down_if_away()
        return counted

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

    def _count_failure(self, stream: Stream, failure: Failure, verdict: Verdict, at_ms: int) -> None:
        """Count a failed attempt for the listener's priority and for its circuit breaker."""
        self._note_error(failure.error or str(failure.status), stream)
        limits, circuit = self._limits, self._circuit
        limits.failed()
        if verdict.slow_down:
            limits.pushed_back(at_ms, failure.retry_after_s)
        if not verdict.fault:
            circuit.succeeded()
        elif circuit.failed(at_ms, new=limits.new):
            stream.pressing = True
            self._log_opened()

    def _try_later(self, delivery: Delivery, failure: Failure, verdict: Verdict, took_ms: int) -> None:
        """Record a failed attempt. Then retry the delivery later, or park it: keep it without further attempts."""
        stream, status, error, due_ms = delivery.stream, failure.status, failure.error, verdict.due_ms
        parked = verdict.decision is Decision.PARK
        stream.record(delivery, "parked" if parked else "failed", status, error, took_ms, due_ms)
        if verdict.decision is Decision.RETRY and due_ms is not None:
            self._deliveries.wait(delivery, due_ms, "retry")
        else:
            self.dispatcher.set_aside(delivery, status, error, due_ms)
        if parked:
            stream.pressing = True
        stream.touch()

    def _away(self, stream: Stream) -> None:
        """Open the circuit breaker, because the listener's tunnel can't be reached, or no client (`everput listen`)
        takes its messages. Attempts begin again after a successful probe.
        """
        self._note_error("not-connected", stream)
        if self._circuit.trip(now_ms()):
            stream.pressing = True
            self._log_opened()
        stream.touch()

    def _log_opened(self) -> None:
        self.dispatcher.assignment.changed(self.dispatcher.listener.id)
        log.warning("circuit.opened listener=%s error=%s", self.dispatcher.listener.id, self.error)

    def _note_error(self, error: str | None, stream: Stream) -> None:
        """Record the listener's newest error, or None after an accepted attempt. The next checkpoint stores it."""
        if error != self.error:
            self.error = error
            stream.pressing = True
