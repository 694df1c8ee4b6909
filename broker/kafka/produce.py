"""A producer whose whole batches bypass aiokafka's sender, with produce requests packed and parsed by hand.

Batches that are sent to a broker at the same time, each to another partition, share a request.

aiokafka's sender takes about 0.3 ms of processor time for each batch, in tasks, futures, and its generic encoder. The
producer id and the sequence numbers stay aiokafka's. A batch goes to aiokafka's sender, which is slower but can do
everything, in these cases:

- The sender has other batches of the partition.
- There is no open connection to the partition's leader, or no leader.
- The broker does not know version 7 of the request.
- The broker has answered with an error, or not at all. The sender repeats the batch with the same sequence number.

For: whole batches. Not for: single records, transactions, replacing a producer that has failed (producer.py).

The bytes are those of aiokafka's own ProduceRequest, version 7 (Kafka protocol guide, Produce API).
"""

# ruff: noqa: SLF001 - aiokafka's sender shares its state, which has no public names

from __future__ import annotations

import asyncio
import struct
from collections.abc import Sequence
from functools import partial
from io import BytesIO
from types import SimpleNamespace
from typing import Any, Final, NamedTuple

from aiokafka import AIOKafkaProducer
from aiokafka import errors as kafka_errors
from aiokafka.client import ConnectionGroup
from aiokafka.producer.message_accumulator import MessageBatch
from aiokafka.producer.sender import SendProduceReqHandler
from aiokafka.structs import RecordMetadata, TopicPartition

from broker.kafka.packed import INT16, INT32, PackedRequest, open_connection, post

_API_KEY: Final = 0
_VERSION: Final = 7
# The produce request begins with transactional_id (none), acks, timeout and the number of topics.
_BEGIN: Final = struct.Struct(">hhii")
_PARTITION: Final = struct.Struct(">ii")  # The partition number and the batch's size in bytes are before each batch.
_ROW: Final = struct.Struct(">ihqqq")  # partition, error_code, base_offset, log_append_time, log_start_offset
_ALL: Final = -1  # the value of `acks` that requires every in-sync replica to store the batch
# The most bytes of a batch, and of all batches in a request. A larger record has its own batch, in its own request.
BATCH_BYTES_MAX: Final = 1 << 20


class Produced(NamedTuple):
    """Kafka's answer for one partition to a produce request: an error code, and the offset of the batch's
    first record.
    """

    topic: str
    partition: int
    error_code: int
    offset: int
    time_ms: int
    log_start_offset: int


class _Answer:
    """The decoder that aiokafka calls for Kafka's answer to a produce request."""

    @classmethod
    def decode(cls, data: BytesIO) -> list[Produced]:
        return parse_answer(data.getvalue(), data.tell())


def parse_answer(data: memoryview | bytes, at: int = 0) -> list[Produced]:
    """Parse the body of Kafka's produce response (version 7), which begins at the position `at` of the bytes.

    Raises struct.error or ValueError if the bytes are too short, or if a topic's name is not valid UTF-8.
    """
    (topics,) = INT32.unpack_from(data, at)
    at += INT32.size
    found: list[Produced] = []
    for _ in range(topics):
        (name_bytes,) = INT16.unpack_from(data, at)
        at += INT16.size
        topic = str(data[at : at + max(name_bytes, 0)], "utf-8")
        at += max(name_bytes, 0)
        (partitions,) = INT32.unpack_from(data, at)
        at += INT32.size
        for _ in range(partitions):
            found.append(Produced(topic, *_ROW.unpack_from(data, at)))
            at += _ROW.size
    INT32.unpack_from(data, at)  # throttle_time_ms
    return found


def pack(batches: Sequence[tuple[tuple[str, int], bytes]], *, timeout_ms: int) -> PackedRequest:
    """Return the produce request (version 7) for these batches, which every in-sync replica must store. Each batch is
    given as ((topic, partition), bytes), and each is for another partition.
    """
    topics: dict[str, list[tuple[int, bytes]]] = {}
    for (topic, partition), batch in batches:
        topics.setdefault(topic, []).append((partition, batch))
    body = [_BEGIN.pack(-1, _ALL, timeout_ms, len(topics))]
    for topic, rows in topics.items():
        name = topic.encode()
        body += INT16.pack(len(name)), name, INT32.pack(len(rows))
        for partition, batch in rows:
            body += _PARTITION.pack(partition, len(batch)), batch
    return PackedRequest(_API_KEY, _VERSION, b"".join(body), _Answer)


