"""How many attempts to one listener may be under way at once: additive increase, multiplicative decrease.

For: the limit, from the answers. Not for: the circuit of a listener that is down (circuit.py)."""

from __future__ import annotations

from typing import Final

FIRST: Final = 8
_DECREASE: Final = 0.5
_DECREASE_PAUSE_MS: Final = 1_000  # answers to attempts begun before a decrease must not decrease again


class Flow:
    """limit: attempts at once, 1 to max_in_flight; it grows by about one per `limit` successes."""

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
        """The listener said it is too much (429, 503) or did not answer in time."""
        if at_ms - self._decreased_at_ms >= _DECREASE_PAUSE_MS:
            self._decreased_at_ms = at_ms
            self._exact = max(1.0, self._exact * _DECREASE)
            self.limit = int(self._exact)

    def resize(self, max_in_flight: int) -> None:
        """The setting has changed, or the worker's share of the partitions has."""
        self.max_in_flight = max_in_flight
        self._exact = min(self._exact, float(max_in_flight))
        self.limit = int(self._exact)
