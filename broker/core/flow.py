"""The limits on attempts to one listener: how many may be in flight, and how many may begin in a second.

For: the limit that follows the answers (additive increase, multiplicative decrease), the rate limit, a worker's share
of what a listener may have, and the budget of slow listeners. Not for: the circuit of a listener that is down
(circuit.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

FIRST: Final = 8
_DECREASE: Final = 0.5
# Pause after a decrease: answers to earlier attempts must not decrease the limit again.
_DECREASE_PAUSE_MS: Final = 1_000
LATE_S: Final = 0.001  # Fast listeners would notice an event loop that is later than this.
# A process that waits this fraction of the time for a processor: then all others on the machine wait, Kafka too.
WAITED_MAX: Final = 0.05
GATE_LEAST: Final = 2
GATE_MOST: Final = 512
_GATE_DECREASE: Final = 0.7


class Flow:
    """The limit of concurrent attempts to one listener, which follows its answers.

    limit: concurrent attempts, 1 to max_in_flight; it grows by about one per `limit` successes.
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
        """Halve the limit: the listener answered 429 or 503, or not in time."""
        if at_ms - self._decreased_at_ms >= _DECREASE_PAUSE_MS:
            self._decreased_at_ms = at_ms
            self._exact = max(1.0, self._exact * _DECREASE)
            self.limit = int(self._exact)

    def resize(self, max_in_flight: int) -> None:
        """Apply a changed setting, or a changed share of the partitions."""
        self.max_in_flight = max_in_flight
        self._exact = min(self._exact, float(max_in_flight))
        self.limit = int(self._exact)


class Pace:
    """A rate limit: at most rate_per_s attempts, evenly spaced, with a burst of burst_s (the generic cell rate
    algorithm).
    """

    __slots__ = ("_burst_s", "_free_at_s", "rate_per_s")

    def __init__(self, rate_per_s: float, *, burst_s: float) -> None:
        self.rate_per_s = rate_per_s
        self._burst_s = burst_s
        self._free_at_s = 0.0

    def begin(self, at_s: float) -> bool:
        """Count one attempt, and return whether it may begin. at_s: seconds of any monotonic clock."""
        if self._free_at_s > at_s + self._burst_s:
            return False
        self._free_at_s = max(self._free_at_s, at_s) + 1 / self.rate_per_s
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A worker's share of what a listener may have from all workers together.

    partitions: the worker's part of the partitions, 0 to 1.
    workers: how many workers own partitions.
    rank: the worker's position among them, from 0.
    """

    partitions: float = 1.0
    workers: int = 1
    rank: int = 0

    def of(self, total: int) -> int:
        """Return this worker's part of a total. The parts of all workers add up to the total, or are 1 each if the
        total is less.
        """
        return max(1, total // self.workers + (self.rank < total % self.workers))


WHOLE: Final = Share()


class Gate:
    """The budget of attempts that a worker's slow and failing listeners may start together in one tick.

    It grows by one in each tick that was in time. It shrinks by three tenths in each tick that was late, or in which
    the worker waited for a processor.
    """

    __slots__ = ("_exact",)

    def __init__(self) -> None:
        self._exact = float(GATE_LEAST)

    def tick(self, late_s: float, *, waited: float) -> int:
        """Return how many attempts may begin now.

        late_s: how late the event loop was, on average.
        waited: the part of the time since the last tick in which the worker was ready to run and had no processor.
        """
        if late_s > LATE_S or waited > WAITED_MAX:
            self._exact = max(GATE_LEAST, self._exact * _GATE_DECREASE)
        else:
            self._exact = min(GATE_MOST, self._exact + 1)
        return int(self._exact)


def fair_share(total: int, *, used: int, wanting: int, least: int) -> int:
    """Return the fair share of a total for each participant that wants more.

    used: what the other participants hold.
    wanting: how many want more.
    least: what each may have in any case.
    """
    return max(least, (total - used) // max(wanting, 1))
