"""A real listener on loopback that behaves as told, and an office: what a worker is to a dispatcher, without Kafka."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_network
from types import SimpleNamespace

from msgspec import UNSET, UnsetType

from broker.clock import now_ms
from broker.core.codec import encode
from broker.core.directory import Directory
from broker.core.entities import Listener, Queue
from broker.core.events import (
    AnswersKept,
    DeliveriesSettled,
    DeliveryAttempted,
    DeliveryParked,
    ListenerSettings,
    MessagePut,
)
from broker.core.flow import WHOLE, Share
from broker.core.signing import Signer
from broker.delivery.assignment import Assignment, Shared
from broker.delivery.background import Background
from broker.delivery.checkpoint.metrics import Metrics
from broker.delivery.dispatch.connections import Network
from broker.delivery.dispatch.dispatcher import Dispatcher
from broker.delivery.dispatch.fairness import Sockets
from broker.delivery.dispatch.liveness import Liveness
from broker.delivery.dispatch.stream import Delivery, Stream, outcome_events, take_outcomes
from broker.delivery.dispatch.ticks import Ticks
from broker.delivery.ports import Ports
from broker.delivery.reading.message import messages
from broker.delivery.reading.partition import Partition
from broker.delivery.tuning import TUNED, Tuning
from broker.errors import LogUnavailable
from broker.outbound.addresses import Resolver
from broker.outbound.connection import Connection, connect
from broker.outbound.dns import Ask, ask_system
from broker.outbound.request import Opened
from broker.ports import FetchResult, Record
from tests.memory_kafka import (
    MemoryChangeFeed,
    MemoryCursors,
    MemoryKafka,
    MemoryLog,
    MemoryMembership,
    MemoryReader,
)
from tests.outstanding_topic import OutstandingTopic

LOOPBACK = (ip_network("127.0.0.0/8"),)
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
WAIT_S = 60.0


async def until(condition: Callable[[], object]) -> None:
    """Wait until it holds; what is waited for here is never signalled by anybody."""
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.005)


@dataclass
class Request:
    """number: from 1, over all connections of a listener. connection: which one, from 1.

    given_up: whether who asked has closed the connection.
    """

    number: int
    connection: int
    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    given_up: Callable[[], bool]

    @property
    def message_id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def attempt(self) -> int:
        return int(self.headers["everput-attempt"])


Behaviour = Callable[[Request, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class ListenerServer:
    """behaviour: what it does with each POST; GETs (liveness) are answered with alive. open: connections now."""

    behaviour: Behaviour
    alive: bytes = OK
    port: int = 0
    tls: ssl.SSLContext | None = None
    posts: list[Request] = field(default_factory=list)
    probes: list[Request] = field(default_factory=list)
    connections: int = 0
    open: int = 0
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"{'http' if self.tls is None else 'https'}://127.0.0.1:{self.port}/hook?x=1"

    async def start(self) -> None:
        self.server = await asyncio.start_server(self._accepted, "127.0.0.1", self.port, ssl=self.tls)
        self.port = self.server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        self.server.close()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.tasks.add(asyncio.current_task())
        self.connections += 1
        self.open += 1
        connection = self.connections
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
                while not writer.is_closing():
                    await self._serve(connection, reader, writer)
        finally:
            self.open -= 1
            writer.transport.abort()
            self.tasks.discard(asyncio.current_task())

    async def _serve(self, connection: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.rstrip("\r\n").split("\r\n")
        method, target, _ = first.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        requests = self.probes if method == "GET" else self.posts
        request = Request(len(requests) + 1, connection, method, target, headers, body, reader.at_eof)
        requests.append(request)
        if method == "GET":
            writer.write(self.alive)
        else:
            await self.behaviour(request, writer)
        await writer.drain()


class Log(MemoryLog):
    """DeliveryLog of one partition. topic: its `outstanding`."""

    def __init__(self, cluster: MemoryKafka, topic: OutstandingTopic) -> None:
        super().__init__(cluster)
        self.requests = Reader(cluster, topic)
        self.outstanding = topic


class Reader(MemoryReader):
    """LogReader. fetches: how many messages each read of the log brought."""

    def __init__(self, cluster: MemoryKafka, topic: OutstandingTopic) -> None:
        super().__init__(cluster)
        self.fetches: list[int] = []
        self._outstanding = topic

    async def offsets(self, topic: str, at_ms: Mapping[int, int]) -> dict[int, int]:
        if topic == self._outstanding.name:
            return await self._outstanding.offsets(topic, at_ms)
        return await super().offsets(topic, at_ms)

    async def read(self, topic: str, partition: int, offset: int, **how) -> FetchResult:
        if topic == self._outstanding.name:
            return await self._outstanding.read(topic, partition, offset, **how)
        fetched = await super().read(topic, partition, offset, **how)
        self.fetches.append(len(fetched.records))
        return fetched


class OfficeMembership(MemoryMembership):
    """Membership. no_member: raised by confirm(). refused: how often it was."""

    no_member: LogUnavailable | None = None
    refused = 0

    async def confirm(self, offsets: Mapping[int, int], notes: Mapping[int, str]) -> None:
        if self.no_member is not None:
            self.refused += 1
            raise self.no_member


class Office:
    """What a worker is to one dispatcher: its assignment, with Kafka in memory, ticks, probes; and it keeps the books.

    new: the listener has not answered yet. dice: 0.0, the jitter at its least: a retry comes after 100 ms.
    outcomes: by offset, (number, outcome, status or error) of each attempt.
    settled: offsets, in that order.
    """

    def __init__(
        self,
        listener: Listener,
        *,
        share: Share = WHOLE,
        tls: ssl.SSLContext | None = None,
        allow=LOOPBACK,
        topic: OutstandingTopic | None = None,
        new: bool = False,
        sockets: int = 1_000,
        tuning: Tuning = TUNED,
        dice: Callable[[], float] = lambda: 0.0,
        connect: Callable[..., Awaitable[Connection]] = connect,
        ask: Ask = ask_system,
    ) -> None:
        self.tuning = tuning = replace(tuning, sure_s=-1.0)  # Kafka is asked each time
        self.dirty: set[Stream] = set()
        self.outcomes: dict[int, list[tuple[int, str, int | str | None]]] = defaultdict(list)
        self.kept: list[AnswersKept] = []
        self.gone: list[str] = []
        self.deleted: dict[tuple[int, int], object] = {}  # by partition and offset
        self.kafka = MemoryKafka(1)
        self.topic = topic or OutstandingTopic()
        self.log = Log(self.kafka, self.topic)
        self.membership = OfficeMembership(self.kafka)
        resolver, tls = Resolver(allow, ask), tls or ssl.create_default_context()
        self.liveness = Liveness(resolver, tls, dice, tuning)
        self.ticks = Ticks(
            self.liveness,
            replace(tuning, tick_s=0.01, tick_parts=1, share_ticks=1),
            gate=SimpleNamespace(tick=lambda _late_s, waited: self.permits),
            processor=SimpleNamespace(waited=lambda: 0.0),
        )
        self.permits = 1_000  # what a slow listener may begin in a tick
        self.dispatchers: dict[str, Dispatcher] = {}
        network = Network(resolver, Sockets(sockets), tls, connect)
        self.background = Background()
        self.assignment = assignment = self._assignment()
        self.partition = assignment.partitions[0] = Partition(0, 0, tuning, held=assignment.held)
        self.outstanding, self.leaving = assignment.outstanding, assignment.leaving
        queue = Queue(id="q-1", organization_id="o", name="orders", created_at_ms=0)
        opened = Opened(Signer(b"k" * 32), headers=tuple(listener.settings.headers.items()))
        self.dispatcher = Dispatcher(
            network,
            assignment,
            queue,
            listener,
            opened,
            tuning=tuning,
            dice=dice,
            share=share,
            wants_tick=self.ticks.add,
            gone=lambda dispatcher: self.gone.append(dispatcher.listener.id),
        )
        if not new:
            self.dispatcher.limits.took(1)
        self.dispatchers[listener.id] = self.dispatcher
        self.partition.place(self.dispatcher)
        self.ticker: asyncio.Task[None] | None = None

    def _assignment(self) -> Assignment:
        """The real one, but for its books, and for who changes messages."""
        ports = Ports(
            log=self.log,
            membership=self.membership,
            cursors=MemoryCursors(self.kafka),
            changes=MemoryChangeFeed(self.kafka),
        )
        made = Assignment(
            Shared(
                kafka=ports,
                view=SimpleNamespace(state=Directory()),
                dispatchers=self.dispatchers,
                metrics=Metrics(),
                tuning=self.tuning,
                retain_s=None,
                count=None,
                run=self.background.run,
                lost=lambda _: None,
            )
        )
        made.touched, made.hold, made.known_changes = self._touched, self._hold, self.deleted
        return made

    @property
    def parked(self) -> list[int]:
        """The offsets of the messages that are parked."""
        return [event.offset for event in self.topic.kept().values() if isinstance(event, DeliveryParked)]

    async def start(self) -> None:
        self.readers = [asyncio.create_task(loop()) for loop in self.assignment.catch_up.loops()]
        self.ticker = asyncio.create_task(self.ticks.run(self.dispatchers))
        self.readers.append(asyncio.create_task(self._keep_books()))

    async def stop(self) -> None:
        for task in (self.ticker, *self.readers):
            task.cancel()
        await asyncio.gather(self.ticker, *self.readers, return_exceptions=True)
        await self.liveness.stop()
        self.background.cancel()
        self.dispatcher.close()

    async def _keep_books(self) -> None:
        while True:
            await asyncio.sleep(0.01)
            self.keep_books()

    def _hold(self, delivery: Delivery) -> bool:
        if (delivery.stream.partition, delivery.offset) not in self.deleted:
            return False
        self.dispatcher.cancel(delivery)
        return True

    def _touched(self, stream: Stream) -> None:
        stream.dirty = True
        self.dirty.add(stream)

    def keep_books(self) -> None:
        for stream in self.dirty:
            stream.dirty = False
            for event in outcome_events(stream, *take_outcomes(stream), now_ms()):
                if isinstance(event, DeliveriesSettled):
                    for offset, _, status, _ in event.rows:
                        self.outcomes[offset].append((1, "delivered", status))
                elif isinstance(event, DeliveryAttempted):
                    said = event.status if event.status is not None else event.error
                    self.outcomes[event.offset].append((event.number, event.outcome, said))
                elif isinstance(event, AnswersKept):
                    self.kept.append(event)
        self.dirty.clear()

    def put(
        self,
        count: int = 1,
        *,
        key: str | None = None,
        data: str = "{}",
        value: bytes | None = None,
        deliver_at_ms: int | UnsetType = UNSET,
        put_at_ms: int | None = None,
    ) -> list[int]:
        """Append messages to the log and have the tail bring them; their offsets."""
        put_at_ms = now_ms() if put_at_ms is None else put_at_ms
        records = self.records
        first = len(records)
        for offset in range(first, first + count):
            event = MessagePut(
                at_ms=put_at_ms,
                organization_id="o",
                message_id=f"m-{offset}",
                queue_id="q-1",
                name="n",
                data=data,
                key=key,
                deliver_at_ms=deliver_at_ms,
            )
            self.kafka.time = lambda: put_at_ms / 1000
            headers = (("queue", b"q-1"),)
            self.kafka.write("messages", 0, b"m-%d" % offset, encode(event) if value is None else value, headers)
        self.partition.feed(messages(records[first:]))
        return list(range(first, first + count))

    async def all_settled(self) -> None:
        """Everything put is settled, nothing is under way or held."""
        dispatcher = self.dispatcher
        await until(lambda: self.settled and not dispatcher.busy and not dispatcher.held)
        self.keep_books()
        assert dispatcher.memory.held_bytes == 0
        assert not dispatcher.deliveries.ready
        assert not dispatcher.deliveries.retries
        assert not dispatcher.deliveries.keys
        assert not dispatcher.connections.making

    @property
    def records(self) -> list[Record | None]:
        """The log."""
        return self.kafka.records["messages"][0]

    @property
    def settled(self) -> bool:
        stream = self.dispatcher.streams.get(0)
        return stream is None or (not stream.window.open and stream.window.attached)

    def check_books(self) -> None:
        """Each attempt has one outcome, they are numbered from 1, and the last one, and no other, settled it."""
        assert sorted(self.outcomes) == list(range(len(self.records)))
        for rows in self.outcomes.values():
            assert [number for number, _, _ in rows] == list(range(1, len(rows) + 1)), rows
            assert [outcome for _, outcome, _ in rows[:-1]] == ["failed"] * (len(rows) - 1), rows
            assert rows[-1][1] in ("delivered", "parked"), rows


def listener_at(url: str, *, liveness_url: str | None = None, **settings) -> Listener:
    """A listener with these settings. A machine that stands still is no time-out: a test of these sets its own."""
    return Listener(
        id="l-1",
        organization_id="o",
        queue_id="q-1",
        name="l",
        notify_url=url,
        liveness_url=liveness_url or url,
        sealed_secret="",
        start_offsets=(0,),
        settings=ListenerSettings(**{"timeout_ms": 60_000, **settings}),
        created_at_ms=0,
    )


def paused(listener: Listener, reason: str | None) -> Listener:
    return replace(listener, paused=reason)
