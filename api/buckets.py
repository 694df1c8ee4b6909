"""Rate limits by name: a burst, and then a number a second.

For: guesses of a password, registrations, requests of a key. They are counted in this process, and forgotten at its
end. Not for: the answer to a client that comes too often (problems.py).
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

NAMES_MAX: Final = 10_000


class Allowance(NamedTuple):
    """The remaining allowance of a limit.

    left: how many more may come at once.
    full_in_s: until the whole limit is free again.
    wait_s: 0 when this one may pass.
    """

    left: int
    full_in_s: float
    wait_s: float


class Buckets:
    """Rate limits by name (the generic cell rate algorithm). A name costs one number, and unused names cost no work."""

    def __init__(self, size: int, *, per_s: float) -> None:
        self.size = size
        self.per_s = per_s
        self._full_at_s: dict[str, float] = {}

    def look(self, name: str, at_s: float, count: int = 1) -> Allowance:
        """Return the allowance that take() would return, without counting."""
        before_s = max(0.0, self._full_at_s.get(name, 0.0) - at_s)
        full_in_s = before_s + count / self.per_s
        wait_s = full_in_s - self.size / self.per_s
        if wait_s > 1e-9:
            return Allowance(max(0, math.floor(self.size - before_s * self.per_s + 1e-9)), before_s, wait_s)
        return Allowance(math.floor(self.size - full_in_s * self.per_s + 1e-9), full_in_s, 0.0)

    def taken(self, name: str, at_s: float) -> int:
        """Return how many uses of the name are counted and not yet made up for."""
        return math.ceil(max(0.0, self._full_at_s.get(name, 0.0) - at_s) * self.per_s - 1e-9)

    def take(self, name: str, at_s: float, count: int = 1) -> Allowance:
        """Count `count` uses unless they come too soon. at_s: any monotonic clock. count: up to size."""
        allowance = self.look(name, at_s, count)
        if not allowance.wait_s:
            if name not in self._full_at_s and len(self._full_at_s) >= NAMES_MAX:
                self._forget(at_s)
            self._full_at_s[name] = at_s + allowance.full_in_s
        return allowance

    def _forget(self, at_s: float) -> None:
        """Forget the names that have their whole limit again. If there are none, forget the half that used least, so
        that no crowd gains.
        """
        kept = [(full_at_s, name) for name, full_at_s in self._full_at_s.items() if full_at_s > at_s]
        if len(kept) > NAMES_MAX // 2:
            kept = sorted(kept)[-NAMES_MAX // 2 :]
        self._full_at_s = {name: full_at_s for full_at_s, name in kept}
