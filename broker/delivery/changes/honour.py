"""Messages that were updated or deleted: how the worker that owns their partition applies this to deliveries.

For: knowing the changes of messages that are not settled yet, new data for a delivery, cancelling. Not for: which of
two changes counts (broker/core/changes.py), reading them (broker/kafka/changes.py), reporting who had a message before
(answers.py).

`known` is nearly always empty. A dispatcher looks into it right before each attempt, so that a change applies to every
delivery that waits. It has all changes of messages from an offset on (the floor, which is no higher than the lowest
cursor), and of messages in `outstanding`. The new data stays in Kafka. Decision 0050 gives the reasons, and the meaning
of `unknown`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from msgspec import UNSET

from broker.clock import now_ms
from broker.core.changes import Change, change, prevailing
from broker.core.codec import Fields, decode, encode
from broker.core.delivery import RENEWING
from broker.core.events import ListenerTested, MessageChange, MessageUpdated, PartitionHandedOver, PartitionTakenOver
from broker.delivery.changes.answers import ChangeReplies, ChangeReply, DispatchersOf
from broker.delivery.dispatch.dispatcher import Dispatcher
from broker.delivery.dispatch.stream import Delivery
from broker.delivery.outstanding.schedule import Outstanding
from broker.delivery.ports import ChangeFeed, DeliveryLog, LogReader
from broker.delivery.reading.message import Message
from broker.delivery.reading.partition import Partition
from broker.delivery.tuning import TUNED, Tuning
from broker.errors import LogDamaged, LogUnavailable, UnknownEvent
from broker.ports import EARLIEST, LATEST, OffsetTooOld

log = logging.getLogger(__name__)

_OWNERSHIP: Final = b"partition"  # the record key of ownership events
_LOOK_BACK: Final = 100  # records


@dataclass(slots=True)
class Taken:
    """The updates and deletions of one partition's messages that a worker has read from the topic `changes`, at a
    take-over or for new listeners.
    """

    # `found` has every updated or deleted message from the offset `floor` of `messages` on, with the change in effect.
    # `found` can also have earlier messages, but only those with a delivery in the topic `outstanding`.
    floor: int
    position: int  # the next offset of the topic `changes` to read
    in_doubt_below: int  # A worker that crashed may have sent messages below this offset without storing the results.
    # Below this offset of `changes`, an earlier worker may have applied updates and deletions of messages already.
    # If the message of such a change was delivered, it is unknown whether this was before the change.
    honoured_below: int
    found: dict[int, tuple[str, str, Change]] = field(default_factory=dict)
    # `recent` has the updates and deletions for which clients may still wait for an answer.
    # An item of `recent` has the offset in the topic `changes`, the event, and whether the event has an effect.
    recent: list[tuple[int, MessageChange, bool]] = field(default_factory=list)


class Changes:
    """The updates and deletions of messages that a worker applies to the deliveries of its partitions."""

    def __init__(
        self,
        event_log: DeliveryLog,
        feed: ChangeFeed,
        outstanding: Outstanding,
        partitions: Mapping[int, Partition],
        dispatchers: Mapping[str, Dispatcher],
        dispatchers_of: DispatchersOf,
        run: Callable[[Coroutine[Any, Any, None]], object],
        confirm: Callable[[], Awaitable[None]],
        tuning: Tuning = TUNED,
    ) -> None:
        self._tuning = tuning
        self.known: dict[tuple[int, int], Change] = {}
        self._ids: dict[tuple[int, int], str] = {}
        self._log = event_log
        self._tail = feed
        self._outstanding = outstanding
        self._partitions = partitions
        self._dispatchers = dispatchers
        self._dispatchers_of = dispatchers_of
        self._messages = event_log.messages.name
        self._run = run  # starts a background task
        self._floors: dict[int, int] = {}
        self._positions: dict[int, int] = {}  # next offsets of `changes` to read
        self._in_doubt_below: dict[int, int] = {}
        # By partition: an earlier owner may have applied the updates and deletions below this offset of `changes`.
        self._honoured_below: dict[int, int] = {}
        self._covering = 0
        self._texts: dict[tuple[int, int], asyncio.Task[str | None]] = {}
        self._answers = ChangeReplies(event_log.deliveries, outstanding, partitions, dispatchers_of, confirm, tuning)

    # Ownership

    async def read(self, lows: Mapping[int, int], ends: Sequence[int]) -> dict[int, Taken]:
        """Read the updates and deletions of messages that the worker must know before it delivers messages of these
        partitions. Call this after the deliveries in the topic `outstanding` were read.

        `lows` maps each partition to the lowest offset of `messages` at which a listener continues. `ends` has the end
        offset of each partition of `messages`. Raises LogUnavailable if Kafka does not answer.
        """
        positions = await self._log.changes.end_offsets(list(lows))

        async def one(partition: int, low: int) -> tuple[int, Taken]:
            position = positions[partition]
            taken = Taken(low, position, *await self._doubt(partition, ends[partition], position))
            await self._collect(partition, taken, 0, kept=True)
            return partition, taken

        return dict(await asyncio.gather(*(one(partition, low) for partition, low in lows.items())))

    async def say_taken(self, partitions: Iterable[int]) -> None:
        """Record in the topic `deliveries` that this worker owns the partitions, before the first attempt. After a
        crash, the next owner then knows that messages may have been sent. Raises LogUnavailable if Kafka fails.
        """
        by: Fields = {"at_ms": now_ms(), "organization_id": "", "actor": "worker"}
        await self._log.deliveries.append(
            {one: [(_OWNERSHIP, encode(PartitionTakenOver(**by, partition=one)))] for one in partitions}
        )

    def take_over(self, taken: Mapping[int, Taken]) -> None:
        """Begin to apply updates and deletions of messages to the deliveries of these partitions: first `taken`, which
        read() has returned, and then newer ones. Call this, and later review_deliveries(), when the worker owns them.
        """
        for partition, one in taken.items():
            self._floors[partition] = one.floor
            self._positions[partition] = one.position
            self._in_doubt_below[partition] = one.in_doubt_below
            self._honoured_below[partition] = one.honoured_below
            self._add(partition, one)
        self._tail.follow({partition: one.position for partition, one in taken.items()})

    def review_deliveries(self, taken: Mapping[int, Taken]) -> None:
        """Answer clients that may still wait for an answer to an update or deletion in `taken`. Cancel deliveries of
        deleted messages in `outstanding`, except those of replays. Call this when the listeners' offsets are loaded.
        """
        for partition, one in taken.items():
            recent = []
            for offset, event, counts in one.recent:
                recent.append(self._look(partition, offset, event))
                recent[-1].applied = counts
            for message_id, queue_id, change_now in one.found.values():
                if change_now.deleted:
                    self._cancel_kept(partition, queue_id, message_id)
            if recent:
                self._run(self._answers.tell(partition, recent))

    async def hand_over(self) -> None:
        """Record in the topic `deliveries` that the results of all attempts are stored. Call this after the final
        checkpoint, and only if no attempt is in flight. Raises LogUnavailable if Kafka does not store the record.
        """
        by: Fields = {"at_ms": now_ms(), "organization_id": "", "actor": "worker"}
        handed_over = {
            one: PartitionHandedOver(
                **by,
                partition=one,
                in_doubt_below=self._in_doubt_below.get(one, 0),
                changes_below=self._positions.get(one, 0),
            )
            for one in self._partitions
        }
        await self._log.deliveries.append({one: [(_OWNERSHIP, encode(event))] for one, event in handed_over.items()})

    async def cover(self, lows: Mapping[int, int]) -> None:
        """Read and apply the older updates and deletions of messages that new listeners need. `lows` maps a partition
        to the lowest offset from which a new listener continues. Raises LogUnavailable if Kafka does not answer.
        """
        self._covering += 1
        try:
            for partition, low in lows.items():
                floor = self._floors.get(partition)
                if floor is None or low >= floor:
                    continue
                taken = Taken(low, (await self._log.changes.end_offsets([partition]))[partition], 0, 0)
                await self._collect(partition, taken, 0, kept=False)
                while taken.position < self._positions.get(partition, 0):  # changes that arrived during the read
                    begin, taken.position = taken.position, self._positions[partition]
                    await self._collect(partition, taken, begin, kept=False)
                if partition in self._floors:
                    self._add(partition, taken)
                    self._floors[partition] = low
                    self._honoured_below[partition] = max(self._honoured_below[partition], taken.position)
        finally:
            self._covering -= 1

    async def _doubt(self, partition: int, end: int, changes_end: int) -> tuple[int, int]:
        """Return two offsets. The former owner may have sent messages below the first offset without storing the
        results. It may have applied updates and deletions below the second offset, which is an offset of `changes`. The
        offsets come from the former owner's hand-over event. Without it, they are the partition's end offsets.
        """
        if end == 0:
            return 0, 0
        newest = await _newest_of_worker(self._log.requests, self._log.deliveries.name, partition)
        if not isinstance(newest, PartitionHandedOver):
            return end, changes_end
        below = newest.changes_below
        return newest.in_doubt_below, changes_end if below is UNSET else below

    async def _collect(self, partition: int, taken: Taken, begin: int, *, kept: bool) -> None:
        """Read updates and deletions of messages in the topic `changes`, from the offset `begin` to before
        `taken.position`, and add them to `taken`.

        `taken.found` gets, for each message from the offset `taken.floor` on, the update or deletion in effect. With
        `kept`, it also gets those of earlier messages with a delivery in `outstanding`. `taken.recent` gets each update
        and deletion whose client may still wait for an answer.
        """
        if not taken.position:
            return
        at_ms = now_ms()
        oldest_ms = self._outstanding.oldest_put_ms(partition) if kept else None
        times = [at_ms if oldest_ms is None else oldest_ms]
        with contextlib.suppress(OffsetTooOld):
            times.append(await self._put_at_ms(partition, taken.floor) or at_ms)
        settled: dict[int, Change | None] = {}  # effective changes of settled messages
        async for offset, recorded_ms, event in self._log.changes.since(partition, min(times), begin, taken.position):
            owes = event.offset >= taken.floor
            owes = owes or (kept and self._outstanding.has_message(partition, event.message_id))
            recent = recorded_ms > at_ms - self._tuning.answer_s * 1000
            if not owes and not recent:
                continue
            before, this = taken.found.get(event.offset), change(offset, event)
            counts = prevailing(settled.get(event.offset) if before is None else before[2], this)
            if recent:
                taken.recent.append((offset, event, counts is this))
            if not owes:
                settled[event.offset] = counts
            elif counts is not None:
                taken.found[event.offset] = (event.message_id, event.queue_id, counts)

    async def _put_at_ms(self, partition: int, offset: int) -> int | None:
        """Return the put time of the first readable message at or after this offset, or None if there is none yet."""
        requests = self._log.requests
        at = max(offset, (await requests.offsets(self._messages, {partition: EARLIEST}))[partition])
        while True:
            try:
                fetched = await requests.read(self._messages, partition, at, bytes_max=1)
            except LogDamaged as damage:
                at = damage.last + 1
                continue
            return fetched.records[0].timestamp if fetched.records else None

    def _add(self, partition: int, taken: Taken) -> None:
        """Store newly read updates and deletions of messages. They replace what was stored before for the same
        messages.
        """
        for offset, (message_id, _, counts) in taken.found.items():
            self.known[partition, offset] = counts
            self._ids[partition, offset] = message_id

    def _note(self, partition: int, offset: int, event: MessageChange) -> bool:
        """Apply the update or deletion at this offset of `changes` to the message's later attempts. A deletion also
        cancels the message's deliveries in the topic `outstanding`, except those of replays. Return False if the event
        has no effect: the message was deleted before, or does not have the version for which the event is.
        """
        place, new = (partition, event.offset), change(offset, event)
        before = self.known.get(place)
        counts = prevailing(before, new)
        if counts is new:
            self.known[place], self._ids[place] = counts, event.message_id
        if counts is not None and counts.deleted:
            self._cancel_kept(partition, event.queue_id, event.message_id)
        return counts is new or (before is not None and new.offset <= before.offset)

    def _cancel_kept(self, partition: int, queue_id: str, message_id: str) -> None:
        for dispatcher in self._dispatchers_of(partition, queue_id):
            self._outstanding.cancel(partition, dispatcher.listener.id, message_id)

    # New changes

    async def run(self) -> None:
        """Apply new updates and deletions of messages, and write answers to `deliveries`, in an endless loop."""
        while True:
            by_partition: dict[int, list[ChangeReply]] = {}
            before = time.monotonic()
            events = await self._tail.read()
            if time.monotonic() - before > self._tuning.suspended_s:
                # After a long read, this process was perhaps suspended. Checkpoints._pause() then normally ends it.
                # If the process continues, drop the events of this read and read them again, so that none is lost.
                self._tail.follow({one: at for one, at in self._positions.items() if one in self._partitions})
                continue
            for partition, offset, event in events:
                if partition in self._partitions and partition in self._floors:
                    by_partition.setdefault(partition, []).append(self._apply(partition, offset, event))
            for partition, changes in by_partition.items():
                self._run(self._answers.tell(partition, changes))

    def _apply(self, partition: int, offset: int, event: MessageChange) -> ChangeReply:
        reply = self._look(partition, offset, event)
        reply.applied = self._note(partition, offset, event)
        self._positions[partition] = offset + 1
        return reply

    def _look(self, partition: int, offset: int, event: MessageChange) -> ChangeReply:
        in_doubt = event.offset < self._in_doubt_below[partition]
        honoured = offset < self._honoured_below[partition]
        return self._answers.look(partition, offset, event, in_doubt=in_doubt, honoured=honoured)

    async def mended(self, partition: int, first: int, last: int) -> None:
        """Apply the updates and deletions from offset `first` to `last` of the topic `changes`, which have become
        readable. Skip updates and deletions that were given up as lost.
        """
        while partition in self._floors:
            try:
                found = [one async for one in self._log.changes.since(partition, 0, first, last + 1)]
            except LogUnavailable:
                await asyncio.sleep(self._tuning.change_pause_s)
                continue
            for offset, _, event in found:
                self._note(partition, offset, event)
            return

    # Deliveries

    def deleted(self, delivery: Delivery) -> bool:
        """Return whether the delivery's message was deleted."""
        counts = self.known.get((delivery.stream.partition, delivery.offset))
        return counts is not None and counts.deleted

    def hold(self, delivery: Delivery) -> bool:
        """Return whether the delivery must not be attempted now, because its message was deleted or updated. A deletion
        cancels the delivery. After an update, the delivery waits until the new data has been read.
        """
        counts, message = self.known.get((delivery.stream.partition, delivery.offset)), delivery.message
        if counts is None or message is None or message.change() == counts.offset:
            return False
        dispatcher = delivery.stream.dispatcher
        if counts.deleted:
            dispatcher.cancel(delivery)
        else:
            dispatcher.renew(delivery)
            self._run(self._renew(delivery, message, counts.offset))
        return True

    async def _renew(self, delivery: Delivery, message: Message, offset: int) -> None:
        dispatcher, partition = delivery.stream.dispatcher, delivery.stream.partition
        while delivery.state is RENEWING:
            try:
                data = await self._text(partition, offset)
            # If the updated message can't be read, park the delivery: the old data must not be sent.
            except LogDamaged:
                if delivery.state is RENEWING:
                    dispatcher.park_unreadable(delivery)
                return
            except LogUnavailable:
                await asyncio.sleep(self._tuning.change_pause_s)
                continue
            if delivery.state is RENEWING and delivery.message is message:
                dispatcher.renewed(delivery, message.renewed(data, offset))
            return

    async def _text(self, partition: int, offset: int) -> str | None:
        """Return the new data of an updated message, or None if the update was given up as lost. Raises LogDamaged if
        the update is unreadable, LogUnavailable if Kafka does not return it.
        """
        task = self._texts.get((partition, offset))
        if task is None:
            while len(self._texts) >= self._tuning.texts_max:
                del self._texts[next(iter(self._texts))]
            task = self._texts[partition, offset] = asyncio.create_task(self._read_text(partition, offset))
        try:
            return await asyncio.shield(task)
        except LogUnavailable:
            self._texts.pop((partition, offset), None)
            raise

    async def _read_text(self, partition: int, offset: int) -> str | None:
        event = await self._log.changes.at(partition, offset)
        if isinstance(event, MessageUpdated):
            return event.data
        log.error("change.gone partition=%d offset=%d", partition, offset)
        return None

    # Forgetting settled messages

    async def prune(self) -> None:
        """Forget the updates and deletions of messages that no delivery needs any more, in an endless loop."""
        while True:
            await asyncio.sleep(self._tuning.prune_s)
            for number in list(self._partitions) if self.known else ():
                self.forget_settled(number)
                await asyncio.sleep(0)
            if len(self.known) > self._tuning.changes_many:
                log.warning("changes.many count=%d", len(self.known))

    def forget_settled(self, number: int) -> None:
        """Forget the updates and deletions in this partition that no delivery needs any more. Do nothing until the
        committed offsets of all listeners are loaded.
        """
        partition = self._partitions.get(number)
        if partition is None or number not in self._floors or self._covering:
            return
        low = partition.tail
        under_way: set[int] = set()  # offsets of deliveries taken from `outstanding`
        for dispatcher in self._dispatchers.values():
            if not partition.placed(dispatcher):
                # Until a listener's offset is loaded, forget no update or deletion: the listener may need old ones.
                return
            stream = dispatcher.streams.get(number)
            if stream is not None:
                low = min(low, stream.window.top(partition.tail), *stream.window.open)
                under_way.update(delivery.offset for delivery in stream.from_outstanding)
        for place, message_id in list(self._ids.items()):
            if place[0] != number or place[1] >= low or place[1] in under_way:
                continue
            if not self._outstanding.has_message(number, message_id):
                del self.known[place], self._ids[place]
        self._floors[number] = low


async def _newest_of_worker(requests: LogReader, topic: str, partition: int) -> object:
    """Return the newest event that a worker has written to this partition of the topic `deliveries`. Return None if
    this event can't be read or decoded, or is not among the last `_LOOK_BACK` records. Raises LogUnavailable.

    Records of API processes are skipped: they write the results of listener tests to this topic.
    """
    begin, end = [(await requests.offsets(topic, {partition: moment}))[partition] for moment in (EARLIEST, LATEST)]
    for offset in range(end - 1, max(begin, end - _LOOK_BACK) - 1, -1):
        event: object = None
        async for record in requests.walk(topic, partition, offset, offset + 1, pass_damaged=True):
            with contextlib.suppress(UnknownEvent):
                event = decode(record.value or b"")
        if not isinstance(event, ListenerTested):
            return event
    return None
