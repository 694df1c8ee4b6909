"""Group commit: messages that arrive while earlier batches are in flight wait, and share the next record batch of one
partition.

One fsync then covers all messages of the batch. A broker gets its next batch only after it has acknowledged the one
before, and while every broker is late, two batches may be in flight in all. If messages must go to several partitions
of a broker, for example because of their ordering keys, a batch for each is sent at the same time.

After a batch with several puts there is a short pause (pauses.py). A broker that is late with an acknowledgement gets
no other batch until it has acknowledged. It delays only messages that must go to it (docs/decisions/0173).

For: which messages make the next batch, its partition, and its result. Not for: the queues of waiting messages
(appends.py), which brokers are late (in_flight.py), sending (producer.py), reading (messages.py), the content of a
record (broker/commands/puts.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import zlib
from collections.abc import Awaitable, Coroutine, Mapping, Sequence
from math import inf
from typing import Any, Final

from aiokafka import errors as kafka_errors

from broker.core.histogram import Histogram
from broker.errors import DiskNearlyFull, InDoubt, LogUnavailable
from broker.kafka.appends import QUEUE_HEADER, Append, AppendQueue, Together, fail
from broker.kafka.in_flight import InFlight, SentBatch
from broker.kafka.pauses import Pauses
from broker.kafka.produce import BATCH_BYTES_MAX
from broker.kafka.producer import Producer
from broker.kafka.requests import KafkaRequests
from broker.kafka.topics import Topic
from broker.ports import Acknowledged, BuildRecord
from broker.settings import BATCH_PAUSE_MS

log = logging.getLogger(__name__)

_IN_DOUBT_MAX: Final = 2  # batches while all brokers are late
# If 20,000 messages wait to be sent, Kafka is too slow, and new messages are refused.
_WAITING_MAX: Final = 20_000
# If the messages that wait to be sent have 64 MiB or more together, new messages are refused.
_WAITING_BYTES_MAX: Final = 64 << 20
# If 10,000 messages or 32 MiB wait that must go to one partition, more messages for this partition are refused.
_QUEUE_SHARE: Final = 2
_SWEEP_S: Final = 0.1
_LATE_S: Final = 0.5
_LOOK_AGAIN_S: Final = 1.0
_NO_ROOM: Final = "Kafka does not acknowledge writes at the moment. Nothing was stored; try again."


class GroupCommit:
    """Group commit: messages that arrive while Kafka has not acknowledged a record batch share the next batch, and
    therefore one fsync.

    A caller waits at most `timeout_s` for Kafka's acknowledgement. `durable` is the histogram of the times, in ms, from
    a message's arrival to its acknowledgement.
    """

    def __init__(
        self,
        producer: Producer,
        requests: KafkaRequests,
        topic: Topic,
        timeout_s: float,
        *,
        pause_s: float = BATCH_PAUSE_MS / 1000,
        late_s: float = _LATE_S,
        sweep_s: float = _SWEEP_S,
        waiting_max: int = _WAITING_MAX,
    ) -> None:
        self._sweep_s = sweep_s
        self._producer = producer
        self._requests = requests
        self.name = self._topic = topic.name
        self._partitions = topic.partitions
        self.timeout_s = timeout_s
        self.durable = Histogram()
        self.in_doubt = self.refused = self.batches = 0
        self.waiting = self.waiting_bytes = self._puts = 0  # a put of several messages counts as one
        self._unkeyed = AppendQueue()
        # For each partition: the waiting messages that must go to it, such as messages with an ordering key.
        self._keyed: dict[int, AppendQueue] = {}
        self.in_flight = InFlight(timeout_s, late_s)
        self._turn = 0
        self._wake = asyncio.Event()
        self._busy = asyncio.Event()  # set while messages wait
        self._pauses = Pauses(pause_s, self._wake.set)
        self._enough = 0.0  # If fewer puts than this wait, no batch can be sent now, so a put need not wake _run().
        self._tasks: set[asyncio.Task[None]] = set()
        self._look_again_s = 0.0
        self._waiting_max = self._most = waiting_max
        self._refusal: str | None = None
        # True if the newest batch had no room for a group of messages that should share a batch, in any partition.
        # If `_left_out` is True, the next batch takes this group of messages before all other messages.
        self._left_out = False

    def start(self) -> None:
        for work in (self._run(), self._sweep()):
            self._spawn(work)

    def refuse(self, reason: str | None) -> None:
        """Refuse new messages with the error DiskNearlyFull, whose text is `reason`. Pass None to accept messages
        again.
        """
        self._refusal = reason
        self._waiting_max = self._most if reason is None else 0

    async def stop(self) -> None:
        """Wait until all accepted messages are acknowledged or have failed, but at most `timeout_s`. Then stop the
        group commit.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.timeout_s):
                while self._unkeyed or self._keyed or self.in_flight:
                    await asyncio.sleep(0.01)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def partition_of(self, ordering_key: str) -> int:
        """Return the partition for messages with this ordering key."""
        return zlib.crc32(ordering_key.encode()) % self._partitions

    def some_partition(self) -> int:
        """Return a partition for a message that may go to any partition. If possible, choose a partition whose leader
        broker is not late with an acknowledgement. Successive calls usually return different partitions.
        """
        leaders = self._leaders()
        usable = self.in_flight.trusted(leaders) or list(leaders)
        self._turn += 1
        return usable[self._turn % len(usable)]

    def append(
        self, build: BuildRecord, *, ordering_key: str | None = None, size: int = 0
    ) -> Awaitable[tuple[int, int]]:
        """Append a message, and return an awaitable of its (partition, offset). The awaitable raises LogUnavailable if
        the message was not sent in time, and was therefore not stored. It raises InDoubt if the message was sent, and
        may have been stored.

        Raises LogUnavailable immediately while Kafka does not acknowledge writes, or while too many messages wait.
        Raises DiskNearlyFull immediately while the disk is nearly full.
        """
        done: asyncio.Future[tuple[int, int]] = asyncio.get_running_loop().create_future()
        self.append_for(done, build, ordering_key=ordering_key, size=size)
        return done

    def append_for(
        self, writer: Acknowledged, build: BuildRecord, *, ordering_key: str | None = None, size: int = 0
    ) -> None:
        """Append a message, and give the object `writer` the result: the message's (partition, offset), or an error.
        The error is LogUnavailable if the message was not sent in time, and InDoubt if it was sent and may have been
        stored.

        Raises LogUnavailable immediately while Kafka does not acknowledge writes, or while too many messages wait.
        Raises DiskNearlyFull immediately while the disk is nearly full.
        """
        item = Append(build, writer, _now_s() + self.timeout_s, size)
        self._join(None if ordering_key is None else self.partition_of(ordering_key), item)

    def append_together(
        self, builds: Sequence[BuildRecord], *, partition: int | None = None, size: int = 0
    ) -> Awaitable[None]:
        """Append messages that should share one record batch. The awaitable ends when Kafka has stored all of them. It
        raises LogUnavailable if none was sent in time, and InDoubt if some may have been stored.

        Raises LogUnavailable immediately while Kafka does not acknowledge writes, or while too many messages wait.
        Raises DiskNearlyFull immediately while the disk is nearly full.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        self._join(partition, Together(builds, done, loop.time() + self.timeout_s, size))
        return done

    def _join(self, partition: int | None, item: Append) -> None:
        """Let a message, or a group of messages, wait in memory for the next record batch of this partition. If
        `partition` is None, the batch may go to any partition. Raises LogUnavailable while Kafka does not acknowledge
        writes, or while too many messages wait. Raises DiskNearlyFull while the disk is nearly full.
        """
        if self._refuses(partition):
            self.refused += 1
            raise LogUnavailable(_NO_ROOM) if self._refusal is None else DiskNearlyFull(self._refusal)
        queue = self._unkeyed if partition is None else self._keyed.setdefault(partition, AppendQueue())
        queue.add(item)
        self.waiting += item.count
        self.waiting_bytes += item.size
        self._puts += 1
        if self._puts >= self._enough:
            self._wake.set()
        self._busy.set()

    def _refuses(self, partition: int | None) -> bool:
        if self.waiting >= self._waiting_max or self.waiting_bytes >= _WAITING_BYTES_MAX:
            return True
        if partition is None:
            return bool(self.in_flight.away) and not self.in_flight.trusted(self._leaders())
        if self.in_flight.away and self._leader(partition) in self.in_flight.away:
            return True
        queue = self._keyed.get(partition)
        return queue is not None and (
            queue.count * _QUEUE_SHARE >= self._waiting_max or queue.size * _QUEUE_SHARE >= _WAITING_BYTES_MAX
        )

    def _pop(self, queue: AppendQueue) -> Append:
        item = queue.pop()
        self.waiting -= item.count
        self.waiting_bytes -= item.size
        self._puts -= 1
        return item

    def _leader(self, partition: int) -> int | None:
        return self._requests.leader(self._topic, partition)

    def _leaders(self) -> Mapping[int, int | None]:
        """Return the brokers that lead the partitions. Leave out partitions without a leader. If no leader is known,
        return all partitions, each with None.
        """
        return self._requests.leaders(self._topic) or dict.fromkeys(range(self._partitions))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self) -> None:
        """Send record batches until the task is cancelled. Send as many batches as possible whenever a message arrives,
        a broker has acknowledged its batch, or a broker's pause between batches ends.
        """
        while True:
            await self._wake.wait()
            self._wake.clear()
            while (chosen := self._choose_partition()) >= 0:
                self._begin(chosen)

    def _begin(self, chosen: int) -> None:
        """Send a record batch to this partition. At the same time, send batches to other partitions of its leader to
        which waiting messages must go, until the batches have 1 MiB or more together. Do not do so if the leader is
        late or unknown.
        """
        leader = self._leader(chosen)
        partitions = [chosen]
        if leader is not None and leader not in self.in_flight.suspects:
            partitions += (
                one
                for one in self._keyed
                if one != chosen and one not in self.in_flight and self._leader(one) == leader
            )
        puts = size = 0
        for partition in partitions:
            if size >= BATCH_BYTES_MAX:
                break
            items, batch = self._next_batch(partition)
            # If no message is left to send, `batch` is None: for example, all callers may have stopped waiting.
            if batch is not None:
                puts += len(items)
                size += batch.size()
                sent = self.in_flight.add(partition, items, leader)
                self._spawn(self._send(partition, sent, batch))
        if puts:
            self._pauses.sent(leader, puts)

    async def _send(self, partition: int, sent: SentBatch, batch: Any) -> None:
        producer = self._producer.get()
        try:
            metadata = await (await producer.send_batch(batch, self._topic, partition=partition))
        except Exception as error:  # An error fails only the requests of this batch: other batches must go on.
            doubt = InDoubt(
                f"Kafka did not acknowledge ({type(error).__name__}). The message may have been stored; "
                "with an Idempotency-Key it is safe to repeat the request."
            )
            self.in_doubt += fail(sent.items, doubt)
            if isinstance(error, kafka_errors.KafkaError):
                self._producer.failed(producer, error)
            else:
                log.exception("log.append_failed")
        else:
            self._acknowledged(sent, partition, metadata.offset)
        finally:
            self.in_flight.remove(partition)
            self._wake.set()

    def _acknowledged(self, batch: SentBatch, partition: int, offset: int) -> None:
        for item in batch.items:
            if not item.done.done():
                item.done.set_result((partition, offset))
            offset += item.count
        self.batches += 1
        self.in_flight.acknowledged(batch)
        begun_s = _now_s() + self.timeout_s
        self.durable.add_all([(begun_s - item.deadline) * 1000 for item in batch.items])

    def _next_batch(self, partition: int) -> tuple[list[Append], Any]:
        """Take waiting messages for this partition until a record batch is full or no message waits. Return them and
        the batch. If there is no message, return an empty list and None.

        Messages for which no caller waits any more are dropped.
        """
        batch = self._producer.get().create_batch()
        items: list[Append] = []
        keyed = self._keyed.get(partition)
        queues = (self._unkeyed,) if not keyed else (self._unkeyed, keyed) if self._left_out else (keyed, self._unkeyed)
        self._left_out = False
        for waiting in queues:
            while waiting:
                item = waiting.first
                if item.done.done():  # the message is no longer wanted
                    self._pop(waiting)
                    continue
                if item.together is not None:
                    if not item.together.add_to(batch, items, partition):
                        # Later batches take the messages of the group that do not fit into this batch.
                        self._left_out = waiting is self._unkeyed
                        break
                    self._pop(waiting)
                    continue
                try:
                    key, value, queue = item.build(partition)
                except Exception as error:  # noqa: BLE001 - a faulty event must not end the loop
                    fail([self._pop(waiting)], error)
                    continue
                if batch.append(key=key, value=value, timestamp=None, headers=[(QUEUE_HEADER, queue)]) is None:
                    break
                items.append(self._pop(waiting))
        if keyed is not None and not keyed:
            del self._keyed[partition]
        if not items:
            return items, None
        batch.close()
        return items, batch

    def _choose_partition(self) -> int:
        """Return the partition that gets the next record batch. Return -1 if no batch can be sent now.

        Prefer a partition to which a waiting message must go, for example because of its ordering key. Otherwise, the
        partitions take turns.
        """
        self._enough = 0.0
        if not (self._keyed or self._unkeyed):
            return -1
        leaders = self._leaders()
        if trusted := self.in_flight.trusted(leaders):
            owing = self.in_flight.owing()
            enough = {leader: puts for leader, puts in self._pauses.enough().items() if leader not in owing}
            busy = owing.union(leader for leader, puts in enough.items() if self._puts < puts)
            usable = [one for one in trusted if leaders[one] not in busy]
            if not usable:
                self._enough = min(enough.values(), default=inf)
        # If all brokers are late with acknowledgements, allow no more than two unacknowledged batches.
        elif len(self.in_flight) < _IN_DOUBT_MAX:
            usable = list(leaders)
        else:
            return -1
        for partition in self._keyed:
            if partition not in self.in_flight and partition in usable:
                return partition
        if not self._unkeyed:
            return -1
        for _ in range(len(usable)):
            self._turn += 1
            partition = usable[self._turn % len(usable)]
            if partition not in self.in_flight:
                return partition
        return -1

    async def _sweep(self) -> None:
        """Fail the messages that have waited longer than `timeout_s`. A message that is in no batch was not stored, so
        its caller gets LogUnavailable. A message that was sent may have been stored, so its caller gets InDoubt. If a
        caller has appended a group of messages together, it gets InDoubt if any message of the group was sent.
        """
        while True:
            await self._busy.wait()
            await asyncio.sleep(self._sweep_s)
            now_s = _now_s()
            self._keyed = {partition: queue for partition, queue in self._keyed.items() if queue}
            for queue in (self._unkeyed, *self._keyed.values()):
                while queue and (queue.first.done.done() or queue.first.deadline < now_s):
                    self.refused += fail([self._pop(queue)], LogUnavailable(_NO_ROOM))
            for batch in self.in_flight.batches:
                doubt = InDoubt(
                    "Kafka did not acknowledge in time. The message may have been stored; "
                    "with an Idempotency-Key it is safe to repeat the request."
                )
                self.in_doubt += fail([item for item in batch.items if item.deadline < now_s], doubt)
            self.in_flight.look()
            if (self.in_flight.suspects or self._keyed) and self._look_again_s < now_s:
                self._look_again_s = now_s + _LOOK_AGAIN_S
                self._requests.look_again()
            if self._keyed or self._unkeyed:
                self._wake.set()
            elif not self.in_flight:
                self._busy.clear()


def _now_s() -> float:
    return asyncio.get_running_loop().time()
