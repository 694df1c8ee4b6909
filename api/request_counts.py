"""The count of requests by route and status, and of their durations.

For: counting where a request is answered. Not for: showing it (cli/processes/metrics.py).
"""

from __future__ import annotations

from collections import Counter
from time import perf_counter
from typing import Final

from broker.core.histogram import Histogram

# The client closed the connection before its answer. RFC 9110 has no such status, but proxies use this one.
GONE: Final = 499


class RequestCounts:
    """Counts by route, the path's template, and method; methods that no route has are one.

    answered: by (method, route, status). took: by (method, route), from the head of a request to the end of its answer.
    """

    def __init__(self) -> None:
        self.answered: Counter[tuple[str, str, int]] = Counter()
        self.took: dict[tuple[str, str], Histogram] = {}

    def add(self, method: str, route: str, status: int, begun_s: float) -> None:
        """Count one. begun_s: by perf_counter()."""
        self.answered[method, route, status] += 1
        took = self.took.get((method, route))
        if took is None:
            took = self.took[method, route] = Histogram()
        took.add((perf_counter() - begun_s) * 1e3)
