"""How long work in small steps shares the event loop of a process that answers others.

For: giving way after some of it: others have as long as it took, if they want that, and no longer than they do. Not
for: who of several such works is next (broker/kafka/reading.py)."""

from __future__ import annotations

import asyncio
import time
from typing import Final

# A round of the loop in which nobody did anything takes less. Two of them: what was read from a socket in the one is
# worked on in the other.
_IDLE_S: Final = 0.000_05
_IDLE_ROUNDS: Final = 2


class Pace:
    """Of one work. Its steps are `with` blocks, in which it awaits nothing."""

    def __init__(self) -> None:
        self._busy_s = self._began_s = 0.0

    def __enter__(self) -> None:
        self._began_s = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._busy_s += time.perf_counter() - self._began_s

    async def give_way(self, *, after_s: float = 0.0) -> None:
        """Let the others run until they are idle, or have had as long as the steps since the last time.

        after_s: do nothing before the steps took so long.
        """
        if self._busy_s < after_s:
            return
        now_s = time.perf_counter()
        until_s, self._busy_s = now_s + self._busy_s, 0.0
        idle = 0
        while idle < _IDLE_ROUNDS and now_s < until_s:
            before_s = now_s
            await asyncio.sleep(0)
            now_s = time.perf_counter()
            idle = idle + 1 if now_s - before_s < _IDLE_S else 0
