"""A histogram of durations with fixed buckets.

For: counting durations with little work. Not for: showing them (cli/processes/metrics.py).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import Final

# The longest duration in each bucket of a histogram, in ms. One more bucket counts all longer durations.
BOUNDS_MS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 60_000, 600_000, 3_600_000)


class Histogram:
    """A histogram of durations in milliseconds. `counts` has the number of durations in each bucket of BOUNDS_MS, and
    at its end the number of longer durations.
    """

    __slots__ = ("counts", "total_ms")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_MS) + 1)
        self.total_ms = 0.0

    def add(self, took_ms: float) -> None:
        self.counts[bisect_left(BOUNDS_MS, took_ms)] += 1
        self.total_ms += took_ms

    def add_all(self, took_ms: Sequence[float]) -> None:
        """Add these durations, in milliseconds, to the histogram."""
        for bucket, number in buckets(took_ms):
            self.counts[bucket] += number
        self.total_ms += sum(took_ms)


def buckets(took_ms: Sequence[float]) -> Iterator[tuple[int, int]]:
    """Yield the indexes of the buckets that these durations fall into, with the number of durations in each bucket."""
    # In a sorted list, a binary search finds the end of each bucket. This is cheaper than a search for each duration.
    ordered = sorted(took_ms)
    end = len(ordered)
    begin = 0
    while begin < end:
        bucket = bisect_left(BOUNDS_MS, ordered[begin])
        after = bisect_right(ordered, BOUNDS_MS[bucket], begin) if bucket < len(BOUNDS_MS) else end
        yield bucket, after - begin
        begin = after
