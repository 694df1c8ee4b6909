"""Deliveries that have left their stream's window: they try again later, or are parked.

For: keeping them in the topic `outstanding`, knowing when each is due, handing it to its dispatcher then. The record is
written, and acknowledged, before the cursor may pass the message. What is known of each is in the ledger; in memory are
only those that their dispatchers have, or get in a moment.
Not for: the record itself (entry.py), reading it (records.py), when an attempt is due (broker/core/retry.py),
making it (dispatcher.py), what waits in a window.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Container, Mapping, Sequence
from dataclasses import dataclass

from broker.core.codec import encode
from broker.core.damage import Damage, DamagedRange
from broker.core.delivery import DROPPED
from broker.core.entities import Listener
from broker.core.events import DeliveryParked, KeptDelivery
from broker.core.ids import parse_damaged_id, partition_of
from broker.core.key_order import ArrivingOffsets
from broker.delivery.dispatch.dispatcher import Dispatcher
from broker.delivery.dispatch.stream import Delivery, now_ms
from broker.delivery.outstanding.damaged import DamagedDeliveries
from broker.delivery.outstanding.entry import Key, Line, Owed, owed_by, owed_key
from broker.delivery.outstanding.index import BEGIN, Ledger
from broker.delivery.outstanding.rebuild import Streams
from broker.delivery.outstanding.records import KeptRecords, kept_event
from broker.delivery.ports import Appender, LogReader
from broker.delivery.reading.message import Message
from broker.delivery.reading.partition import Partition
from broker.delivery.tuning import TUNED, Tuning
from broker.errors import LogDamaged, LogUnavailable
from broker.ports import Count

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Pass:
    """Over those of a listener that were due at until_ms, some at a time. after: (queued_ms, id) of the last."""

    until_ms: int
    after: tuple[int, int] = BEGIN


@dataclass(slots=True)
class _Redriving:
    """What is still to be done about the redrives of a listener. named: ids of messages. count: how many these were."""

    named: deque[str]
    count: int


class Outstanding:
    """Of one assignment. dispatchers: the worker's own, as they are at each moment. assure: see Fence."""

    def __init__(
        self,
        topic: Appender,
        requests: LogReader,
        messages_topic: str,
        partitions: dict[int, Partition],
        dispatchers: Mapping[str, Dispatcher],
        assure: Callable[[], Awaitable[None]],
        count: Count | None = None,
        deliveries_topic: str | None = None,
        tuning: Tuning = TUNED,
    ) -> None:
        self._tuning = tuning
        self._assure = assure
        self._count = count
        self._topic = topic
        self._records = KeptRecords(topic, requests, messages_topic, deliveries_topic, tuning)
        self._partitions = partitions
        self._dispatchers = dispatchers
        self._ledger = Ledger(tuning.index_cache_kib)
        self._owned: set[int] = set()
        self._reading: dict[int, object] = {}
        self._taken: dict[int, Owed] = {}  # by row: their dispatchers have them, or get them in a moment
        self._coming: ArrivingOffsets[Line] = (
            ArrivingOffsets()
        )  # on their way here; none of their lines may go before them
        self._due: dict[str, _Pass] = {}  # listeners with some that are due
        self._next_ms: dict[str, int] = {}  # by listener, when there may be some again
        self._soonest_ms: int | None = None  # of these
        self._redriving: dict[str, _Redriving] = {}
        self._redrives_done: dict[str, int] = {}
        self._wake = asyncio.Event()
        self._settled: dict[int, list[tuple[bytes, bytes | None]]] = {}
        self._damaged = DamagedDeliveries(topic, self._records, dispatchers, self._enter, self._remove, assure, tuning)

    # Ownership

    async def read(self, partition: int, streams: Callable[[], Streams] = tuple) -> None:
        """Learn what is owed on a partition, as it stands in the topic (LogUnavailable). take_over() follows.

        streams: asked only where the topic is damaged.
        """
        reading = self._reading[partition] = object()

        def current() -> bool:
            return self._reading.get(partition) is reading

        while current() and (
            before := self._ledger.of_partition(partition, limit=self._tuning.rows_at_once)
        ):  # of a try that failed
            for owed in before:
                self._ledger.remove(owed)
            await asyncio.sleep(0)
        async for rows in self._records.all_of(partition, at_once=self._tuning.rows_at_once, streams=streams):
            if not current():
                return
            self._found(partition, rows)
            await asyncio.sleep(0)

    def _found(self, partition: int, rows: Mapping[Key, Owed | None]) -> None:
        for owed in rows.values():
            if owed is not None and owed.line is not None and not self._ledger.begins_before(owed.line, owed.place):
                owed.queued_ms = owed.due_ms  # the first of its line, so far
        for before in self._ledger.write(partition, rows):
            if before.line is not None and before.queued_ms is not None:
                self._advance(before.line, foreseen=True)

    def take_over(self, partition: int) -> None:
        """The partition is ours, and read() has read it; its dispatchers are employed."""
        self._owned.add(partition)
        for listener_id, count in self._ledger.counts.items():
            if partition in count.due:
                self._note(listener_id, 0)
            dispatcher = self._dispatchers.get(listener_id)
            if dispatcher is not None:
                self._begin_redrive(dispatcher.listener)

    def close(self) -> None:
        """The partitions are handed over; their next owner reads it all again."""
        self._reading.clear()
        self._ledger.close()

    # What comes here

    def overtakes(self, delivery: Delivery) -> bool:
        """Whether a delivery of a window would overtake one that is, or is about to be, here."""
        line = _line(delivery) if self._coming or self._ledger.in_line else None
        if line is None:
            return False
        first = self._coming.first(line)
        return (first is not None and first < delivery.offset) or self._ledger.begins_before(line, delivery.offset)

    def expect(
        self, delivery: Delivery, message: Message, status: int | None, error: str | None, due_ms: int | None
    ) -> KeptDelivery:
        """It is about to be put aside, to be tried at due_ms, or parked when that is None: its record, as of now.

        What comes before it is written, a redrive, has come after it. None of its ordering key may overtake it from
        now on, unless it is parked.
        """
        line = _line(delivery)
        if line is not None and due_ms is not None:
            self._coming.join(line, delivery.offset)
        return kept_event(delivery, message, status, error, due_ms)

    def expect_no_more(self, delivery: Delivery) -> None:
        """It was not put aside after all."""
        line = _line(delivery)
        if line is not None:
            self._coming.leave(line, delivery.offset)
            self._advance(line)

    async def put_aside(self, delivery: Delivery, event: KeptDelivery) -> bool:
        """Write what expect() gave. Whether it was ours to write."""
        stream = delivery.stream
        key, value = owed_key(event.listener_id, event.message_id), encode(event)
        message = delivery.message
        # A retry's record takes the place of the one before; that of an updated message may be larger than that one.
        counts = delivery.owed is None or (message is not None and message.change() >= 0)
        while delivery.state is not DROPPED:
            try:
                await self._assure()  # else its next owner may have delivered it
                if delivery.state is DROPPED:
                    break
                offset = await self._topic.append_one(stream.partition, key, value)
            except LogUnavailable:
                await asyncio.sleep(self._tuning.append_pause_s)
                continue
            if self._count is not None and counts:
                self._count(event.organization_id, 2 * len(value))  # compaction begins when half is out of date
            if delivery.state is not DROPPED:
                self._enter(owed_by(event, offset, found=False, record=value if offset < 0 else None))
            parked = isinstance(event, DeliveryParked)
            result = event.error if event.status is None else event.status
            left_out = stream.dispatcher.parked_lines.left_out(event.at_ms, result) if parked else None
            if left_out is not None:
                log.warning(
                    "delivery.parked message=%s listener=%s queue=%s attempts=%d status=%s error=%s age_ms=%d %s",
                    event.message_id,
                    event.listener_id,
                    event.queue_id,
                    event.number,
                    event.status,
                    event.error,
                    event.at_ms - event.put_at_ms,
                    left_out,
                )
            return True
        return False

    async def park_damaged(self, partition: int, ranges: Sequence[tuple[Listener, int, int]]) -> bool:
        """These listeners may have deliveries at these offsets that can't be read: they are parked (LogUnavailable).

        Whether the partition is still ours.
        """
        events = await self._damaged.park(partition, ranges)
        if partition not in self._owned:
            return False
        for event in events:
            self._enter(owed_by(event, -1, found=False, record=encode(event)))
        return True

    async def mended(self, partition: int, first: int, last: int, *, given_up: bool) -> None:
        """What was damaged can be read again: try what was parked for it. given_up: cancel it instead."""
        at = -1
        while partition in self._owned and (
            rows := self._ledger.at_offsets(partition, first, last, after_id=at, limit=self._tuning.rows_at_once)
        ):
            at = rows[-1].id
            for owed in rows:
                where = parse_damaged_id(owed.message_id)
                if not given_up:
                    self._retry(owed)
                elif where is not None and where[2] <= last:
                    self.cancel(partition, owed.listener_id, owed.message_id)
            await asyncio.sleep(0)

    async def review(self, partition: int, damage: Damage, given_up: Damage) -> None:
        """Retry what was parked because its message or a change could not be read, and can be read by now.

        damage, given_up: as the directory has them. Cancel what stands for messages that were given up. Write a record
        of what was found without one. While outcomes are damaged it may have been delivered, and stays parked.
        """
        unknown = any(one.partition == partition and one.topic in ("outstanding", "deliveries") for one in damage)
        at, newest = -1, self._ledger.newest_id  # what is written meanwhile is not looked at again
        while partition in self._owned and (
            rows := self._ledger.unread(partition, after_id=at, limit=self._tuning.rows_at_once)
        ):
            at = rows[-1].id
            for owed in rows:
                if owed.id > newest:
                    return
                where = parse_damaged_id(owed.message_id)
                one = DamagedRange("messages", *(where or (partition, owed.place, owed.place)))
                if where is not None and given_up.covers(one):
                    self.cancel(partition, owed.listener_id, owed.message_id)
                elif where is None and owed.offset < 0 and owed.record is None:
                    await self._park_again(owed)
                elif not damage.covers(one) and not (unknown and where is None):
                    self._retry(owed)
            await asyncio.sleep(0)

    async def _park_again(self, owed: Owed) -> None:
        while owed.partition in self._owned:
            try:
                await self._damaged.park_again(owed)
            except LogUnavailable:
                await asyncio.sleep(self._tuning.append_pause_s)
            else:
                break

    def _retry(self, owed: Owed) -> None:
        """A parked one is due now, with a fresh allowance."""
        at_ms = now_ms()
        owed.forgiven, owed.since_ms, owed.due_ms = owed.number, at_ms, at_ms
        owed.queued_ms = None if owed.id in self._taken or owed.line is not None else at_ms
        self._ledger.redriven(owed, was_parked=True)
        if owed.line is not None:
            self._advance(owed.line)
        else:
            self._note(owed.listener_id, at_ms)

    def damaged(self) -> int:
        """How many entries stand for deliveries whose messages can't be read."""
        return sum(map(self._ledger.damaged, self._owned))

    def _enter(self, owed: Owed) -> None:
        """It is due when its record says, or now, when it was redriven since that was written."""
        dispatcher, line = self._dispatchers.get(owed.listener_id), owed.line
        if dispatcher is not None and owed.redrive(dispatcher.listener.redrives, now_ms()) and line is None:
            owed.queued_ms = owed.due_ms
        for before in self._ledger.write(owed.partition, {(owed.listener_id, owed.message_id): owed}):
            self._taken.pop(before.id, None)
        if line is not None:
            self._coming.leave(line, owed.place)
            self._advance(line)
        elif owed.due_ms is not None:
            self._note(owed.listener_id, owed.due_ms)

    # What is here

    def __len__(self) -> int:
        """How many deliveries are owed, the parked ones too."""
        return len(self._ledger)

    def is_owed(self, delivery: Delivery) -> bool:
        """Whether a delivery of a window is here: a crash came after its record and before the cursor."""
        message, listener_id = delivery.message, delivery.stream.dispatcher.listener.id
        if message is None or listener_id not in self._ledger.counts:
            return False
        return self._ledger.find(delivery.stream.partition, listener_id, message.id.decode()) is not None

    def state(self, partition: int, listener_id: str, message_id: str) -> str | None:
        """`pending`, `retrying` or `parked`; None when it is not kept here."""
        owed = self._ledger.find(partition, listener_id, message_id)
        if owed is None:
            return None
        dispatcher = self._dispatchers.get(listener_id)
        if dispatcher is not None:
            owed.redrive(dispatcher.listener.redrives, now_ms())
        if owed.scheduled:
            return "pending"
        return "parked" if owed.due_ms is None else "retrying"

    def retrying(self, partition: int, listener_id: str) -> bool:
        """Whether anything of this listener is to be tried again from a partition."""
        count = self._ledger.counts.get(listener_id)
        return count is not None and (listener_id in self._redriving or count.due.get(partition, 0) > 0)

    def waiting(self, partition: int, listener_id: str) -> tuple[int, int | None]:
        """How many wait to be retried, or for others of their ordering keys, and the oldest put of these."""
        count = self._ledger.counts.get(listener_id)
        number = 0 if count is None else count.waiting.get(partition, 0)
        return number, self._ledger.waits_since_ms(partition, listener_id) if number else None

    def listeners(self) -> set[str]:
        """The ids of the listeners that deliveries here are for."""
        return set(self._ledger.counts)

    def has_message(self, partition: int, message_id: str) -> bool:
        """Whether a message is kept here, for any listener."""
        return self._ledger.has_message(partition, message_id)

    def oldest_put_ms(self, partition: int) -> int | None:
        """When the oldest message that is kept here was put; None when none is."""
        return self._ledger.oldest_put_ms(partition)

    def oldest_bare_put_ms(self, partition: int) -> int | None:
        """When the oldest message that is kept here without its payload was put; None when none is."""
        return self._ledger.oldest_bare_put_ms(partition)

    # What goes from here

    def delivered(self, delivery: Delivery) -> None:
        """A delivery from here was taken by its listener. Its tombstone goes out with the next flush()."""
        if delivery.owed is not None:
            self.cancel(delivery.owed.partition, delivery.owed.listener_id, delivery.owed.message_id)

    def cancel(self, partition: int, listener_id: str, message_id: str) -> None:
        """It is not delivered any more. Its tombstone goes out with the next flush()."""
        owed = self._ledger.find(partition, listener_id, message_id)
        if owed is not None and self._remove(owed):
            self._settled.setdefault(partition, []).append((owed.key, None))

    async def bury(self, listeners: Container[str]) -> None:
        """The deliveries of these listeners are cancelled, and their tombstones written (LogUnavailable)."""
        self._coming.forget(lambda line: line[0] in listeners)
        for listener_id in [one for one in self._ledger.counts if one in listeners]:
            while rows := self._ledger.of_listener(listener_id, limit=self._tuning.rows_at_once):
                tombstones: dict[int, list[tuple[bytes, bytes | None]]] = {}
                for owed in rows:
                    tombstones.setdefault(owed.partition, []).append((owed.key, None))
                await self._topic.append(tombstones)
                for owed in rows:
                    self._remove(owed)

    async def flush(self) -> None:
        """Write the tombstones (LogUnavailable: they go out with the next one)."""
        if self._settled:
            settled, self._settled = self._settled, {}
            try:
                await self._topic.append(settled)
            except BaseException:  # cancelled, too
                for partition, records in settled.items():
                    self._settled.setdefault(partition, []).extend(records)
                raise

    def returned(self, delivery: Delivery) -> None:
        """A dispatcher could not try it after all (its listener is down): it is due as soon as there is room."""
        if delivery.owed is not None:
            self._put_back(delivery.owed)

    def dismissed(self, listener_id: str) -> None:
        """Its dispatcher is gone, and may come back: what it had is due again, and what was on its way here is not."""
        lines = self._coming.forget(lambda line: line[0] == listener_id)
        for owed in [one for one in self._taken.values() if one.listener_id == listener_id]:
            self._put_back(owed)
        for line in lines:
            self._advance(line)

    def _put_back(self, owed: Owed) -> None:
        """Its dispatcher has it no more."""
        if self._taken.get(owed.id) is not owed:
            return  # given up, cancelled, or written anew meanwhile
        del self._taken[owed.id]
        if owed.line is None:  # should it have been redriven meanwhile, that is seen when it is looked at
            self._ledger.queue(owed, now_ms())
            self._note(owed.listener_id, now_ms())
        else:
            self._advance(owed.line)

    def _remove(self, owed: Owed) -> bool:
        if not self._ledger.remove(owed):
            return False
        self._taken.pop(owed.id, None)
        if owed.line is not None:
            self._advance(owed.line)
        return True

    # Redrives

    def redrive(self, listener: Listener) -> None:
        """A listener was redriven: those of its deliveries that this concerns are due."""
        at_ms = now_ms()
        for owed in self._taken.values():
            if owed.listener_id == listener.id:
                owed.redrive(listener.redrives, at_ms)
        self._begin_redrive(listener)

    def _begin_redrive(self, listener: Listener) -> None:
        """They may be very many, so they are made due when it has room, some at a time."""
        redrives, done = listener.redrives, self._redrives_done.get(listener.id, 0)
        if redrives.count > done and listener.id in self._ledger.counts:
            named = (message_id for message_id, redrive in redrives.of_messages.items() if redrive > done)
            self._redriving[listener.id] = _Redriving(deque(named), redrives.count)
            self._note(listener.id, 0)

    def _redrive_some(self, listener: Listener) -> int:
        """Make some of those due that its redrives concern. How many were looked at."""
        redriving = self._redriving[listener.id]
        if not redriving.named:
            rows = self._ledger.attempted_before(
                listener.id, listener.redrives.of_all, limit=self._tuning.redriven_at_once
            )
            if not rows:
                self._redrives_done[listener.id] = redriving.count
                del self._redriving[listener.id]
            for owed in rows:
                self._redrive(owed, listener)
            return len(rows)
        named = [redriving.named.popleft() for _ in range(min(len(redriving.named), self._tuning.redriven_at_once))]
        for message_id in named:
            for partition in self._where(message_id):
                found = self._ledger.find(partition, listener.id, message_id)
                if found is not None:
                    self._redrive(found, listener)
        return len(named)

    def _where(self, message_id: str) -> list[int]:
        """The partitions that a message may be in."""
        place = partition_of(message_id)
        return [place] if place is not None else list(self._owned)

    def _redrive(self, owed: Owed, listener: Listener) -> None:
        was_parked = owed.due_ms is None
        if not owed.redrive(listener.redrives, now_ms()):
            return
        taken = owed.id in self._taken
        owed.queued_ms = None if taken or owed.line is not None else owed.due_ms
        self._ledger.redriven(owed, was_parked=was_parked)
        if owed.line is not None:
            self._advance(owed.line)
        elif not taken:
            self._note(owed.listener_id, now_ms())

    # What is due

    async def pause(self, at_most_s: float) -> None:
        """Until something is due that serve_due() could not foresee, or for so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(at_most_s):
                await self._wake.wait()

    async def serve_due(self) -> bool:
        """Hand what is due to dispatchers that have room for it; the rest waits. Whether there may be more at once."""
        self._wake.clear()
        at_ms = now_ms()
        if self._soonest_ms is not None and self._soonest_ms <= at_ms:
            self._look_at_next(at_ms)
        chosen, more = self._choose(at_ms) if self._owned else ([], False)
        if not chosen:
            await asyncio.sleep(0)
            return more
        messages = await asyncio.gather(*(self._message_of(owed) for owed in chosen))
        served = [self._serve(owed, message) for owed, message in zip(chosen, messages, strict=True)]  # in their order
        return all(served)

    def _note(self, listener_id: str, at_ms: int) -> None:
        """There is something of this listener to be looked at then."""
        if at_ms < self._next_ms.get(listener_id, at_ms + 1):
            self._next_ms[listener_id] = at_ms
            if self._soonest_ms is None or at_ms < self._soonest_ms:
                self._soonest_ms = at_ms

    def _look_at_next(self, at_ms: int) -> None:
        for listener_id in [one for one, next_ms in self._next_ms.items() if next_ms <= at_ms]:
            del self._next_ms[listener_id]
            self._due.setdefault(listener_id, _Pass(at_ms))
        self._soonest_ms = min(self._next_ms.values(), default=None)

    def _choose(self, at_ms: int) -> tuple[list[Owed], bool]:
        """Some of those that are due: of each listener that has room a few, in turn. Whether there may be more."""
        chosen: list[Owed] = []
        more, looks = False, self._tuning.looks_max
        for listener_id in list(self._due):
            if listener_id not in self._ledger.counts:
                del self._due[listener_id]
                self._redriving.pop(listener_id, None)
                continue
            dispatcher = self._dispatchers.get(listener_id)
            if dispatcher is None or not dispatcher.room():
                continue
            if listener_id in self._redriving:
                more = True
                looks -= self._redrive_some(dispatcher.listener)
            looks -= self._choose_of(dispatcher, at_ms, chosen)
            if len(chosen) >= self._tuning.due_at_once or looks <= 0:
                break
        return chosen, more

    def _choose_of(self, dispatcher: Dispatcher, at_ms: int, chosen: list[Owed]) -> int:
        """Of one listener. How many were looked at."""
        listener_id, looks = dispatcher.listener.id, 0
        due, enough = self._due.pop(listener_id), len(chosen) + self._tuning.due_each_at_once
        while looks < self._tuning.looks_each_max and len(chosen) < enough:
            rows = self._ledger.due(listener_id, due.until_ms, after=due.after, limit=2 * self._tuning.due_each_at_once)
            for owed in rows:
                if len(chosen) >= enough:
                    break
                looks += 1
                due.after = owed.queued_ms or 0, owed.id
                self._try(self._fresh(owed), dispatcher, chosen, enough)
            else:
                if len(rows) < 2 * self._tuning.due_each_at_once:  # that was the last
                    due = _Pass(at_ms)
                    break
        next_ms = self._ledger.next_ms(listener_id) if due.after == BEGIN else at_ms
        if next_ms is not None and next_ms > at_ms and listener_id not in self._redriving:
            self._note(listener_id, next_ms)
        elif next_ms is not None or listener_id in self._redriving:
            self._due[listener_id] = due  # behind the others
        return looks

    def _try(self, owed: Owed, dispatcher: Dispatcher, chosen: list[Owed], enough: int) -> None:
        """Take it, and what may follow it in its line, if it may go now."""
        if owed.line is None:
            if self._may_leave(owed, dispatcher):
                self._take(owed, chosen)
            return
        first = self._first(owed.line)
        if first is None or first.id != owed.id:  # those before it were put aside meanwhile: its turn comes
            self._ledger.queue(owed, None)
            return
        at_ms = now_ms()
        while first is not None and first.due_ms is not None and first.due_ms <= at_ms and len(chosen) < enough:
            if not self._may_leave(first, dispatcher):
                break
            self._take(first, chosen)
            first = self._first(owed.line)
        self._advance(owed.line, foreseen=True)

    def _take(self, owed: Owed, chosen: list[Owed]) -> None:
        self._taken[owed.id] = owed
        self._ledger.queue(owed, None)
        chosen.append(owed)

    def _may_leave(self, owed: Owed, dispatcher: Dispatcher) -> bool:
        partition = self._partitions.get(owed.partition)
        return partition is not None and partition.placed(dispatcher) and _may_leave(partition, dispatcher, owed)

    def _first(self, line: Line) -> Owed | None:
        """The one of a line to go next, when all before it are with its dispatcher, and not too many."""
        coming = self._coming.first(line)
        for row_id, place in self._ledger.line(line, self._tuning.key_taken_max):
            if coming is not None and coming <= place:
                return None
            if row_id not in self._taken:
                owed = self._ledger.get(row_id)
                return None if owed is None else self._fresh(owed)
        return None

    def _fresh(self, owed: Owed) -> Owed:
        """With the redrives of its listener that it knows nothing of yet."""
        dispatcher = self._dispatchers.get(owed.listener_id)
        if dispatcher is not None and owed.redrive(dispatcher.listener.redrives, now_ms()):
            self._ledger.redriven(owed, was_parked=False)
        return owed

    def _advance(self, line: Line, *, foreseen: bool = False) -> None:
        """The first of a line is looked at when it is due."""
        first = self._first(line)
        if first is None or first.due_ms is None:
            return
        at_ms = now_ms()
        queued_ms = max(first.due_ms, at_ms)
        if first.queued_ms is None or first.queued_ms > queued_ms:
            self._ledger.queue(first, queued_ms)
        self._note(line[0], queued_ms)
        if queued_ms == at_ms and not foreseen:
            self._wake.set()

    async def _message_of(self, owed: Owed) -> Message | LogUnavailable | None:
        try:
            try:
                if parse_damaged_id(owed.message_id) is not None:
                    await self._damaged.again(owed)
                    return None
                message = await self._records.message(owed)
            except LogDamaged:
                await self._damaged.park_again(owed)
                return None
            await self._assure()  # who had no answer for long reads what others have delivered
        except LogUnavailable as error:
            return error
        return message

    def _serve(self, owed: Owed, message: Message | LogUnavailable | None) -> bool:
        """Hand it to its dispatcher. Whether it left those that wait."""
        dispatcher = self._dispatchers.get(owed.listener_id)
        if self._taken.get(owed.id) is not owed or dispatcher is None:
            return True  # given up, or cancelled, meanwhile
        if message is None:
            log.error("outstanding.message_gone listener=%s message=%s", owed.listener_id, owed.message_id)
            self._remove(owed)
            return True
        if isinstance(message, LogUnavailable) or not dispatcher.room() or not self._may_leave(owed, dispatcher):
            self._put_back(owed)  # its listener has gone while it was read, and one before it waits to be read again
            return False
        stream = dispatcher.stream(owed.partition)
        delivery = Delivery(stream, message.offset, message)
        delivery.number, delivery.first_at_ms = owed.number, owed.first_at_ms
        delivery.owed = owed
        stream.owed.add(delivery)
        dispatcher.accept(delivery, message)
        return True


def _line(delivery: Delivery) -> Line | None:
    key = None if delivery.message is None else delivery.message.key
    return None if key is None else (delivery.stream.dispatcher.listener.id, delivery.stream.partition, key)


def _may_leave(partition: Partition, dispatcher: Dispatcher, owed: Owed) -> bool:
    """Whether its stream has come far enough after a crash.

    Its own window may still bring one that was found here: delivered before, it would be delivered once more where the
    partition has a new owner before the window is that far. And what it has yet to read may be of the same ordering
    key, and go first.
    """
    tail, stream = partition.tail, dispatcher.streams.get(owed.partition)
    if owed.found and not (owed.place < tail if stream is None else stream.window.settled(owed.place, tail)):
        return False
    wanted = None if stream is None else stream.window.wanted()
    return owed.line is None or owed.place < min(tail, tail if wanted is None else wanted)
