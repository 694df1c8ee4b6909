"""The tail loop: reads new messages and hands them to the partitions that a worker owns.

For: batches of new records, after a check that the worker still owns the partitions. Not for: the fan-out to the
listeners' streams (partition.py), streams that lag (catch_up.py).

Messages are read in batches, which takes 5 µs of processor time for a record. A Faust agent would take 60 µs.
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
    """The loop in which a worker reads new messages from Kafka."""

    def __init__(self, membership: Membership, roster: Roster, tuning: Tuning) -> None:
        self._membership = membership
        self._roster = roster
        self._pause_s = tuning.load_pause_s

    async def run(self) -> None:
        """Read new messages in an endless loop. Raises LogUnavailable if the worker has had only errors from its
        consumer group for nine seconds. The process must then end and be started again.
        """
        while True:
            await self.read_once()
            await asyncio.sleep(0)  # Yield to the event loop after each read, even if more records are available.

    async def read_once(self) -> None:
        """Read new Kafka records once, and hand the records to their partitions."""
        try:
            # The worker's partitions may change during the read. So look the partitions up only after it, in _feed().
            await self._feed(await self._membership.read())
        except LogDamaged as damage:
            self._pass_over(damage)

    async def _feed(self, read: Mapping[int, Iterable[Record]]) -> None:
        """Check that this worker still owns the partitions of these new Kafka records, and hand the records to the
        partitions. If the check fails, pause, and read the same records again later.
        """
        assignment = self._roster.assignment
        owned = {number: assignment.partitions[number] for number in read if number in assignment.partitions}
        try:
            # First check that the worker still owns the partitions: it may have lost them while it was suspended.
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
        """Skip unreadable records: the next read begins after them.

        A reader of older messages then tries once more to read the skipped records. If they are still unreadable, this
        reader parks the listeners' deliveries of these records.
        """
        partition = self._roster.assignment.partitions.get(damage.partition)
        if partition is not None:
            partition.pass_over(damage.last)
        self._membership.begin({damage.partition: damage.last + 1})
