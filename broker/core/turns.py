"""Ordering keys: the messages of one key go one at a time, in order, and only they wait.

For: whose turn it is (Turns), and who is on his way to wait elsewhere (Lines). Pure; the deliveries are opaque.
Not for: other reasons to wait (flow.py, circuit.py).
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

D = TypeVar("D")
K = TypeVar("K", bound=Hashable)


class Turns(Generic[D]):
    """A key is there while one of its deliveries has the turn; the others wait in the order they came.

    waiting: how many, of all keys. Moments are seconds of any clock that only goes forward.
    """

    __slots__ = ("_since_s", "_waiting", "waiting")

    def __init__(self) -> None:
        self._waiting: dict[str, deque[D]] = {}
        self._since_s: dict[str, float] = {}
        self.waiting = 0

    def __len__(self) -> int:
        """How many keys have a turn under way."""
        return len(self._waiting)

    def take(self, key: str, delivery: D, at_s: float) -> bool:
        """Give the delivery the turn, or have it wait for next() to bring it. Whether it has the turn."""
        waiting = self._waiting.get(key)
        if waiting is None:
            self._waiting[key] = deque()
            self._since_s[key] = at_s
            return True
        waiting.append(delivery)
        self.waiting += 1
        return False

    def taken_for_s(self, key: str, at_s: float) -> float:
        """How long the turn has been the same delivery's; 0 when it is nobody's."""
        return at_s - self._since_s.get(key, at_s)

    def next(self, key: str, at_s: float) -> D | None:
        """The turn of this key is over: who has it now, None when nobody waits."""
        waiting = self._waiting.get(key)
        if waiting:
            self._since_s[key] = at_s
            self.waiting -= 1
            return waiting.popleft()
        self.drop(key)
        return None

    def drop(self, key: str) -> None:
        """Neither the one whose turn it is nor those who wait for it are here any more."""
        self.waiting -= len(self._waiting.pop(key, ()))
        self._since_s.pop(key, None)

    def send_away(self, key: str) -> list[D]:
        """Those who wait for the turn of a key, in their order; it stays with who has it."""
        waiting = self._waiting.get(key)
        if not waiting:
            return []
        self._waiting[key] = deque()
        self.waiting -= len(waiting)
        return list(waiting)

    def held_for(self, at_s: float, as_long_as_s: float) -> list[str]:
        """Keys for whose turn anybody waits while the same delivery has had it for so long."""
        return [key for key, waiting in self._waiting.items() if waiting and at_s - self._since_s[key] >= as_long_as_s]

    def restart(self, held: Iterable[str]) -> list[D]:
        """Everybody who waits is sent away; only these keys' turns go on. Those sent away, per key in their order."""
        away = [delivery for waiting in self._waiting.values() for delivery in waiting]
        self._waiting = {key: deque() for key in held}
        self._since_s = {key: since_s for key, since_s in self._since_s.items() if key in self._waiting}
        self.waiting = 0
        return away


class Lines(Generic[K]):
    """For each key the offsets of those that are on their way to where others of it wait, the lowest first."""

    __slots__ = ("_lines",)

    def __init__(self) -> None:
        self._lines: dict[K, list[int]] = {}

    def __len__(self) -> int:
        """How many keys have any."""
        return len(self._lines)

    def join(self, key: K, offset: int) -> None:
        offsets = self._lines.setdefault(key, [])
        if offset not in offsets:
            insort(offsets, offset)

    def leave(self, key: K, offset: int) -> None:
        """It has come, or will not."""
        offsets = self._lines.get(key, [])
        if offset in offsets:
            offsets.remove(offset)
            if not offsets:
                del self._lines[key]

    def first(self, key: K) -> int | None:
        offsets = self._lines.get(key)
        return offsets[0] if offsets else None

    def forget(self, concerns: Callable[[K], bool]) -> list[K]:
        """Those of these keys will not come. The keys that had any."""
        gone = [key for key in self._lines if concerns(key)]
        for key in gone:
            del self._lines[key]
        return gone

    def clear(self) -> None:
        self._lines.clear()
