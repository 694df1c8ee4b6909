"""The state of deliveries and listeners, read from cursors and recorded attempts.

For: ports.Deliveries and ports.ListenerStatus. Not for: writing them (broker/delivery/checkpoint/checkpoints.py).

A delivery is settled if its offset is below the listener's cursor and not open. Its attempts are in the topic
`deliveries`, in the message's own partition, from the message's time on. If there are too many records, or if they were
deleted, the topic `outstanding` tells whether the delivery is outstanding. What has happened since the listener's last
checkpoint is missing (docs/architecture.md).
"""

from __future__ import annotations

import asyncio
import contextlib
from bisect import bisect_left
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from itertools import accumulate
from typing import Final

from broker.clock import now_ms
from broker.core.codec import decode
from broker.core.entities import Listener
from broker.core.events import AnswersKept, DeliveriesSettled, DeliveryAttempted
from broker.core.health import Facts, facts_of
from broker.errors import LogDamaged, UnknownEvent
from broker.kafka.answers import AnswersOfMessage
from broker.kafka.cursors import KafkaCursors
from broker.kafka.outstanding import KafkaOutstanding
from broker.kafka.queue_states import KafkaQueueStates
from broker.kafka.read_slots import ReadSlots
from broker.kafka.requests import KafkaRequests
from broker.kafka.scan import scan
from broker.kafka.topics import topics
from broker.ports import (
    EARLIEST,
    LATEST,
    Attempt,
    Backlog,
    DeliveryState,
    ListenerCondition,
    OutstandingDelivery,
    Record,
)
from broker.settings import KafkaSettings
from broker.time_offsets import offsets_since

_FINAL: Final = ("delivered", "parked")
# A redrive attempts parked deliveries again. So after a redrive, only the state `delivered` is final.
_FINAL_IF_REDRIVEN: Final = ("delivered",)
# To find a message's deliveries, make at most 64 reads of `deliveries` and 64 of `outstanding`, of 1 MiB each.
_READS_MAX: Final = 64
# To count a listener's waiting messages, make at most four reads of 1 MiB in each partition of `messages`.
# If four reads do not reach the partition's end, the listener's count of waiting messages can be too low.
_LAG_READS_MAX: Final = 4
# To count for many listeners at once, make at most eight rounds in each partition, with at most four reads each.
_LAG_ROUNDS_MAX: Final = 8


