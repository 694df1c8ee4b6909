"""Deliveries that have left their stream's window: they try again later, or are parked.

For: keeping them in the topic `outstanding`, knowing when each is due, handing it to its courier then. The record is
written, and acknowledged, before the cursor may pass the message; only its key, offset and time are held in memory.
Not for: the record itself (owed.py), when an attempt is due (broker/core/retry.py), making it (courier.py), what waits
in a window.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Container
from typing import Final

from broker.core.directory import Listener
from broker.core.events import DeliveryParked, KeptDelivery, decode, encode
from broker.core.turns import Lines
from broker.delivery.courier import UNDECODABLE, Courier
from broker.delivery.message import Message, messages
from broker.delivery.owed import Line, Owed, kept_event, kept_message, owed_key, owed_message_ids
from broker.delivery.readers import Partition
from broker.delivery.stream import Delivery, now_ms
from broker.errors import LogUnavailable, UnknownEvent
from broker.kafka.outcomes import OutcomesTopic
from broker.kafka.requests import EARLIEST, LATEST, KafkaRequests, OffsetTooOld, Record

log = logging.getLogger(__name__)

_PAUSE_S: Final = 0.5
_DUE_MAX: Final = 1_000  # that become due in one go: after a long stop it may be very many
_AT_ONCE_MAX: Final = 16  # records read at once, and so messages held besides the couriers'
_AT_ONCE_EACH_MAX: Final = 8  # of one listener
_LOOKS_EACH_MAX: Final = 128  # at those of one listener, for some that may be tried
_IN_LINE_MAX: Final = 8  # of one line that its courier has, or waits to have
_RECORD_BYTES: Final = 1  # Kafka then answers with one batch, and that is the record and few others
_STRETCH_BYTES: Final = 1 << 20


class Outstanding:
    """Of one worker. partitions, couriers: the worker's own, as they are at each moment. assure: see Ownership."""

    def __init__(
        self,
        topic: OutcomesTopic,
        requests: KafkaRequests,
        messages_topic: str,
        partitions: dict[int, Partition],
        couriers: dict[str, Courier],
        assure: Callable[[], Awaitable[None]],
    ) -> None:
        self._assure = assure
        self._topic = topic
        self._requests = requests
        self._messages_topic = messages_topic
        self._partitions = partitions
        self._couriers = couriers
        self._owed: dict[int, dict[bytes, Owed]] = {}
        self._due: list[tuple[int, int, Owed]] = []
        self._order = itertools.count()
        self._lines: Lines[Line, Owed] = Lines()  # of what is not parked and has an ordering key
        self._wake = asyncio.Event()
        self._waiting: dict[str, deque[Owed]] = {}  # by listener, what is due: its courier has no room for it yet
        self._settled: dict[int, list[tuple[bytes, bytes | None]]] = {}

    async def read(self, partition: int) -> dict[bytes, Owed]:
        """What is owed on a partition, as it stands in the topic (LogUnavailable)."""
        name = self._topic.name
        at = (await self._requests.offsets(name, {partition: EARLIEST}))[partition]
        end = (await self._requests.offsets(name, {partition: LATEST}))[partition]
        owed: dict[bytes, Owed] = {}
        async for record in self._requests.walk(name, partition, at, end):
            if record.key is None:
                continue
            owed.pop(record.key, None)
            if record.value is None:
                continue
            event = _decoded(record.value, partition, record.offset)
            if event is not None:
                owed[record.key] = Owed(record.key, partition, record.offset, event)
        return owed

    def take_over(self, partition: int, owed: dict[bytes, Owed]) -> None:
        """The partition is ours, and this is what read() found; its couriers are employed."""
        self._owed[partition] = owed
        for one in owed.values():
            one.found = True
            self._enter(one)

    def forget(self) -> None:
        """The partitions are given up; their next owner reads it all again."""
        self._owed.clear()
        self._due.clear()
        self._lines.clear()
        self._waiting.clear()
        self._settled.clear()

    def overtakes(self, delivery: Delivery) -> bool:
        """Whether a delivery of a window would overtake one that is, or is about to be, here."""
        line = _line(delivery) if self._lines else None
        return line is not None and self._lines.begins_before(line, delivery.offset)

    def expect(
        self, delivery: Delivery, message: Message, status: int | None, error: str | None, due_ms: int | None
    ) -> KeptDelivery:
        """It is about to be put aside, to be tried at due_ms, or parked when that is None: its record, as of now.

        What comes before it is written, a redrive, has come after it. None of its ordering key may overtake it from
        now on, unless it is parked.
        """
        line = _line(delivery)
        if line is not None and due_ms is not None and not self._lines.holds(line, delivery.offset):
            self._lines.join(line, delivery.offset, None)
        return kept_event(delivery, message, status, error, due_ms)

    def expect_no_more(self, delivery: Delivery) -> None:
        """It was not put aside after all."""
        line = _line(delivery)
        if line is not None:
            self._leave(line, delivery.offset)

    async def put_aside(self, delivery: Delivery, event: KeptDelivery) -> bool:
        """Write what expect() gave. Whether it was ours to write."""
        stream = delivery.stream
        key = owed_key(event.listener_id, event.message_id)
        while stream.alive:
            try:
                await self._assure()  # else its next owner may have delivered it
                if not stream.alive:
                    break
                offset = await self._topic.append_one(stream.partition, key, encode(event))
            except LogUnavailable:
                await asyncio.sleep(_PAUSE_S)
                continue
            owed = Owed(key, stream.partition, offset, event)
            if offset < 0:
                owed.message = delivery.message
            if stream.alive and stream.partition in self._owed:
                self._owed[stream.partition][key] = owed
                self._enter(owed)
            if isinstance(event, DeliveryParked):
                log.warning(
                    "delivery.parked message=%s listener=%s queue=%s attempts=%d status=%s error=%s age_ms=%d",
                    event.message_id,
                    event.listener_id,
                    event.queue_id,
                    event.number,
                    event.status,
                    event.error,
                    event.at_ms - event.put_at_ms,
                )
            return True
        return False

    def __len__(self) -> int:
        """How many deliveries are owed, the parked ones too."""
        return sum(map(len, self._owed.values()))

    def is_owed(self, delivery: Delivery) -> bool:
        """Whether a delivery of a window is here: a crash came after its record and before the cursor."""
        owed, message = self._owed.get(delivery.stream.partition), delivery.message
        if message is None or not owed:
            return False
        return owed_key(delivery.stream.courier.listener.id, message.id.decode()) in owed

    def delivered(self, delivery: Delivery) -> None:
        """A delivery from here was taken by its listener. Its tombstone goes out with the next flush()."""
        if delivery.owed is not None:
            self._bury(delivery.owed)

    def listeners(self) -> set[str]:
        """The ids of the listeners that deliveries here are for."""
        return {one.listener_id for partition in self._owed.values() for one in partition.values()}

    def dismissed(self, listener_id: str) -> None:
        """Its courier is gone, and may come back: what it had is due again, and what was on its way here is not."""
        self._waiting.pop(listener_id, None)
        self._lines.forget(lambda line: line[0] == listener_id)
        for partition in self._owed.values():
            for owed in partition.values():
                if owed.listener_id == listener_id and owed.taken:
                    owed.taken = False
                    self._schedule(owed)

    def bury(self, listeners: Container[str]) -> None:
        """The deliveries of these listeners are cancelled. Their tombstones go out with the next flush()."""
        for owed in [one for partition in self._owed.values() for one in partition.values()]:
            if owed.listener_id in listeners:
                self._bury(owed)
        for listener_id in [one for one in self._waiting if one in listeners]:
            del self._waiting[listener_id]

    def state(self, partition: int, listener_id: str, message_id: str) -> str | None:
        """`pending`, `retrying` or `parked`; None when it is not kept here."""
        owed = self._owed.get(partition, {}).get(owed_key(listener_id, message_id))
        if owed is None:
            return None
        if owed.scheduled:
            return "pending"
        return "parked" if owed.due_ms is None else "retrying"

    def cancel(self, partition: int, listener_id: str, message_id: str) -> None:
        """It is not delivered any more. Its tombstone goes out with the next flush()."""
        owed = self._owed.get(partition, {}).get(owed_key(listener_id, message_id))
        if owed is not None:
            self._bury(owed)

    def message_ids(self, partition: int) -> set[str]:
        """The ids of the messages that are kept here."""
        return owed_message_ids(self._owed.get(partition, ()))

    def returned(self, delivery: Delivery) -> None:
        """A courier could not try it after all (its listener is down): it is due as soon as the courier has room."""
        if delivery.owed is not None:
            self._wait(delivery.owed)

    def redrive(self, listener: Listener) -> None:
        """A listener was redriven: those of its deliveries that this concerns are due."""
        at_ms = now_ms()
        for partition in self._owed.values():
            for owed in partition.values():
                if owed.listener_id == listener.id and owed.redrive(listener.redrives, at_ms) and not owed.taken:
                    self._schedule(owed)

    def retrying(self, partition: int, listener_id: str) -> bool:
        """Whether anything of this listener is to be tried again from a partition."""
        owed = self._owed.get(partition, {}).values()
        return any(one.listener_id == listener_id and one.due_ms is not None for one in owed)

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

    async def pause(self, at_most_s: float) -> None:
        """Until something is due that serve_due() could not foresee, or for so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(at_most_s):
                await self._wake.wait()

    async def serve_due(self) -> bool:
        """Hand what is due to the couriers that have room for it; the rest waits. Whether there may be more at once."""
        at_ms = now_ms()
        self._wake.clear()
        for _ in range(_DUE_MAX):
            if not self._due or self._due[0][0] > at_ms:
                break
            due_ms, _, owed = heapq.heappop(self._due)
            owed.noted_ms = None
            if owed.due_ms == due_ms and not owed.taken and self._is_current(owed) and self._may_go(owed):
                self._wait(owed)
                if owed.line is not None:
                    self._advance(owed.line)
        chosen = self._choose()
        messages = await asyncio.gather(*(self._message_of(owed) for owed in chosen))
        served = [self._serve(owed, message) for owed, message in zip(chosen, messages, strict=True)]  # in their order
        return bool(chosen) and all(served)

    def _choose(self) -> list[Owed]:
        """Some of those that wait: of each listener that has room a few, in turn."""
        chosen: list[Owed] = []
        for listener_id, waiting in list(self._waiting.items()):
            courier = self._couriers.get(listener_id)
            if courier is None or not courier.room():
                continue
            del self._waiting[listener_id]
            enough = len(chosen) + _AT_ONCE_EACH_MAX
            for _ in range(min(len(waiting), _LOOKS_EACH_MAX)):
                if len(chosen) >= enough:
                    break
                owed = waiting.popleft()
                if not self._may_go(owed):  # those before it were put aside meanwhile
                    owed.taken = False
                    continue
                partition = self._partitions.get(owed.partition)
                if partition is not None and partition.placed(courier) and _may_leave(partition, courier, owed):
                    chosen.append(owed)
                else:  # where its stream stands is not known yet, or it has to come further
                    waiting.append(owed)
            if waiting:
                self._waiting[listener_id] = waiting  # behind the others
            if len(chosen) >= _AT_ONCE_MAX:
                break
        return chosen

    async def _message_of(self, owed: Owed) -> Message | LogUnavailable | None:
        try:
            message = owed.message or await self._read(owed)
            await self._assure()  # who had no answer for long reads what others have delivered
        except LogUnavailable as error:
            return error
        return message

    def _serve(self, owed: Owed, message: Message | LogUnavailable | None) -> bool:
        """Hand it to its courier. Whether it left those that wait."""
        courier = self._couriers.get(owed.listener_id)
        if not self._is_current(owed) or courier is None:
            return True  # given up, or cancelled, meanwhile
        if message is None:
            log.error("outstanding.record_gone partition=%d offset=%d", owed.partition, owed.offset)
            self._remove(owed)
            return True
        if isinstance(message, LogUnavailable) or not courier.room():
            self._wait(owed)
            return False
        stream = courier.stream(owed.partition)
        delivery = Delivery(stream, message.offset, message)
        delivery.number, delivery.first_at_ms = owed.number, owed.first_at_ms
        delivery.owed = owed
        stream.owed.add(delivery)
        courier.accept(delivery, message)
        return True

    async def _read(self, owed: Owed) -> Message | None:
        """The message of its record, or of a later one of its key; None when there is none that can be decoded.

        Where an append was tried twice the topic holds two, and compaction keeps the later one.
        """
        at, size = owed.offset, _RECORD_BYTES
        while True:
            try:
                stretch = await self._requests.read(self._topic.name, owed.partition, at, bytes_max=size)
            except OffsetTooOld:
                return None
            for record in stretch.records:
                if record.key == owed.key and record.value is not None:
                    return await self._message(owed.partition, record)
            if stretch.next_offset <= at or stretch.next_offset >= stretch.end_offset:
                return None
            at, size = stretch.next_offset, _STRETCH_BYTES

    async def _message(self, partition: int, record: Record) -> Message | None:
        event = _decoded(record.value or b"", partition, record.offset)
        if event is None or event.error != UNDECODABLE:
            return None if event is None else kept_message(event)
        stretch = await self._requests.read(self._messages_topic, partition, event.offset, bytes_max=_RECORD_BYTES)
        return next((message for message in messages(stretch.records) if message.offset == event.offset), None)

    def _is_current(self, owed: Owed) -> bool:
        return self._owed.get(owed.partition, {}).get(owed.key) is owed

    def _bury(self, owed: Owed) -> None:
        if self._remove(owed):
            self._settled.setdefault(owed.partition, []).append((owed.key, None))

    def _remove(self, owed: Owed) -> bool:
        if self._owed.get(owed.partition, {}).pop(owed.key, None) is None:
            return False
        if owed.line is not None:
            self._leave(owed.line, owed.place)
        return True

    def _leave(self, line: Line, place: int) -> None:
        self._lines.leave(line, place)
        self._advance(line)

    def _advance(self, line: Line) -> None:
        """The first of a line wait for their courier, up to one that is not due."""
        for owed in self._lines.head(line, _IN_LINE_MAX):
            if owed.taken:
                continue
            if owed.due_ms is None or owed.due_ms > now_ms():
                self._note(owed)
                return
            self._wait(owed)
            self._wake.set()

    def _note(self, owed: Owed) -> None:
        """It is looked at when it is due."""
        if owed.due_ms is not None and owed.noted_ms != owed.due_ms:
            owed.noted_ms = owed.due_ms
            heapq.heappush(self._due, (owed.due_ms, next(self._order), owed))

    def _may_go(self, owed: Owed) -> bool:
        """Whether all before it in its line are with its courier, or will be there before it."""
        if owed.line is None:
            return True
        for one in self._lines.head(owed.line, _IN_LINE_MAX):
            if one is owed:
                return True
            if not one.taken:
                return False
        return False

    def _wait(self, owed: Owed) -> None:
        """It is due: its courier gets it as soon as it has room."""
        if self._is_current(owed):
            owed.taken = True
            self._waiting.setdefault(owed.listener_id, deque()).append(owed)

    def _enter(self, owed: Owed) -> None:
        """It is due when its record says, or now, when it was redriven since that was written."""
        courier = self._couriers.get(owed.listener_id)
        if courier is not None:
            owed.redrive(courier.listener.redrives, now_ms())
        self._schedule(owed)

    def _schedule(self, owed: Owed) -> None:
        if owed.line is not None:
            if owed.due_ms is None:
                self._leave(owed.line, owed.place)
            else:
                self._lines.join(owed.line, owed.place, owed)
                self._advance(owed.line)
        else:
            self._note(owed)


def _line(delivery: Delivery) -> Line | None:
    key = None if delivery.message is None else delivery.message.key
    return None if key is None else (delivery.stream.courier.listener.id, delivery.stream.partition, key)


def _may_leave(partition: Partition, courier: Courier, owed: Owed) -> bool:
    """Whether its stream has come far enough after a crash.

    Its own window may still bring one that was found here: delivered before, it would be delivered once more where the
    partition has a new owner before the window is that far. And what it has yet to read may be of the same ordering
    key, and go first.
    """
    tail, stream = partition.tail, courier.streams.get(owed.partition)
    if owed.found and not (owed.place < tail if stream is None else stream.window.settled(owed.place, tail)):
        return False
    wanted = None if stream is None else stream.window.wanted()
    return owed.line is None or owed.place < min(tail, tail if wanted is None else wanted)


def _decoded(value: bytes, partition: int, offset: int) -> KeptDelivery | None:
    """None for what a newer program wrote: its record stays, and a newer program finds it."""
    try:
        event = decode(value)
    except UnknownEvent:
        log.exception("outstanding.undecodable partition=%d offset=%d", partition, offset)
        return None
    return event if isinstance(event, KeptDelivery) else None
