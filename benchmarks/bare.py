"""A minimal pipeline for comparison: PUT, Kafka (two batches at a time, with fsync), read, sign, POST, commit.

It measures the cost of Everput's promises. It loses messages that fail, and has one queue, no keys, and one kind of
event. One process takes puts and one delivers, where Everput delivers with two workers by default. `python -m
benchmarks.bare accept PORT KAFKA` answers PUTs. `… deliver KAFKA SINK LISTENERS` delivers the messages that are put
after its line `ready`, as soon as it has read a line from its standard input. So a backlog can be put before it starts.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import sys
import time
import uuid
from collections import deque
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import httptools
import orjson
import uvicorn
import uvloop
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.structs import OffsetAndMetadata
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from broker.kafka.client import client_options
from broker.kafka.embedded.access import written_access

TOPIC: Final = "bare"
PARTITIONS: Final = 8
BATCHES_UNDER_WAY: Final = 2
CONNECTIONS: Final = 64  # to all listeners together
LEAST_CONNECTIONS: Final = 4
WAITING_MAX: Final = 2_000
COMMIT_S: Final = 1.0
SECRET: Final = b"k" * 24


class Appends:
    """A group commit: values that arrive while batches are in flight go into the next batch, to the next partition."""

    def __init__(self, producer: Any) -> None:
        self.producer = producer
        self.waiting: list[tuple[bytes, asyncio.Future[None]]] = []
        self.some = asyncio.Event()
        self.batches = 0
        self.tasks = [asyncio.create_task(self.run()) for _ in range(BATCHES_UNDER_WAY)]

    async def append(self, value: bytes) -> None:
        done = asyncio.get_running_loop().create_future()
        self.waiting.append((value, done))
        self.some.set()
        await done

    async def run(self) -> None:
        while True:
            await self.some.wait()
            self.some.clear()
            rows, self.waiting = self.waiting, []
            if not rows:
                continue
            batch = self.producer.create_batch()
            fit = 0
            while fit < len(rows) and batch.append(key=None, value=rows[fit][0], timestamp=None) is not None:
                fit += 1
            if rows[fit:]:
                self.waiting[:0] = rows[fit:]
                self.some.set()
            batch.close()
            self.batches += 1
            await (await self.producer.send_batch(batch, TOPIC, partition=self.batches % PARTITIONS))
            for _, done in rows[:fit]:
                done.set_result(None)


async def put(request: Request) -> Response:
    data = orjson.loads(await request.body())["data"]
    message_id = str(uuid.uuid4())
    await request.app.state.appends.append(orjson.dumps({"id": message_id, "data": data}))
    return Response(orjson.dumps({"message": {"id": message_id}}), media_type="application/json")


def connection(directory: str) -> dict[str, Any]:
    """Return aiokafka's options for the embedded Kafka in this directory."""
    access = written_access(Path(directory))
    assert access is not None
    return client_options(access.settings())


async def accept(port: str, kafka: str) -> None:
    """Serve PUTs, and append their messages to the embedded Kafka in the directory `kafka`."""
    options = connection(kafka)
    admin = AIOKafkaAdminClient(**options)
    await admin.start()
    await admin.create_topics([NewTopic(TOPIC, PARTITIONS, 1, topic_configs={"flush.messages": "1"})])
    await admin.close()
    producer = AIOKafkaProducer(**options, acks="all", enable_idempotence=True, max_batch_size=1 << 20)
    await producer.start()
    app = Starlette(routes=[Route("/v1/queues/{queue_id}/messages", put, methods=["PUT"])])
    app.state.appends = Appends(producer)
    config = uvicorn.Config(app, port=int(port), http="httptools", log_level="warning", access_log=False)
    await uvicorn.Server(config).serve()


class Connection(asyncio.Protocol):
    """A connection to one listener. It is free again when its request is answered."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.parser = httptools.HttpResponseParser(self)
        self.sent = 0, 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        self.listener.answered(self)


class Listener:
    """A listener: one path of the sink."""

    def __init__(self, sink: str, number: int) -> None:
        parts = urlsplit(sink)
        self.host, self.port = parts.hostname, parts.port
        self.head = f"POST /ok{number} HTTP/1.1\r\nhost: {parts.netloc}\r\ncontent-type: application/json\r\n".encode()
        self.free: list[Connection] = []
        self.waiting: deque[tuple[int, int, bytes, bytes]] = deque()
        self.done: dict[int, int] = {}  # the newest answered offset of each partition

    async def connect(self, connections: int) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(connections):
            _, connection = await loop.create_connection(lambda: Connection(self), self.host, self.port)
            self.free.append(connection)

    def offer(self, partition: int, offset: int, message_id: bytes, body: bytes) -> None:
        self.waiting.append((partition, offset, message_id, body))
        if self.free:
            self.send(self.free.pop())

    def send(self, connection: Connection) -> None:
        partition, offset, message_id, body = self.waiting.popleft()
        connection.sent = partition, offset
        timestamp = b"%d" % time.time()
        signature = base64.b64encode(hmac.digest(SECRET, b"%b.%b.%b" % (message_id, timestamp, body), "sha256"))
        connection.transport.write(
            b"%bwebhook-id: %b\r\nwebhook-timestamp: %b\r\nwebhook-signature: v1,%b\r\ncontent-length: %d\r\n\r\n%b"
            % (self.head, message_id, timestamp, signature, len(body), body)
        )

    def answered(self, connection: Connection) -> None:
        partition, offset = connection.sent
        self.done[partition] = offset
        if self.waiting:
            self.send(connection)
        else:
            self.free.append(connection)


async def deliver(kafka: str, sink: str, count: str) -> None:
    listeners = [Listener(sink, number) for number in range(int(count))]
    for listener in listeners:
        await listener.connect(max(LEAST_CONNECTIONS, CONNECTIONS // len(listeners)))
    consumer = AIOKafkaConsumer(**connection(kafka), group_id=TOPIC, enable_auto_commit=False)
    await consumer.start()
    partitions = [TopicPartition(TOPIC, number) for number in range(PARTITIONS)]
    consumer.assign(partitions)
    await consumer.seek_to_end(*partitions)
    for partition in partitions:
        await consumer.position(partition)
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    committed_at = time.monotonic()
    while True:
        for partition, records in (await consumer.getmany(timeout_ms=500, max_records=500)).items():
            for record in records:
                fields = orjson.loads(record.value)
                message_id, body = fields["id"].encode(), orjson.dumps({"queue": {"id": "q"}, "message": fields})
                for listener in listeners:
                    listener.offer(partition.partition, record.offset, message_id, body)
        while sum(len(listener.waiting) for listener in listeners) > WAITING_MAX:
            await asyncio.sleep(0.001)
        if time.monotonic() - committed_at > COMMIT_S:
            committed_at = time.monotonic()
            done = listeners[0].done
            if done:
                tops = {TopicPartition(TOPIC, one): OffsetAndMetadata(offset + 1, "") for one, offset in done.items()}
                await consumer.commit(tops)


if __name__ == "__main__":
    uvloop.run({"accept": accept, "deliver": deliver}[sys.argv[1]](*sys.argv[2:]))
