"""The batches of one listener: when a batch is sent, which of the ready deliveries it carries, and what a 2xx answer to
it means for each of them.

For: a listener with the setting `batch`. One request to it can carry several messages. Not for: the size of a batch and
its format (broker/core/batching.py), sending (attempts.py), the limits (limits.py).

Within the listener's limits, a batch is sent as soon as it is full. A batch that is not full is sent when its first
message has waited `wait_ms`. If nothing is in flight, it is sent at once if no more messages fit into memory, or if
deliveries wait for an earlier one with the same ordering key. A batch has at most one message of each ordering key.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from broker.core.batching import (
    FAILED_IN_BATCH,
    FormingBatch,
    batch_body,
    batch_id,
    element,
    element_bytes_max,
    failed_ids,
    fills,
    halvings,
)
from broker.core.delivery import DROPPED, SENT, Failure
from broker.core.entities import Queue
from broker.core.events import BatchSetting
from broker.delivery.dispatch.admission import BEGIN, Admission, Admissions
from broker.delivery.dispatch.attempts import Attempts
from broker.delivery.dispatch.delivery_batch import DeliveryBatch
from broker.delivery.dispatch.delivery_queue import DeliveryQueue
from broker.delivery.dispatch.limits import Limits
from broker.delivery.dispatch.room import Room
from broker.delivery.dispatch.stream import Delivery, Stream, attempts_of, message_of
from broker.outbound.answer import is_begun_object, read_body
from broker.outbound.connection import BODY_BYTES_MAX, Connection


class Batching(Protocol):
    """The parts of a dispatcher that the class Batches uses. A dispatcher sends one listener's messages."""

    queue: Queue
    limits: Limits
    deliveries: DeliveryQueue
    memory: Room
    behind: dict[Stream, None]
    attempts: Attempts
    admissions: Admissions

    def turn_away(self, delivery: Delivery, admission: Admission, /) -> None: ...
    def pump(self) -> None: ...
    def room(self) -> bool: ...


