"""Group commit: all messages that arrive while earlier batches are under way become one record batch for one
partition, so that one fsync covers them all. Two batches may be under way, never two to one partition.

For: who waits, what makes the next batch and for which partition, who is told what. Not for: sending (producer.py),
reading (messages.py), what a record holds (broker/puts.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import zlib
from collections import deque
from collections.abc import Awaitable, Iterable, Sequence
from functools import partial
from typing import Any, Final

from aiokafka import errors as kafka_errors

from broker.core.histogram import Histogram
from broker.errors import DiskNearlyFull, InDoubt, LogUnavailable, Unavailable
from broker.kafka.producer import BATCH_BYTES_MAX, Producer
from broker.kafka.requests import KafkaRequests
from broker.kafka.topics import Topic
from broker.ports import BuildRecord

log = logging.getLogger(__name__)

QUEUE_HEADER: Final = "queue"
_BATCHES_UNDER_WAY: Final = 2
_WAITING_MAX: Final = 20_000  # messages that wait for a batch; beyond, Kafka is too slow and new ones are refused
_WAITING_BYTES_MAX: Final = 64 << 20  # and what they carry
_RECORD_BYTES_EXTRA: Final = 40  # of a record in a batch: lengths, offset, time, the header's name; at most
_SWEEP_S: Final = 0.1
_NO_ROOM: Final = "Kafka acknowledges nothing at the moment; nothing was stored"


class _Append:
    """A message that waits for its batch, or is in one. done: (partition, offset)."""

    __slots__ = ("build", "deadline", "done", "size")
    count = 1  # of messages; more in a _Part
    together: _Together | None = None  # what it is itself, where it is more than one message

    def __init__(self, build: BuildRecord, done: asyncio.Future[Any], deadline: float, size: int) -> None:
        self.size = size
        self.build = build
        self.done = done
        self.deadline = deadline


class _Together(_Append):
    """Messages that wait for one batch; where they don't fit, they go into as few as possible. done: None.

    builds: of those that are in no batch yet.
    """

    __slots__ = ("_unacknowledged", "begun", "builds", "count", "together")

    def __init__(self, builds: Sequence[BuildRecord], done: asyncio.Future[None], deadline: float, size: int) -> None:
        super().__init__(builds[0], done, deadline, size)
        self.together = self
        self.builds = builds
        self.count = self._unacknowledged = len(builds)
        self.begun = False

    def part(self, count: int) -> _Append:
        """The first so many of those that were in no batch, which now are."""
        done: asyncio.Future[tuple[int, int]] = asyncio.get_running_loop().create_future()
        done.add_done_callback(partial(self._part_done, count))
        self.builds = self.builds[count:]
        self.begun = True
        return _Part(self.build, done, self.deadline, count)

    def _part_done(self, count: int, part: asyncio.Future[tuple[int, int]]) -> None:
        error = part.exception()
        self._unacknowledged -= count
        if self.done.done():
            return
        if error is not None:
            self.done.set_exception(error)
        elif not self._unacknowledged:
            self.done.set_result(None)


class _Part(_Append):
    """Messages of a _Together that are in one batch. done: where the first of them is."""

    __slots__ = ("count",)

    def __init__(self, build: BuildRecord, done: asyncio.Future[tuple[int, int]], deadline: float, count: int) -> None:
        super().__init__(build, done, deadline, 0)
        self.count = count


class GroupCommit:
    """timeout_s: how long an append waits for the acknowledgement.

    durable: from an append to the acknowledgement. in_doubt: appends whose acknowledgement did not come.
    refused: appends that no batch took, or not in time.
    """

    def __init__(self, producer: Producer, requests: KafkaRequests, topic: Topic, timeout_s: float) -> None:
        self._producer = producer
        self._requests = requests
        self._topic = topic.name
        self._partitions = topic.partitions
        self._timeout_s = timeout_s
        self.durable = Histogram()
        self.in_doubt = self.refused = 0
        self._waiting = self._waiting_bytes = 0
        self._unkeyed: deque[_Append] = deque()
        self._keyed: dict[int, deque[_Append]] = {}  # by partition; a partition without waiting appends is not there
        self._busy: set[int] = set()
        self._under_way: dict[int, list[_Append]] = {}
        self._turn = 0
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._stalled = False
        self._waiting_max = _WAITING_MAX
        self._refusal: str | None = None
        self._left_out = False  # unkeyed messages that are to stay together found no room behind keyed ones

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._run()) for _ in range(_BATCHES_UNDER_WAY)]
        self._tasks.append(asyncio.create_task(self._sweep()))

    def refuse(self, reason: str | None) -> None:
        """Take no more appends, for this reason (DiskNearlyFull); None: take them again."""
        self._refusal = reason
        self._waiting_max = _WAITING_MAX if reason is None else 0

    def _no_room(self) -> Unavailable:
        return LogUnavailable(_NO_ROOM) if self._refusal is None else DiskNearlyFull(self._refusal)

    async def stop(self) -> None:
        """Wait, bounded, for the appends already taken."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._timeout_s):
                while self._unkeyed or self._keyed or self._under_way:
                    await asyncio.sleep(0.01)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def waiting(self) -> int:
        """Messages that no batch has yet."""
        return self._waiting

    @property
    def waiting_bytes(self) -> int:
        return self._waiting_bytes

    def partition_of(self, key: str) -> int:
        """Where the messages of an ordering key are."""
        return zlib.crc32(key.encode()) % self._partitions

    def some_partition(self) -> int:
        """One that can be written to, as far as is known."""
        usable = self._requests.partitions_with_leader(self._topic) or range(self._partitions)
        self._turn += 1
        return usable[self._turn % len(usable)]

    def append(self, build: BuildRecord, *, key: str | None = None, size: int = 0) -> Awaitable[tuple[int, int]]:
        """See ports.MessageLog.append. Raises LogUnavailable at once while Kafka acknowledges nothing."""
        if self._stalled or self._waiting >= self._waiting_max or self._waiting_bytes >= _WAITING_BYTES_MAX:
            self.refused += 1
            raise self._no_room()
        loop = asyncio.get_running_loop()
        done: asyncio.Future[tuple[int, int]] = loop.create_future()
        item = _Append(build, done, loop.time() + self._timeout_s, size)
        self._waiting += 1
        self._waiting_bytes += size
        if key is None:
            self._unkeyed.append(item)
        else:
            self._keyed.setdefault(self.partition_of(key), deque()).append(item)
        self._wake.set()
        return done

    def append_together(
        self, builds: Sequence[BuildRecord], *, partition: int | None = None, size: int = 0
    ) -> Awaitable[None]:
        """See ports.MessageLog.append_together. Raises LogUnavailable at once, as append() does."""
        if self._stalled or self._waiting >= self._waiting_max or self._waiting_bytes >= _WAITING_BYTES_MAX:
            self.refused += 1
            raise self._no_room()
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        item = _Together(builds, done, loop.time() + self._timeout_s, size)
        self._waiting += item.count
        self._waiting_bytes += size
        waiting = self._unkeyed if partition is None else self._keyed.setdefault(partition, deque())
        waiting.append(item)
        self._wake.set()
        return done

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
                self.in_doubt += _fail(items, doubt)
                if isinstance(error, kafka_errors.KafkaError):
                    self._producer.failed(producer, error)
                else:
                    log.exception("log.append_failed")
            else:
                offset = metadata.offset
                for item in items:
                    if not item.done.done():
                        item.done.set_result((partition, offset))
                    offset += item.count
                begun = asyncio.get_running_loop().time() + self._timeout_s
                self.durable.add_all([(begun - item.deadline) * 1000 for item in items])
            finally:
                self._busy.discard(partition)
                self._under_way.pop(partition, None)
                self._stalled = False
                if self._keyed or self._unkeyed:
                    self._wake.set()

    def _pop(self, waiting: deque[_Append]) -> _Append:
        item = waiting.popleft()
        self._waiting -= item.count
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
        queues = (self._unkeyed,) if not keyed else (self._unkeyed, keyed) if self._left_out else (keyed, self._unkeyed)
        self._left_out = False
        for waiting in queues:
            while waiting:
                item = waiting[0]
                if item.done.done():  # its request is gone, or the sweep was faster
                    self._pop(waiting)
                    continue
                if item.together is not None:
                    if not self._take_together(batch, items, item.together, partition):
                        self._left_out = waiting is self._unkeyed  # it is the first of the next batch
                        break
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

    @staticmethod
    def _take_together(batch: Any, items: list[_Append], wanted: _Together, partition: int) -> bool:
        """Put into the batch what is to stay together: all of it, or nothing where other messages leave no room.

        What fits no batch goes into an empty one as far as it does. Whether that was the last of it.
        """
        try:
            if items and batch.size() + wanted.size > BATCH_BYTES_MAX:  # before anything is built: it takes its time
                return False
            records: Iterable[tuple[bytes, bytes, bytes]] = (build(partition) for build in wanted.builds)
            if items or not wanted.begun:  # then all of it: one that can't be made must be known before any is taken
                records = list(records)
                size = sum(len(key) + len(value) + len(queue) + _RECORD_BYTES_EXTRA for key, value, queue in records)
                if items and batch.size() + size > BATCH_BYTES_MAX:
                    return False
            taken = 0
            for key, value, queue in records:
                if batch.append(key=key, value=value, timestamp=None, headers=[(QUEUE_HEADER, queue)]) is None:
                    break
                taken += 1
        except Exception as error:  # noqa: BLE001 - see _next_batch
            _fail([wanted], error)
            return True
        if taken:
            items.append(wanted.part(taken))
        return not wanted.builds

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
                    late = LogUnavailable("Kafka acknowledges nothing; nothing was stored")
                    self.refused += _fail([self._pop(waiting)], late)
            for items in self._under_way.values():
                if items[0].deadline < now:
                    self._stalled = True
                    doubt = InDoubt("Kafka did not acknowledge in time; the message may have been stored")
                    self.in_doubt += _fail(items, doubt)


def _fail(items: Sequence[_Append], error: Exception) -> int:
    """How many of them had no answer yet."""
    waiting = [item for item in items if not item.done.done()]
    for item in waiting:
        begun = item.together is not None and item.together.begun
        item.done.set_exception(InDoubt("some of the messages may have been stored") if begun else error)
    return len(waiting)
