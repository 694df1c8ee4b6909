"""Deliveries that are parked because something could not be read: they are retried or cancelled when that is settled.

For: what was mended, or given up, while the partition is owned or at its take-over.
Not for: parking them (damaged.py), mending (broker/kafka).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection

from broker.core.damage import Damage, DamagedRange
from broker.core.ids import parse_damaged_id
from broker.delivery.dispatch.stream import now_ms
from broker.delivery.outstanding.due import Due
from broker.delivery.outstanding.entry import OutstandingEntry
from broker.delivery.outstanding.index import OutstandingIndex
from broker.delivery.tuning import Tuning
from broker.errors import LogUnavailable


class Mending:
    """The entries of one assignment that wait for something to be mended.

    owned: the partitions that are taken over.
    park: writes the record of an entry that has none (LogUnavailable).
    cancel: cancels a delivery, by its partition and the ids of its listener and message.
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
        self._park = park
        self._cancel = cancel
        self._tuning = tuning

    async def mended(self, partition: int, first: int, last: int, *, given_up: bool) -> None:
        """Attempt what was parked for a damaged range that can be read again. given_up: cancel it instead."""
        at = -1
        while partition in self._owned and (
            rows := self._index.at_offsets(partition, first, last, after_id=at, limit=self._tuning.rows_at_once)
        ):
            at = rows[-1].id
            for entry in rows:
                where = parse_damaged_id(entry.message_id)
                if not given_up:
                    self._retry(entry)
                elif where is not None and where[2] <= last:
                    self._cancel(partition, entry.listener_id, entry.message_id)
            await asyncio.sleep(0)

    async def review(self, partition: int, damage: Damage, given_up: Damage) -> None:
        """Retry what was parked because its message or a change was unreadable, and is readable now.

        damage, given_up: as the directory has them. Entries that stand for given-up messages are cancelled. Entries
            that were found without a record get one. While outcomes are damaged, such an entry stays parked, because it
            may have been delivered.
        """
        unknown = any(one.partition == partition and one.topic in ("outstanding", "deliveries") for one in damage)
        at, newest = -1, self._index.newest_id  # Entries that are written meanwhile are not examined again.
        while partition in self._owned and (
            rows := self._index.unread(partition, after_id=at, limit=self._tuning.rows_at_once)
        ):
            at = rows[-1].id
            for entry in rows:
                if entry.id > newest:
                    return
                where = parse_damaged_id(entry.message_id)
                one = DamagedRange("messages", *(where or (partition, entry.message_offset, entry.message_offset)))
                if where is not None and given_up.covers(one):
                    self._cancel(partition, entry.listener_id, entry.message_id)
                elif where is None and entry.record_offset < 0 and entry.record is None:
                    await self._park_again(entry)
                elif not damage.covers(one) and not (unknown and where is None):
                    self._retry(entry)
            await asyncio.sleep(0)

    async def _park_again(self, entry: OutstandingEntry) -> None:
        while entry.partition in self._owned:
            try:
                await self._park(entry)
            except LogUnavailable:
                await asyncio.sleep(self._tuning.append_pause_s)
            else:
                break

    def _retry(self, entry: OutstandingEntry) -> None:
        """Make a parked entry due now, with a fresh allowance."""
        at_ms = now_ms()
        entry.forgiven, entry.since_ms, entry.due_ms = entry.number, at_ms, at_ms
        entry.queued_ms = None if entry.id in self._due.taken or entry.key_queue is not None else at_ms
        self._index.redriven(entry, was_parked=True)
        if entry.key_queue is not None:
            self._due.advance(entry.key_queue)
        else:
            self._due.note(entry.listener_id, at_ms)
