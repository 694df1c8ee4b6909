"""The intervals between probes of listeners that are down, and the order of probes if not all can be sent.

For: pure rules; callers pass in the time. Not for: sending probes and their rate
(broker/delivery/dispatch/liveness.py), whether a listener is down (circuit.py).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from heapq import heappop, heappush
from itertools import count
from typing import Final, Generic, TypeVar

from broker.core.circuit import PROBE_MS_FIRST, PROBE_MS_MAX

_PART: Final = 20  # downtime divided by probe interval

L = TypeVar("L")


def interval_ms(down_ms: int, *, listeners: int, per_s: int) -> int:
    """Return the ms between two probes of a listener that has been down for `down_ms`.

    The interval is a twentieth of `down_ms`. It is shorter if few listeners are down: at most the time that `per_s`
    probes a second take for all `listeners` that are down. For example, 100 listeners at 20 probes a second take 5 s.
    The interval is never shorter than PROBE_MS_FIRST or longer than PROBE_MS_MAX.
    """
    return max(PROBE_MS_FIRST, min(PROBE_MS_MAX, down_ms // _PART, 1000 * listeners // per_s))


class Probes(Generic[L]):
    """The queue of the next probes of listeners that are down, one for each listener.

    A listener is chosen from those whose probes are due, by two rules alternately. The first rule chooses the listener
    that went down last, because it is likely to be up again first. The second rule chooses the listener whose probe has
    been due for the longest time.
    """

    __slots__ = ("_by_loss", "_due", "_last_gone", "_later", "_numbers")

    def __init__(self) -> None:
        self._later: list[tuple[int, int, int, L]] = []  # heap: when due, number, down since
        self._due: OrderedDict[int, tuple[int, int, L]] = OrderedDict()  # by number, longest due first
        self._by_loss: list[tuple[int, int, L]] = []  # sorted by when they went down
        self._numbers = count()
        self._last_gone = True

    def add(self, listener: L, *, at_ms: int, since_ms: int) -> None:
        """Add a listener that has been down since `since_ms`. Its probe is due at `at_ms`."""
        heappush(self._later, (at_ms, next(self._numbers), since_ms, listener))

    def next(self, at_ms: int) -> L | None:
        """Remove and return the listener to probe now. Return None if no probe is due."""
        while self._later and self._later[0][0] <= at_ms:
            _, number, since_ms, listener = heappop(self._later)
            self._due[number] = (since_ms, number, listener)
            insort(self._by_loss, self._due[number])
        if not self._due:
            return None
        if self._last_gone:
            row = self._by_loss.pop()
            del self._due[row[1]]
        else:
            _, row = self._due.popitem(last=False)
            del self._by_loss[bisect_left(self._by_loss, row)]
        self._last_gone = not self._last_gone
        return row[2]
