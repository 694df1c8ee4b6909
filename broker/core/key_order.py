"""Ordering keys: the messages of one key are delivered one at a time, in order, and other messages do not wait for
them.

For: which delivery of each key may be sent (KeyOrder), and which deliveries are on their way to the topic `outstanding`
(ArrivingOffsets). Pure. Not for: other reasons to wait (flow.py, circuit.py).
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

D = TypeVar("D")
K = TypeVar("K", bound=Hashable)


class KeyOrder(Generic[D]):
    """The order of deliveries within each ordering key. At most one delivery of a key is in progress. The key's other
    deliveries wait, in order.

    `waiting` is the number of deliveries that wait, over all keys. Times are in seconds of any monotonic clock.
    """

    __slots__ = ("_since_s", "_waiting", "waiting")

    def __init__(self) -> None:
        self._waiting: dict[str, deque[D]] = {}
        self._since_s: dict[str, float] = {}
        self.waiting = 0

    def __len__(self) -> int:
        """Return the number of ordering keys that have a delivery in progress."""
        return len(self._waiting)

    def take(self, key: str, delivery: D, at_s: float) -> bool:
        """Start a delivery, or queue it if another delivery of its ordering key is in progress. Return whether the
        delivery starts.
        """
        waiting = self._waiting.get(key)
        if waiting is None:
            self._waiting[key] = deque()
            self._since_s[key] = at_s
            return True
        waiting.append(delivery)
        self.waiting += 1
        return False

    def taken_for_s(self, key: str, at_s: float) -> float:
        """Return for how many seconds the current delivery of this ordering key has been in progress; 0 if there is no
        such delivery.
        """
        return at_s - self._since_s.get(key, at_s)

    def next(self, key: str, at_s: float) -> D | None:
        """End the current delivery of an ordering key. Return the key's next delivery, which becomes the current one.
        Return None if no delivery waits.
        """
        waiting = self._waiting.get(key)
        if waiting:
            self._since_s[key] = at_s
            self.waiting -= 1
            return waiting.popleft()
        self.drop(key)
        return None

    def drop(self, key: str) -> None:
        """Drop all deliveries of an ordering key: the delivery in progress, and the waiting deliveries."""
        self.waiting -= len(self._waiting.pop(key, ()))
        self._since_s.pop(key, None)

    def send_away(self, key: str) -> list[D]:
        """Remove and return the waiting deliveries of an ordering key, in order. The delivery in progress continues."""
        waiting = self._waiting.get(key)
        if not waiting:
            return []
        self._waiting[key] = deque()
        self.waiting -= len(waiting)
        return list(waiting)

    def held_for(self, at_s: float, as_long_as_s: float) -> list[str]:
        """Return the ordering keys for which deliveries wait, and whose current delivery has been in progress for at
        least `as_long_as_s` seconds at the time `at_s`.
        """
        return [key for key, waiting in self._waiting.items() if waiting and at_s - self._since_s[key] >= as_long_as_s]

    def restart(self, held: Iterable[str]) -> list[D]:
        """Remove and return all waiting deliveries, in order within each ordering key.

        Each ordering key in `held` has a delivery that is in an attempt, or is being written to the topic
        `outstanding`. Later deliveries of these keys still wait for it.
        """
        away = [delivery for waiting in self._waiting.values() for delivery in waiting]
        self._waiting = {key: deque() for key in held}
        self._since_s = {key: since_s for key, since_s in self._since_s.items() if key in self._waiting}
        self.waiting = 0
        return away


class ArrivingOffsets(Generic[K]):
    """The offsets of messages whose deliveries are being moved to the topic `outstanding`. Each key (such as an
    ordering key) has its own offsets, lowest first.
    """

    __slots__ = ("_offsets",)

    def __init__(self) -> None:
        self._offsets: dict[K, list[int]] = {}

    def __len__(self) -> int:
        """Return the number of keys whose deliveries are being moved to the topic `outstanding`."""
        return len(self._offsets)

    def join(self, key: K, offset: int) -> None:
        offsets = self._offsets.setdefault(key, [])
        if offset not in offsets:
            insort(offsets, offset)

    def leave(self, key: K, offset: int) -> None:
        """Remove the offset of a delivery whose write to the topic `outstanding` has ended, successfully or not."""
        offsets = self._offsets.get(key, [])
        if offset in offsets:
            offsets.remove(offset)
            if not offsets:
                del self._offsets[key]

    def first(self, key: K) -> int | None:
        offsets = self._offsets.get(key)
        return offsets[0] if offsets else None

    def forget(self, concerns: Callable[[K], bool]) -> list[K]:
        """Remove and return the keys for which `concerns` returns true, because the deliveries of these keys will not
        arrive in the topic `outstanding`.
        """
        gone = [key for key in self._offsets if concerns(key)]
        for key in gone:
            del self._offsets[key]
        return gone