class KafkaDeliveries:
    """The reader of the states of deliveries and listeners, for API requests. It reads Kafka for each request, and
    caches nothing.

    To find the attempts of one message, it makes at most `outcome_reads_max` reads of the topic `deliveries`, and at
    most `outstanding_reads_max` reads of the topic `outstanding`.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        requests: KafkaRequests,
        read_slots: ReadSlots,
        *,
        outcome_reads_max: int = _READS_MAX,
        outstanding_reads_max: int = _READS_MAX,
    ) -> None:
        self._outcome_reads_max = outcome_reads_max
        self._outstanding_reads_max = outstanding_reads_max
        names = topics(kafka)
        self._messages, self._deliveries = names.messages, names.deliveries
        self._requests = requests
        self.cursors = KafkaCursors(kafka, requests)
        self._outstanding = KafkaOutstanding(kafka, requests, read_slots)
        self._read_slots = read_slots

    def of_queue(self, listeners: Sequence[Listener]) -> KafkaQueueStates:
        """See ports.Deliveries."""
        return KafkaQueueStates(self.cursors, self._outstanding, listeners, self._messages.partitions)

    async def states(
        self,
        message_id: str,
        partition: int,
        offset: int,
        listeners: Sequence[Listener],
        at_ms: int,
        deliver_at_ms: int = 0,
    ) -> Mapping[str, DeliveryState]:
        """See ports.Deliveries."""
        concerned = {listener.id: listener for listener in listeners if listener.start_offsets[partition] <= offset}
        cursors = await self.cursors.load(concerned, [partition])
        settled = {
            listener.id: listener.stands_at(cursors[listener.id], partition).settled(offset)
            for listener in concerned.values()
        }
        final = {
            listener.id: _FINAL if listener.redrives.count == 0 else _FINAL_IF_REDRIVEN
            for listener in concerned.values()
        }
        answers = AnswersOfMessage(offset, concerned)
        since_ms = max(at_ms, deliver_at_ms)
        attempts, all_read = await self._attempts(partition, offset, since_ms, final, listeners, answers)
        await answers.find(self._requests, self._deliveries.name)
        for listener_id, rows in attempts.items():
            rows[:] = [(outcome, answers.of(listener_id, attempt), due_ms) for outcome, attempt, due_ms in rows]
        # The committed cursor says that a settled delivery has ended, or that it is kept in the topic `outstanding`.
        # If the last attempt of a settled delivery may not have been found, look for the delivery in `outstanding`.
        doubtful = [
            listener
            for one, listener in concerned.items()
            if settled[one] and not (attempts[one] and (all_read or attempts[one][-1][0] in final[one]))
        ]
        kept, complete = await self._outstanding.kept(
            partition, message_id, doubtful, reads_max=self._outstanding_reads_max
        )
        states = {one: _state(attempts[one], deliver_at_ms) for one in concerned}
        return states | {
            one.id: _settled_state(states[one.id], kept.get(one.id), complete=complete) for one in doubtful
        }

    async def _attempts(
        self,
        partition: int,
        offset: int,
        at_ms: int,
        final: Mapping[str, Collection[str]],
        listeners: Sequence[Listener],
        answers: AnswersOfMessage,
    ) -> tuple[dict[str, list[tuple[str, Attempt, int | None]]], bool]:
        """Read the recorded attempts of one message from the topic `deliveries`. Stop when the last attempt of each
        delivery was found, at the end of the partition, or after `outcome_reads_max` reads.

        `final` has, for each listener id, the outcomes after which no further attempt is made. Return two values. The
        first has, for each listener id, a list of (outcome, attempt, time of the next attempt). The second is True if
        these lists are surely complete.
        """
        found: dict[str, list[tuple[str, Attempt, int | None]]] = {listener_id: [] for listener_id in final}
        topic = self._deliveries.name
        at = (await offsets_since(self._requests, topic, {partition: at_ms}))[partition] if found else -1
        all_read = True

        def complete() -> bool:
            return all(rows and rows[-1][0] in final[one] for one, rows in found.items())

        # An attempt of this message may be in an unreadable range of `deliveries`, and missing in the list of attempts.
        def damaged(_damage: LogDamaged) -> None:
            nonlocal all_read
            all_read = False

        if at < 0 or complete():
            return found, True
        async with contextlib.AsyncExitStack() as held:
            reads_max = self._outcome_reads_max
            results = scan(self._requests, topic, partition, at, damaged=damaged, reads_max=reads_max)
            await held.enter_async_context(contextlib.aclosing(results))
            reads = 0
            async for fetched in results:
                reads += 1
                for record in fetched.records:
                    _collect(record, offset, found, answers)
                if complete() or fetched.next_offset >= fetched.end_offset:
                    return found, all_read
                # The first read of `deliveries` nearly always finds all attempts.
                # Before a second read, wait for a slot of `read_slots`, which limits how many large reads run at once.
                if reads == 1:
                    await held.enter_async_context(self._read_slots.slot(listeners[0].organization_id))
        return found, all_read and reads < reads_max

    async def condition(self, listener: Listener) -> ListenerCondition:
        """See ports.ListenerStatus."""
        everywhere = range(self._messages.partitions)
        cursors, ends = await asyncio.gather(
            self.cursors.load([listener.id], everywhere),
            self._requests.offsets(self._messages.name, dict.fromkeys(everywhere, LATEST)),
        )
        places = {number: listener.stands_at(cursors[listener.id], number) for number in everywhere}
        behind = {number: place.top for number, place in places.items() if place.top < ends[number]}
        found: dict[int, tuple[int, int | None]] = {}
        if behind:
            async with self._read_slots.slot(listener.organization_id):
                counted = (self._behind(listener, number, top, ends[number]) for number, top in behind.items())
                found = dict(zip(behind, await asyncio.gather(*counted), strict=True))
        lag, oldest = 0, []
        for number, place in places.items():
            count, since_ms = found.get(number, (0, None))
            lag += place.pending + count
            if place.pending and place.oldest_at_ms is not None:
                oldest.append(place.oldest_at_ms)
            if since_ms is not None:
                oldest.append(since_ms)
        known = facts_of(places.values(), now_ms())
        state = "live"
        if lag and any(place.state == "down" for place in places.values()):
            state = "down"
        return ListenerCondition(
            state="paused" if listener.paused is not None else state,
            lag=lag,
            oldest_pending_at_ms=min(oldest, default=None),
            last_error=known.error,
            facts=known,
        )

    async def backlogs(self, listeners: Sequence[Listener]) -> Mapping[str, Backlog]:
        """See ports.ListenerStatus."""
        everywhere = range(self._messages.partitions)
        cursors, ends = await asyncio.gather(
            self.cursors.load([one.id for one in listeners], everywhere),
            self._requests.offsets(self._messages.name, dict.fromkeys(everywhere, LATEST)),
        )
        found = {one.id: Backlog(0, None) for one in listeners}
        behind: dict[int, list[tuple[int, Listener]]] = {}
        for listener in listeners:
            for number in everywhere:
                place = listener.stands_at(cursors[listener.id], number)
                if place.pending:
                    found[listener.id] = _with(found[listener.id], place.pending, place.oldest_at_ms)
                if place.top < ends[number]:
                    behind.setdefault(number, []).append((place.top, listener))
        if behind:
            async with self._read_slots.slot(listeners[0].organization_id):
                counted = (self._count_behind(number, tops, ends[number], found) for number, tops in behind.items())
                await asyncio.gather(*counted)
        return found

    async def _count_behind(
        self, partition: int, tops: Sequence[tuple[int, Listener]], end: int, found: dict[str, Backlog]
    ) -> None:
        """Count the messages in one partition of `messages` that wait for each listener: the messages of its queue at
        or after its position. Add the counts to `found`. Each item of `tops` is a listener with its position (an
        offset).

        Listeners whose positions are close together share the reads. The number of reads is limited, so a count can be
        too low.
        """
        left = [(top, listener.id, listener.queue_id.encode()) for top, listener in tops]
        for rounds_left in range(_LAG_ROUNDS_MAX - 1, -1, -1):
            # By queue id: the offsets, and the record times, of the queue's messages that this round of reads finds.
            read: dict[bytes, tuple[list[int], list[int]]] = {queue_id: ([], []) for _, _, queue_id in left}
            first = last = min(top for top, _, _ in left)
            async for record in self._records(partition, first, end):
                last = record.offset
                rows = read.get(record.headers[0][1] or b"") if record.headers else None
                if rows is not None:
                    rows[0].append(last)
                    rows[1].append(record.timestamp)
            oldest = {one: list(accumulate(reversed(times), min))[::-1] for one, (_, times) in read.items()}
            # Count now only for listeners at positions up to `middle`: half of the read offsets come after `middle`.
            # The next round of reads begins at the lowest position after `middle`, and counts for the listeners there.
            middle = end if last >= end - 1 or not rounds_left else (first + last) // 2
            for top, listener_id, queue_id in left:
                offsets = read[queue_id][0]
                at = bisect_left(offsets, top)
                if top <= middle and at < len(offsets):
                    found[listener_id] = _with(found[listener_id], len(offsets) - at, oldest[queue_id][at])
            left = [one for one in left if one[0] > middle]
            if not left:
                return

    async def facts(self, listeners: Sequence[Listener]) -> Mapping[str, Facts]:
        """See ports.ListenerStatus."""
        at_ms = now_ms()
        cursors = await self.cursors.load([one.id for one in listeners], range(self._messages.partitions))
        return {listener_id: facts_of(places.values(), at_ms) for listener_id, places in cursors.items()}

    async def _behind(self, listener: Listener, partition: int, top: int, end: int) -> tuple[int, int | None]:
        """Count the messages of the listener's queue at the offsets [top, end) of a partition of `messages`. Return the
        count, and the time of the first counted message; None if there is none. Make at most four reads of 1 MiB
        (_LAG_READS_MAX), and do not count messages after these reads.
        """
        queue_id = listener.queue_id.encode()
        count, since_ms = 0, None
        async for record in self._records(partition, top, end):
            if record.headers and record.headers[0][1] == queue_id:
                count += 1
                since_ms = record.timestamp if since_ms is None else since_ms
        return count, since_ms

    async def _records(self, partition: int, top: int, end: int) -> AsyncIterator[Record]:
        """Yield the records at the offsets [top, end) of a partition of `messages`. Stop after _LAG_READS_MAX reads."""
        top = max(top, (await self._requests.offsets(self._messages.name, {partition: EARLIEST}))[partition])
        results = scan(
            self._requests,
            self._messages.name,
            partition,
            top,
            end,
            damaged=lambda _: None,
            reads_max=_LAG_READS_MAX,
            patience_s=None,
        )
        async for fetched in results:
            for record in fetched.records:
                yield record


def _with(backlog: Backlog, messages: int, oldest_at_ms: int | None) -> Backlog:
    """Return a backlog that has `messages` more messages than this one. `oldest_at_ms` is the put time of the oldest of
    the added messages.
    """
    times = [at_ms for at_ms in (backlog.oldest_at_ms, oldest_at_ms) if at_ms is not None]
    return Backlog(backlog.messages + messages, min(times, default=None))


def _collect(
    record: Record, offset: int, found: dict[str, list[tuple[str, Attempt, int | None]]], answers: AnswersOfMessage
) -> None:
    try:
        event = decode(record.value or b"")
    except UnknownEvent:
        return
    if isinstance(event, DeliveriesSettled) and event.listener_id in found:
        for at, at_ms, status, took_ms in event.rows:
            if at == offset:
                attempt = Attempt(number=1, at_ms=at_ms, status=status, took_ms=took_ms, error=None)
                found[event.listener_id].append(("delivered", attempt, None))
    elif isinstance(event, DeliveryAttempted) and event.offset == offset and event.listener_id in found:
        attempt = Attempt(
            number=event.number, at_ms=event.at_ms, status=event.status, took_ms=event.took_ms, error=event.error
        )
        found[event.listener_id].append((event.outcome, attempt, event.next_at_ms))
    elif isinstance(event, AnswersKept):
        answers.collect(event)


def _state(rows: Sequence[tuple[str, Attempt, int | None]], deliver_at_ms: int) -> DeliveryState:
    attempts = tuple(attempt for _, attempt, _ in rows)
    outcome, next_at_ms = (rows[-1][0], rows[-1][2]) if rows else ("", None)
    if outcome in ("delivered", "parked"):
        return DeliveryState(state=outcome, attempts=attempts)
    # A message with a `deliver_at` time is pending until then. Its first attempt is made at this time.
    if not rows and deliver_at_ms:
        return DeliveryState(state="pending", next_attempt_at_ms=deliver_at_ms)
    return DeliveryState(
        state="retrying" if outcome == "failed" else "pending", attempts=attempts, next_attempt_at_ms=next_at_ms
    )


def _settled_state(known: DeliveryState, row: OutstandingDelivery | None, *, complete: bool) -> DeliveryState:
    """Return the state of a settled delivery whose last attempt may not have been found. The listener's cursor says
    that a settled delivery has ended, or that it is kept in the topic `outstanding`.

    `row` is the delivery as stored in the topic `outstanding`: return its state. If `row` is None, the delivery was not
    found there. Then return `delivered` if `complete` is true, because all possible places in `outstanding` were read.
    Otherwise return `unknown`. `known` has the attempts that were found.
    """
    if row is not None:
        return DeliveryState(state=row.state, attempts=known.attempts, next_attempt_at_ms=row.next_attempt_at_ms)
    return DeliveryState(state="delivered" if complete else "unknown", attempts=known.attempts)
