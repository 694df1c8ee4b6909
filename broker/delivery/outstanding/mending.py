"""Deliveries that are parked because their message was unreadable: retried once it is readable, or cancelled if lost.

For: acting on messages that were mended or given up, while the partition is owned or when it is taken over.
Not for: parking deliveries (damaged.py), mending (broker/kafka).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection

from broker.core.damage import Damage, DamagedRange
from broker.core.ids import parse_damaged_id
from broker.delivery.outstanding.due import Due
from broker.delivery.outstanding.entry import OutstandingEntry
from broker.delivery.outstanding.index import LAST_OFFSET, OutstandingIndex
from broker.delivery.tuning import Tuning
from broker.errors import LogUnavailable


class Mending:
    """The part of a worker for deliveries that are parked because records of the log are unreadable, such as the
    delivery's message. When the records can be read again, the deliveries are retried. When a message is given up as
    lost, its deliveries are cancelled.
    """

    def __init__(
        self,
        index: OutstandingIndex,
        due: Due,
        owned: Collection[int],
        park: Callable[[OutstandingEntry], Awaitable[None]],
        cancel: Callable[[int, str, str], None],
        tuning: Tuning,
    ) -> None:
        self._index = index
        self._due = due
        self._owned = owned
        self._park = park  # writes a delivery's missing record
        self._cancel = cancel
        self._tuning = tuning

    async def review(
        self, partition: int, damage: Damage, given_up: Damage, *, first: int = 0, last: int = LAST_OFFSET
    ) -> None:
        """Examine the deliveries that were parked because their message, its update or earlier results were unreadable.
        Leave out messages outside the offsets from `first` to `last`.

        If a message was given up as lost, cancel its delivery. If a message can be read again, retry its delivery. But
        keep the delivery parked while records of `outstanding` or `deliveries` in the partition are unreadable, because
        it may have succeeded. A row that stands for a range of messages is retried even then.
        """
        # If results of attempts in the partition are unreadable, keep deliveries parked: they may have succeeded.
        unknown = any(one.partition == partition and one.topic in ("outstanding", "deliveries") for one in damage)
        # Leave out rows that were written after this method began: their ids are higher than `newest`.
        at, newest = -1, self._index.newest_id
        while partition in self._owned and (
            rows := self._index.unread(partition, first, last, after_id=at, limit=self._tuning.rows_at_once)
        ):
            at = rows[-1].id
            unwritten: list[OutstandingEntry] = []
            for entry in rows:
                where = parse_damaged_id(entry.message_id)
                one = DamagedRange("messages", *(where or (partition, entry.message_offset, entry.message_offset)))
                if entry.id > newest or one.last < first:
                    continue
                if given_up.covers(one):
                    self._cancel(partition, entry.listener_id, entry.message_id)
                elif where is None and entry.record_offset < 0 and entry.record is None:
                    unwritten.append(entry)
                elif not damage.covers(one) and not (unknown and where is None):
                    self._due.retry(entry)
            for entry in unwritten:
                await self._park_again(entry)
            await asyncio.sleep(0)

    async def _park_again(self, entry: OutstandingEntry) -> None:
        while entry.partition in self._owned and self._is_parked(entry):
            try:
                await self._park(entry)
            except LogUnavailable:
                await asyncio.sleep(self._tuning.append_pause_s)
            else:
                break

    def _is_parked(self, entry: OutstandingEntry) -> bool:
        """Return whether the row is still the delivery's current row, and the delivery is still parked."""
        row = self._index.find(entry.partition, entry.listener_id, entry.message_id)
        return row is not None and row.id == entry.id and row.due_ms is None
