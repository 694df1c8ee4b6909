"""Rate limits by name: a burst, and then a number per second.

For: sign-in attempts, registrations, requests of a key. They are counted in this process and forgotten when it ends.
Not for: the answer to a client that exceeds a limit (problems.py).
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

NAMES_MAX: Final = 10_000


class Allowance(NamedTuple):
    """The remaining part of one rate limit."""

    # The number of requests that the rate limit still permits now; the number of bytes if the limit counts bytes.
    left: int
    # After this many seconds without a further request, the rate limit permits a full burst again.
    full_in_s: float
    # The seconds until the rate limit permits the request, or 0 if the limit permits it now.
    # If a request counts as more uses than a full burst has, the rate limit never permits it, however long it waits.
    wait_s: float


class Buckets:
    """A set of rate limits of the same size and rate. Each name, such as a client's address, has its own limit. The
    generic cell rate algorithm counts the uses: for each name, it stores only one number.
    """

    def __init__(self, size: int, *, per_s: float) -> None:
        self.size = size
        self.per_s = per_s
        self._full_at_s: dict[str, float] = {}

    def look(self, name: str, at_s: float, count: int = 1) -> Allowance:
        """Return what `take` would return, without counting."""
        before_s = max(0.0, self._full_at_s.get(name, 0.0) - at_s)
        full_in_s = before_s + count / self.per_s
        wait_s = full_in_s - self.size / self.per_s
        if wait_s > 1e-9:
            return Allowance(max(0, math.floor(self.size - before_s * self.per_s + 1e-9)), before_s, wait_s)
        return Allowance(math.floor(self.size - full_in_s * self.per_s + 1e-9), full_in_s, 0.0)

    def taken(self, name: str, at_s: float) -> int:
        """Return how many earlier uses of the name still count against its rate limit. The number falls with time."""
        return math.ceil(max(0.0, self._full_at_s.get(name, 0.0) - at_s) * self.per_s - 1e-9)

    def __len__(self) -> int:
        """Count the remembered names."""
        return len(self._full_at_s)

    def take(self, name: str, at_s: float, count: int = 1) -> Allowance:
        """Count `count` uses of the name, and return how many uses are left. If the uses would exceed the rate limit,
        do not count them, and return how long to wait. More than `size` uses in one call always exceed the limit.
        `at_s` is the time of any monotonic clock.
        """
        allowance = self.look(name, at_s, count)
        if not allowance.wait_s:
            if name not in self._full_at_s and len(self._full_at_s) >= NAMES_MAX:
                self._forget(at_s)
            self._full_at_s[name] = at_s + allowance.full_in_s
        return allowance

    def _forget(self, at_s: float) -> None:
        """Forget the names whose uses do not count any more. If more than NAMES_MAX / 2 names remain, keep only the
        NAMES_MAX / 2 names with the most uses. So a client that has used up its limit is not forgotten because of
        single requests under many other names.
        """
        kept = [(full_at_s, name) for name, full_at_s in self._full_at_s.items() if full_at_s > at_s]
        if len(kept) > NAMES_MAX // 2:
            kept = sorted(kept)[-NAMES_MAX // 2 :]
        self._full_at_s = {name: full_at_s for full_at_s, name in kept}
