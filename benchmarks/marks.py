"""The payload that sink and publishers share: `ld:<number>:<unix ns>:` and padding. The sink needs no other state."""

from __future__ import annotations

import re
from typing import Final

MARK: Final = re.compile(rb"ld:(\d+):(\d+):")


def payload(number: int, at_ns: int, size: int) -> str:
    """Return a message's data with this many characters."""
    return f"ld:{number}:{at_ns}:".ljust(size, "x")


def percentiles(values: list[float]) -> dict[str, float]:
    """Return p50, p99 and max, in the unit of the values."""
    ordered = sorted(values) or [0.0]
    last = len(ordered) - 1
    return {
        "p50": round(ordered[last // 2], 2),
        "p99": round(ordered[int(last * 0.99)], 2),
        "max": round(ordered[-1], 2),
    }
