"""The topic `changes`: updates and deletions of messages, in the partition of the message (ports.ChangeLog).

For: appending a change, reading the worker's answer, and finding which change of a message counts. Not for: applying
changes to deliveries (broker/delivery/changes/honour.py), reading new changes (changes_tail.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final

from broker.core.changes import CLOCK_SKEW_MS, Change, change, prevailing
from broker.core.codec import decode, encode
from broker.core.events import ChangeApplied, MessageChange
from broker.core.ids import parse_message_id
from broker.disk import Refusal
from broker.errors import InDoubt, LogDamaged, LogUnavailable, UnknownEvent
from broker.kafka.appender import Appender
from broker.kafka.read_slots import COUNT_READS_MAX, ReadSlots
from broker.kafka.requests import KafkaRequests
from broker.kafka.scan import scan
from broker.ports import EARLIEST, LATEST, CountingChange, OffsetTooOld, Record, TooMuch
from broker.time_offsets import offsets_since

log = logging.getLogger(__name__)

_POLL_S: Final = 0.02


class ChangesTopic:
    """The Kafka topic `changes`, which holds the updates and deletions of messages.

    The worker that owns a message's partition applies each new update or deletion, and writes the result to the topic
    `deliveries`.
    """

    def __init__(
        self,
        topic: Appender,
        requests: KafkaRequests,
        deliveries: str,
        read_slots: ReadSlots,
        *,
        clock_skew_ms: int = CLOCK_SKEW_MS,
    ) -> None:
        self._clock_skew_ms = clock_skew_ms
        self.name = topic.name
        self._topic = topic
        self._requests = requests
        self._deliveries = deliveries
        self._read_slots = read_slots

    def refuse(self, refusal: Refusal | None) -> None:
        """See KafkaLog.refuse."""
        self._topic.refusal = refusal

    async def append(self, event: MessageChange) -> tuple[int, int]:
        """See ports.ChangeLog."""
        answers_from = (await self._requests.offsets(self._deliveries, {event.partition: LATEST}))[event.partition]
        try:
            key, value = event.message_id.encode(), encode(event)
            offset = await self._topic.append_one(event.partition, key, value, urgent=event.urgent)
        except LogUnavailable as error:
            raise InDoubt(
                "Kafka did not acknowledge the change. The change may have been stored; "
                "read the message before you repeat the request."
            ) from error
        return offset, answers_from

    async def answer(
        self, partition: int, change_offset: int, message_id: str, *, answers_from: int, within_s: float
    ) -> ChangeApplied | None:
        """See ports.ChangeLog."""
        key = message_id.encode()
        try:
            async with asyncio.timeout(within_s):
                while True:
                    fetched = await self._requests.read(self._deliveries, partition, answers_from)
                    for record in fetched.records:
                        event = _decoded(record.value) if record.key == key else None
                        if isinstance(event, ChangeApplied) and change_offset in (event.change_offset, -1):
                            return event
                    answers_from = fetched.next_offset
                    if answers_from >= fetched.end_offset:
                        await asyncio.sleep(_POLL_S)
        except (TimeoutError, LogUnavailable):
            return None

    async def counted(self, event: MessageChange) -> int | None:
        place = parse_message_id(event.message_id)
        if place is None:
            return None
        key, counts = event.message_id.encode(), None
        async with self._read_slots.slot(event.organization_id):
            for partition, (offset, end) in (await self._spans({place[1]: place[0] - self._clock_skew_ms})).items():
                async for record in self._walk(partition, offset, end):
                    one = _decoded(record.value) if record.key == key else None
                    if isinstance(one, MessageChange):
                        this = change(record.offset, one)
                        counts = prevailing(counts, this)
                        if counts is this and one == event:
                            return record.offset
        return None

    async def latest(
        self, places: Mapping[str, tuple[int, int]], *, organization_id: str, bytes_max: int | None = None
    ) -> dict[str, CountingChange]:
        """See ports.ChangeLog."""
        since_ms: dict[int, int] = {}
        for at_ms, partition in places.values():
            since_ms[partition] = min(at_ms - self._clock_skew_ms, since_ms.get(partition, at_ms))
        if not since_ms:
            return {}
        wanted = {message_id.encode(): message_id for message_id in places}
        counts: dict[str, Change] = {}
        found: dict[str, CountingChange] = {}
        sizes: dict[str, int] = {}
        held = 0
        async with self._read_slots.slot(organization_id):
            for partition, (offset, end) in (await self._spans(since_ms)).items():
                async for record in self._walk(partition, offset, end):
                    message_id = wanted.get(record.key or b"")
                    event = _decoded(record.value) if message_id is not None else None
                    if message_id is None or not isinstance(event, MessageChange):
                        continue
                    this = change(record.offset, event)
                    if prevailing(counts.get(message_id), this) is this:
                        counts[message_id] = this
                        held += len(record.value or b"") - sizes.get(message_id, 0)
                        sizes[message_id] = len(record.value or b"")
                        found[message_id] = CountingChange(record.offset, event)
                    if bytes_max is not None and held > bytes_max and len(found) > 1:
                        raise TooMuch
        return found

    async def deleted(
        self, queue_id: str, *, begin: Sequence[int], end: Sequence[int], since_ms: int, organization_id: str
    ) -> tuple[int, bool]:
        """See ports.ChangeLog."""
        queue, counts, exact = queue_id.encode(), dict[str, Change](), True
        places = {number: place for number, place in enumerate(zip(begin, end, strict=True)) if place[0] < place[1]}
        async with self._read_slots.slot(organization_id):
            for partition, (at, stop) in (
                await self._spans(dict.fromkeys(places, since_ms - self._clock_skew_ms))
            ).items():
                offset = at
                results = scan(
                    self._requests,
                    self._topic.name,
                    partition,
                    at,
                    stop,
                    damaged=self._fail_unless_given_up,
                    reads_max=COUNT_READS_MAX,
                    patience_s=None,
                )
                async for fetched in results:
                    offset = fetched.next_offset
                    for record in fetched.records:
                        event = _decoded(record.value) if queue in (record.value or b"") else None
                        if not isinstance(event, MessageChange) or event.queue_id != queue_id:
                            continue
                        counting = prevailing(counts.get(event.message_id), change(record.offset, event))
                        if counting is not None and event.offset in range(*places[partition]):
                            counts[event.message_id] = counting
                exact = exact and offset >= stop
        return sum(one.deleted for one in counts.values()), exact

    def _fail_unless_given_up(self, damage: LogDamaged) -> None:
        """Raise LogDamaged for an unreadable range. Do nothing if the range was deleted, or if an operator gave it up
        as lost.
        """
        if not self._requests.given_up(damage):
            raise damage

    def _walk(self, partition: int, offset: int, end: int) -> AsyncIterator[Record]:
        """Yield the records at the offsets [offset, end) of a partition of `changes`. Ranges that an operator has given
        up as lost are skipped: the updates and deletions in these ranges have no effect.

        Raises LogUnavailable if Kafka does not answer. Raises LogDamaged for any other unreadable range, because the
        range may have an update or deletion.
        """
        return self._requests.walk(self._topic.name, partition, offset, end, pass_given_up=True)

    async def _spans(self, since_ms: Mapping[int, int]) -> dict[int, tuple[int, int]]:
        """Return, by partition of the topic `changes`, the offsets [first, end) of the records since a time. `since_ms`
        has this time for each partition. Partitions without a record since their time are left out.
        """
        firsts = await offsets_since(self._requests, self._topic.name, since_ms)
        ends = await self._requests.offsets(self._topic.name, dict.fromkeys(firsts, LATEST))
        return {number: (first, ends[number]) for number, first in firsts.items() if first < ends[number]}

    async def end_offsets(self, partitions: list[int]) -> dict[int, int]:
        """Return the end offsets of these partitions of `changes`. Raises LogUnavailable if Kafka does not answer."""
        return await self._requests.offsets(self._topic.name, dict.fromkeys(partitions, LATEST))

    async def since(
        self, partition: int, at_ms: int, begin: int, end: int
    ) -> AsyncIterator[tuple[int, int, MessageChange]]:
        """Yield the updates and deletions since the time `at_ms` at the offsets [begin, end) of a partition of
        `changes`. For each one, yield (offset, record time, event). Clocks differ, so also yield those of the ten
        minutes before `at_ms`.

        Unreadable changes are skipped and have no effect. Raises LogUnavailable if Kafka does not answer.
        """
        times = {partition: max(at_ms - self._clock_skew_ms, 0)}
        first = (await offsets_since(self._requests, self._topic.name, times))[partition]
        async for record in self._requests.walk(self._topic.name, partition, max(first, begin), end, pass_damaged=True):
            event = _decoded(record.value)
            if isinstance(event, MessageChange):
                yield record.offset, record.timestamp, event

    async def at(self, partition: int, offset: int) -> MessageChange | None:
        """Return the update or deletion at this offset of the topic `changes`. Return None if this version of Everput
        does not know the record, or if an operator gave up the offset as lost.

        Raises LogDamaged if the record is unreadable or was deleted, and LogUnavailable if Kafka does not answer or
        does not have the record yet.
        """
        try:
            async for record in self._walk(partition, offset, offset + 1):
                event = _decoded(record.value)
                return event if isinstance(event, MessageChange) else None
        except OffsetTooOld:
            begins = await self._requests.offsets(self._topic.name, {partition: EARLIEST})
            # If Kafka has not deleted this offset, a new leader may lack its record for a moment: the caller retries.
            if offset >= begins[partition]:
                raise
        else:
            return None
        log.error("change.gone partition=%d offset=%d", partition, offset)
        raise LogDamaged(self._topic.name, partition, offset, offset)


def _decoded(value: bytes | None) -> object:
    try:
        return decode(value or b"")
    except UnknownEvent:
        return None
