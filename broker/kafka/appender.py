"""Appends records to given partitions of `deliveries`, `outstanding`, `changes`, `claims` and `statistics`.

For: appends with a time limit. Records that are appended one by one while a batch is in flight become the next batch.
Not for: which records are written when (broker/delivery/checkpoint/checkpoints.py).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Iterable, MutableMapping, Sequence
from typing import Final, NamedTuple, TypeVar

from aiokafka import errors as kafka_errors

from broker.disk import Refusal
from broker.errors import LogUnavailable
from broker.kafka.producer import KeyAndValue, Producer

T = TypeVar("T")

_LATE: Final = "Kafka did not acknowledge the records in time, but may have stored some of them"
# To read one record, a reader must fetch the whole batch. So append_one() batches small records up to about 16 KiB.
_TOGETHER_BYTES_MAX: Final = 16 << 10


class _Waiting(NamedTuple):
    """A Kafka record that waits to be sent in a record batch. When Kafka has stored the record, the future `offset`
    gets the record's offset.
    """

    record: KeyAndValue
    offset: asyncio.Future[int]


class Appender:
    """The writer of one Kafka topic. The caller chooses the partition of each record."""

    def __init__(self, producer: Producer, topic: str, timeout_s: float) -> None:
        self._producer = producer
        self._timeout_s = timeout_s
        self.name = topic
        self.refusal: Refusal | None = None  # why append_one() refuses records
        # By partition: records that wait until Kafka has acknowledged the batch before them, or this batch has failed.
        self._waiting: dict[int, deque[_Waiting]] = {}
        self._writing: set[asyncio.Task[None]] = set()

    async def append(self, outcomes: MutableMapping[int, list[KeyAndValue]]) -> None:
        """Write the records in `outcomes`, which maps each partition to a list of (key, value) pairs. A value of None
        writes a tombstone. When Kafka has acknowledged all records of a partition, remove the partition from
        `outcomes`.

        Raises LogUnavailable if Kafka refuses records, or does not acknowledge all of them in time. The records that
        are then left in `outcomes` may or may not have been written.
        """

        async def write(partition: int, records: Sequence[KeyAndValue]) -> None:
            await asyncio.gather(*self._producer.send_all(self.name, partition, records))
            del outcomes[partition]

        await self._bounded([write(partition, records) for partition, records in outcomes.items()])

    async def append_one(self, partition: int, key: bytes, value: bytes, *, urgent: bool = False) -> int:
        """Append a record to a partition and return its offset. Return -1 if Kafka says that it already has this
        record, but no longer knows at which offset.

        Raises LogUnavailable if Kafka refuses the record, or does not acknowledge it in time; Kafka may have stored the
        record nevertheless. Raises DiskNearlyFull if the disk has too little space for the record. If `urgent` is true,
        the record may use more of the disk than other records.
        """
        if self.refusal is not None:
            self.refusal.check(urgent=urgent)
        waiting = self._waiting.get(partition)
        if waiting is None:
            waiting = self._waiting[partition] = deque()
            task = asyncio.create_task(self._write(partition, waiting))
            self._writing.add(task)
            task.add_done_callback(self._writing.discard)
        one = _Waiting((key, value), asyncio.get_running_loop().create_future())
        waiting.append(one)
        try:
            async with asyncio.timeout(self._timeout_s):
                return await one.offset
        except TimeoutError:
            raise LogUnavailable(_LATE) from None

    async def _write(self, partition: int, waiting: deque[_Waiting]) -> None:
        """Write the waiting records, batch after batch, until no record waits."""
        try:
            # Leave out records whose callers have stopped waiting for them.
            while some := [one for one in waiting if not one.offset.done()]:
                waiting.clear()
                records = [one.record for one in some]
                taken, send = self._producer.send_some(self.name, partition, records, bytes_max=_TOGETHER_BYTES_MAX)
                waiting.extend(some[taken:])
                await self._tell(some[:taken], send)
        finally:
            del self._waiting[partition]

    async def _tell(self, batch: Sequence[_Waiting], send: Awaitable[int]) -> None:
        """Pass the result of a batch to the callers that wait for its records.

        If all these callers have stopped waiting, cancel the write. If the batch still waits for an earlier batch then,
        it is never sent.
        """
        sending = asyncio.create_task(self._bounded([send]))
        left = len(batch)

        def done(_: object) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                sending.cancel()

        for one in batch:
            one.offset.add_done_callback(done)
        try:
            (first,) = await sending
        except asyncio.CancelledError:
            if left:
                raise
            return
        except Exception as error:  # noqa: BLE001 - the callers handle it
            for one in batch:
                if not one.offset.done():
                    one.offset.set_exception(error)
            return
        for number, one in enumerate(batch):
            if not one.offset.done():
                one.offset.set_result(first if first < 0 else first + number)

    async def _bounded(self, sends: Iterable[Awaitable[T]]) -> list[T]:
        """Wait at most `timeout_s` seconds for these writes. Without this limit, aiokafka would retry for much longer.

        A write that was not sent in time is cancelled, so that a retry by the caller adds no second copy. If a write
        was sent in time, Kafka may still store it later, and a retry by the caller then adds a second copy.
        """
        producer = self._producer.get()
        try:
            async with asyncio.timeout(self._timeout_s):
                ended = await asyncio.gather(*sends, return_exceptions=True)
        except TimeoutError:
            raise LogUnavailable(_LATE) from None
        for error in ended:
            if isinstance(error, kafka_errors.KafkaError):
                self._producer.failed(producer, error)
                raise LogUnavailable(
                    f"Kafka did not acknowledge the records ({type(error).__name__}), but may have stored some of them"
                ) from error
        failed = next((error for error in ended if isinstance(error, BaseException)), None)
        if failed is not None:
            raise failed
        return [one for one in ended if not isinstance(one, BaseException)]
