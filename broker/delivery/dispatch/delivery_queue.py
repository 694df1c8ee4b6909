"""The deliveries of one dispatcher that have no attempt in flight: which one is next, and what the others wait for.

For: the order in which attempts begin, retries by their time, the order within ordering keys.
Not for: whether a delivery may begin (admission.py), attempts (attempts.py), how many messages are held (room.py).
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterable

from broker.core.delivery import DROPPED, READY, Waiting
from broker.core.key_order import KeyOrder
from broker.delivery.dispatch.stream import Delivery, message_of


class DeliveryQueue:
    """The deliveries to one listener that wait for an attempt in a worker's memory."""

    __slots__ = ("_loop", "_numbers", "keys", "leaving_first", "ready", "renewing", "retries")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._numbers = itertools.count()
        self.ready: deque[Delivery] = deque()  # begin when the limits allow
        self.retries: list[tuple[int, int, Delivery]] = []  # heap by due time
        self.keys: KeyOrder[Delivery] = KeyOrder()  # One delivery of each ordering key is attempted; later ones wait.
        # The deliveries of an updated message wait here until the worker has read the message's new data.
        self.renewing: set[Delivery] = set()
        # These deliveries are being written to `outstanding`. They block their ordering keys until the write has ended.
        self.leaving_first: set[Delivery] = set()

    def put_first(self, *deliveries: Delivery) -> None:
        """Make these deliveries ready for an attempt, in the given order, and before all other ready deliveries."""
        for delivery in reversed(deliveries):
            delivery.state = READY
            self.ready.appendleft(delivery)

    def wait(self, delivery: Delivery, due_ms: int, why: str) -> None:
        """Let a delivery wait in memory until `due_ms`. The reason `why` is stored in the delivery's state."""
        delivery.state = Waiting(due_ms, why)
        heapq.heappush(self.retries, (due_ms, next(self._numbers), delivery))

    def due(self, at_ms: int) -> bool:
        """Make the deliveries that are due by now ready for an attempt. Return whether there were any."""
        retries = self.retries
        if not retries or retries[0][0] > at_ms:
            return False
        while retries and retries[0][0] <= at_ms:
            delivery = heapq.heappop(retries)[2]
            delivery.state = READY
            self.ready.append(delivery)
        return True

    def hurry(self, concerns: Callable[[str], bool]) -> None:
        """Make deliveries ready that wait in memory for a time, such as the time of their retry. A delivery is included
        if `concerns` returns true for the id of its message.
        """
        later = []
        for row in self.retries:
            delivery = row[2]
            if concerns(message_of(delivery).id.decode()):
                delivery.state = READY
                self.ready.append(delivery)
            else:
                later.append(row)
        heapq.heapify(later)
        self.retries = later

    # Ordering keys

    def first_ended(self, delivery: Delivery, key: str) -> None:
        """Unblock an ordering key: make its next delivery ready, ahead of all other deliveries to the listener. Call
        this when the delivery that blocked the key has ended or left memory.
        """
        delivery.first_of_key = False
        self.leaving_first.discard(delivery)
        following = self.keys.next(key, self._loop.time())
        if following is not None:
            following.first_of_key = True
            self.put_first(following)

    def first_leaves(self, delivery: Delivery, key: str, *, others_follow: bool) -> None:
        """Record that the delivery that blocks an ordering key moves to the topic `outstanding`. If `others_follow` is
        true, let the deliveries that wait behind it move there, too.
        """
        self.leaving_first.add(delivery)
        if others_follow:
            following = self.keys.send_away(key)
            for one in following:
                # Make the delivery ready, although its key is blocked: admission.py then moves it to `outstanding`.
                one.state = READY
            self.ready.extendleft(reversed(following))

    # All deliveries

    def stand_down(self, under_way: Iterable[Delivery]) -> list[Delivery]:
        """Remove and return all deliveries, except those in an attempt (`under_way`) and those that are being written
        to the topic `outstanding`.

        The excepted deliveries still block their ordering keys.
        """
        idle = [*self.ready, *(delivery for _, _, delivery in self.retries), *self.renewing]
        self.clear()
        for delivery in idle:
            delivery.first_of_key = False
        kept = (message_of(one).key for one in (*under_way, *self.leaving_first) if one.first_of_key)
        return idle + self.keys.restart([key for key in kept if key is not None])

    def drop(self, deliveries: Iterable[Delivery]) -> None:
        """Drop these deliveries, so that they block their ordering keys no longer. The caller must pass all deliveries
        that the listener has in a partition.
        """
        for delivery in deliveries:
            if delivery.first_of_key and (key := message_of(delivery).key) is not None:
                self.keys.drop(key)
            delivery.first_of_key = False
            delivery.state = DROPPED
            self.leaving_first.discard(delivery)
            self.renewing.discard(delivery)
        ready = [delivery for delivery in self.ready if delivery.state is READY]
        self.ready.clear()
        self.ready.extend(ready)
        self.retries = [row for row in self.retries if row[2].state is not DROPPED]
        heapq.heapify(self.retries)

    def clear(self) -> None:
        """Remove the deliveries that are ready for an attempt, wait for a time, or wait for the new data of their
        message.
        """
        self.ready.clear()
        self.retries.clear()
        self.renewing.clear()
