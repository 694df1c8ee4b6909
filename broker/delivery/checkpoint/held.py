"""The partitions that are held: no more of their messages are loaded, because Kafka does not store their results.

Without this, the results would need ever more memory, and a crash would repeat all of their deliveries.
For: which partitions are held, and since when. Not for: writing results (checkpoints.py), loading messages
(broker/delivery/dispatch/backlog.py).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection

log = logging.getLogger(__name__)


class HeldPartitions:
    """The partitions whose results Kafka has not stored for `unwritten_s` seconds."""

    def __init__(self, unwritten_s: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._unwritten_s = unwritten_s
        self._monotonic = monotonic
        self._since_s: dict[int, float] = {}  # by partition: when its results could not be written first
        self.partitions: set[int] = set()

    def note(self, unwritten: Collection[int]) -> bool:
        """Note the partitions whose results Kafka has not stored yet. Return True if a partition is not held any more:
        its messages must then be loaded again.
        """
        at_s, before = self._monotonic(), self.partitions.copy()
        self._since_s = {one: self._since_s.get(one, at_s) for one in unwritten}
        self.partitions.clear()
        self.partitions |= {one for one, since_s in self._since_s.items() if at_s - since_s >= self._unwritten_s}
        if self.partitions - before:
            log.warning("checkpoint.holds partitions=%s", sorted(self.partitions))
        return bool(before - self.partitions)
