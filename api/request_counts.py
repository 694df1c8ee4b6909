"""The number of requests by route and status, and their durations.

For: counting where a request is answered. Not for: the metrics in Prometheus format (cli/processes/metrics.py).
"""

from __future__ import annotations

from collections import Counter
from time import perf_counter
from typing import Final

from broker.core.histogram import Histogram

# If a client disconnects before its whole body has arrived, the request counts with the status 499, as in nginx.
GONE: Final = 499


class RequestCounts:
    """The number of requests by HTTP method, route and status, and the durations of requests by method and route. A
    route is the template of a path, such as `/v1/queues/{queue_id}`.

    Requests with an unknown path or method count as `other`. `took` has the milliseconds from the arrival of a
    request's head to the end of the answer.
    """

    def __init__(self) -> None:
        self.answered: Counter[tuple[str, str, int]] = Counter()
        self.took: dict[tuple[str, str], Histogram] = {}

    def add(self, method: str, route: str, status: int, begun_s: float) -> None:
        """Count one request. `begun_s` is the time at which the request began, in seconds of `perf_counter()`."""
        self.answered[method, route, status] += 1
        took = self.took.get((method, route))
        if took is None:
            took = self.took[method, route] = Histogram()
        took.add((perf_counter() - begun_s) * 1e3)
