"""Ordering keys: the messages of one key go one at a time, in order, and only they wait.

For: whose turn it is. Pure; the deliveries are opaque. Not for: other reasons to wait (flow.py, circuit.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Generic, TypeVar

D = TypeVar("D")


class Turns(Generic[D]):
    """A key is there while one of its deliveries has the turn; the others wait in the order they came."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: dict[str, deque[D]] = {}

    def __len__(self) -> int:
        """How many keys have a turn under way."""
        return len(self._waiting)

    def take(self, key: str, delivery: D) -> bool:
        """Give the delivery the turn, or have it wait for next() to bring it. Whether it has the turn."""
        waiting = self._waiting.get(key)
        if waiting is None:
            self._waiting[key] = deque()
            return True
        waiting.append(delivery)
        return False

    def next(self, key: str) -> D | None:
        """The turn of this key is over: who has it now, None when nobody waits."""
        waiting = self._waiting.get(key)
        if waiting:
            return waiting.popleft()
        self._waiting.pop(key, None)
        return None

    def drop(self, key: str) -> None:
        """Neither the one whose turn it is nor those who wait for it are here any more."""
        self._waiting.pop(key, None)

    def restart(self, held: Iterable[str]) -> list[D]:
        """Everybody who waits is sent away; only these keys' turns go on. Those sent away, per key in their order."""
        away = [delivery for waiting in self._waiting.values() for delivery in waiting]
        self._waiting = {key: deque() for key in held}
        return away
