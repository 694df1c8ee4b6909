"""The log: append events to Kafka and find messages in it again.

For: the ordered append to `control`, the group commit to `messages`, outcomes to `deliveries`, and look-ups.
Not for: what the events say (broker/core/events.py), folding them (projections/), the tail (broker/delivery/tail.py).

Group commit: all messages that arrive while earlier batches are under way become one record batch for one
partition, so that one fsync covers them all. Two batches may be under way, never two to one partition.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import zlib
from collections import deque
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from typing import Any, Final

from aiokafka import AIOKafkaProducer
from aiokafka import errors as kafka_errors

from broker.core.events import ControlEvent, encode
from broker.core.paging import Chunk, Found, newest
from broker.errors import InDoubt, LogUnavailable
from broker.kafka.client import client_options
from broker.kafka.requests import EARLIEST, LATEST, KafkaRequests
from broker.kafka.topics import topics
from broker.ports import BuildRecord
from broker.settings import KafkaSettings

log = logging.getLogger(__name__)

QUEUE_HEADER: Final = "queue"
KeyAndValue = tuple[bytes, bytes | None]
_BATCH_BYTES_MAX: Final = 1 << 20
_RECORD_BYTES_MAX: Final = 8 << 20
_BATCHES_UNDER_WAY: Final = 2
_WAITING_MAX: Final = 20_000  # appends that wait for a batch; beyond, Kafka is too slow and new ones are refused
_WAITING_BYTES_MAX: Final = 64 << 20  # and what they carry
_SWEEP_S: Final = 0.1
_CHUNK: Final = 200  # records of a partition that a page of a list looks at
_CHUNK_BYTES_MAX: Final = 512 << 10  # and what it holds of them, but at least one
_PAGE_BYTES_MAX: Final = 8 << 20  # of records in a page, but at least one
_PAGES_AT_ONCE: Final = 2  # lists under way in this process: the others wait
_RENEW_PAUSE_S: Final = 0.2
# A message is looked for from its own time on, so far: the clocks of the API processes may differ by as much.
_CLOCK_SKEW_MS: Final = 10 * 60_000


class KafkaLog:
    """Everything a process writes to Kafka. append_timeout_ms: how long an append waits for the acknowledgement."""

    def __init__(self, kafka: KafkaSettings, *, append_timeout_ms: int = 5_000) -> None:
        names = topics(kafka)
        self.requests = KafkaRequests(kafka)
        self._topics = [topic.name for topic in names.all()]
        self._producer = _Producer(kafka)
        self.control = ControlTopic(self._producer, self.requests, names.control.name, append_timeout_ms / 1000)
        self.messages = MessagesTopic(
            self._producer, self.requests, names.messages.name, names.messages.partitions, append_timeout_ms / 1000
        )
        self.deliveries = OutcomesTopic(self._producer, names.deliveries.name, append_timeout_ms / 1000)
        self.outstanding = OutcomesTopic(self._producer, names.outstanding.name, append_timeout_ms / 1000)

    async def start(self) -> None:
        """Connect (LogUnavailable)."""
        await self.requests.start(self._topics)
        await self._producer.start()
        self.messages.start()

    async def stop(self) -> None:
        """Finish what is under way, then disconnect."""
        await self.messages.stop()
        await self._producer.stop()
        await self.requests.stop()


class _Producer:
    """An idempotent aiokafka producer, made anew when Kafka's answer has ended it (a lost sequence, a lost id)."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self._kafka = kafka
        self._current: Any = None
        self._renewal: asyncio.Task[None] | None = None

    async def start(self) -> None:
        producer = AIOKafkaProducer(
            **client_options(self._kafka),
            acks="all",
            enable_idempotence=True,
            max_batch_size=_BATCH_BYTES_MAX,
            max_request_size=_RECORD_BYTES_MAX,
        )
        try:
            await producer.start()
        except (kafka_errors.KafkaError, OSError) as error:
            await producer.stop()
            raise LogUnavailable(f"Kafka can't be reached: {error}") from error
        self._current = producer

    async def stop(self) -> None:
        if self._renewal is not None:
            self._renewal.cancel()
        if self._current is not None:
            with contextlib.suppress(kafka_errors.KafkaError, asyncio.TimeoutError):
                await asyncio.wait_for(self._current.stop(), 5)

    def get(self) -> Any:
        return self._current

    def failed(self, producer: Any, error: kafka_errors.KafkaError) -> None:
        """Have this producer replaced if the error ended it, unless that is under way already."""
        renewing = self._renewal is not None and not self._renewal.done()
        if not error.retriable and producer is self._current and not renewing:
            self._renewal = asyncio.create_task(self._renew(producer))

    async def _renew(self, broken: Any) -> None:
        log.warning("log.producer_renewed")
        with contextlib.suppress(Exception):  # it is broken: whatever it says at its end does not matter
            await asyncio.wait_for(broken.stop(), 1)
        while self._current is broken:
            try:
                await self.start()
            except LogUnavailable:
                await asyncio.sleep(_RENEW_PAUSE_S)

    def send_all(self, topic: str, partition: int, records: Iterable[KeyAndValue]) -> list[Awaitable[int]]:
        """Send (key, value) records as whole batches; for each batch, its first record's offset."""
        sends: list[Awaitable[int]] = []
        batch = None
        for key, value in records:
            if batch is None or batch.append(key=key, value=value, timestamp=None) is None:
                if batch is not None:
                    sends.append(self._send(batch, topic, partition))
                batch = self._current.create_batch()
                batch.append(key=key, value=value, timestamp=None)
        if batch is not None:
            sends.append(self._send(batch, topic, partition))
        return sends

    async def _send(self, batch: Any, topic: str, partition: int) -> int:
        batch.close()
        metadata = await (await self._current.send_batch(batch, topic, partition=partition))
        return int(metadata.offset)


