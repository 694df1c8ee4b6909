"""A histogram of durations with fixed steps.

For: counting cheaply where the work is done. Not for: showing it (cli/processes/metrics.py).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import Final

# Upper bounds of the buckets. One more bucket counts longer durations.
BOUNDS_MS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 60_000, 600_000, 3_600_000)


class Histogram:
    """A histogram of durations in milliseconds. `counts` has one number for each bucket of BOUNDS_MS, and one for
    longer durations.
    """

    __slots__ = ("counts", "total_ms")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_MS) + 1)
        self.total_ms = 0.0

    def add(self, took_ms: float) -> None:
        self.counts[bisect_left(BOUNDS_MS, took_ms)] += 1
        self.total_ms += took_ms

    def add_all(self, took_ms: Iterable[float]) -> None:
        """Add many durations at once."""
        counts = self.counts
        total_ms = 0.0
        for one in took_ms:
            counts[bisect_left(BOUNDS_MS, one)] += 1
            total_ms += one
        self.total_ms += total_ms