class Batches:
    """The sender of batches of messages to one listener. `setting` holds the limits of a batch. It is None while each
    request to the listener carries a single message.
    """

    __slots__ = ("_added", "_dispatcher", "_due", "_loop", "_timer", "setting")

    def __init__(self, dispatcher: Batching, loop: asyncio.AbstractEventLoop) -> None:
        self._dispatcher = dispatcher
        self._loop = loop
        self._added = False  # True if pump() is called soon
        # This timer runs for `wait_ms`, while ready deliveries wait for more messages to fill a batch.
        self._timer: asyncio.TimerHandle | None = None
        # True if the next batch must be sent even if it is not full: its first message has waited for `wait_ms`.
        self._due = False
        self.setting: BatchSetting | None = None

    def update(self, setting: BatchSetting | None) -> None:
        """Apply a change of the listener's setting `batch`, also to deliveries that are ready for an attempt."""
        self._dispatcher.memory.batch_max = 0 if setting is None else setting.max_messages
        if setting != self.setting:
            self.setting = setting
            self.forget()
            self._loop.call_soon(self._dispatcher.pump)

    def added(self, batch: BatchSetting) -> None:
        """Process one more delivery that is ready for an attempt: call pump(), which sends batches. If the number of
        ready deliveries is now a multiple of `max_messages`, call pump() at once. Otherwise, let the event loop call
        pump() soon, so that messages that come before then can share the batch.
        """
        if len(self._dispatcher.deliveries.ready) % batch.max_messages == 0:
            self._dispatcher.pump()
        elif not self._added:
            self._added = True
            self._loop.call_soon(self._pump_added)

    def _pump_added(self) -> None:
        self._added = False
        self._dispatcher.pump()

    def pump(self, batch: BatchSetting) -> None:
        """Begin attempts, each with one batch. Stop when the listener's limits allow no more, or when the next batch
        must wait for more messages.
        """
        dispatcher = self._dispatcher
        ready, limits, attempts = dispatcher.deliveries.ready, dispatcher.limits, dispatcher.attempts
        connections, at_s = attempts.connections, self._loop.time()
        if self._timer is None and not self._due:
            self._timer = self._loop.call_later(batch.wait_ms / 1000, self._waited)
        while ready and connections.busy < limits.most(connections.busy):
            if not self._sends(batch) or not connections.may_have_one or not limits.may_begin(at_s):
                return
            deliveries = self._next(batch)
            if deliveries:
                limits.begin(at_s, len(deliveries))
                connection = connections.take_idle()
                if connection is not None:
                    self.send(connection, deliveries)
                else:
                    attempts.connect(deliveries)
        if not ready:
            self.forget()

    def send(self, connection: Connection, deliveries: DeliveryBatch) -> None:
        """Send one HTTP request with the messages of these deliveries."""
        attempts, queue = self._dispatcher.attempts, self._dispatcher.queue
        elements, message_ids, traceparent = list[bytes](), list[bytes](), None
        for delivery in deliveries:
            message = message_of(delivery)
            delivery.state = SENT
            delivery.number += 1
            if message.traceparent is not None or traceparent is not None:
                traceparent = attempts.spans.begin(delivery, delivery.number, attempts.dispatcher.listener)
            elements.append(element(message.id, message.body(queue), delivery.number, traceparent))
            message_ids.append(message.id)
        body = batch_body(elements)
        attempts.post(
            connection, deliveries, attempts.head, batch_id(message_ids), b"everput-batch", len(deliveries), body
        )

    def answered(
        self, deliveries: DeliveryBatch, status: int, took_ms: int, connection: Connection, raw: bytes
    ) -> None:
        """Handle a 2xx answer to a batch, after the answer or its connection has ended. The answer's body may reject
        some of the messages.

        If the connection was closed before the end of the body, all messages have failed, because the missing part of
        the body may reject some of them. Only the first BODY_BYTES_MAX bytes of an answer are read. If they begin a
        JSON object without its end, all messages have failed, too. Otherwise, the rest of a longer answer is ignored.
        """
        attempts, body, error = self._dispatcher.attempts, read_body(raw, cut=connection.cut), None
        if not body.complete:
            if len(raw) < BODY_BYTES_MAX:
                error = "closed"
            elif is_begun_object(body.data):
                error = "too-large"
        attempts.spans.end(deliveries, None if error else status, error)
        if error is not None:
            attempts.follow_up(deliveries, Failure(error=error), took_ms)
            return
        rejected = failed_ids(body.data)
        failed = [one for one in deliveries if rejected and one.message and one.message.id.decode() in rejected]
        none_taken, not_taken = len(failed) == len(deliveries), set(failed)
        if not none_taken:
            attempts.succeeded()
        for delivery in deliveries:
            if delivery.state is not DROPPED and delivery not in not_taken:
                attempts.delivered(delivery, status, took_ms)
        if failed:
            failure = Failure(status=status, error=FAILED_IN_BATCH)
            counted = attempts.follow_up(failed, failure, took_ms, limited=none_taken)
            attempts.answers.refused(attempts_of(counted), raw)

    def forget(self) -> None:
        """Stop the timer for the next batch. When pump() is called with a ready delivery, a new timer starts."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._due = None, False

    def _sends(self, batch: BatchSetting) -> bool:
        """Return whether a batch of the deliveries that are ready for an attempt must be sent now, instead of waiting
        for more messages.
        """
        if self._due:
            return True
        dispatcher = self._dispatcher
        ready = dispatcher.deliveries.ready
        if len(ready) >= batch.max_messages:
            return True
        # A batch with fewer than `max_messages` can be full because its messages have many bytes.
        # If a message of a batch has failed before, fewer messages are allowed in this batch: see _halvings().
        may_fill = dispatcher.memory.held_bytes >= batch.max_bytes or ready[0].number > 0
        if may_fill and fills(batch, ((message_of(one).size, self._halvings(one)) for one in ready)):
            return True
        if dispatcher.attempts.connections.busy:
            return False
        no_more = not dispatcher.room() or any(stream.window.full for stream in dispatcher.behind)
        return no_more or dispatcher.deliveries.keys.waiting > 0

    def _next(self, batch: BatchSetting) -> DeliveryBatch:
        """Take the deliveries of the next batch from the ready deliveries, and return them. Turn away each delivery
        whose attempt may not begin now: for example, it then waits in the topic `outstanding`. If no attempt may begin,
        return an empty batch. If some deliveries were turned away, the rest may not fill a batch. If so, and if
        `wait_ms` is not over, put the rest back, and return an empty batch.
        """
        ready, queue, forming = self._dispatcher.deliveries.ready, self._dispatcher.queue, FormingBatch(batch)
        chosen, turned_away = list[Delivery](), False
        while ready and not forming.full:
            delivery = ready.popleft()
            if not self._may_begin(delivery):
                turned_away = True
                continue
            message = message_of(delivery)
            size = element_bytes_max(message.id, message.body(queue), message.traceparent)
            if forming.takes(size, self._halvings(delivery)):
                chosen.append(delivery)
            else:
                ready.appendleft(delivery)
        if turned_away and not forming.full and not self._due:
            ready.extendleft(reversed(chosen))
            chosen.clear()
        return DeliveryBatch(chosen)

    def _halvings(self, delivery: Delivery) -> int:
        """Return how many times `max_messages` is halved for a batch with this delivery. Usually, it is halved once for
        each failed attempt of the delivery since its last redrive. If the delivery has only one attempt left after a
        failure, the returned number is so high that its message is sent alone.
        """
        entry = delivery.entry
        failed = delivery.number if entry is None else delivery.number - entry.forgiven
        return halvings(failed, self._dispatcher.attempts.policy.max_attempts) if failed else 0

    def _may_begin(self, delivery: Delivery) -> bool:
        """Return whether an attempt of the delivery may begin now. If not, decide what becomes of the delivery. For
        example, let it wait in memory or in the topic `outstanding`, or cancel it because its message was deleted.
        """
        admission = self._dispatcher.admissions.of(delivery)
        if admission is not BEGIN:
            self._dispatcher.turn_away(delivery, admission)
            return False
        assignment = delivery.stream.assignment
        return not (assignment.known_changes and assignment.hold(delivery))

    def _waited(self) -> None:
        self._timer, self._due = None, True
        self._dispatcher.pump()
