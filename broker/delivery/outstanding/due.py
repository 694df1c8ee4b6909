"""Due deliveries: those in `outstanding` are attempted at their times, in the order of their ordering keys.

For: which deliveries are handed to their dispatchers next, a few of each listener in turn. Memory holds only deliveries
that their dispatchers have or are about to get. All others are in the index.
Not for: when an attempt is due (broker/core/retry.py), the records (records.py), redrives (redriving.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from broker.clock import now_ms
from broker.core.key_order import ArrivingOffsets
from broker.delivery.dispatch.dispatcher import Dispatcher
from broker.delivery.dispatch.stream import Delivery
from broker.delivery.outstanding.entry import KeyQueue, OutstandingEntry
from broker.delivery.outstanding.index import BEGIN, OutstandingIndex
from broker.delivery.outstanding.redriving import Redrives
from broker.delivery.reading.message import Message
from broker.delivery.reading.partition import Partition
from broker.delivery.tuning import Tuning
from broker.errors import LogUnavailable

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Pass:
    """The place where a search for one listener's due deliveries continues. A search stops when it has chosen
    `due_each_at_once` deliveries or examined `looks_each_max`, so that other listeners are served. The listener's next
    search continues at this place.
    """

    until_ms: int  # when the search began at the first row; deliveries that become due later are left out
    after: tuple[int, int] = BEGIN  # `queued_ms` and `id` of the index row that was examined last


class Due:
    """The stored deliveries that are due for an attempt, now or later. When a delivery is due, the worker hands it to
    the dispatcher of its listener.
    """

    def __init__(
        self,
        index: OutstandingIndex,
        coming: ArrivingOffsets[KeyQueue],
        redrives: Redrives,
        partitions: Mapping[int, Partition],
        dispatchers: Mapping[str, Dispatcher],
        read: Callable[[OutstandingEntry], Awaitable[Message | LogUnavailable | None]],
        tuning: Tuning,
    ) -> None:
        self._index = index
        self._coming = coming
        self._redrives = redrives
        self._partitions = partitions
        self._dispatchers = dispatchers
        self._read = read  # reads a delivery's message
        self._tuning = tuning
        self.taken: dict[int, OutstandingEntry] = {}  # handed to dispatchers, by row id
        self._due: dict[str, _Pass] = {}  # listeners with due deliveries
        self._next_ms: dict[str, int] = {}  # by listener: the next due time
        self._soonest_ms: int | None = None  # the lowest time in `_next_ms`
        self._wake = asyncio.Event()
        self._idle = False  # True while the worker sleeps because no delivery is due now

    async def pause(self) -> None:
        """Wait until a delivery becomes due, but at most about `serve_idle_s` seconds. If deliveries are due already,
        but can't be handed over yet, wait only `serve_s` seconds. For example, their listeners have no room in memory.
        """
        await self._wait(self._tuning.serve_s)
        if self._due or self._wake.is_set():
            return
        wait_s = self._tuning.serve_idle_s
        if self._soonest_ms is not None:
            wait_s = min(wait_s, (self._soonest_ms - now_ms()) / 1000)
        if wait_s > 0:
            self._idle = True
            try:
                await self._wait(wait_s)
            finally:
                self._idle = False

    async def _wait(self, at_most_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(at_most_s):
                await self._wake.wait()

    async def serve(self, *, owns_any: bool) -> bool:
        """Hand some due deliveries to the dispatchers of their listeners. Return True if the caller should call serve()
        again at once, because more deliveries may be due. Return False if the caller should first call pause().
        """
        self._wake.clear()
        at_ms = now_ms()
        if self._soonest_ms is not None and self._soonest_ms <= at_ms:
            self._look_at_next(at_ms)
        chosen, more = self._choose(at_ms) if owns_any else ([], False)
        if not chosen:
            await asyncio.sleep(0)
            return more
        messages = await asyncio.gather(*(self._read(entry) for entry in chosen))
        served = [self._serve(entry, message) for entry, message in zip(chosen, messages, strict=True)]
        return all(served)

    def note(self, listener_id: str, at_ms: int) -> None:
        """Remember that a delivery of this listener becomes due at `at_ms`, so that the worker looks for it then."""
        if at_ms < self._next_ms.get(listener_id, at_ms + 1):
            self._next_ms[listener_id] = at_ms
            if self._soonest_ms is None or at_ms < self._soonest_ms:
                self._soonest_ms = at_ms
                if self._idle:
                    self._wake.set()

    def _look_at_next(self, at_ms: int) -> None:
        for listener_id in [one for one, next_ms in self._next_ms.items() if next_ms <= at_ms]:
            del self._next_ms[listener_id]
            self._due.setdefault(listener_id, _Pass(at_ms))
        self._soonest_ms = min(self._next_ms.values(), default=None)

    def _choose(self, at_ms: int) -> tuple[list[OutstandingEntry], bool]:
        """Return the due deliveries to hand over next, and whether a redrive may make more deliveries due immediately.
        Choose from one listener after another, if the listener has room in memory, but at most `due_each_at_once`
        deliveries of each. Stop when at least `due_at_once` deliveries are chosen, or at least `looks_max` were
        examined.
        """
        chosen: list[OutstandingEntry] = []
        more, looks = False, self._tuning.looks_max
        for listener_id in list(self._due):
            if listener_id not in self._index.counts:
                del self._due[listener_id]
                self._redrives.forget(listener_id)
                continue
            dispatcher = self._dispatchers.get(listener_id)
            if dispatcher is None or not dispatcher.room():
                continue
            if listener_id in self._redrives:
                more = True
                looks -= self._redrives.apply_some(dispatcher.listener, self)
            looks -= self._choose_of(dispatcher, at_ms, chosen)
            if len(chosen) >= self._tuning.due_at_once or looks <= 0:
                break
        return chosen, more

    def _choose_of(self, dispatcher: Dispatcher, at_ms: int, chosen: list[OutstandingEntry]) -> int:
        """Choose due deliveries of one listener, and add them to `chosen`. Return how many deliveries were examined."""
        listener_id, looks = dispatcher.listener.id, 0
        due, enough = self._due.pop(listener_id), len(chosen) + self._tuning.due_each_at_once
        while looks < self._tuning.looks_each_max and len(chosen) < enough:
            rows = self._index.due(listener_id, due.until_ms, after=due.after, limit=2 * self._tuning.due_each_at_once)
            for entry in rows:
                if len(chosen) >= enough:
                    break
                looks += 1
                due.after = entry.queued_ms or 0, entry.id
                self._try(self._fresh(entry), dispatcher, chosen, enough)
            else:
                if len(rows) < 2 * self._tuning.due_each_at_once:  # No further rows are due.
                    due = _Pass(at_ms)
                    break
        next_ms = self._index.next_ms(listener_id) if due.after == BEGIN else at_ms
        if next_ms is not None and next_ms > at_ms and listener_id not in self._redrives:
            self.note(listener_id, next_ms)
        elif next_ms is not None or listener_id in self._redrives:
            self._due[listener_id] = due  # Other listeners are served first.
        return looks

    def _try(
        self, entry: OutstandingEntry, dispatcher: Dispatcher, chosen: list[OutstandingEntry], enough: int
    ) -> None:
        """Add a delivery to the list `chosen` if it may be attempted now.

        If the delivery has an ordering key, also add the key's next deliveries that are due, until `chosen` has
        `enough` deliveries.
        """
        if entry.key_queue is None:
            if self._may_leave(entry, dispatcher):
                self._take(entry, chosen)
            return
        first = self._first(entry.key_queue)
        # Unless _first() returns this delivery, do not examine it again until advance() schedules it.
        if first is None or first.id != entry.id:
            self._index.queue(entry, None)
            return
        at_ms = now_ms()
        while first is not None and first.due_ms is not None and first.due_ms <= at_ms and len(chosen) < enough:
            if not self._may_leave(first, dispatcher):
                break
            self._take(first, chosen)
            first = self._first(entry.key_queue)
        self.advance(entry.key_queue, foreseen=True)

    def _take(self, entry: OutstandingEntry, chosen: list[OutstandingEntry]) -> None:
        self.taken[entry.id] = entry
        self._index.queue(entry, None)
        chosen.append(entry)

    def _may_leave(self, entry: OutstandingEntry, dispatcher: Dispatcher) -> bool:
        partition = self._partitions.get(entry.partition)
        if (
            partition is None
            or partition.held
            or not partition.placed(dispatcher)
            or entry.is_cancelled(dispatcher.listener.redrives)
        ):
            return False
        return may_leave(partition, dispatcher, entry)

    def _first(self, key_queue: KeyQueue) -> OutstandingEntry | None:
        """Return the first delivery of an ordering key that was not handed to the listener's dispatcher yet.

        Return None if there is no such delivery, or if the dispatcher already has `key_taken_max` deliveries of the
        key. Also return None while an earlier delivery of the key is being written to the topic `outstanding`.
        """
        coming = self._coming.first(key_queue)
        for row_id, place in self._index.offsets(key_queue, self._tuning.key_taken_max):
            if coming is not None and coming <= place:
                return None
            if row_id not in self.taken:
                entry = self._index.get(row_id)
                return None if entry is None else self._fresh(entry)
        return None

    def _fresh(self, entry: OutstandingEntry) -> OutstandingEntry:
        """Return `entry`, a delivery's row. If a redrive asks to retry the delivery now, first make it due now."""
        dispatcher = self._dispatchers.get(entry.listener_id)
        if dispatcher is not None and entry.redrive(dispatcher.listener.redrives, now_ms()):
            self._index.redriven(entry, now_ms(), was_parked=False)
        return entry

    def advance(self, key_queue: KeyQueue, *, foreseen: bool = False) -> None:
        """Schedule the first delivery of an ordering key for the time when it is due."""
        first = self._first(key_queue)
        if first is None or first.due_ms is None:
            return
        at_ms = now_ms()
        queued_ms = max(first.due_ms, at_ms)
        if first.queued_ms is None or first.queued_ms > queued_ms:
            self._index.queue(first, queued_ms)
        self.note(key_queue[0], queued_ms)
        if queued_ms == at_ms and not foreseen:
            self._wake.set()

    def _serve(self, entry: OutstandingEntry, message: Message | LogUnavailable | None) -> bool:
        """Hand a due delivery to its listener's dispatcher. If `message` is a LogUnavailable error, or if the
        dispatcher can't take the delivery now, schedule the delivery again and return False. If `message` is None,
        Kafka no longer has the message: remove the delivery.
        """
        dispatcher = self._dispatchers.get(entry.listener_id)
        if self.taken.get(entry.id) is not entry or dispatcher is None:
            # Do nothing if the delivery was cancelled or replaced, or if its listener has no dispatcher any more.
            return True
        if message is None:
            log.error("outstanding.message_gone listener=%s message=%s", entry.listener_id, entry.message_id)
            self.remove(entry)
            return True
        if isinstance(message, LogUnavailable) or not dispatcher.room() or not self._may_leave(entry, dispatcher):
            # Schedule the delivery again: its message could not be read, or can't be sent to the listener now.
            self.put_back(entry)
            return False
        stream = dispatcher.stream(entry.partition)
        delivery = Delivery(stream, message.offset, message)
        delivery.number, delivery.first_at_ms = entry.number, entry.first_at_ms
        delivery.entry = entry
        stream.from_outstanding.add(delivery)
        dispatcher.accept(delivery, message)
        return True

    def put_back(self, entry: OutstandingEntry) -> None:
        """Schedule a delivery again, because it could not be attempted. If a cancelled redrive had made the delivery
        due, restore the delivery's state from before the redrive instead.
        """
        if self.taken.get(entry.id) is not entry:
            return  # Do not schedule the delivery: it was cancelled, replaced or scheduled meanwhile.
        del self.taken[entry.id]
        dispatcher = self._dispatchers.get(entry.listener_id)
        if dispatcher is not None and entry.is_cancelled(dispatcher.listener.redrives):
            self._redrives.undo(entry, self)
            return
        if entry.key_queue is None:
            self._index.queue(entry, now_ms())
            self.note(entry.listener_id, now_ms())
        else:
            self.advance(entry.key_queue)

    def retry(self, entry: OutstandingEntry) -> None:
        """Make a parked delivery due now, with all its attempts again."""
        at_ms, was_parked = now_ms(), entry.due_ms is None  # A redrive may have made the delivery due already.
        entry.forgiven, entry.since_ms, entry.due_ms = entry.number, at_ms, at_ms
        entry.queued_ms = None if entry.id in self.taken or entry.key_queue is not None else at_ms
        self._index.redriven(entry, at_ms, was_parked=was_parked)
        if entry.key_queue is not None:
            self.advance(entry.key_queue)
        else:
            self.note(entry.listener_id, at_ms)

    def remove(self, entry: OutstandingEntry) -> bool:
        """Remove a delivery from the SQLite index. Return False if its row was removed or replaced before."""
        if not self._index.remove(entry):
            return False
        self.taken.pop(entry.id, None)
        if entry.key_queue is not None:
            self.advance(entry.key_queue)
        return True


def may_leave(partition: Partition, dispatcher: Dispatcher, entry: OutstandingEntry) -> bool:
    """Return whether an attempt of a stored delivery is allowed now.

    If the delivery is `found` (see OutstandingEntry), it must wait until the worker has read past its message for this
    listener. Otherwise, the message could be sent twice. A delivery with an ordering key must wait until all earlier
    messages of the partition were read for the listener.
    """
    # After a crash, the worker may read a message again although `outstanding` has the message's delivery.
    # The same is possible if a deleted listener comes back. Then wait until the worker has read past the message.
    tail, stream = partition.tail, dispatcher.streams.get(entry.partition)
    if entry.found and not (
        entry.message_offset < tail if stream is None else stream.window.settled(entry.message_offset, tail)
    ):
        return False
    # A delivery with an ordering key also waits until all earlier messages of the partition were read for the listener.
    wanted = None if stream is None else stream.window.wanted()
    return entry.key_queue is None or entry.message_offset < min(tail, tail if wanted is None else wanted)
