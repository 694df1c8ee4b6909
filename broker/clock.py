"""The time that events and records carry.

For: the system's clock. Not for: durations, which the monotonic clock measures, nor anything in broker/core, which gets
the time from its callers.
"""

from __future__ import annotations

import time


def now_ms() -> int:
    """Return the current time in milliseconds since the UTC epoch."""
    return time.time_ns() // 1_000_000
