"""Times as people type them on a command line.

For: the options --from, --to, --at and --expires. Not for: times in requests (api/pages.py).
"""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from typing import Any, Final

import click

_UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Time(click.ParamType):
    """The type of an option whose value is a time. The value is an RFC 3339 time, a date, or a duration such as `90s`,
    `15m`, `2h` or `7d`. It is converted to an RFC 3339 time.

    A time or date without a time zone is in UTC. The duration `15m` means 15 minutes ago or, with `ahead`, 15 minutes
    from now on.
    """

    name = "time"

    def __init__(self, *, ahead: bool = False) -> None:
        self._sign = 1 if ahead else -1
        self._words = "from now on" if ahead else "ago"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        # This regular expression takes linear time on any input, because its only repetition is bounded.
        ago = re.fullmatch(r"(\d{1,9})([smhd])", value)
        if ago is not None:
            at = datetime.fromtimestamp(max(0.0, time.time() + self._sign * int(ago[1]) * _UNITS_S[ago[2]]), UTC)
            return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        try:
            at = datetime.fromisoformat(value)
        except ValueError:
            self.fail(
                f"{value!r} is not a time such as 2026-01-31T12:00:00Z, 2026-01-31 or 15m ({self._words})", param, ctx
            )
        return (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).isoformat()
