"""The tail loop: brings the newest messages to the partitions that a worker owns.

For: batches of new records, once it is known that the partitions are still the worker's. Not for: the fan-out to the
listeners' streams (partition.py), streams that are behind (catch_up.py).

Messages are read in batches, not by a Faust agent: an event of a Faust stream costs some 60 µs of processor time, a
record that is read in a batch 5 µs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping

from broker.delivery.ports import Membership
from broker.delivery.reading.message import messages
from broker.delivery.roster import Roster
from broker.delivery.tuning import Tuning
from broker.errors import LogDamaged, LogUnavailable
from broker.ports import Record

log = logging.getLogger(__name__)


class TailLoop:
    """The loop that reads the tail, one in a worker. roster: has its current assignment."""

    def __init__(self, membership: Membership, roster: Roster, tuning: Tuning) -> None:
        self._membership = membership
        self._roster = roster
        self._pause_s = tuning.load_pause_s

    async def run(self) -> None:
        """Read for ever. Raises LogUnavailable if Kafka is away for long."""
        while True:
            try:
                # A read that began before a take-over may bring the first records after it, so keep everything.
                await self.feed(await self._membership.read())
            except LogDamaged as damage:
                self._pass_over(damage)
            await asyncio.sleep(0)  # Yield once, so that available records do not delay answers.

    async def feed(self, read: Mapping[int, Iterable[Record]]) -> None:
        """Give the records to their partitions, unless others may own them by now.

        Without this check, a worker that resumes after a pause sends the backlog before it learns that it has lost its
        partitions. Where Kafka can't tell, the same records are read again.
        """
        assignment = self._roster.assignment
        owned = {number: assignment.partitions[number] for number in read if number in assignment.partitions}
        try:
            if owned:
                await assignment.fence.assure()
        except LogUnavailable as error:
            log.warning("tail.waits error=%s", error)
            await asyncio.sleep(self._pause_s)
            if assignment is self._roster.assignment:
                self._membership.begin({number: partition.tail for number, partition in owned.items()})
            return
        if assignment is self._roster.assignment:
            for number, partition in owned.items():
                partition.feed(messages(read[number]))

    def _pass_over(self, damage: LogDamaged) -> None:
        """Continue after an unreadable range; each stream parks its part of it."""
        partition = self._roster.assignment.partitions.get(damage.partition)
        if partition is not None:
            partition.pass_over(damage.last)
        self._membership.begin({damage.partition: damage.last + 1})
