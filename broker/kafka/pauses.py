"""The short pauses of the group commit, in which the next record batch for a broker fills.

For: how long a pause is, after which batches there is one, and which number of waiting puts ends it early. Not for:
sending batches (group_commit.py).

A batch costs about the same with one message or many. So after a batch with several puts, the same broker gets no batch
for a moment. The pause ends early if as many puts wait as the largest recent batch had: clients that wait for an answer
before their next put then have nothing more to add. A single publisher does not wait. Batches for several partitions
that are sent at the same time count as one batch here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

# Pause only after a batch with at least four puts. A put of several messages counts as one put. At 300 puts a second, a
# batch seldom has four, so a put seldom waits.
_COMPANY: Final = 4
# Each batch lowers the size of the largest recent batch by this factor: by a half in eleven smaller batches.
_FORGET: Final = 15 / 16


class Pauses:
    """The pauses between the record batches of each broker. At the end of a pause, `ended` is called.

    A broker is given by its id; None stands for an unknown one.
    """

    def __init__(self, pause_s: float, ended: Callable[[], None]) -> None:
        self._pause_s, self._ended = pause_s, ended
        self._ends: dict[int | None, asyncio.TimerHandle] = {}
        self._largest: dict[int | None, float] = {}  # the puts of each broker's largest recent batch

    def sent(self, broker: int | None, puts: int) -> None:
        """Begin a pause if the batch that was just sent to this broker had several puts."""
        self._largest[broker] = max(puts, self._largest.get(broker, 0.0) * _FORGET)
        if puts >= _COMPANY:
            if broker in self._ends:
                self._ends[broker].cancel()
            self._ends[broker] = asyncio.get_running_loop().call_later(self._pause_s, self._end, broker)

    def enough(self) -> dict[int | None, float]:
        """Return the brokers in a pause, each with the number of waiting puts that ends its pause early."""
        return {broker: self._largest[broker] for broker in self._ends}

    def _end(self, broker: int | None) -> None:
        del self._ends[broker]
        self._ended()
