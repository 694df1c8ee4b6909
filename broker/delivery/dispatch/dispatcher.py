"""A dispatcher: what one worker keeps for one listener, over all the partitions it owns.

For: its ready deliveries, the attempts under way, its connections and circuit, and what an answer means. It holds a
bounded number of messages; a stream it has no room for is *lagging* and is brought back by a catch-up reader.
Not for: reading the log (catch_up.py), the cursor's arithmetic (broker/core/window.py), how many attempts there may be
(limits.py), probing (liveness.py).
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import time
from collections import deque
from collections.abc import Callable

from broker.core import circuit
from broker.core.circuit import Circuit
from broker.core.delivery import (
    CANCELLED,
    CONNECTING,
    DELIVERED,
    DROPPED,
    KEPT,
    MISSING,
    QUEUED,
    READY,
    RENEWING,
    RETURNED,
    SENT,
    Attempts,
    Decision,
    Failure,
    Leaving,
    State,
    Verdict,
    Waiting,
    judge,
    taken,
)
from broker.core.entities import Listener, Queue
from broker.core.events import DAMAGED, UNDECODABLE
from broker.core.flow import Share
from broker.core.key_order import KeyOrder
from broker.core.retry import RetryPolicy
from broker.core.window import Window
from broker.delivery.dispatch.connections import Connections, Network
from broker.delivery.dispatch.limits import Limits
from broker.delivery.dispatch.log_rate_limit import LogRateLimit
from broker.delivery.dispatch.stream import Assigned, Delivery, Stream, now_ms
from broker.delivery.reading.message import Message
from broker.delivery.tuning import TUNED, Tuning
from broker.errors import UnknownEvent
from broker.outbound.addresses import parse_url
from broker.outbound.connection import ConnectFailed, Connection, NotTried
from broker.outbound.request import Opened, also_signed, post_head

log = logging.getLogger(__name__)


def _held(delivery: Delivery) -> Message:
    """The message of a delivery in a state that holds one."""
    message = delivery.message
    if message is None:
        raise RuntimeError(f"a delivery that is {delivery.state} holds no message")
    return message


class Dispatcher:
    """One per listener and worker. opened: what of the listener is sealed. Is the Owner of its connections.

    network: what it connects by. assignment: the worker's, which its next streams belong to. wants_tick: it is to be
    called for it. gone: the listener answered 410; said_gone keeps it from being told again.
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
        self._dice = dice
        self._wants_tick = wants_tick
        self._tell_gone = gone
        self.assignment = assignment
        self.queue = queue
        self.listener = listener
        self.streams: dict[int, Stream] = {}
        self.behind: dict[Stream, None] = {}  # the one to be brought next first
        self.renewing: set[Delivery] = set()  # new data is being read for them
        self.circuit = Circuit()
        self.limits = Limits(self.circuit, listener.settings, tuning, replay=listener.replay is not None)
        self.error: str | None = None
        self.failed_lines, self.parked_lines = LogRateLimit(tuning), LogRateLimit(tuning)
        self.bytes_share = tuning.held_bytes_max
        self.sending = True  # False: hand-over or shut-down; what is under way may finish
        self._ready: deque[Delivery] = deque()
        self._retries: list[tuple[int, int, Delivery]] = []
        self._turns: KeyOrder[Delivery] = KeyOrder()
        self._parking: set[Delivery] = set()  # on their way to `outstanding`; their keys' turns are theirs until then
        self._active = False
        self.said_gone = False
        self.connections = Connections(self, network, parse_url(listener.notify_url), tuning)
        self._held = 0
        self._held_bytes = 0
        self._setting_aside: dict[Delivery, int] = {}  # by set_aside(), on their way to `outstanding`; their bytes
        self._loop = asyncio.get_running_loop()
        self.opened = opened
        self.update(listener, share=share)

    def update(self, listener: Listener, *, share: Share, opened: Opened | None = None) -> None:
        """The listener's settings, or this worker's share, have changed.

        opened: None for what was sealed before.
        """
        self.opened = opened = opened or self.opened
        self._signer, self._former = opened.signer, opened.former
        settings = listener.settings
        before, self.listener = self.listener, listener
        self.said_gone = False
        self.connections.aim(parse_url(listener.notify_url))
        self._timeout_s = settings.timeout_ms / 1000
        self._policy = RetryPolicy(
            delay_ms_first=settings.retry_first_ms,
            delay_ms_max=settings.retry_max_s * 1000,
            max_attempts=settings.max_attempts,
            max_age_ms=settings.max_age_s * 1000,
        )
        self.limits.update(settings, share)
        self._head = post_head(self.connections.target, opened)
        if listener.paused is not None:
            self.stand_down()
        elif before.paused is not None:
            self.wake()
        if before.redrives != listener.redrives:
            self._hurry(before.redrives.count)

    def _hurry(self, since: int) -> None:
        """It was redriven: the retries that this concerns are due."""
        later = []
        for row in self._retries:
            delivery = row[2]
            if self.listener.redrives.concern(_held(delivery).id.decode(), since=since):
                delivery.state = READY
                self._ready.append(delivery)
            else:
                later.append(row)
        heapq.heapify(later)
        self._retries = later
        self.pump()

    # What it has room for

    def room(self) -> bool:
        """Whether it can take one more message now."""
        return self._held < self._held_max and self._held_bytes < self.bytes_share and self.listener.paused is None

    def room_for(self, stream: Stream, offset: int) -> bool:
        """Whether it can take the stream's message at this offset now: to send it, or to set it aside."""
        return self.room() or (self.sending and offset < stream.set_aside_below and self._sets_aside_more)

    @property
    def _sets_aside_more(self) -> bool:
        leaving = self._setting_aside
        return len(leaving) < self.tuning.set_aside_at_once and sum(leaving.values()) < self.tuning.set_aside_bytes_max

    @property
    def _held_max(self) -> int:
        limits, allowance = self.limits, self.circuit.allowance
        if allowance == 0:
            return 0
        if limits.new or allowance is not None:
            return self.tuning.held_per_attempt * limits.able + len(self._retries)
        held_max = self.tuning.held_max
        return held_max if limits.quick else min(held_max, held_max // 2 + len(self._retries))

    @property
    def _running_low(self) -> bool:
        """Whether to have lagging streams' messages brought: many at a time, not one for each that goes."""
        return self._held <= self._held_max // 2 and self._held_bytes <= self.bytes_share // 2

    def stream(self, partition: int) -> Stream:
        """Its stream of a partition that is routed to it; a new one is where the tail is."""
        stream = self.streams.get(partition)
        if stream is None:
            stream = self.streams[partition] = Stream(self, partition, Window())
        return stream

    def accept(self, delivery: Delivery, message: Message) -> None:
        """Take a message; room() or room_for() was True. It is sent as soon as the limits allow."""
        delivery.message = message
        delivery.state = READY
        self._held += 1
        self._held_bytes += message.size
        if delivery.offset < delivery.stream.set_aside_below and delivery.owed is None:
            self._set_aside(delivery)
            return
        self._ready.append(delivery)
        self._activate()
        if self.connections.busy < self.limits.flow.limit:
            self.pump()

    def _activate(self) -> None:
        if not self._active:
            self._active = True
            self._wants_tick(self)

    def pump(self) -> None:
        """Begin as many attempts as the limits allow."""
        if not self.sending or not self._ready:
            return
        connections = self.connections
        most = self.limits.most(connections.busy)
        while self._ready and connections.busy < most:
            delivery = self._ready.popleft()
            if not self._may_go(delivery):
                continue
            if not connections.may_have_one or not self.limits.begin(self._loop.time()):
                self._ready.appendleft(delivery)
                return
            connection = connections.take_idle()
            if connection is not None:
                self._send(connection, delivery)
            else:
                delivery.state = CONNECTING
                connections.make(delivery, self._connect(delivery))

    def _may_go(self, delivery: Delivery) -> bool:
        """Its turn among the messages of its ordering key; an undecodable message is settled here, loudly."""
        message = _held(delivery)
        if not delivery.first_at_ms and delivery.owed is None and delivery.stream.assignment.is_owed(delivery):
            self.settle(delivery, KEPT)  # a crash came between the record and the cursor
            return False
        try:
            message.body(self.queue)
        except UnknownEvent:
            log.exception("delivery.undecodable listener=%s message=%s", self.listener.id, message.id.decode())
            self._put_aside(delivery, None, UNDECODABLE, None)
            return False
        if delivery.offset < delivery.stream.set_aside_below and delivery.owed is None:
            self._set_aside(delivery)
            return False
        if message.key is not None and not self._has_turn(delivery, message.key):
            return False
        if message.deliver_at_ms and not self._is_time(delivery, message):
            return False
        return not (delivery.stream.assignment.known_changes and delivery.stream.assignment.hold(delivery))

    def _has_turn(self, delivery: Delivery, key: str) -> bool:
        """Whether it is the one of its ordering key to go.

        It leaves its window when one before it has, or when too many wait, and for long: others need the room.
        """
        at_s = self._loop.time()
        owed = delivery.owed is not None
        if not owed and (
            delivery.stream.assignment.overtakes(delivery) or (not delivery.turn and self._crowded(key, at_s))
        ):
            self._put_aside(delivery, None, None, now_ms())
            return False
        if not delivery.turn:
            delivery.turn = self._turns.take(key, delivery, at_s)
            if not delivery.turn:
                delivery.state = QUEUED
        if (
            owed and delivery.turn and delivery.stream.assignment.overtakes(delivery)
        ):  # one before it has failed meanwhile
            self._let_go(delivery)
            self._give_back(delivery)
            return False
        return delivery.turn

    @property
    def _many_wait(self) -> bool:
        waiting = self._turns.waiting
        if not waiting:  # nearly always
            return False
        most = self._held_max
        return most > 0 and not self.limits.new and waiting >= min(self.tuning.key_waiting_max, most // 2)

    @property
    def _many_fail(self) -> bool:
        most = self._held_max
        return most > 0 and len(self._retries) >= max(1, min(self.tuning.retries_max, most // 2))

    def _crowded(self, key: str, at_s: float) -> bool:
        return self._many_wait and self._turns.taken_for_s(key, at_s) >= self.tuning.key_slow_s

    def _make_room(self) -> None:
        """Too many wait for others of their keys: those whose keys are not quick leave their windows."""
        at_s = self._loop.time()
        for key in self._turns.held_for(at_s, self.tuning.key_slow_s):
            for delivery in self._turns.send_away(key):
                if delivery.owed is None:
                    self._put_aside(delivery, None, None, now_ms())
                else:  # few of a key
                    self._turns.take(key, delivery, at_s)

    def _give_back(self, delivery: Delivery) -> None:
        delivery.state = RETURNED
        delivery.stream.owed.discard(delivery)
        delivery.stream.assignment.returned(delivery)

    def _put_aside(self, delivery: Delivery, status: int | None, error: str | None, due_ms: int | None) -> None:
        key = _held(delivery).key
        delivery.state = Leaving(due_ms, status, error)
        delivery.stream.assignment.put_aside(delivery, status, error, due_ms)
        if delivery.turn and key is not None:
            self._parking.add(delivery)
            if due_ms is not None:  # those who wait for it follow it at once
                following = self._turns.send_away(key)
                for one in following:
                    one.state = READY
                self._ready.extendleft(reversed(following))

    def _is_time(self, delivery: Delivery, message: Message) -> bool:
        """Whether it may be delivered by now; if not, the delivery waits here or, for longer, in `outstanding`."""
        at_ms = now_ms()
        if message.deliver_at_ms <= at_ms:
            return True
        if message.deliver_at_ms - at_ms <= self.tuning.near_ms and self._held <= self._held_max // 2:
            self._wait(delivery, message.deliver_at_ms, "scheduled")
        else:
            self._put_aside(delivery, None, None, message.deliver_at_ms)
        return False

    async def _connect(self, delivery: Delivery) -> None:
        try:
            target, found = await self.connections.connect()
            if isinstance(found, ConnectFailed):
                tried = not isinstance(found, NotTried)
                failure = Failure(error=str(found), tried=tried, connected=False, tunnel=target.tunnel)
                self._failed(delivery, failure, 0)
                return
            assignment = delivery.stream.assignment
            changed = bool(assignment.known_changes) and delivery.state is CONNECTING and assignment.hold(delivery)
            if changed or delivery.state is DROPPED:  # meanwhile
                self.released(found)
            else:
                self._send(found, delivery)
        finally:
            self._loop.call_soon(self.pump)

    def _send(self, connection: Connection, delivery: Delivery) -> None:
        message = _held(delivery)
        delivery.state = SENT
        delivery.number += 1
        body = message.body(self.queue)
        timestamp = b"%d" % time.time()
        signed = self._signer.sign(message.id, timestamp, body)
        if self._former:
            more = also_signed(self._former, now_ms(), message_id=message.id, timestamp=timestamp, body=body)
            signed += more
            if not more:  # their time is over
                self._former = ()
        self.connections.sent[connection] = None
        connection.send(
            b"%bwebhook-id: %b\r\nwebhook-timestamp: %b\r\nwebhook-signature: %b\r\neverput-attempt: %d\r\n"
            b"content-length: %d\r\n\r\n%b"
            % (self._head, message.id, timestamp, signed, delivery.number, len(body), body),
            delivery,
            self._loop.time(),
        )

    # What the log is to keep no longer

    def set_aside(self, partition: int, below: int) -> None:
        """Have all below an offset that is not settled leave the window for `outstanding`, with its payload.

        Nothing of it is attempted meanwhile, and little is held at once. below: 0 ends it, however far it is.
        """
        stream = self.streams.get(partition)
        if stream is None:  # it stands where the tail is
            return
        stream.set_aside_below = below
        if below:
            self.pump()
        if self.sets_aside(partition):
            self.behind[stream] = None
            self._activate()
            self.refill()

    def sets_aside(self, partition: int) -> bool:
        """Whether there is more to be set aside of a partition than what is under way or has the turn of its key."""
        stream = self.streams.get(partition)
        if stream is None:
            return False
        wanted = stream.window.wanted()
        leaving = any(delivery.stream is stream for delivery in self._setting_aside)
        return leaving or (wanted is not None and wanted < stream.set_aside_below)

    def _set_aside(self, delivery: Delivery) -> None:
        message = _held(delivery)
        if not delivery.first_at_ms and delivery.stream.assignment.is_owed(delivery):
            self.settle(delivery, KEPT)
            return
        self._setting_aside[delivery] = message.size
        try:
            message.body(self.queue)
        except UnknownEvent:
            self._put_aside(delivery, None, UNDECODABLE, None)
        else:
            self._put_aside(delivery, None, None, max(now_ms(), message.deliver_at_ms))

    # What its connections tell (broker/outbound/connection.py, Owner)

    def answered(self, connection: Connection, status: int, retry_after_s: int | None) -> None:
        delivery: Delivery = connection.work
        took_ms = int((self._loop.time() - connection.at) * 1000)
        connection.well = status < 500
        if not taken(status):
            tunnel = connection.target.tunnel
            self._failed(delivery, Failure(status=status, retry_after_s=retry_after_s, tunnel=tunnel), took_ms)
            if status == 410 and connection.target is self.connections.target:
                self._gone()
            return
        if delivery.state is not DROPPED:
            self._delivered(delivery, status, took_ms)
        self.limits.succeeded()
        if self.circuit.faults or self.circuit.allowance is not None:
            self.circuit.succeeded()

    def _delivered(self, delivery: Delivery, status: int, took_ms: int) -> None:
        stream = delivery.stream
        if delivery.number == 1:
            message = _held(delivery)
            put_at_ms = message.deliver_at_ms or message.put_at_ms
            stream.rows.append((delivery.offset, now_ms(), status, took_ms, put_at_ms))
        else:
            stream.record(delivery, "delivered", status, None, took_ms, None)
        if self.error is not None:
            self._note_error(None, stream)
        if delivery.owed is not None:
            delivery.stream.assignment.delivered(delivery)
        self.settle(delivery, DELIVERED)

    def failed(self, connection: Connection, error: str) -> None:
        took_ms = int((self._loop.time() - connection.at) * 1000)
        if error == "timeout":
            self.limits.timed_out(took_ms)
        stale = connection.used > 0 and connection.fresh
        self._failed(connection.work, Failure(error=error, tunnel=connection.target.tunnel, stale=stale), took_ms)

    def released(self, connection: Connection) -> None:
        self._note_took(connection)
        connection.at = self._loop.time()
        self.connections.release(connection)
        self.pump()
        if self.behind and self._running_low:
            self.refill()

    def lost(self, connection: Connection) -> None:
        if self.connections.lost(connection):
            self._note_took(connection)
            self._loop.call_soon(self.pump)

    def _note_took(self, connection: Connection) -> None:
        """With all of its answer: one that does not end it is not quick, however soon it has begun."""
        if connection.well:
            connection.well = False
            self.limits.took(int((self._loop.time() - connection.at) * 1000))

    # What follows

    def settle(self, delivery: Delivery, state: State = KEPT) -> None:
        """The delivery is delivered, cancelled, or kept in `outstanding`: the cursor may pass it."""
        if delivery.state is DROPPED:
            return
        stream = delivery.stream
        delivery.state = state
        self._let_go(delivery)
        if delivery.owed is not None:
            stream.pressing = True
            stream.owed.discard(delivery)
            stream.window.settle(delivery.offset)  # where a crash had left it, too
        elif stream.window.settle(delivery.offset) is None:
            return
        self._touch(stream)

    def attempting(self, partition: int, offset: int) -> Delivery | None:
        """The delivery of this message, if it was sent and is not answered."""
        for delivery in self.under_way():
            if delivery.offset == offset and delivery.stream.partition == partition:
                return delivery
        return None

    def cancel(self, delivery: Delivery) -> None:
        """Its message was deleted."""
        if delivery.owed is not None:
            delivery.stream.assignment.delivered(delivery)
        self.settle(delivery, CANCELLED)

    def renew(self, delivery: Delivery) -> None:
        """Its message was updated: it waits for renewed()."""
        delivery.state = RENEWING
        self.renewing.add(delivery)

    def park_unreadable(self, delivery: Delivery) -> None:
        """Its message was updated, and the new data can't be read: what was put is not what counts."""
        self.renewing.discard(delivery)
        self._put_aside(delivery, None, DAMAGED, None)

    def renewed(self, delivery: Delivery, message: Message) -> None:
        """The message with its new data: attempt it now."""
        self.renewing.discard(delivery)
        self._held_bytes += message.size - _held(delivery).size
        delivery.message = message
        delivery.state = READY
        self._ready.appendleft(delivery)
        if not self._stand_down_if_away():
            self.pump()

    def _let_go(self, delivery: Delivery) -> None:
        """Hold its message no more; the next of its ordering key has the turn."""
        message, delivery.message = delivery.message, None
        if self._setting_aside and self._setting_aside.pop(delivery, None) is not None and not self._setting_aside:
            self._loop.call_soon(self.refill)
        if message is not None:
            self._held -= 1
            self._held_bytes -= message.size
            if delivery.turn and message.key is not None:
                delivery.turn = False
                self._parking.discard(delivery)
                self._next_turn(message.key)

    def _next_turn(self, key: str) -> None:
        at_s = self._loop.time()
        following = self._turns.next(key, at_s)
        if following is not None:
            following.turn = True
            following.state = READY
            self._ready.appendleft(following)

    def _failed(self, delivery: Delivery, failure: Failure, took_ms: int) -> None:
        """An attempt was not taken. Whoever hears of it late, of a delivery that was dropped, does nothing."""
        if delivery.state is DROPPED:
            return
        at_ms, owed = now_ms(), delivery.owed
        number = delivery.number if failure.connected else delivery.number + 1
        first_at_ms = delivery.first_at_ms or at_ms - took_ms
        attempts = Attempts(
            number=number if owed is None else number - owed.forgiven,
            first_at_ms=first_at_ms,
            since_ms=first_at_ms if owed is None else max(first_at_ms, owed.since_ms),
            again=delivery.again,
            outstanding=owed is not None,
            crowded=self._many_fail or (delivery.turn and self._many_wait),
        )
        verdict = judge(
            failure,
            attempts,
            self._policy,
            at_ms=at_ms,
            set_aside_after_ms=self.tuning.set_aside_after_ms,
            jitter=self._dice(),
        )
        match verdict.decision:
            case Decision.AGAIN:
                delivery.again = True
                self._take_back(delivery, failure)
                self._stand_down_if_away()
            case Decision.AWAY:
                self._take_back(delivery, failure)
                self._away(delivery)
            case Decision.PUT_OFF:
                self._note_error("dns", delivery.stream)
                self._wait(delivery, at_ms + self.tuning.put_off_ms, "put off")
                self._touch(delivery.stream)
                self._stand_down_if_away()
            case _:
                delivery.number, delivery.first_at_ms = number, first_at_ms
                self._count_failure(delivery, failure, verdict, at_ms, took_ms)

    def _take_back(self, delivery: Delivery, failure: Failure) -> None:
        """This was no attempt."""
        if failure.connected:
            delivery.number -= 1
        delivery.state = READY
        self._ready.appendleft(delivery)

    def _count_failure(self, delivery: Delivery, failure: Failure, verdict: Verdict, at_ms: int, took_ms: int) -> None:
        """Write it down, and do as judged."""
        stream, status, error, due_ms = delivery.stream, failure.status, failure.error, verdict.due_ms
        self._note_error(error or str(status), stream)
        self.limits.failed()
        if verdict.slow_down:
            self.limits.pushed_back(at_ms, failure.retry_after_s)
        opened = False
        if verdict.fault:
            opened = self.circuit.failed(at_ms, new=self.limits.new)
        else:
            self.circuit.succeeded()
        parked = verdict.decision is Decision.PARK
        stream.record(delivery, "parked" if parked else "failed", status, error, took_ms, due_ms)
        if verdict.decision is Decision.RETRY and due_ms is not None:
            self._wait(delivery, due_ms, "retry")
        else:
            self._put_aside(delivery, status, error, due_ms)
        if opened or parked:
            stream.pressing = True
        if opened:
            log.warning("circuit.opened listener=%s error=%s", self.listener.id, self.error)
        self._stand_down_if_away()
        self._touch(stream)

    def _wait(self, delivery: Delivery, due_ms: int, why: str) -> None:
        delivery.state = Waiting(due_ms, why)
        heapq.heappush(self._retries, (due_ms, id(delivery), delivery))

    def _touch(self, stream: Stream) -> None:
        if not stream.dirty:
            stream.assignment.touched(stream)

    def _note_error(self, error: str | None, stream: Stream) -> None:
        """stream: its cursor will say so."""
        if error != self.error:
            self.error = error
            stream.pressing = True

    def _gone(self) -> None:
        if self.listener.paused is None and not self.said_gone:
            self.said_gone = True
            self._tell_gone(self)

    def _away(self, delivery: Delivery) -> None:
        """Nobody holds the tunnel: there is no attempt before a good probe."""
        self._note_error("not-connected", delivery.stream)
        if self.circuit.trip(now_ms()):
            delivery.stream.pressing = True
            log.warning("circuit.opened listener=%s error=%s", self.listener.id, self.error)
        self.stand_down()
        self._touch(delivery.stream)

    def _stand_down_if_away(self) -> bool:
        """What came back to it must not be sent again, nor held, while it is down or paused. Whether it is."""
        away = self.circuit.state is circuit.State.OPEN or self.listener.paused is not None
        if away:
            self.stand_down()
        return away

    def stand_down(self) -> None:
        """Let go of every message that is not under way: the listener is down or paused, and may be so for long."""
        idle = [*self._ready, *(delivery for _, _, delivery in self._retries), *self.renewing]
        self.renewing.clear()
        self._ready.clear()
        self._retries.clear()
        for delivery in idle:  # before the others: the one that has just failed still has its connection
            delivery.turn = False
        connecting = (delivery for delivery, _ in self.connections.making.values())
        under_way = (*(one.work for one in self.connections.sent), *connecting, *self._parking)
        keys = [_held(delivery).key for delivery in under_way if delivery.turn]
        idle += self._turns.restart(key for key in keys if key is not None)
        for delivery in idle:
            delivery.put_at_ms = _held(delivery).put_at_ms
            self._let_go(delivery)
            if delivery.owed is not None:
                self._give_back(delivery)
            else:
                stream = delivery.stream
                delivery.state = MISSING
                stream.window.forget((delivery.offset,))
                self.behind[stream] = None

    def wake(self) -> None:
        """Attempts may flow again, after a good probe or a resume."""
        self._activate()  # resumed with its circuit open, it must be probed
        if self.circuit.state is circuit.State.PROBATION:
            self.limits.begin_anew()
        self.refill()
        self.pump()

    def refill(self) -> None:
        """Have the lagging streams' messages brought, as far as there is room, one stream's after the other's."""
        if not self.sending or any(stream.requested for stream in self.behind):
            return
        for stream in list(self.behind):
            wanted = stream.window.wanted()
            if wanted is not None and not self.room_for(stream, wanted):
                if not stream.set_aside_below:
                    return
                continue
            del self.behind[stream]
            if wanted is None:
                continue
            self.behind[stream] = None  # last in turn, should this not bring all of it
            stream.assignment.lagging(stream)
            if stream.requested:
                return

    def tick(self, at_ms: int, *, late: bool = False) -> bool:
        """Time-outs and retries that are due. Called several times a second, until it returns False.

        late: the event loop is, and answers may be there that nobody has read.
        """
        before_s = self._loop.time() - self._timeout_s
        while not late and (connection := self.connections.expired(before_s)) is not None:
            connection.expire()
            self._loop.call_soon(self.pump)
        let_alone = self.limits.let_alone(at_ms)
        if self._many_wait:
            self._make_room()
        if self._ready:  # it was let alone until now, its rate or the sockets held it back, one before was put aside
            self.pump()
        if self._retries and self._retries[0][0] <= at_ms:
            while self._retries and self._retries[0][0] <= at_ms:
                delivery = heapq.heappop(self._retries)[2]
                delivery.state = READY
                self._ready.append(delivery)
            self.pump()
        waits = bool(self.behind) and self.circuit.state is not circuit.State.OPEN and self.listener.paused is None
        waits = waits or any(self.sets_aside(stream.partition) for stream in self.behind)
        if waits and (self._running_low or not (self._ready or self.busy)):  # else what only waits would keep it so
            self.refill()
        self._active = bool(self._held or waits or let_alone or self.busy)
        return self._active

    def tidy(self) -> None:
        """Close connections that nothing was sent on for a while. Called now and then, at all times."""
        self.connections.tidy()

    @property
    def held(self) -> int:
        """Messages it holds."""
        return self._held

    @property
    def held_bytes(self) -> int:
        return self._held_bytes

    @property
    def condition(self) -> str:
        """`live`, `probation`, `down` or `paused`."""
        if self.listener.paused is not None:
            return "paused"
        state = self.circuit.state
        return "live" if state is circuit.State.CLOSED else "down" if state is circuit.State.OPEN else "probation"

    def under_way(self) -> set[Delivery]:
        """Those whose request was sent and is not answered."""
        return {connection.work for connection in self.connections.sent}

    @property
    def busy(self) -> int:
        """How many attempts are under way."""
        return self.connections.busy

    @property
    def waits(self) -> bool:
        """Whether it would begin more attempts, now or when some that are under way have ended."""
        return bool(self._ready) and not self.limits.let_wait(self.busy)

    @property
    def hungry(self) -> bool:
        """Whether it would begin more attempts if only it might."""
        return bool(self._ready) and not self.limits.held_back(self.busy)

    def drop(self, stream: Stream) -> None:
        """The partition is no longer owned, or the listener has ended: late answers of this stream are ignored."""
        self.streams.pop(stream.partition, None)
        self.behind.pop(stream, None)
        for delivery in (*stream.window.open.values(), *stream.owed):
            if delivery.turn and (key := _held(delivery).key) is not None:
                self._turns.drop(key)  # who waits for it is of the same partition
            delivery.turn = False
            delivery.state = DROPPED
            self._parking.discard(delivery)
            self.renewing.discard(delivery)
            self._let_go(delivery)
        stream.owed.clear()
        self._ready = deque(delivery for delivery in self._ready if delivery.state is READY)
        self._retries = [row for row in self._retries if row[2].state is not DROPPED]
        heapq.heapify(self._retries)

    def close(self) -> None:
        """The listener has ended: no more attempts, no more connections."""
        for stream in list(self.streams.values()):
            self.drop(stream)
        self._ready.clear()
        self._retries.clear()
        self.connections.close()
