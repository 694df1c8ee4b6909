"""The record batches of the group commit that Kafka has not acknowledged yet, and the brokers that are late with one.

For: which brokers may get a batch (docs/decisions/0173). Not for: which messages make a batch, and its result
(group_commit.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence

from broker.kafka.appends import Append


class SentBatch:
    """A record batch that was sent, and that Kafka has not acknowledged yet. `leader` is the id of the broker that led
    the batch's partition when the batch was sent; None if unknown.
    """

    __slots__ = ("items", "late", "leader", "sent_s")

    def __init__(self, items: Sequence[Append], leader: int | None, sent_s: float) -> None:
        self.items = items
        self.leader = leader
        self.sent_s = sent_s
        self.late = False


class InFlight:
    """The record batches in flight, at most one to each partition.

    A batch is late if it is not acknowledged after `late_s` seconds. The brokers in `suspects` are late with an
    acknowledgement. The brokers in `away` have not acknowledged a batch for over `timeout_s`.
    """

    def __init__(self, timeout_s: float, late_s: float) -> None:
        self.timeout_s, self._late_s = timeout_s, late_s
        self._batches: dict[int, SentBatch] = {}  # by partition
        self.suspects: set[int | None] = set()
        self.away: set[int | None] = set()
        self._proofs_s: dict[int | None, float] = {}  # when each broker's newest acknowledged batch was sent

    def __len__(self) -> int:
        return len(self._batches)

    def __contains__(self, partition: int) -> bool:
        return partition in self._batches

    @property
    def batches(self) -> Collection[SentBatch]:
        return self._batches.values()

    def add(self, partition: int, items: Sequence[Append], leader: int | None) -> SentBatch:
        """Add a batch that is sent to this partition now, and return it."""
        batch = self._batches[partition] = SentBatch(items, leader, _now_s())
        return batch

    def acknowledged(self, batch: SentBatch) -> None:
        """Record that Kafka has acknowledged this batch. Its broker is not late with batches sent before it."""
        self._proofs_s[batch.leader] = max(batch.sent_s, self._proofs_s.get(batch.leader, 0.0))

    def remove(self, partition: int) -> None:
        """Remove the partition's batch, because it was acknowledged or has failed."""
        if self._batches.pop(partition).late:
            self._judge()

    def look(self) -> None:
        """Find out which batches and brokers are late now."""
        before_s = _now_s() - self._late_s
        for batch in self.batches:
            batch.late = batch.late or batch.sent_s < before_s
        self._judge()

    def _judge(self) -> None:
        before_s = _now_s() - self.timeout_s
        owing = [
            batch for batch in self.batches if batch.late and batch.sent_s >= self._proofs_s.get(batch.leader, 0.0)
        ]
        self.suspects = {batch.leader for batch in owing}
        self.away = {batch.leader for batch in owing if batch.sent_s < before_s}

    def owing(self) -> set[int | None]:
        """Return the brokers with a batch in flight that is not late."""
        return {batch.leader for batch in self.batches if not batch.late}

    def trusted(self, leaders: Mapping[int, int | None]) -> list[int]:
        """Return the partitions whose leader broker is not late with an acknowledgement. The list can be empty.
        `leaders` has the leader of each partition.
        """
        return [partition for partition, leader in leaders.items() if leader not in self.suspects]


def _now_s() -> float:
    return asyncio.get_running_loop().time()
