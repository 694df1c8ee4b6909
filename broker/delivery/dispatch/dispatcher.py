"""A dispatcher: the deliveries of one listener on one worker, over all the partitions that the worker owns.

For: a delivery's way from when its message is loaded until the cursor may pass it, the streams that lag, and the effect
of changes to the listener. It holds a bounded number of messages. A stream whose messages do not fit *lags*, and a
catch-up reader brings them later.
Not for: reading the log (reading/), the cursor's arithmetic (broker/core/window.py), whether an attempt may begin
(admission.py, limits.py), attempts (attempts.py), probing (liveness.py).

A delivery takes this way:

    accept()                     renewed(), retry due, next of an ordering key
       |                                       |
       v                                       v
    deliveries.ready <---------------------------------------------.
       |-- admission: not now --> it waits here, or set_aside()    |
       v                                                           |
    attempts.send(), on an idle connection or after connect()      |
       |-- answered 2xx --> settle() --> the cursor may pass       |
       |                                                           |
       '-- failed --> judge() --> again, retry --------------------'
                         '------> set aside, park --> set_aside() --> settle()
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from broker.clock import now_ms
from broker.core import circuit
from broker.core.circuit import Circuit
from broker.core.delivery import CANCELLED, DROPPED, KEPT, QUEUED, READY, RENEWING, RETURNED, Leaving, State
from broker.core.entities import Listener, Queue
from broker.core.events import DAMAGED, UNDECODABLE
from broker.core.flow import Share
from broker.core.health import Recent
from broker.core.window import Window
from broker.delivery.dispatch.admission import BEGIN, Admission, Admissions, is_cancelled
from broker.delivery.dispatch.attempts import Attempts
from broker.delivery.dispatch.backlog import Backlog
from broker.delivery.dispatch.batches import Batches
from broker.delivery.dispatch.connections import Network
from broker.delivery.dispatch.delivery_queue import DeliveryQueue
from broker.delivery.dispatch.limits import Limits
from broker.delivery.dispatch.log_rate_limit import LogRateLimit
from broker.delivery.dispatch.room import Room
from broker.delivery.dispatch.stream import Assigned, Delivery, Stream, message_of
from broker.delivery.reading.message import Message
from broker.delivery.tuning import TUNED, Tuning
from broker.outbound.request import Opened


class Dispatcher:
    """The part of a worker that sends one listener's messages, from all partitions that the worker owns. It holds a
    bounded number of messages in memory, and starts attempts within the listener's limits.
    """

    def __init__(
        self,
        network: Network,
        assignment: Assigned,
        queue: Queue,
        listener: Listener,
        opened: Opened,
        *,
        tuning: Tuning = TUNED,
        dice: Callable[[], float],
        share: Share,
        wants_tick: Callable[[Dispatcher], None],
        gone: Callable[[Dispatcher], None],
    ) -> None:
        self.tuning = tuning
        self.assignment = assignment
        self.queue, self.listener = queue, listener
        self.opened = opened  # the listener's decrypted secrets and headers
        self._wants_tick = wants_tick  # makes tick() be called
        self._tell_gone = gone  # called after a 410 Gone
        # `said_gone` is true if the listener has answered 410 Gone, and the worker was asked to pause the listener.
        # `sending` is false while the worker must begin no attempts, for example during a rebalance.
        self._active, self.said_gone, self.sending = False, False, True
        self.streams: dict[int, Stream] = {}  # by partition
        self.recent: dict[int, Recent] = {}  # counts of recent attempts, by partition
        self.failed_lines, self.parked_lines = LogRateLimit(tuning), LogRateLimit(tuning)
        self._loop = loop = asyncio.get_running_loop()
        self.circuit = Circuit()
        self.limits = Limits(self.circuit, listener.settings, tuning, replay=listener.replay is not None)
        self.deliveries = DeliveryQueue(loop)  # deliveries without an attempt in flight
        self.memory = Room(self.circuit, self.limits, self.deliveries, tuning)
        self.admissions = Admissions(queue, self.deliveries, self.memory, loop)
        self.backlog = backlog = Backlog(self)
        self.behind, self.room_for, self.refill = backlog.behind, backlog.room_for, backlog.refill
        self.set_aside_before, self.sets_aside = backlog.set_aside_before, backlog.sets_aside
        self.attempts = Attempts(self, network, dice, loop)
        self.batches = Batches(self, loop)
        self.connections, self.answers = self.attempts.connections, self.attempts.answers
        self.attempting = self.attempts.attempting
        self.update(listener, share=share)

    def update(self, listener: Listener, *, share: Share, opened: Opened | None = None) -> None:
        """Apply a change of the listener, such as new settings, a pause or a redrive. `share` is the part of the
        listener's limits that this worker may use. `opened` is None if secrets and headers are unchanged.
        """
        self.opened = opened or self.opened
        before, self.listener = self.listener, listener
        self.said_gone = False
        self.attempts.update(listener, self.opened)
        self.batches.update(self.attempts.batch)
        self.limits.update(listener.settings, share)
        if listener.paused is not None:
            self.stand_down()
        elif before.paused is not None:
            self.wake()
        if before.redrives.cancelled != listener.redrives.cancelled:
            _return_cancelled(self)
        if before.redrives != listener.redrives:
            self.deliveries.hurry(partial(listener.redrives.concern, since=before.redrives.count))
            self.pump()

    # A message comes

    def room(self) -> bool:
        """Return whether the listener has room in memory for one more message; False if it is down or paused."""
        memory = self.memory
        return memory.held < memory.held_max and memory.held_bytes < memory.bytes_share and self.listener.paused is None

    def stream(self, partition: int) -> Stream:
        """Return the delivery stream of this partition. If none exists, create one for the next new messages."""
        stream = self.streams.get(partition)
        if stream is None:
            stream = self.streams[partition] = Stream(self, partition, Window())
        return stream

    def accept(self, delivery: Delivery, message: Message) -> None:
        """Take a message into memory, to send it when its ordering key, its `deliver_at` and the listener's limits
        allow. If Kafka will soon delete the message, move its delivery to the topic `outstanding` instead.
        """
        delivery.message = message
        delivery.state = READY
        memory = self.memory
        memory.held += 1
        memory.held_bytes += message.size
        if delivery.offset < delivery.stream.set_aside_below and delivery.entry is None:
            self.backlog.release(delivery)
            return
        self.deliveries.ready.append(delivery)
        self.activate()
        if self.batches.setting is not None:
            self.batches.added(self.batches.setting)
        elif self.connections.busy < self.limits.flow.limit:
            self.pump()

    def pump(self) -> None:
        """Begin as many attempts as the listener's limits allow."""
        ready = self.deliveries.ready
        if not self.sending or not ready:
            return
        if self.batches.setting is not None:
            self.batches.pump(self.batches.setting)
            return
        connections, attempts = self.connections, self.attempts
        sent, making = connections.sent, connections.making  # The property `connections.busy` would be slower.
        most = self.limits.most(len(sent) + len(making))
        while ready and len(sent) + len(making) < most:
            delivery = ready.popleft()
            admission = self.admissions.of(delivery)
            if admission is not BEGIN:
                self.turn_away(delivery, admission)
                continue
            assignment = delivery.stream.assignment
            if assignment.known_changes and assignment.hold(delivery):
                continue
            if not connections.may_have_one or not self.limits.begin(self._loop.time()):
                ready.appendleft(delivery)
                return
            connection = connections.take_idle()
            if connection is not None:
                attempts.send(connection, delivery)
            else:
                attempts.connect((delivery,))

    def turn_away(self, delivery: Delivery, admission: Admission) -> None:
        """Handle a delivery of which no attempt may begin now. `admission` says why not. For example, the delivery
        waits in memory, or is moved to the topic `outstanding`.
        """
        match admission:
            case Admission.QUEUED:
                delivery.state = QUEUED
            case Admission.KEPT:
                self.settle(delivery, KEPT)
            case Admission.UNDECODABLE:
                self.set_aside(delivery, None, UNDECODABLE, None)
            case Admission.RELEASED:
                self.backlog.release(delivery)
            case Admission.FOLLOWS:
                self.set_aside(delivery, None, None, now_ms())
            case Admission.RETURNED:
                self._let_go(delivery)
                self._give_back(delivery)
            case Admission.NEAR:
                self.deliveries.wait(delivery, message_of(delivery).deliver_at_ms, "scheduled")
            case Admission.FAR:
                self.set_aside(delivery, None, None, message_of(delivery).deliver_at_ms)

    def touch(self, partition: int) -> bool:
        """Let a checkpoint soon include the listener's deliveries of the partition. Return False, and do nothing, if
        the worker does not deliver the partition's messages to the listener (after it lost the partition, for example).
        """
        if not self.assignment.delivers(partition, self):
            return False
        self.stream(partition).touch()  # If the stream was removed because it was idle, stream() creates it again.
        return True

    # A delivery leaves

    def settle(self, delivery: Delivery, state: State = KEPT) -> None:
        """End a delivery that was accepted, cancelled, or stored in the topic `outstanding`. The committed offset may
        now pass its message.
        """
        if delivery.state is DROPPED:
            return
        stream = delivery.stream
        delivery.state = state
        self._let_go(delivery)
        if delivery.entry is not None:
            stream.pressing = True
            stream.from_outstanding.discard(delivery)
            # After a crash, the delivery may also be in its stream's window. So end it there, too.
            stream.window.settle(delivery.offset)
        elif stream.window.settle(delivery.offset) is None:
            return
        stream.touch()

    def set_aside(self, delivery: Delivery, status: int | None, error: str | None, due_ms: int | None) -> None:
        """Move a delivery to the topic `outstanding`. When it is stored there, the listener's committed offset may pass
        its message. The next attempt is due at `due_ms`; None parks the delivery.
        """
        key = message_of(delivery).key
        delivery.state = Leaving(due_ms, status, error)
        delivery.stream.assignment.set_aside(delivery, status, error, due_ms)
        if delivery.first_of_key and key is not None:
            self.deliveries.first_leaves(delivery, key, others_follow=due_ms is not None)

    def _give_back(self, delivery: Delivery) -> None:
        """Put a delivery back into the index of `outstanding`, where it waits: no attempt can begin now."""
        delivery.state = RETURNED
        delivery.stream.from_outstanding.discard(delivery)
        delivery.stream.assignment.returned(delivery)

    def _let_go(self, delivery: Delivery) -> None:
        """Free the memory of a delivery's message, and let the next delivery of its ordering key begin."""
        message, delivery.message = delivery.message, None
        memory, leaving = self.memory, self.memory.setting_aside
        if leaving and leaving.pop(delivery, None) is not None and not leaving:
            self._loop.call_soon(self.refill)
        if message is not None:
            memory.held -= 1
            memory.held_bytes -= message.size
            if delivery.first_of_key and message.key is not None:
                self.deliveries.first_ended(delivery, message.key)

    # Updated and deleted messages (changes/honour.py)

    def cancel(self, delivery: Delivery) -> None:
        """Cancel a delivery, because its message was deleted."""
        if delivery.entry is not None:
            delivery.stream.assignment.delivered(delivery)
        self.settle(delivery, CANCELLED)

    def renew(self, delivery: Delivery) -> None:
        """Let a delivery wait while the new data of its updated message is read from Kafka."""
        delivery.state = RENEWING
        self.deliveries.renewing.add(delivery)

    def park_unreadable(self, delivery: Delivery) -> None:
        """Park a delivery: the new data of its updated message is unreadable, and the old data must not be sent."""
        self.deliveries.renewing.discard(delivery)
        self.set_aside(delivery, None, DAMAGED, None)

    def renewed(self, delivery: Delivery, message: Message) -> None:
        """Make the delivery ready, with the new data of its updated message, ahead of all others."""
        self.deliveries.renewing.discard(delivery)
        self.memory.held_bytes += message.size - message_of(delivery).size
        delivery.message = message
        self.deliveries.put_first(delivery)
        if not self.stand_down_if_away():
            self.pump()

    # The following methods handle a listener that is down, is paused, or comes back.

    def stand_down_if_away(self) -> bool:
        """Free the memory of messages whose deliveries wait for an attempt if the listener is down or paused. Return
        whether it is down or paused.
        """
        away = self.circuit.state is circuit.State.OPEN or self.listener.paused is not None
        if away:
            self.stand_down()
        return away

    def stand_down(self) -> None:
        """Free the memory of messages whose deliveries wait for an attempt. These messages are read again later."""
        self.batches.forget()
        connecting = (delivery for deliveries, _ in self.connections.making.values() for delivery in deliveries)
        for delivery in self.deliveries.stand_down((*self.attempts.under_way(), *connecting)):
            delivery.put_at_ms = message_of(delivery).put_at_ms
            self._let_go(delivery)
            if delivery.entry is not None:
                self._give_back(delivery)
            else:
                self.backlog.read_again(delivery)

    def wake(self) -> None:
        """Start attempts again, for example after a pause of the listener, or after a probe that succeeded."""
        # A resumed listener may be down and need probes. So let the worker call tick() regularly from now on.
        self.activate()
        if self.circuit.state is circuit.State.PROBATION:
            self.limits.begin_anew()
        self.refill()
        self.pump()

    def gone(self) -> None:
        """Ask the worker to pause the listener, which has answered 410 Gone."""
        if self.listener.paused is None and not self.said_gone:
            self.said_gone = True
            self._tell_gone(self)

    # Ticks

    def activate(self) -> None:
        """Make the worker call tick() regularly, until tick() returns False."""
        if not self._active:
            self._active = True
            self._wants_tick(self)

    def tick(self, at_ms: int, *, late: bool = False) -> bool:
        """Handle timeouts, and start attempts that are due, such as retries. The worker calls this method regularly
        until it returns False: nothing is left to do. If `late` is true, no attempt times out: the event loop is late,
        so some answers may have arrived, but were not read yet.
        """
        if not late:
            self.attempts.expire()
        let_alone = self.limits.let_alone(at_ms)
        if self.memory.many_wait:
            for delivery in self.admissions.crowd():
                self.set_aside(delivery, None, None, now_ms())
        # Start attempts of deliveries that had to wait, for example for their retry, the rate limit, or a free socket.
        if self.deliveries.due(at_ms) or self.deliveries.ready:
            self.pump()
        waits = bool(self.behind) and self.circuit.state is not circuit.State.OPEN and self.listener.paused is None
        waits = waits or any(self.sets_aside(stream.partition) for stream in self.behind)
        idle = not (self.deliveries.ready or self.busy)
        if waits and (idle or self.memory.running_low):
            self.refill()
        self._active = bool(self.memory.held or waits or let_alone or self.busy)
        return self._active

    # Other parts of the worker read the following properties, for example to divide attempts among listeners.

    @property
    def held(self) -> int:
        """The number of messages for the listener that are in memory."""
        return self.memory.held

    @property
    def error(self) -> str | None:
        """The error or HTTP status of the newest failure; None if an attempt was accepted later, or if none failed."""
        return self.attempts.error

    @property
    def busy(self) -> int:
        """The number of attempts in flight."""
        return self.connections.busy

    @property
    def waits(self) -> bool:
        """Whether deliveries are ready, and an attempt can start soon: the listener is not down, for example."""
        return bool(self.deliveries.ready) and not self.limits.let_wait(self.busy)

    @property
    def wants_more(self) -> bool:
        """Whether deliveries are ready, and the listener could use more attempts than are in flight for it now."""
        return bool(self.deliveries.ready) and not self.limits.held_back(self.busy)

    def drop(self, stream: Stream) -> None:
        """Drop a partition's deliveries, because the partition was handed over, or because delivery to the listener
        ends. A later answer to a dropped delivery does not change the delivery.
        """
        self.streams.pop(stream.partition, None)
        self.answers.forget(stream.partition)
        self.behind.pop(stream, None)
        dropped = (*stream.window.open.values(), *stream.from_outstanding)
        self.deliveries.drop(dropped)
        for delivery in dropped:
            self._let_go(delivery)
        stream.from_outstanding.clear()

    def close(self) -> None:
        """Drop all deliveries and close all connections, because the worker stops delivery to the listener."""
        for stream in list(self.streams.values()):
            self.drop(stream)
        self.deliveries.clear()
        self.connections.close()


def _return_cancelled(dispatcher: Dispatcher) -> None:
    """Put deliveries back into the worker's index of the topic `outstanding` if their redrive (a request to retry now)
    was cancelled. Only deliveries that are ready, and have no attempt in flight, are put back.
    """
    ready = dispatcher.deliveries.ready
    cancelled = [delivery for delivery in ready if is_cancelled(delivery)]
    if cancelled:
        # First remove all cancelled deliveries from `ready`, because returning one can add another delivery to `ready`.
        others = [delivery for delivery in ready if not is_cancelled(delivery)]
        ready.clear()
        ready.extend(others)
        for delivery in cancelled:
            dispatcher.turn_away(delivery, Admission.RETURNED)
