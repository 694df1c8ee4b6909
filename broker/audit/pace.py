"""The pace of long work in small steps, which shares the event loop with requests.

For: yielding half of the time to other requests, as long as there are any. Not for: the order of several such works
(broker/kafka/read_slots.py).
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

LATELY_S: Final = 1.0


class Others:
    """A record of when this process last served a request that must not wait for log reading."""

    def __init__(self) -> None:
        self._came_s = -LATELY_S

    def came(self) -> None:
        """Note that such a request has arrived."""
        self._came_s = time.perf_counter()

    @property
    def lately(self) -> bool:
        return time.perf_counter() - self._came_s < LATELY_S


class Pace:
    """The pacing of one piece of work, so that other requests get the event loop in between. Each step is a `with`
    block without an await.
    """

    def __init__(self, others: Others) -> None:
        self._others = others
        self._busy_s = self._began_s = 0.0

    def __enter__(self) -> None:
        self._began_s = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._busy_s += time.perf_counter() - self._began_s

    async def give_way(self, *, after_s: float = 0.0) -> None:
        """Yield the event loop for as long as the steps took since the last time.

        It does so even if the loop is idle at the moment, because a put comes to the loop many times: otherwise puts
        beside a reading took three times as long. If no other request came lately, yield once only.
        after_s: do nothing before the steps took so long.
        """
        if self._busy_s < after_s:
            return
        busy_s, self._busy_s = self._busy_s, 0.0
        await asyncio.sleep(busy_s if self._others.lately else 0)
