"""Asking a liveness_url: only a 2xx in time counts, no question is left open, and a tick begins few of many."""

from __future__ import annotations

import asyncio
import ssl
from ipaddress import ip_network
from types import SimpleNamespace

import pytest

from broker.core.circuit import Circuit
from broker.delivery.dispatch.liveness import Liveness, alive
from broker.delivery.tuning import TUNED
from broker.outbound.addresses import Resolver
from tests.delivery.office import OK, until

LOOPBACK = (ip_network("127.0.0.0/8"),)


async def ask(url: str, allow=LOOPBACK, **how) -> bool:
    return await alive(url, Resolver(allow), ssl.create_default_context(), **how)


async def never(_request, _writer):
    raise AssertionError("a probe is a GET")


SILENT = (b"", b"HTTP/1.1 200")  # sooner or later


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (OK, True),
        (b"HTTP/1.1 204 None\r\n\r\n", True),
        (b"HTTP/1.0 200 OK\r\n\r\nfine", True),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, True),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nthe rest does not come", True),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 200_000, True),
        (b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n", False),
        (b"HTTP/1.1 301 Moved\r\nlocation: /\r\ncontent-length: 0\r\n\r\n", False),
        (b"HTTP/1.1 404 No\r\ncontent-length: 0\r\n\r\n", False),
        (b"\x00\x01garbage\r\n\r\n", False),
        (b"", False),
        (b"HTTP/1.1 200", False),
    ],
)
async def test_only_a_2xx_in_time_means_alive(serve, answer, expected):
    server = await serve(never, alive=answer)
    assert await ask(server.url, timeout_s=0.3 if answer in SILENT else 60.0) is expected
    (probe,) = server.probes
    assert (probe.target, probe.headers["host"]) == ("/hook?x=1", f"127.0.0.1:{server.port}")


@pytest.mark.parametrize(("status", "expected"), [(405, True), (301, True), (500, False), (503, False)])
async def test_a_notify_url_that_is_asked_need_not_know_get(serve, status, expected):
    server = await serve(never, alive=b"HTTP/1.1 %d Said\r\ncontent-length: 0\r\n\r\n" % status)
    assert await alive(server.url, Resolver(LOOPBACK), ssl.create_default_context(), below=500) is expected


async def test_nobody_listening_is_not_alive(serve):
    server = await serve(never)
    await server.stop()
    assert await ask(server.url) is False


async def test_an_address_that_is_not_allowed_is_not_asked(serve):
    server = await serve(never)
    assert await ask(server.url, allow=()) is False
    assert server.connections == 0


async def test_a_probe_that_is_cancelled_closes_its_connection(serve):
    server = await serve(never, alive=b"")
    asking = asyncio.create_task(ask(server.url, timeout_s=60.0))
    await until(lambda: server.probes)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert asking.cancelled()


class Down:
    """A dispatcher, as far as it concerns probes, whose next one is due."""

    def __init__(self, number: int) -> None:
        self.circuit = Circuit()
        self.circuit.trip(1)
        self.listener = SimpleNamespace(id="l", liveness_url=f"{number}", has_liveness_url=True, paused=None)


@pytest.fixture
async def watched():
    """Liveness that watches 200, whose probes find nobody at once; and the URLs that were asked."""
    asked: list[str] = []

    async def nobody(url: str, *_, **__) -> bool:
        asked.append(url)
        return False

    watching = Liveness(Resolver(()), ssl.create_default_context(), lambda: 0.0)
    watching.alive = nobody
    dispatchers = [Down(number) for number in range(200)]
    for dispatcher in dispatchers:
        watching.watch(dispatcher)
        watching.watch(dispatcher)
    return watching, dispatchers, asked


@pytest.mark.parametrize(("permits", "most"), [(1, TUNED.probes_min), (12, 6), (1_000, TUNED.probes_max)])
async def test_a_tick_begins_so_many_probes_at_most_however_many_are_due(watched, permits, most):
    watching, _, asked = watched
    for tick in range(1, 4):
        watching.tick(permits=permits)
        await asyncio.sleep(0)
        assert len(set(asked)) == len(asked) == most * tick


async def test_who_is_back_or_paused_or_has_ended_is_asked_no_more_and_takes_no_other_ones_turn(watched):
    watching, dispatchers, asked = watched
    for number, dispatcher in enumerate(dispatchers[:-3]):
        if number % 3 == 0:
            dispatcher.listener.paused = "by hand"
        elif number % 3 == 1:
            dispatcher.circuit.probed(alive=True, at_ms=1, interval_ms=0)
        else:
            watching.down.discard(dispatcher)
    for _ in range(2):
        watching.tick(permits=1)
        await asyncio.sleep(0)
    assert sorted(asked) == ["197", "198", "199"]
    await until(lambda: not watching.probes_under_way)
    assert watching.down == set(dispatchers[-3:])


async def test_one_whose_probe_broke_down_is_asked_again(watched, caplog):
    watching, dispatchers, asked = watched

    async def broken(url: str, *_, **__) -> bool:
        asked.append(url)
        raise ValueError("not foreseen")

    watching.alive = broken
    for dispatcher in dispatchers[1:]:
        watching.down.discard(dispatcher)
    for _ in range(2):
        watching.tick(permits=1)
        await until(lambda: not watching.probes_under_way)
    assert asked == ["0", "0"]
