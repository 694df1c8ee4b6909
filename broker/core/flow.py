"""The limits on attempts to one listener: how many are allowed in flight, and how many to begin in a second.

For: the concurrency limit that adapts to answers (additive increase, multiplicative decrease), the rate limit, a
worker's share of both, and the budget of slow listeners. Not for: the circuit breaker (circuit.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

FIRST: Final = 8
_DECREASE: Final = 0.5
# A listener's limit on concurrent attempts is halved at most once in 1 second.
# Answers just after the limit was halved belong to earlier attempts, so they must not halve the limit again.
_DECREASE_PAUSE_MS: Final = 1_000
# If a worker's event loop is over 1 ms late on average, it starts fewer attempts to slow and failing listeners.
LATE_S: Final = 0.001
# If a worker waited for a CPU for over 5 % of the last 50 ms, it starts fewer attempts to slow and failing listeners.
WAITED_MAX: Final = 0.05
GATE_LEAST: Final = 2
GATE_MOST: Final = 512
_GATE_DECREASE: Final = 0.7


class Flow:
    """The limit on concurrent attempts to one listener. It adapts to the listener's answers.

    `limit` is between 1 and `max_in_flight`. The limit grows with accepted attempts: for example, a limit of 8 becomes
    9 after about 8 accepted attempts.
    """

    __slots__ = ("_decreased_at_ms", "_exact", "limit", "max_in_flight")

    def __init__(self, max_in_flight: int) -> None:
        self.max_in_flight = max_in_flight
        self._exact = float(min(FIRST, max_in_flight))
        self.limit = int(self._exact)
        self._decreased_at_ms = -_DECREASE_PAUSE_MS

    def succeeded(self) -> None:
        if self.limit < self.max_in_flight:
            self._exact += 1 / self._exact
            self.limit = int(self._exact)

    def pushed_back(self, at_ms: int) -> None:
        """Halve the limit, because the listener answered 429 or 503, or did not answer in time. Do nothing if the limit
        was halved within the last second.
        """
        if at_ms - self._decreased_at_ms >= _DECREASE_PAUSE_MS:
            self._decreased_at_ms = at_ms
            self._exact = max(1.0, self._exact * _DECREASE)
            self.limit = int(self._exact)

    def resize(self, max_in_flight: int) -> None:
        """Change `max_in_flight`, because the listener's setting, or the part of it that this worker may use, has
        changed.
        """
        self.max_in_flight = max_in_flight
        self._exact = min(self._exact, float(max_in_flight))
        self.limit = int(self._exact)


class Pace:
    """A rate limit that spaces messages evenly: `rate_per_s` of them a second on average (GCRA). After a pause, a short
    burst is possible: an attempt may begin up to `burst_s` seconds before its evenly spaced time.
    """

    __slots__ = ("_burst_s", "_free_at_s", "rate_per_s")

    def __init__(self, rate_per_s: float, *, burst_s: float) -> None:
        self.rate_per_s = rate_per_s
        self._burst_s = burst_s
        self._free_at_s = 0.0

    def begin(self, at_s: float, messages: int = 1) -> bool:
        """Return whether an attempt with this many messages may begin now. If so, count its messages against the rate
        limit. `at_s` is the time now, in seconds of any monotonic clock.

        A batch may begin even if it has more messages than the rate allows now. The next attempt then waits longer.
        """
        if not self.allows(at_s):
            return False
        self._free_at_s = max(self._free_at_s, at_s) + messages / self.rate_per_s
        return True

    def allows(self, at_s: float) -> bool:
        """Return whether an attempt may begin now. This call does not count an attempt."""
        return self._free_at_s <= at_s + self._burst_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """The part of a listener's limits that one worker may use, so that all workers together keep the limits.
    `partitions` is the fraction of all partitions that the worker owns. `workers` is the number of workers, and `rank`
    the number of this worker among them, counted from 0.
    """

    partitions: float = 1.0
    workers: int = 1
    rank: int = 0

    def of(self, total: int) -> int:
        """Return this worker's part of a limit that all workers share. Usually, the parts of all workers add up to the
        limit. If the limit is lower than the number of workers, each part is 1.
        """
        return max(1, total // self.workers + (self.rank < total % self.workers))


WHOLE: Final = Share()


class Gate:
    """The number of attempts that a worker's slow and failing listeners together may start in one tick (50 ms).

    A worker was overloaded in a tick if its event loop was late by more than LATE_S on average, or if the worker waited
    for a processor for more than the fraction WAITED_MAX of the tick. After a tick with overload, the number falls by
    30 %, but not below GATE_LEAST. After any other tick, the number grows by one, up to GATE_MOST.
    """

    __slots__ = ("_exact",)

    def __init__(self) -> None:
        self._exact = float(GATE_LEAST)

    def tick(self, late_s: float, *, waited: float) -> int:
        """Return how many attempts to slow and failing listeners may begin now.

        `late_s` is the average delay of the event loop since the previous call, in seconds. `waited` is the part of the
        time since then, from 0 to 1, in which the worker had work but no processor.
        """
        if late_s > LATE_S or waited > WAITED_MAX:
            self._exact = max(GATE_LEAST, self._exact * _GATE_DECREASE)
        else:
            self._exact = min(GATE_MOST, self._exact + 1)
        return int(self._exact)


def fair_share(total: int, *, used: int, wanting: int, least: int) -> int:
    """Return how much of a total each of `wanting` participants gets: an equal part of the rest of the total, but at
    least `least`. Other participants already use `used` of the total.
    """
    return max(least, (total - used) // max(wanting, 1))
