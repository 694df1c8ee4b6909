"""How often a listener that is down is asked, and whose turn it is where not all can be.

For: both, with the clock passed in; the listeners are opaque. Not for: asking, and how many may be
(broker/delivery/dispatch/liveness.py); whether a listener is down, and since when (circuit.py).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from heapq import heappop, heappush
from itertools import count
from typing import Final, Generic, TypeVar

from broker.core.circuit import PROBE_MS_FIRST, PROBE_MS_MAX

_PART: Final = 20  # of the time that it is down a listener waits for its next probe

L = TypeVar("L")


def interval_ms(down_ms: int, *, listeners: int, per_s: int) -> int:
    """How long to wait with the next probe of one that is down for so long.

    Not longer than it takes to ask all that are down, per_s of them a second: few are asked often for ever.
    """
    return max(PROBE_MS_FIRST, min(PROBE_MS_MAX, down_ms // _PART, 1000 * listeners // per_s))


class Probes(Generic[L]):
    """The turns of those that wait for a probe, each added once for each.

    Where more are due than may be asked, every other turn is that of the one that went last, which is likely to be back
    first, and every other that of the one that is due for longest, so that none waits for ever.
    """

    __slots__ = ("_by_loss", "_due", "_last_gone", "_later", "_numbers")

    def __init__(self) -> None:
        self._later: list[tuple[int, int, int, L]] = []  # a heap: when, number, down since
        self._due: OrderedDict[int, tuple[int, int, L]] = OrderedDict()  # by number, due for longest first
        self._by_loss: list[tuple[int, int, L]] = []  # the same, sorted: down since, number
        self._numbers = count()
        self._last_gone = True

    def add(self, listener: L, *, at_ms: int, since_ms: int) -> None:
        """at_ms: when it is due. since_ms: when it went down."""
        heappush(self._later, (at_ms, next(self._numbers), since_ms, listener))

    def next(self, at_ms: int) -> L | None:
        """The one to ask now, if any is due; it is gone from here."""
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
