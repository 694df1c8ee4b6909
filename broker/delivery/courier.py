"""A courier: what one worker keeps for one listener, over all the partitions it owns.

For: its ready deliveries, the attempts under way, its connections and circuit, and what an answer means. It holds a
bounded number of messages; a stream it has no room for is *lagging* and is brought back by a catch-up reader.
Not for: reading the log (readers.py), the cursor's arithmetic (broker/core/window.py), how many attempts there may be
(limits.py), probing (liveness.py).
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import ssl
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from random import random
from typing import Final

from broker.core.circuit import Circuit, State
from broker.core.directory import Listener, Queue
from broker.core.events import UNDECODABLE
from broker.core.flow import Share
from broker.core.retry import RetryPolicy, next_at_ms
from broker.core.turns import Turns
from broker.core.window import Window
from broker.delivery.guard import AWAY, Resolver, Target, parse_url
from broker.delivery.http import ConnectFailed, Connection, NotTried, connect
from broker.delivery.limits import Limits
from broker.delivery.message import Message
from broker.delivery.request import Opened, also_signed, post_head
from broker.delivery.shares import HELD_BYTES_MAX, Sockets
from broker.delivery.sparing import Sparing
from broker.delivery.stream import Delivery, Stream, now_ms
from broker.errors import UnknownEvent

log = logging.getLogger(__name__)

HELD_MAX: Final = 512  # messages a courier holds, ready, under way or waiting for a retry
SET_ASIDE_AFTER_MS: Final = 60_000  # a delivery that still fails then leaves the window: it must not hold the cursor
RETRIES_MAX: Final = HELD_MAX // 4  # so do others than these: what fails must not take the room of what would not
WAITING_MAX: Final = HELD_MAX // 4  # messages that wait for others of their ordering keys, unless these are quick
CROWDED_AFTER_S: Final = 0.1  # one that has the turn of its key as long as this is not
NEAR_MS: Final = 10_000  # a message to be delivered so soon waits in its window: the cursor may wait for it
PUT_OFF_MS: Final = 1_000
SET_ASIDE_AT_ONCE: Final = 64  # messages that a courier writes to `outstanding` at once because the log is to go
SET_ASIDE_BYTES_MAX: Final = 1 << 20  # and their bytes, but at least one
_HELD_EACH: Final = 4  # messages that one which is new or on probation holds per attempt: there may be hundreds
_IDLE_CONNECTIONS_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Depot:
    """What a courier needs of its worker.

    sockets: how many of its connections there are.
    touched: a stream became dirty. lagging: a stream needs a catch-up reader. active: a courier wants its tick().
    put_aside: a delivery leaves the window, to be tried at a time (ms), or parked when that is None; settle() follows.
    overtakes: whether it would one of its ordering key that has left the window.
    is_owed: it left the window already. delivered, returned: one from `outstanding` was taken, or can't be tried now.
    gone: the listener answered 410; said_gone keeps it from being told again. changes: of messages, empty nearly
    always. hold: whether one of them keeps a delivery from being attempted now; cancel() or renewed() follows.
    """

    resolver: Resolver
    sockets: Sockets
    tls: ssl.SSLContext
    touched: Callable[[Stream], None]
    lagging: Callable[[Stream], None]
    active: Callable[[Courier], None]
    put_aside: Callable[[Delivery, int | None, str | None, int | None], None]
    overtakes: Callable[[Delivery], bool]
    is_owed: Callable[[Delivery], bool]
    delivered: Callable[[Delivery], None]
    returned: Callable[[Delivery], None]
    gone: Callable[[Courier], None]
    changes: Mapping[tuple[int, int], object]
    hold: Callable[[Delivery], bool]


class Courier:
    """One per listener and worker. opened: what of the listener is sealed. Is the Owner of its connections."""

    def __init__(self, depot: Depot, queue: Queue, listener: Listener, opened: Opened, *, share: Share) -> None:
        self.depot = depot
        self.queue = queue
        self.listener = listener
        self.streams: dict[int, Stream] = {}
        self.behind: dict[Stream, None] = {}  # the one to be brought next first
        self.renewing: set[Delivery] = set()  # new data is being read for them
        self.circuit = Circuit()
        self.limits = Limits(self.circuit, listener.settings, replay=listener.replay is not None)
        self.error: str | None = None
        self.failed_lines, self.parked_lines = Sparing(), Sparing()
        self.bytes_share = HELD_BYTES_MAX
        self.sending = True  # False: hand-over or shut-down; what is under way may finish
        self._changes = depot.changes
        self._ready: deque[Delivery] = deque()
        self._retries: list[tuple[int, int, Delivery]] = []
        self._turns: Turns[Delivery] = Turns()
        self._parking: set[Delivery] = set()  # on their way to `outstanding`; their keys' turns are theirs until then
        self._active = False
        self.said_gone = False
        self._under_way: dict[Connection, None] = {}  # in the order they were sent
        self._connecting: dict[asyncio.Task[None], tuple[Delivery, float]] = {}  # since when, by the loop's clock
        self._idle: list[Connection] = []
        self._held = 0
        self._held_bytes = 0
        self._setting_aside: dict[Delivery, int] = {}  # by set_aside(), on their way to `outstanding`; their bytes
        self._loop = asyncio.get_running_loop()
        self.opened = opened
        self._target: Target = parse_url(listener.notify_url)
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
        self._aim(parse_url(listener.notify_url))
        self._timeout_s = settings.timeout_ms / 1000
        self._policy = RetryPolicy(
            delay_ms_first=settings.retry_first_ms,
            delay_ms_max=settings.retry_max_s * 1000,
            max_attempts=settings.max_attempts,
            max_age_ms=settings.max_age_s * 1000,
        )
        self.limits.update(settings, share)
        self._head = post_head(self._target, opened)
        if listener.paused is not None:
            self.stand_down()
        elif before.paused is not None:
            self.wake()
        if before.redrives != listener.redrives:
            self._hurry(before.redrives.count)

    def _aim(self, target: Target) -> None:
        """Nothing more is sent elsewhere; a connection that leads there is closed, a busy one when it is released."""
        if target != self._target:
            self._target = target
            for connection in self._idle:
                connection.close()
            self._idle.clear()

    def _hurry(self, since: int) -> None:
        """It was redriven: the retries that this concerns are due."""
        later = []
        for row in self._retries:
            message = row[2].message
            if message is not None and self.listener.redrives.concern(message.id.decode(), since=since):
                self._ready.append(row[2])
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
        return len(leaving) < SET_ASIDE_AT_ONCE and sum(leaving.values()) < SET_ASIDE_BYTES_MAX

    @property
    def _held_max(self) -> int:
        limits, allowance = self.limits, self.circuit.allowance
        if allowance == 0:
            return 0
        if limits.new or allowance is not None:
            return _HELD_EACH * limits.able + len(self._retries)
        return HELD_MAX if limits.quick else min(HELD_MAX, HELD_MAX // 2 + len(self._retries))

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
        self._held += 1
        self._held_bytes += message.size
        if delivery.offset < delivery.stream.set_aside_below and delivery.owed is None:
            self._set_aside(delivery)
            return
        self._ready.append(delivery)
        self._activate()
        if len(self._under_way) + len(self._connecting) < self.limits.flow.limit:
            self.pump()

    def _activate(self) -> None:
        if not self._active:
            self._active = True
            self.depot.active(self)

    def pump(self) -> None:
        """Begin as many attempts as the limits allow."""
        if not self.sending or not self._ready:
            return
        most = self.limits.most(len(self._under_way) + len(self._connecting))
        while self._ready and len(self._under_way) + len(self._connecting) < most:
            delivery = self._ready.popleft()
            if not self._may_go(delivery):
                continue
            if (not self._idle and self.depot.sockets.used_up) or not self.limits.begin(self._loop.time()):
                self._ready.appendleft(delivery)
                return
            if self._idle:
                self._send(self._idle.pop(), delivery)
            else:
                self.depot.sockets.open += 1
                task = self._loop.create_task(self._connect(delivery))
                self._connecting[task] = delivery, self._loop.time()
                task.add_done_callback(self._connected)

    def _may_go(self, delivery: Delivery) -> bool:
        """Its turn among the messages of its ordering key; an undecodable message is settled here, loudly."""
        message = delivery.message
        if message is None or not delivery.stream.alive:
            self._let_go(delivery)
            return False
        if not delivery.first_at_ms and delivery.owed is None and self.depot.is_owed(delivery):
            self.settle(delivery)  # a crash came between the record and the cursor
            return False
        try:
            message.body(self.queue)
        except UnknownEvent:
            log.exception("delivery.undecodable listener=%s message=%s", self.listener.id, message.id.decode())
            self.depot.put_aside(delivery, None, UNDECODABLE, None)
            return False
        if delivery.offset < delivery.stream.set_aside_below and delivery.owed is None:
            self._set_aside(delivery)
            return False
        if message.key is not None and not self._has_turn(delivery, message.key):
            return False
        if message.deliver_at_ms and not self._is_time(delivery, message):
            return False
        return not (self._changes and self.depot.hold(delivery))

    def _has_turn(self, delivery: Delivery, key: str) -> bool:
        """Whether it is the one of its ordering key to go.

        It leaves its window when one before it has, or when too many wait, and for long: others need the room.
        """
        at_s = self._loop.time()
        owed = delivery.owed is not None
        if not owed and (self.depot.overtakes(delivery) or (not delivery.turn and self._crowded(key, at_s))):
            self._put_aside(delivery, None, None, now_ms())
            return False
        if not delivery.turn:
            delivery.turn = self._turns.take(key, delivery, at_s)
        if owed and delivery.turn and self.depot.overtakes(delivery):  # one before it has failed meanwhile
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
        return most > 0 and not self.limits.new and waiting >= min(WAITING_MAX, most // 2)

    @property
    def _many_fail(self) -> bool:
        most = self._held_max
        return most > 0 and len(self._retries) >= max(1, min(RETRIES_MAX, most // 2))

    def _crowded(self, key: str, at_s: float) -> bool:
        return self._many_wait and self._turns.taken_for_s(key, at_s) >= CROWDED_AFTER_S

    def _make_room(self) -> None:
        """Too many wait for others of their keys: those whose keys are not quick leave their windows."""
        at_s = self._loop.time()
        for key in self._turns.held_for(at_s, CROWDED_AFTER_S):
            for delivery in self._turns.send_away(key):
                if delivery.message is None or not delivery.stream.alive:
                    self._let_go(delivery)
                elif delivery.owed is None:
                    self._put_aside(delivery, None, None, now_ms())
                else:  # few of a key
                    self._turns.take(key, delivery, at_s)

    def _give_back(self, delivery: Delivery) -> None:
        delivery.stream.owed.discard(delivery)
        self.depot.returned(delivery)

    def _put_aside(self, delivery: Delivery, status: int | None, error: str | None, due_ms: int | None) -> None:
        message = delivery.message
        self.depot.put_aside(delivery, status, error, due_ms)
        if delivery.turn and message is not None and message.key is not None:
            self._parking.add(delivery)
            if due_ms is not None:  # those who wait for it follow it at once
                self._ready.extendleft(reversed(self._turns.send_away(message.key)))

    def _is_time(self, delivery: Delivery, message: Message) -> bool:
        """Whether it may be delivered by now; if not, the delivery waits here or, for longer, in `outstanding`."""
        at_ms = now_ms()
        if message.deliver_at_ms <= at_ms:
            return True
        if message.deliver_at_ms - at_ms <= NEAR_MS and self._held <= self._held_max // 2:
            heapq.heappush(self._retries, (message.deliver_at_ms, id(delivery), delivery))
        else:
            self.depot.put_aside(delivery, None, None, message.deliver_at_ms)
        return False

    async def _connect(self, delivery: Delivery) -> None:
        try:
            while True:
                target = self._target
                connection = await connect(self, target, self.depot.resolver, self.depot.tls)
                if target is self._target:
                    break
                connection.close()  # the address was changed meanwhile
                self.depot.sockets.open += 1
        except NotTried:
            self.depot.sockets.open -= 1
            self._put_off(delivery)
        except ConnectFailed as error:
            self.depot.sockets.open -= 1
            delivery.number += 1
            if target.tunnel:  # the API process that held it is gone
                self._away(delivery)
            else:
                self._failed(delivery, None, str(error), 0, None)
        else:
            if self._changes and self.depot.hold(delivery):  # its message was changed meanwhile
                self.released(connection)
            else:
                self._send(connection, delivery)
        finally:
            self._loop.call_soon(self.pump)

    def _connected(self, task: asyncio.Task[None]) -> None:
        del self._connecting[task]
        if task.cancelled():
            self.depot.sockets.open -= 1

    def _send(self, connection: Connection, delivery: Delivery) -> None:
        message = delivery.message
        if message is None:  # let go while this was connecting
            self.released(connection)
            return
        delivery.number += 1
        body = message.body(self.queue)
        timestamp = b"%d" % time.time()
        signed = self._signer.sign(message.id, timestamp, body)
        if self._former:
            more = also_signed(self._former, now_ms(), message_id=message.id, timestamp=timestamp, body=body)
            signed += more
            if not more:  # their time is over
                self._former = ()
        self._under_way[connection] = None
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
        if stream is None or not stream.alive:
            return False
        wanted = stream.window.wanted()
        leaving = any(delivery.stream is stream for delivery in self._setting_aside)
        return leaving or (wanted is not None and wanted < stream.set_aside_below)

    def _set_aside(self, delivery: Delivery) -> None:
        message = delivery.message
        if message is None or not delivery.stream.alive:
            self._let_go(delivery)
            return
        if not delivery.first_at_ms and self.depot.is_owed(delivery):
            self.settle(delivery)
            return
        self._setting_aside[delivery] = message.size
        try:
            message.body(self.queue)
        except UnknownEvent:
            self.depot.put_aside(delivery, None, UNDECODABLE, None)
        else:
            self._put_aside(delivery, None, None, max(now_ms(), message.deliver_at_ms))

    # What its connections tell (http.Owner)

    def answered(self, connection: Connection, status: int, retry_after_s: int | None) -> None:
        delivery: Delivery = connection.work
        took_ms = int((self._loop.time() - connection.at) * 1000)
        connection.well = status < 500
        if not 200 <= status < 300:
            if status == AWAY and connection.target.tunnel:
                self._away(delivery)
            else:
                self._failed(delivery, status, None, took_ms, retry_after_s)
                if status == 410 and connection.target is self._target:
                    self._gone()
            return
        stream = delivery.stream
        if delivery.number == 1:
            message = delivery.message
            put_at_ms = 0 if message is None else message.deliver_at_ms or message.put_at_ms
            stream.rows.append((delivery.offset, now_ms(), status, took_ms, put_at_ms))
        else:
            stream.record(delivery, "delivered", status, None, took_ms, None)
        self.limits.succeeded()
        circuit = self.circuit
        if circuit.faults or circuit.allowance is not None:
            circuit.succeeded()
        if self.error is not None:
            self._note_error(None, stream)
        if delivery.owed is not None:
            self.depot.delivered(delivery)
        self.settle(delivery)

    def failed(self, connection: Connection, error: str) -> None:
        delivery: Delivery = connection.work
        if error == "closed" and connection.used and connection.fresh and not delivery.again:
            # The listener closed an idle connection while the request was on its way: not its fault, go again at once.
            delivery.again = True
            delivery.number -= 1
            self._ready.appendleft(delivery)
            self._stand_down_if_away()
            return
        if error == "garbage" and connection.target.tunnel:  # the API process is gone, and somebody else has its port
            self._away(delivery)
            return
        took_ms = int((self._loop.time() - connection.at) * 1000)
        if error == "timeout":
            self.limits.timed_out(took_ms)
        self._failed(delivery, None, error, took_ms, None)

    def released(self, connection: Connection) -> None:
        self._under_way.pop(connection, None)
        self._note_took(connection)
        if connection.target is self._target and not self.depot.sockets.crowded:
            self._idle.append(connection)
            connection.at = self._loop.time()
        else:
            connection.close()
        self.pump()
        if self.behind and self._running_low:
            self.refill()

    def lost(self, connection: Connection) -> None:
        self.depot.sockets.open -= 1
        if connection in self._under_way:
            del self._under_way[connection]
            self._note_took(connection)
            self._loop.call_soon(self.pump)
        elif connection in self._idle:
            self._idle.remove(connection)

    def _note_took(self, connection: Connection) -> None:
        """With all of its answer: one that does not end it is not quick, however soon it has begun."""
        if connection.well:
            connection.well = False
            self.limits.took(int((self._loop.time() - connection.at) * 1000))

    # What follows

    def settle(self, delivery: Delivery) -> None:
        """The delivery is delivered, cancelled, or kept in `outstanding`."""
        stream = delivery.stream
        self._let_go(delivery)
        if delivery.owed is not None:
            stream.pressing = True
            stream.owed.discard(delivery)
            stream.window.settle(delivery.offset)  # where a crash had left it, too
        elif stream.window.settle(delivery.offset) is None:
            return
        if stream.alive and not stream.dirty:
            self.depot.touched(stream)

    def attempting(self, partition: int, offset: int) -> Delivery | None:
        """The delivery of this message, if it was sent and is not answered."""
        for delivery in self.under_way():
            if delivery.offset == offset and delivery.stream.partition == partition:
                return delivery
        return None

    def cancel(self, delivery: Delivery) -> None:
        """Its message was deleted."""
        delivery.cancelled = True
        if delivery.owed is not None:
            self.depot.delivered(delivery)
        self.settle(delivery)

    def renewed(self, delivery: Delivery, message: Message) -> None:
        """The message with its new data: attempt it now, if it was not let go meanwhile."""
        if delivery not in self.renewing or delivery.message is None:
            return
        self.renewing.discard(delivery)
        self._held_bytes += message.size - delivery.message.size
        delivery.message = message
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
        while following is not None and following.message is None:  # its stream is gone
            following = self._turns.next(key, at_s)
        if following is not None:
            following.turn = True
            self._ready.appendleft(following)

    def _failed(
        self, delivery: Delivery, status: int | None, error: str | None, took_ms: int, retry_after_s: int | None
    ) -> None:
        at_ms = now_ms()
        message = delivery.message
        if message is None or not delivery.stream.alive:
            self._let_go(delivery)
            return
        self._note_error(error or str(status), delivery.stream)
        self.limits.failed()
        delivery.first_at_ms = delivery.first_at_ms or at_ms - took_ms
        if status in (429, 503) or error in ("timeout", "connect-timeout"):
            self.limits.pushed_back(at_ms, retry_after_s)
        opened = False
        if status is None or status >= 500:
            opened = self.circuit.failed(at_ms, new=self.limits.new)
        else:
            self.circuit.succeeded()
        owed = delivery.owed
        due_ms = next_at_ms(
            self._policy,
            delivery.number - (0 if owed is None else owed.forgiven),
            since_ms=delivery.first_at_ms if owed is None else max(delivery.first_at_ms, owed.since_ms),
            at_ms=at_ms,
            retry_after_s=retry_after_s,
            jitter=random(),  # noqa: S311 - it spreads retries, it guards nothing
        )
        delivery.stream.record(delivery, "failed" if due_ms is not None else "parked", status, error, took_ms, due_ms)
        for_long = (due_ms or at_ms) - delivery.first_at_ms >= SET_ASIDE_AFTER_MS or self._many_fail
        for_long = for_long or (delivery.turn and self._many_wait)
        if due_ms is None or owed is not None or for_long:
            self._put_aside(delivery, status, error, due_ms)
        else:
            heapq.heappush(self._retries, (due_ms, id(delivery), delivery))
        if opened or due_ms is None:
            delivery.stream.pressing = True
        if opened:
            log.warning("circuit.opened listener=%s error=%s", self.listener.id, self.error)
        self._stand_down_if_away()
        if not delivery.stream.dirty:
            self.depot.touched(delivery.stream)

    def _note_error(self, error: str | None, stream: Stream) -> None:
        """stream: its cursor will say so."""
        if error != self.error:
            self.error = error
            stream.pressing = True

    def _gone(self) -> None:
        if self.listener.paused is None and not self.said_gone:
            self.said_gone = True
            self.depot.gone(self)

    def _away(self, delivery: Delivery) -> None:
        """Nobody holds the tunnel: this was no attempt, and there is none before a good probe."""
        delivery.number -= 1
        if delivery.message is None or not delivery.stream.alive:
            self._let_go(delivery)
            return
        self._note_error("not-connected", delivery.stream)
        if self.circuit.trip(now_ms()):
            delivery.stream.pressing = True
            log.warning("circuit.opened listener=%s error=%s", self.listener.id, self.error)
        self._ready.appendleft(delivery)
        self.stand_down()
        if not delivery.stream.dirty:
            self.depot.touched(delivery.stream)

    def _put_off(self, delivery: Delivery) -> None:
        """This was no attempt, and it says nothing of the listener; the next one is made in a moment."""
        if delivery.message is None or not delivery.stream.alive:
            self._let_go(delivery)
            return
        self._note_error("dns", delivery.stream)
        heapq.heappush(self._retries, (now_ms() + PUT_OFF_MS, id(delivery), delivery))
        if not delivery.stream.dirty:
            self.depot.touched(delivery.stream)
        self._stand_down_if_away()

    def _stand_down_if_away(self) -> bool:
        """What came back to it must not be sent again, nor held, while it is down or paused. Whether it is."""
        away = self.circuit.state is State.OPEN or self.listener.paused is not None
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
        connecting = (delivery for delivery, _ in self._connecting.values())
        under_way = (*(one.work for one in self._under_way), *connecting, *self._parking)
        keys = [delivery.message.key for delivery in under_way if delivery.turn and delivery.message is not None]
        idle += self._turns.restart(key for key in keys if key is not None)
        for delivery in idle:
            if delivery.message is not None:
                delivery.put_at_ms = delivery.message.put_at_ms
            self._let_go(delivery)
            stream = delivery.stream
            if delivery.owed is not None:
                self._give_back(delivery)
            elif stream.alive and delivery.offset in stream.window.open:
                stream.window.forget((delivery.offset,))
                self.behind[stream] = None

    def wake(self) -> None:
        """Attempts may flow again, after a good probe or a resume."""
        self._activate()  # resumed with its circuit open, it must be probed
        if self.circuit.state is State.PROBATION:
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
            if wanted is None or not stream.alive:
                continue
            self.behind[stream] = None  # last in turn, should this not bring all of it
            self.depot.lagging(stream)
            if stream.requested:
                return

    def tick(self, at_ms: int, *, late: bool = False) -> bool:
        """Time-outs and retries that are due. Called several times a second, until it returns False.

        late: the event loop is, and answers may be there that nobody has read.
        """
        now = self._loop.time()
        while self._under_way and not late:
            connection = next(iter(self._under_way))
            if connection.at + self._timeout_s > now:
                break
            del self._under_way[connection]
            connection.expire()
            self._loop.call_soon(self.pump)
        let_alone = self.limits.let_alone(at_ms)
        if self._many_wait:
            self._make_room()
        if self._ready:  # it was let alone until now, its rate or the sockets held it back, one before was put aside
            self.pump()
        if self._retries and self._retries[0][0] <= at_ms:
            while self._retries and self._retries[0][0] <= at_ms:
                self._ready.append(heapq.heappop(self._retries)[2])
            self.pump()
        waits = bool(self.behind) and self.circuit.state is not State.OPEN and self.listener.paused is None
        waits = waits or any(self.sets_aside(stream.partition) for stream in self.behind)
        if waits and (self._running_low or not (self._ready or self.busy)):  # else what only waits would keep it so
            self.refill()
        self._active = bool(self._held or waits or let_alone or self.busy)
        return self._active

    def tidy(self) -> None:
        """Close connections that nothing was sent on for a while. Called now and then, at all times."""
        now = self._loop.time()
        while self._idle and self._idle[0].at + _IDLE_CONNECTIONS_S < now:
            self._idle.pop(0).close()

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
        return "live" if state is State.CLOSED else "down" if state is State.OPEN else "probation"

    def under_way(self) -> set[Delivery]:
        """Those whose request was sent and is not answered."""
        return {connection.work for connection in self._under_way}

    @property
    def busy(self) -> int:
        """How many attempts are under way."""
        return len(self._under_way) + len(self._connecting)

    def busy_since(self, at_s: float) -> bool:
        """Whether an attempt is under way that began at this moment, of the loop's clock, or later."""
        sent = next(reversed(self._under_way), None)
        _, connecting_s = next(reversed(self._connecting.values()), (None, -inf))
        return connecting_s >= at_s or (sent is not None and sent.at >= at_s)

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
        stream.alive = False
        self.streams.pop(stream.partition, None)
        self.behind.pop(stream, None)
        for delivery in (*stream.window.open.values(), *stream.owed):
            if delivery.turn and delivery.message is not None and delivery.message.key is not None:
                self._turns.drop(delivery.message.key)  # who waits for it is of the same partition
            delivery.turn = False
            self._parking.discard(delivery)
            self.renewing.discard(delivery)
            self._let_go(delivery)
        stream.owed.clear()
        self._retries = [row for row in self._retries if row[2].stream.alive]
        heapq.heapify(self._retries)

    def close(self) -> None:
        """The listener has ended: no more attempts, no more connections."""
        for stream in list(self.streams.values()):
            self.drop(stream)
        self._ready.clear()
        self._retries.clear()
        for task in list(self._connecting):
            task.cancel()
        for connection in (*self._idle, *self._under_way):
            connection.close()
