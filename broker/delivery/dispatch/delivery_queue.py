"""The deliveries of one dispatcher that no attempt is under way for: which one is next, and what the others wait for.

For: the order in which attempts begin, retries by their time, the order within ordering keys.
Not for: whether a delivery may begin (admission.py), attempts (attempts.py), how many there may be (room.py).
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
    """The deliveries of one dispatcher that wait.

    ready: an attempt may begin as soon as the limits allow; the next one first.
    retries: a heap by the time when each is due.
    keys: the first delivery of each ordering key, and those that wait for it.
    renewing: the new data of their messages is being read.
    leaving_first: deliveries on their way to `outstanding` that stay first of their keys until they have left.
    """

    __slots__ = ("_loop", "_numbers", "keys", "leaving_first", "ready", "renewing", "retries")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._numbers = itertools.count()
        self.ready: deque[Delivery] = deque()
        self.retries: list[tuple[int, int, Delivery]] = []
        self.keys: KeyOrder[Delivery] = KeyOrder()
        self.renewing: set[Delivery] = set()
        self.leaving_first: set[Delivery] = set()

    def put_first(self, delivery: Delivery) -> None:
        """Make a delivery ready, before all others."""
        delivery.state = READY
        self.ready.appendleft(delivery)

    def wait(self, delivery: Delivery, due_ms: int, why: str) -> None:
        """Have a delivery wait for a time. why: see Waiting."""
        delivery.state = Waiting(due_ms, why)
        heapq.heappush(self.retries, (due_ms, next(self._numbers), delivery))

    def due(self, at_ms: int) -> bool:
        """Make the deliveries ready whose time has come. Return whether there were any."""
        retries = self.retries
        if not retries or retries[0][0] > at_ms:
            return False
        while retries and retries[0][0] <= at_ms:
            delivery = heapq.heappop(retries)[2]
            delivery.state = READY
            self.ready.append(delivery)
        return True

    def hurry(self, concerns: Callable[[str], bool]) -> None:
        """Make the retries ready that a redrive concerns, by the ids of their messages."""
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
        """Make the next delivery of a key ready, before all others, because the first one has left."""
        delivery.first_of_key = False
        self.leaving_first.discard(delivery)
        following = self.keys.next(key, self._loop.time())
        if following is not None:
            following.first_of_key = True
            self.put_first(following)

    def first_leaves(self, delivery: Delivery, key: str, *, others_follow: bool) -> None:
        """Note that the first delivery of a key is on its way to `outstanding`. others_follow: so are those that wait
        for it.
        """
        self.leaving_first.add(delivery)
        if others_follow:
            following = self.keys.send_away(key)
            for one in following:
                one.state = READY  # and admission has them leave, too
            self.ready.extendleft(reversed(following))

    # All at once

    def stand_down(self, under_way: Iterable[Delivery]) -> list[Delivery]:
        """Remove every delivery, and return them; those under way, and those that leave, stay first of their keys."""
        idle = [*self.ready, *(delivery for _, _, delivery in self.retries), *self.renewing]
        self.clear()
        for delivery in idle:  # Close idle connections first: the connection of the failed attempt is not idle yet.
            delivery.first_of_key = False
        kept = (message_of(one).key for one in (*under_way, *self.leaving_first) if one.first_of_key)
        return idle + self.keys.restart([key for key in kept if key is not None])

    def drop(self, deliveries: Iterable[Delivery]) -> None:
        """Remove the deliveries of one stream: they are dropped, and those that wait for their keys are among them."""
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
        """Remove what is ready, waits for a time or is being renewed."""
        self.ready.clear()
        self.retries.clear()
        self.renewing.clear()
