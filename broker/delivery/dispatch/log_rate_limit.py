"""A limit on the log lines that one listener causes: by default three of each kind per minute. A later line
has a summary of the lines that were left out.

For: a listener that fails every delivery must neither flood the log nor occupy its worker with logging. Not for: the
contents of a line, nor the record of each attempt, which is in `deliveries` (stream.py).
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from broker.delivery.tuning import TUNED, Tuning

_MINUTE_MS: Final = 60_000
# A summary of skipped log lines names at most 8 results (HTTP statuses or errors), and counts the rest as "other".
_RESULTS_MAX: Final = 8


class LogRateLimit:
    """A limit on one kind of log line about one listener: `log_lines_per_min` lines in a minute."""

    __slots__ = ("_left_out", "_lines_max", "_logged", "_minute")

    def __init__(self, tuning: Tuning = TUNED) -> None:
        self._lines_max = tuning.log_lines_per_min
        self._minute = self._logged = 0
        self._left_out: Counter[str] = Counter()  # lines left out, by result

    def left_out(self, at_ms: int, result: object) -> str | None:
        """Return the text to append to this log line: a summary of the lines that were left out since the last written
        line. Return None if this line must be left out, too.

        `result` is the HTTP status or the error of the attempt. The summary counts the lines that were left out, in all
        and for each result: `left_out=43 left_out_results=503:40,timeout:3`. If no line was left out, it is
        `left_out=0`.
        """
        minute = at_ms // _MINUTE_MS
        if minute != self._minute:
            self._minute, self._logged = minute, 0
        if self._logged == self._lines_max:
            name = str(result)
            self._left_out[name if name in self._left_out or len(self._left_out) < _RESULTS_MAX else "other"] += 1
            return None
        self._logged += 1
        found, self._left_out = self._left_out, Counter()
        results = ",".join(f"{name}:{count}" for name, count in found.most_common())
        return f"left_out={found.total()}" + (f" left_out_results={results}" if results else "")