class DirectProducer(AIOKafkaProducer):  # type: ignore[misc]
    """An idempotent aiokafka producer. Usually, its send_batch() sends a batch to Kafka at once, without aiokafka's
    slower sender task.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, acks="all", enable_idempotence=True)
        self._repeating: set[asyncio.Task[None]] = set()
        # The batches of this turn of the event loop, by the connection over which they will be sent.
        self._outgoing: dict[Any, list[MessageBatch]] = {}

    async def send_batch(self, batch: Any, topic: str, *, partition: int) -> asyncio.Future[RecordMetadata]:
        """Send a record batch from aiokafka's create_batch(). Return a future, whose result has the batch's offset.

        Canceling the future does not stop the request: Kafka may still store the batch.
        """
        where = TopicPartition(topic, partition)
        connection = self._connection(where)
        if connection is None or not batch.record_count():
            future: asyncio.Future[RecordMetadata] = await super().send_batch(batch, topic, partition=partition)
            return future
        ids, pending = self._txn_manager, self._message_accumulator._pending_batches
        sent = MessageBatch(where, batch, self._message_accumulator._batch_ttl, 0)
        sent.set_producer_state(ids.producer_id, ids.producer_epoch, ids.sequence_number(where))
        ids.increment_sequence_number(where, sent.record_count)
        # Mark the batch as sent. So if aiokafka's sender must repeat the batch, the batch keeps its sequence number.
        sent.drain_ready()
        pending.add(sent)  # When the producer stops, it first waits until this batch was acknowledged or has failed.
        sent.future.add_done_callback(lambda _: pending.discard(sent))
        # Keep aiokafka's sender from sending another batch to this partition until Kafka has answered.
        self._sender._muted_partitions.add(where)
        self._send(connection, sent)
        return asyncio.shield(sent.future)

    def _connection(self, where: TopicPartition) -> Any:
        """Return the open connection to the partition's leader. Return None if aiokafka's sender must send the batch,
        for example because no connection is open.
        """
        accumulator, sender = self._message_accumulator, self._sender
        if where in sender._muted_partitions or where in accumulator._batches:
            return None
        if accumulator._closed or accumulator._exception or sender.sender_task.done():
            return None
        leader = self.client.cluster.leader_for_partition(where)
        return open_connection(self.client, leader, ConnectionGroup.DEFAULT, _API_KEY, _VERSION)

    def _send(self, connection: Any, sent: MessageBatch) -> None:
        """Send a batch. It shares a request with the other batches that are sent over this connection before the event
        loop's next turn.
        """
        outgoing = self._outgoing.setdefault(connection, [])
        outgoing.append(sent)
        if len(outgoing) == 1:
            asyncio.get_running_loop().call_soon(self._send_requests, connection)

    def _send_requests(self, connection: Any) -> None:
        request: list[MessageBatch] = []
        size = 0
        for sent in self._outgoing.pop(connection):
            size += len(sent.get_data_buffer())
            if request and size > BATCH_BYTES_MAX:
                self._send_request(connection, request)
                request, size = [], len(sent.get_data_buffer())
            request.append(sent)
        self._send_request(connection, request)

    def _send_request(self, connection: Any, batches: Sequence[MessageBatch]) -> None:
        if connection.connected():
            rows = [(sent.tp, sent.get_data_buffer()) for sent in batches]
            answer = post(connection, pack(rows, timeout_ms=self._request_timeout_ms))
            answer.add_done_callback(partial(self._answered, batches))
        else:  # The connection was closed after the choice of this connection.
            for sent in batches:
                self._settle(sent, None)

    def _answered(self, batches: Sequence[MessageBatch], answer: asyncio.Future[list[Produced]]) -> None:
        rows = {} if answer.exception() is not None else {row[:2]: row for row in answer.result()}
        for sent in batches:
            self._settle(sent, rows.get(sent.tp))

    def _settle(self, sent: MessageBatch, row: Produced | None) -> None:
        """End a batch with Kafka's answer `row`, or repeat it. If there is no usable answer, `row` is None."""
        if row is not None and row.error_code == 0 and row.offset >= 0:
            sent.done(row.offset, row.time_ms, row.log_start_offset)
            self._release(sent.tp)
            return
        # aiokafka decides which errors are final.
        handler = SendProduceReqHandler(self._sender, {sent.tp: sent})
        if row is not None and row.error_code != 0:
            handler.handle_response(SimpleNamespace(API_VERSION=_VERSION, topics=[(row.topic, [row[1:]])]))
        else:
            self.client.force_metadata_update()
            handler._to_reenqueue.append(sent)
        if handler._to_reenqueue:
            task = asyncio.create_task(self._repeat(sent))
            self._repeating.add(task)
            task.add_done_callback(self._repeating.discard)
        else:
            self._release(sent.tp)

    async def _repeat(self, sent: MessageBatch) -> None:
        """Let aiokafka's sender task send the batch again, with the same sequence number, by which Kafka recognizes a
        repeat.
        """
        await asyncio.sleep(self._sender._retry_backoff)
        if not self._sender.sender_task.done():
            self._message_accumulator.reenqueue(sent)
        elif not sent.future.done():
            sent.failure(kafka_errors.ProducerClosed())
        self._release(sent.tp)

    def _release(self, where: TopicPartition) -> None:
        """Let aiokafka's sender task send batches of this partition again."""
        self._sender._muted_partitions.discard(where)
        waiter = self._message_accumulator.waiter()
        if where in self._message_accumulator._batches and not waiter.done():
            waiter.set_result(None)