class ControlTopic:
    """Ordered appends to `control` (ports.ControlLog)."""

    def __init__(self, producer: _Producer, requests: KafkaRequests, topic: str, timeout_s: float) -> None:
        self._producer = producer
        self._requests = requests
        self._topic = topic
        self._timeout_s = timeout_s

    async def append(self, event: ControlEvent) -> int:
        """Its offset, once all in-sync replicas have it (InDoubt when that is not known in time)."""
        producer = self._producer.get()
        try:
            async with asyncio.timeout(self._timeout_s):
                done = await producer.send(
                    self._topic, key=event.organization_id.encode(), value=encode(event), partition=0
                )
                offset = int((await asyncio.shield(done)).offset)
        except TimeoutError:
            raise InDoubt("Kafka did not acknowledge in time; the change may have been stored") from None
        except kafka_errors.KafkaError as error:
            self._producer.failed(producer, error)
            raise InDoubt(f"Kafka did not acknowledge ({type(error).__name__}); the change may be stored") from error
        if offset < 0:  # Kafka knew it as a repeat and no longer knows where it is: it is somewhere before the end
            return await self.end_offset() - 1
        return offset

    async def end_offset(self) -> int:
        """One past the newest event (LogUnavailable)."""
        return (await self._requests.offsets(self._topic, {0: LATEST}))[0]


class _Append:
    __slots__ = ("build", "deadline", "done", "size")

    def __init__(self, build: BuildRecord, done: asyncio.Future[tuple[int, int]], deadline: float, size: int) -> None:
        self.size = size
        self.build = build
        self.done = done
        self.deadline = deadline


