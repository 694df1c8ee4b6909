"""Log lines that one listener may cause without end: a few of a kind each second, and how many were left out since.

For: that a listener which fails everything neither floods the log nor has its worker busy with it. Not for: what is
logged, nor the record of each attempt, which is in `deliveries` (stream.py).
"""

from __future__ import annotations

from broker.delivery.tuning import TUNED, Tuning


class LogRateLimit:
    """A rate limit for one kind of log line about one listener."""

    __slots__ = ("_left_out", "_lines_max", "_second", "_told")

    def __init__(self, tuning: Tuning = TUNED) -> None:
        self._lines_max = tuning.log_lines_per_s
        self._second = self._told = self._left_out = 0

    def left_out(self, at_ms: int) -> int | None:
        """Return how many lines were left out before this one; None when this one is left out, too."""
        second = at_ms // 1000
        if second != self._second:
            self._second, self._told = second, 0
        if self._told == self._lines_max:
            self._left_out += 1
            return None
        self._told += 1
        left_out, self._left_out = self._left_out, 0
        return left_out
