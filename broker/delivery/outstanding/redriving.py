"""Redrives of deliveries in the topic `outstanding`: the deliveries are made due now, in small groups.

For: one assignment. A redrive may name very many deliveries, so they are made due only as their dispatcher can take
them. Not for: which deliveries a redrive concerns (broker/core/redrives.py), handing them over (due.py).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from broker.clock import now_ms
from broker.core.entities import Listener
from broker.core.ids import partition_of
from broker.delivery.outstanding.entry import KeyQueue, OutstandingEntry
from broker.delivery.outstanding.index import OutstandingIndex
from broker.delivery.tuning import Tuning


@dataclass(slots=True)
class _Redriving:
    """The redrives of one listener that are in progress. A redrive is a request to retry deliveries now: it makes
    parked and retrying deliveries due.
    """

    named: deque[str]  # ids of messages that the redrives name and that apply_some() has not examined yet
    count: int  # number of all redrives of the listener so far


class Schedule(Protocol):
    """The schedule of the deliveries in the topic `outstanding`, as redrives use it. The class Due implements this
    protocol.
    """

    taken: dict[int, OutstandingEntry]

    def note(self, listener_id: str, at_ms: int, /) -> None: ...
    def advance(self, key_queue: KeyQueue, /) -> None: ...


class Redrives:
    """The redrives of all listeners in one worker. A redrive is a request to retry deliveries now: it makes parked and
    retrying deliveries due.
    """

    def __init__(self, index: OutstandingIndex, owned: Collection[int], tuning: Tuning) -> None:
        self._index = index
        self._owned = owned
        self._tuning = tuning
        self._under_way: dict[str, _Redriving] = {}
        self._done: dict[str, int] = {}  # by listener id: how many of the listener's redrives are complete

    def __contains__(self, listener_id: str) -> bool:
        """Return whether a redrive (a request to retry deliveries now) of this listener is still making deliveries due.
        Return False when all deliveries of the redrive are due, even if they were not attempted yet.
        """
        return listener_id in self._under_way

    def forget(self, listener_id: str) -> None:
        """Forget the redrives of a listener that has no deliveries in the topic `outstanding` any more."""
        self._under_way.pop(listener_id, None)

    def begin_now(self, listener: Listener, due: Schedule) -> None:
        """Begin the listener's new redrives (requests to retry deliveries now). The deliveries that the listener's
        dispatcher has already taken become due immediately. The listener's other parked and retrying deliveries may be
        very many, so apply_some() makes a few of them due in each call.
        """
        at_ms = now_ms()
        for entry in due.taken.values():
            if entry.listener_id == listener.id:
                entry.redrive(listener.redrives, at_ms)
        self.begin(listener, due)

    def begin(self, listener: Listener, due: Schedule) -> None:
        """Begin the listener's new redrives (requests to retry deliveries now). The listener's parked and retrying
        deliveries may be very many, so apply_some() makes a few of them due in each call.
        """
        redrives, done = listener.redrives, self._done.get(listener.id, 0)
        if redrives.count > done and listener.id in self._index.counts:
            named = (message_id for message_id, redrive in redrives.of_messages.items() if redrive > done)
            self._under_way[listener.id] = _Redriving(deque(named), redrives.count)
            due.note(listener.id, 0)

    def apply_some(self, listener: Listener, due: Schedule) -> int:
        """Apply the listener's redrives (requests to retry now) to its next deliveries, so that these become due. If
        the redrives name messages, first examine the named ids; then examine deliveries. Examine at most
        `redriven_at_once` ids or deliveries in one call, and return how many were examined.
        """
        redriving = self._under_way[listener.id]
        if not redriving.named:
            rows = self._index.attempted_before(
                listener.id, listener.redrives.of_all, limit=self._tuning.redriven_at_once
            )
            if not rows:
                self._done[listener.id] = redriving.count
                del self._under_way[listener.id]
            for entry in rows:
                self._apply(entry, listener, due)
            return len(rows)
        named = [redriving.named.popleft() for _ in range(min(len(redriving.named), self._tuning.redriven_at_once))]
        for message_id in named:
            for partition in self._where(message_id):
                found = self._index.find(partition, listener.id, message_id)
                if found is not None:
                    self._apply(found, listener, due)
        return len(named)

    def _where(self, message_id: str) -> list[int]:
        """Return the partitions that can hold the message. A message id usually contains the number of its partition:
        return this partition. If the id contains no partition, return all partitions of this worker.
        """
        place = partition_of(message_id)
        return [place] if place is not None else list(self._owned)

    def _apply(self, entry: OutstandingEntry, listener: Listener, due: Schedule) -> None:
        was_parked = entry.due_ms is None
        if not entry.redrive(listener.redrives, now_ms()):
            return
        taken = entry.id in due.taken
        entry.queued_ms = None if taken or entry.key_queue is not None else entry.due_ms
        self._index.redriven(entry, now_ms(), was_parked=was_parked)
        if entry.key_queue is not None:
            due.advance(entry.key_queue)
        elif not taken:
            due.note(entry.listener_id, now_ms())

    async def undo_cancelled(self, listener: Listener, due: Schedule) -> None:
        """Undo the listener's cancelled redrives (requests to retry now). There may be very many deliveries, so read
        `rows_at_once` of them at a time. Deliveries that the listener's dispatcher has taken are left out here, and
        attempts that have begun continue.
        """
        at = -1
        while rows := self._index.redriven_until(
            listener.id, listener.redrives.cancelled, after_id=at, limit=self._tuning.rows_at_once
        ):
            at = rows[-1].id
            for entry in rows:
                if entry.id not in due.taken:
                    self.undo(entry, due)
            await asyncio.sleep(0)

    def undo(self, entry: OutstandingEntry, due: Schedule) -> None:
        """Undo the redrive (request to retry now) of one delivery: it is parked or retrying again, as before the
        redrive.
        """
        entry.undo()
        entry.queued_ms = entry.due_ms if entry.key_queue is None else None
        self._index.redriven(entry, now_ms(), was_parked=False)
        if entry.key_queue is not None:
            due.advance(entry.key_queue)
        elif entry.due_ms is not None:
            due.note(entry.listener_id, entry.due_ms)