class MessagesTopic:
    """Group commit to `messages`, and messages read back by id (ports.MessageLog)."""

    def __init__(
        self, producer: _Producer, requests: KafkaRequests, topic: str, partitions: int, timeout_s: float
    ) -> None:
        self._producer = producer
        self._requests = requests
        self._topic = topic
        self._partitions = partitions
        self._timeout_s = timeout_s
        self._waiting = self._waiting_bytes = 0
        self._lists = asyncio.Semaphore(_PAGES_AT_ONCE)
        self._unkeyed: deque[_Append] = deque()
        self._keyed: dict[int, deque[_Append]] = {}  # by partition; a partition without waiting appends is not there
        self._busy: set[int] = set()
        self._under_way: dict[int, list[_Append]] = {}
        self._turn = 0
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._stalled = False

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._run()) for _ in range(_BATCHES_UNDER_WAY)]
        self._tasks.append(asyncio.create_task(self._sweep()))

    async def stop(self) -> None:
        """Wait, bounded, for the appends already taken."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._timeout_s):
                while self._unkeyed or self._keyed or self._under_way:
                    await asyncio.sleep(0.01)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def append(self, build: BuildRecord, *, key: str | None = None, size: int = 0) -> Awaitable[tuple[int, int]]:
        """See ports.MessageLog.append. Raises LogUnavailable at once while Kafka acknowledges nothing."""
        if self._stalled or self._waiting >= _WAITING_MAX or self._waiting_bytes >= _WAITING_BYTES_MAX:
            raise LogUnavailable("Kafka acknowledges nothing at the moment; the message was not stored")
        loop = asyncio.get_running_loop()
        done: asyncio.Future[tuple[int, int]] = loop.create_future()
        item = _Append(build, done, loop.time() + self._timeout_s, size)
        self._waiting += 1
        self._waiting_bytes += size
        if key is None:
            self._unkeyed.append(item)
        else:
            self._keyed.setdefault(zlib.crc32(key.encode()) % self._partitions, deque()).append(item)
        self._wake.set()
        return done

    async def end_offsets(self) -> tuple[int, ...]:
        """By partition, one past the newest message (LogUnavailable)."""
        found = await self._requests.offsets(self._topic, dict.fromkeys(range(self._partitions), LATEST))
        return tuple(found[partition] for partition in range(self._partitions))

    async def offsets_at(self, at_ms: int) -> tuple[int, ...]:
        """By partition, the first offset at or after a time, else the end; time 0 is the log's beginning."""
        moment = at_ms if at_ms > 0 else EARLIEST
        # The ends first: what is put in between is then after them, and not lost between the two answers.
        ends = await self.end_offsets()
        found = await self._requests.offsets(self._topic, dict.fromkeys(range(self._partitions), moment))
        return tuple(end if found[partition] < 0 else found[partition] for partition, end in enumerate(ends))

    async def find(self, *, partition: int, at_ms: int, message_id: str) -> tuple[int, bytes] | None:
        """(offset, value) of a message; None when its partition has no such id from its time on (LogUnavailable)."""
        if partition >= self._partitions:
            return None
        key = message_id.encode()
        offset = (await self._requests.offsets(self._topic, {partition: at_ms}))[partition]
        while offset >= 0:
            stretch = await self._requests.read(self._topic, partition, offset)
            for record in stretch.records:
                if record.key == key and record.value is not None:
                    return record.offset, record.value
                if record.timestamp > at_ms + _CLOCK_SKEW_MS:
                    return None
            if stretch.next_offset == offset or stretch.next_offset >= stretch.end_offset:
                return None
            offset = stretch.next_offset
        return None

    async def newest(
        self, queue_id: str, *, begin: Sequence[int], end: Sequence[int], limit: int
    ) -> tuple[list[bytes], list[int]]:
        """See ports.MessageLog.newest."""
        async with self._lists:  # one partition after the other: what is held at once is bounded
            chunks = [
                await self._chunk(number, queue_id, *bounds)
                for number, bounds in enumerate(zip(begin, end, strict=True))
            ]
        return newest(chunks, limit, bytes_max=_PAGE_BYTES_MAX)

    async def _chunk(self, partition: int, queue_id: str, begin: int, end: int) -> Chunk[bytes]:
        """The last _CHUNK records before end, or fewer, where the queue's are large."""
        start = at = max(begin, end - _CHUNK)
        found: deque[Found[bytes]] = deque()
        held = 0
        oldest_at_ms: int | None = None
        queue = queue_id.encode()
        while at < end:
            stretch = await self._requests.read(self._topic, partition, at)
            for record in stretch.records:
                if record.offset >= end:
                    break
                oldest_at_ms = record.timestamp if oldest_at_ms is None else oldest_at_ms
                if record.value is not None and record.headers and record.headers[0][1] == queue:
                    found.append(Found(record.timestamp, record.offset, record.value, len(record.value)))
                    held += len(record.value)
                while held > _CHUNK_BYTES_MAX and len(found) > 1:  # the oldest is left for a later page
                    dropped = found.popleft()
                    held -= dropped.size
                    start, oldest_at_ms = dropped.offset + 1, dropped.at_ms
            if stretch.next_offset <= at:
                break
            at = stretch.next_offset
        return Chunk(begin, start, end, oldest_at_ms, found)

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            partition, items, batch = self._next_batch()
            if batch is None:
                if partition < 0:  # else nobody waited for that one any more: look at the others
                    self._wake.clear()
                continue
            producer = self._producer.get()
            try:
                metadata = await (await producer.send_batch(batch, self._topic, partition=partition))
            except Exception as error:  # whatever it is, the group commit must go on
                doubt = InDoubt(f"Kafka did not acknowledge ({type(error).__name__}); the message may be stored")
                _fail(items, doubt)
                if isinstance(error, kafka_errors.KafkaError):
                    self._producer.failed(producer, error)
                else:
                    log.exception("log.append_failed")
            else:
                offset = metadata.offset
                for item in items:
                    if not item.done.done():
                        item.done.set_result((partition, offset))
                    offset += 1
            finally:
                self._busy.discard(partition)
                self._under_way.pop(partition, None)
                self._stalled = False
                if self._keyed or self._unkeyed:
                    self._wake.set()

    def _pop(self, waiting: deque[_Append]) -> _Append:
        item = waiting.popleft()
        self._waiting -= 1
        self._waiting_bytes -= item.size
        return item

    def _next_batch(self) -> tuple[int, list[_Append], Any]:
        """What waits, as one batch for a partition that has none under way; (…, None) when there is none to make."""
        partition = self._choose_partition()
        if partition < 0:
            return partition, [], None
        producer = self._producer.get()
        batch = producer.create_batch()
        items: list[_Append] = []
        keyed = self._keyed.get(partition)
        for waiting in (keyed, self._unkeyed) if keyed else (self._unkeyed,):
            while waiting:
                item = waiting[0]
                if item.done.done():  # its request is gone, or the sweep was faster
                    self._pop(waiting)
                    continue
                try:
                    key, value, queue = item.build(partition)
                except Exception as error:  # noqa: BLE001 - one event that can't be made must not end the group commit
                    _fail([self._pop(waiting)], error)
                    continue
                if batch.append(key=key, value=value, timestamp=None, headers=[(QUEUE_HEADER, queue)]) is None:
                    break
                items.append(self._pop(waiting))
        if keyed is not None and not keyed:
            del self._keyed[partition]
        if not items:
            return partition, items, None
        batch.close()
        self._busy.add(partition)
        self._under_way[partition] = items
        return partition, items, batch

    def _choose_partition(self) -> int:
        """One with keyed appends waiting, else the next in turn that has a leader; -1: there is nothing to do."""
        for partition in self._keyed:
            if partition not in self._busy:
                return partition
        if not self._unkeyed:
            return -1
        usable = self._requests.partitions_with_leader(self._topic) or range(self._partitions)
        for _ in range(len(usable)):
            self._turn += 1
            partition = usable[self._turn % len(usable)]
            if partition not in self._busy:
                return partition
        return -1

    async def _sweep(self) -> None:
        """Answer those who have waited too long: not stored if no batch has them yet, else in doubt."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_SWEEP_S)
            now = loop.time()
            for waiting in (self._unkeyed, *self._keyed.values()):
                while waiting and (waiting[0].done.done() or waiting[0].deadline < now):
                    _fail([self._pop(waiting)], LogUnavailable("Kafka acknowledges nothing; nothing was stored"))
            for items in self._under_way.values():
                if items[0].deadline < now:
                    self._stalled = True
                    _fail(items, InDoubt("Kafka did not acknowledge in time; the message may have been stored"))


def _fail(items: Sequence[_Append], error: Exception) -> None:
    for item in items:
        if not item.done.done():
            item.done.set_exception(error)


class OutcomesTopic:
    """What happened to deliveries: appends to `deliveries` and `outstanding`."""

    def __init__(self, producer: _Producer, topic: str, timeout_s: float) -> None:
        self._producer = producer
        self._timeout_s = timeout_s
        self.name = topic

    async def append(self, outcomes: Mapping[int, Sequence[KeyAndValue]]) -> None:
        """Write (key, value) records by partition, all of them (LogUnavailable). No value: a tombstone."""
        await self._bounded(
            asyncio.gather(
                *(
                    send
                    for partition, records in outcomes.items()
                    for send in self._producer.send_all(self.name, partition, records)
                )
            )
        )

    async def append_one(self, partition: int, key: bytes, value: bytes) -> int:
        """The record's offset, -1 when Kafka knows it as a repeat and no longer where it is (LogUnavailable)."""
        (offset,) = await self._bounded(asyncio.gather(*self._producer.send_all(self.name, partition, [(key, value)])))
        return offset

    async def _bounded(self, sends: asyncio.Future[list[int]]) -> list[int]:
        """aiokafka tries for ever; we don't wait for ever. What it still has may be written later, and twice."""
        producer = self._producer.get()
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asyncio.shield(sends)
        except TimeoutError:
            sends.add_done_callback(_drop_result)
            raise LogUnavailable("Kafka did not take the outcomes in time") from None
        except kafka_errors.KafkaError as error:
            self._producer.failed(producer, error)
            raise LogUnavailable(f"Kafka did not take the outcomes: {type(error).__name__}") from error


def _drop_result(sends: asyncio.Future[list[int]]) -> None:
    if not sends.cancelled():
        sends.exception()
