"""Pauses in long work, so that requests get the event loop too.

For: leaving half of the time to requests, as long as there are any. Not for: the order of several pieces of long work
(broker/kafka/read_slots.py).
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

LATELY_S: Final = 1.0


class Others:
    """The time of the newest request to this process that is not a read of the log. If such a request came within the
    last second, code that reads the log leaves about half of the event loop's time to requests.
    """

    def __init__(self) -> None:
        self._came_s = -LATELY_S

    def came(self) -> None:
        """Record that a request other than a read of the log has arrived."""
        self._came_s = time.perf_counter()

    @property
    def lately(self) -> bool:
        return time.perf_counter() - self._came_s < LATELY_S


class Pace:
    """A limit on the time that one long piece of work takes from the event loop. If `others` has seen a request within
    the last second, the work gets about half of the event loop's time.

    Each step of the work runs in a `with` block, without await.
    """

    def __init__(self, others: Others) -> None:
        self._others = others
        self._busy_s = self._began_s = 0.0

    def __enter__(self) -> None:
        self._began_s = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._busy_s += time.perf_counter() - self._began_s

    async def give_way(self, *, after_s: float = 0.0) -> None:
        """Pause the work for as long as it ran since the last pause, so that the event loop can serve requests. Do
        nothing if it ran for less than `after_s` seconds. If the last second brought no requests other than reads of
        the log, only yield to the event loop once.

        The pause does not end early when the event loop is idle, because a put in progress soon needs the loop again.
        With shorter pauses, a put took three times as long while a client read the log.
        """
        if self._busy_s < after_s:
            return
        busy_s, self._busy_s = self._busy_s, 0.0
        await asyncio.sleep(busy_s if self._others.lately else 0)
