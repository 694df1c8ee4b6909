"""New records of some partitions of one topic, by long polls: Kafka answers as soon as it has stored a record.

For: the newest end of a topic, for as long as the process runs. Not for: ranges of older records (requests.py), who
owns which partition (tail.py), what the records mean.

aiokafka's consumer could do this, too. Its fetcher takes about 1 ms of processor time for each answer, and does not say
which partition failed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from typing import Final

from aiokafka import errors as kafka_errors
from aiokafka.protocol.fetch import FetchRequest_v11

from broker.errors import LogDamaged, LogUnavailable
from broker.kafka.batches import parse
from broker.kafka.fetch import API_KEY, VERSION, Fetch, Fetched, rows_of
from broker.kafka.packed import open_connection, post
from broker.kafka.requests import KafkaRequests
from broker.ports import EARLIEST, Record

log = logging.getLogger(__name__)

WAIT_MS: Final = 1_000  # If there are no new records, Kafka answers a fetch request after a second.
_PARTITION_BYTES: Final = 1 << 20
_ANSWER_BYTES: Final = 4 << 20
_RECORDS_MAX: Final = 1_000  # records of a partition per read
_PAUSE_S: Final = 0.1  # pause after an error


class LongPoll:
    """A reader of new records in some partitions of one topic. It sends a broker the next fetch request only after the
    broker has answered the request before.
    """

    def __init__(self, requests: KafkaRequests, topic: str) -> None:
        self._requests = requests
        self._topic = topic
        self.positions: dict[int, int] = {}  # the next offset, by partition
        self._rest: dict[int, list[Record]] = {}  # records that read() must return
        self._damaged: dict[int, LogDamaged] = {}  # errors that read() must raise, by partition
        self._polls: dict[int, asyncio.Future[list[Fetched]]] = {}  # by broker
        self._asked: dict[int, dict[int, int]] = {}  # requested offsets, by broker
        self._begun = asyncio.Event()
        self._failing = False

    def begin(self, offsets: Mapping[int, int]) -> None:
        """Read each partition in `offsets` from its offset on. Other partitions that are being read already are still
        read.
        """
        for partition, offset in offsets.items():
            self.positions[partition] = offset
            self._rest.pop(partition, None)
            self._damaged.pop(partition, None)
        self._begun.set()

    def forget(self) -> None:
        """Stop reading all partitions until begin() is called."""
        self.positions.clear()
        self._rest.clear()
        self._damaged.clear()

    async def stop(self) -> None:
        """Abandon the requests in flight."""
        for poll in self._polls.values():
            poll.cancel()
        await asyncio.gather(*self._polls.values(), return_exceptions=True)

    async def read(self) -> dict[int, list[Record]]:
        """Return new records by partition. If there are no new records, return an empty dictionary after at most about
        a second. Do the same if Kafka can't be reached.

        Raises LogDamaged if the next record of a partition is unreadable on every replica. To continue, call begin()
        with an offset after the damage.
        """
        if not self._rest:
            if self._begun.is_set():
                self._begun.clear()
                self._send()
            if not self._damaged:
                await self._receive()
            if self._damaged and not self._rest:
                raise self._damaged.popitem()[1]
            # Send the next fetch requests now, so that Kafka works on them while the caller processes records.
            self._send()
        found = {}
        for partition, records in list(self._rest.items()):
            found[partition], rest = records[:_RECORDS_MAX], records[_RECORDS_MAX:]
            if rest:
                self._rest[partition] = rest
            else:
                del self._rest[partition]
        return found

    def _send(self) -> None:
        """Send a fetch request to each broker that leads some of the wanted partitions. Send none to a broker that has
        not answered the request before. Leave out a partition with damage, which read() must report first.
        """
        wanted: dict[int, dict[int, int]] = {}
        leaders = self._requests.leaders(self._topic)
        for partition, offset in self.positions.items():
            leader = leaders.get(partition)
            if leader is None:
                self._requests.look_again()
            elif leader not in self._polls and partition not in self._damaged:
                wanted.setdefault(leader, {})[partition] = offset
        for leader, offsets in wanted.items():
            rows = [(partition, offset, _PARTITION_BYTES) for partition, offset in offsets.items()]
            self._asked[leader] = offsets
            self._polls[leader] = self._poll(leader, rows)

    def _poll(self, leader: int, rows: list[tuple[int, int, int]]) -> asyncio.Future[list[Fetched]]:
        request, client = Fetch(self._topic, rows, max_wait_ms=WAIT_MS, bytes_max=_ANSWER_BYTES), self._requests.client
        # Use a separate connection for long polls.
        # Kafka answers a connection's requests in order, so other requests would have to wait for the long poll.
        connection = open_connection(client, leader, self, API_KEY, VERSION)
        if connection is not None:
            return post(connection, request.build(FetchRequest_v11))

        async def connect_and_poll() -> list[Fetched]:
            return rows_of(await client.send(leader, request, group=self))

        return asyncio.create_task(connect_and_poll())

    async def _receive(self) -> None:
        """Wait until a broker has answered a fetch request, but at most a second. Keep the records and the damage in
        all answers that have arrived, so that read() can return the records, and then report the damage.
        """
        if not self._polls:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._begun.wait(), WAIT_MS / 1000)
            return
        await asyncio.wait(self._polls.values(), timeout=WAIT_MS / 1000, return_when=asyncio.FIRST_COMPLETED)
        for leader in [leader for leader, poll in self._polls.items() if poll.done()]:
            poll, asked = self._polls.pop(leader), self._asked.pop(leader)
            try:
                rows = poll.result()
            except (kafka_errors.KafkaError, OSError) as error:
                if not self._failing:
                    log.warning("tail.failed topic=%s broker=%d error=%r", self._topic, leader, error)
                self._failing = True
                self._requests.look_again()
                await asyncio.sleep(_PAUSE_S)
                continue
            self._failing = False
            for row in rows:
                try:
                    await self._take(row, asked[row.partition])
                except LogDamaged as error:
                    self._damaged[row.partition] = error
                except LogUnavailable as error:
                    log.warning("tail.failed error=%s", error)

    async def _take(self, row: Fetched, offset: int) -> None:
        """Check the bytes that a broker has returned for one partition, and keep the records in these bytes for read().
        If Kafka does not have the requested offset, continue at the partition's first offset.

        Raises LogDamaged if the next batch is damaged on every replica, or LogUnavailable if Kafka does not answer.
        """
        partition = row.partition
        # Drop the answer if the caller no longer reads this partition, or now reads it from another offset.
        if self.positions.get(partition) != offset:
            return
        error = kafka_errors.for_code(row.error_code)
        if error is kafka_errors.OffsetOutOfRangeError:
            begin = (await self._requests.offsets(self._topic, {partition: EARLIEST}))[partition]
            log.warning("tail.out_of_range partition=%d offset=%d begin=%d", partition, offset, begin)
            if self.positions.get(partition) == offset:
                self.positions[partition] = begin
            return
        if error not in (kafka_errors.NoError, kafka_errors.CorruptRecordException):
            self._requests.look_again()
            await asyncio.sleep(_PAUSE_S)
            return
        fetched = None
        # If the answer has no records of a partition that has more, read this partition with a separate request.
        # Records are missing in an answer if other partitions have filled it, or if a record batch is damaged.
        if error is kafka_errors.NoError and (row.raw or row.end_offset <= offset):
            fetched = await parse(row.raw, offset, row.end_offset, holes=False)
        if fetched is None:
            fetched = await self._requests.read(self._topic, partition, offset)
        if self.positions.get(partition) == offset and fetched.next_offset > offset:
            self.positions[partition] = fetched.next_offset
            if fetched.records:
                self._rest[partition] = fetched.records
