"""Many listeners beside one another: bad ones hurt only themselves, one that returns is served, idle ones cost nothing.

For: the short versions of `make bench`'s isolation, return and scale: that it holds, on a real Kafka, with fewer
listeners and messages than there. Not for: how fast (benchmarks/).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from broker.commands.puts import append_puts, new_put
from broker.core.entities import Queue
from broker.delivery.tuning import TUNED
from broker.kafka.topics import Topics
from broker.settings import KafkaSettings
from tests.kafka.rig import Rig, running
from tests.listeners import nobody, until

KINDS = ("dead", "hang", "slow")
NO_HTTP = ("refuses", "midway", "endless", "garbage")
SOON_S = 10.0  # a machine that stands still has it, a listener that waits for others of the test has not


@pytest.fixture
async def rig(kafka_settings: KafkaSettings, ready_topics: Topics):
    async with running(kafka_settings) as made:
        yield made


@pytest.fixture
async def no_http() -> AsyncIterator[dict[str, str]]:
    """By kind, the URL of a listener that takes no message: nobody is there, or what it says is no whole answer."""

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError), contextlib.closing(writer):
            kind = (await reader.readuntil(b"\r\n\r\n")).split()[1][1:].decode()
            writer.write(
                {"midway": b"HTTP/1.1 20", "endless": b"HTTP/1.1 200 OK\r\nx: ", "garbage": b"\0\r\n\r\n"}[kind]
            )
            await writer.drain()
            while kind == "endless":
                writer.write(b"y" * 10_000)
                await writer.drain()

    server = await asyncio.start_server(converse, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with nobody() as refusing:
        yield {kind: f"http://127.0.0.1:{refusing if kind == 'refuses' else port}/{kind}" for kind in NO_HTTP}
    server.close()


async def put_many(rig: Rig, queue: Queue, count: int) -> list[str]:
    """Their ids."""
    ids: list[str] = []
    for begin in range(0, count, 500):
        numbers = range(begin, min(begin + 500, count))
        puts = [new_put(queue, f"m{number}", None, None, "key:test", "r") for number in numbers]
        await append_puts(rig.log.messages, puts)
        ids += [put.id for put in puts]
    return ids


async def test_a_healthy_listener_gets_everything_while_the_bad_ones_beside_it_lag(rig: Rig, no_http):
    rig.tune(held_max=32)
    queue = await rig.queue()
    bad = [f"{kind}{number}" for number in range(12) for kind in KINDS]
    for path in ("ok", *bad):
        await rig.listen(queue, path, timeout_ms=60_000)
    for kind, url in no_http.items():
        for number in range(3):
            await rig.listen(queue, f"{kind}{number}", url=url)
    rig.listeners.down = {path for path in bad if path.startswith("dead")}
    rig.listeners.delay_s = {path: 3_600.0 if path.startswith("hang") else 1.0 for path in bad if path[0] in "hs"}
    worker = await rig.work()
    ids = await put_many(rig, queue, 1_000)
    await until(lambda: len(rig.listeners.taken("ok")) >= len(ids), what="the healthy one has all")
    assert rig.listeners.ids("ok") == Counter(ids)
    for path in bad:
        assert len(rig.listeners.taken(path)) < len(ids) // 2
    held = {dispatcher.listener.name: dispatcher.held for dispatcher in worker.dispatchers.values()}
    assert max(held.values()) <= 32
    open_now = sum(len(stream.window.open) for one in worker.dispatchers.values() for stream in one.streams.values())
    assert open_now <= 32 * len(held)  # of the 48,000 deliveries that wait

    for number in range(20):
        async with asyncio.timeout(SOON_S):
            (one,) = await rig.put(queue, f"n{number}")
        await until(lambda one=one: one in rig.listeners.ids("ok"), what="it is there soon", within_s=SOON_S)
        ids.append(one)
    assert rig.listeners.ids("ok") == Counter(ids)

    rig.listeners.down, rig.listeners.delay_s = set(), {}
    for dispatcher in worker.dispatchers.values():
        dispatcher.memory.tuning = TUNED
    quick = [path for path in bad if not path.startswith("hang")]
    await until(
        lambda: all(len(rig.listeners.ids(path)) == len(ids) for path in quick),
        what="the others get all of it, too",
        within_s=150,
    )


async def test_a_listener_that_returns_gets_its_backlog_after_its_first_good_probe(rig: Rig):
    queue = await rig.queue()
    await rig.listen(queue, "back")
    await rig.listen(queue, "ok")
    rig.listeners.down = {"back"}
    worker = await rig.work()
    ids = await put_many(rig, queue, 4_000)
    back = next(one for one in worker.dispatchers.values() if one.listener.name == "back")
    await until(lambda: len(rig.listeners.taken("ok")) >= len(ids), what="the other one has all")
    await rig.known_down(back.listener)
    assert back.held == 0
    probes = rig.listeners.probes["back"]
    rig.listeners.down = set()
    await until(lambda: rig.listeners.taken("back"), what="its first delivery")
    assert rig.listeners.probes["back"] == probes + 1
    await until(lambda: len(rig.listeners.taken("back")) >= len(ids), what="its backlog")
    assert rig.listeners.ids("back") == Counter(ids)


async def test_idle_listeners_hold_nothing_and_each_gets_its_message_from_whichever_worker(rig: Rig):
    queues = [await rig.queue(f"q{number}") for number in range(20)]
    for number in range(200):
        await rig.listen(queues[number % len(queues)], f"l{number}")
    workers = [await rig.work(), await rig.work()]
    await until(
        lambda: (
            all(one.assignment.partitions for one in workers)
            and sum(len(one.assignment.partitions) for one in workers) == 4
        ),
        what="each has a share",
    )
    for _ in range(2):
        for queue in queues:
            await rig.put(queue, "one")

    async def idle() -> bool:
        for one in workers:
            await one.assignment.checkpoints.checkpoint()
        return not any(dispatcher.streams for one in workers for dispatcher in one.dispatchers.values())

    await until(lambda: len(rig.listeners.got) >= 400, what="each has its messages")
    await until(idle, what="no stream is held")
    assert {path: len(rig.listeners.taken(path)) for path in {got.path for got in rig.listeners.got}} == {
        f"l{number}": 2 for number in range(200)
    }
    await until(lambda: not any(len(one.ticks) for one in workers), what="none is visited any more")
