"""Positions: the cursors of the listeners on some partitions, at the moment a worker takes the partitions over.

For: reading them from Kafka, where the tail reader must begin, which cursors are missing. Not for: the order of a
take-over (worker.py), deliveries that have left their window (outstanding/), changes of messages (changes/).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from broker.core.cursor import Cursor
from broker.core.entities import Listener
from broker.delivery.ports import Ports
from broker.delivery.reading.partition import report_messages_gone
from broker.ports import EARLIEST

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Positions:
    """The listeners' committed offsets in the partitions that a worker takes over, and the offsets at which the
    partitions begin and end.
    """

    partitions: Collection[int]
    listeners: Sequence[Listener]
    cursors: Mapping[str, Mapping[int, Cursor]]  # by listener id and partition
    begins: Mapping[int, int]  # each partition's first offset
    ends: Sequence[int]  # end offsets of all partitions

    def of(self, listener_id: str) -> Mapping[int, Cursor]:
        """Return a listener's committed offsets, with their metadata, by partition."""
        return self.cursors.get(listener_id, {})

    def streams(self, partition: int) -> list[tuple[Listener, Cursor]]:
        """Return all listeners, each with its committed offset on this partition, or else its start offset."""
        return [(listener, listener.stands_at(self.of(listener.id), partition)) for listener in self.listeners]

    def lows(self) -> dict[int, int]:
        """Return, for each partition, the lowest committed offset of all listeners, but at most the partition's end
        offset. If a listener has no committed offset, its start offset counts.
        """
        return {one: min(self.ends[one], lowest(self.listeners, self.cursors, one)) for one in self.partitions}

    def tail(self, partition: int, *, backlog_max: int) -> int:
        """Return the offset at which the reader of new messages must begin to read this partition. The reader then
        serves all listeners that are at most `backlog_max` offsets behind the end. Catch-up readers serve the listeners
        that are further behind, and replays.
        """
        end = self.ends[partition]
        tops = (cursor.top for _, cursor in self.streams(partition))
        tail = min((top for top in tops if end - backlog_max <= top <= end), default=end)
        if tail < self.begins[partition]:
            report_messages_gone(partition, tail, self.begins[partition])
        return tail

    def report_missing(self, before_ms: int) -> None:
        """Log a warning if a listener that was created before this time has no committed offset on a partition where it
        may have messages. Such a listener gets all messages from its start offset on, even those that it received
        before.
        """
        # An offset is missing if Kafka has lost it, or if no worker has committed it yet, for example because none ran.
        missing = [
            listener.id
            for listener in self.listeners
            if listener.created_at_ms < before_ms and any(self._lacks(listener, one) for one in self.partitions)
        ]
        if missing:
            partitions = sorted(self.partitions)
            log.warning(
                "worker.cursors_missing listeners=%d one=%s partitions=%s", len(missing), missing[0], partitions
            )

    def _lacks(self, listener: Listener, partition: int) -> bool:
        """Return whether the listener may have messages on a partition, but has no committed offset there."""
        return partition not in self.of(listener.id) and listener.start_offsets[partition] < self.ends[partition]


async def read_positions(kafka: Ports, listeners: Iterable[Listener], partitions: Collection[int]) -> Positions:
    """Read the committed offsets of these listeners on these partitions. Raises LogUnavailable if Kafka does not
    answer.
    """
    known, messages = list(listeners), kafka.log.messages
    cursors = await kafka.cursors.load([listener.id for listener in known], partitions)
    ends = await messages.end_offsets()
    begins = await kafka.log.requests.offsets(messages.name, dict.fromkeys(partitions, EARLIEST))
    return Positions(partitions=partitions, listeners=known, cursors=cursors, begins=begins, ends=ends)


def lowest(listeners: Iterable[Listener], cursors: Mapping[str, Mapping[int, Cursor]], partition: int) -> int:
    """Return the lowest committed offset of these listeners in a partition. If a listener has none, its start offset
    counts. If there are no listeners, return a number above all offsets.
    """
    return min((one.stands_at(cursors.get(one.id, {}), partition).offset for one in listeners), default=1 << 63)
