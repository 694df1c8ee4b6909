"""A host with several addresses of which not all answer, and one that DNS has no time for. Real sockets."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from ipaddress import ip_network

import pytest

from broker.core.circuit import TRIP_AFTER, State
from broker.delivery.tuning import Tuning
from broker.outbound import connection as http
from broker.outbound import dns as names
from tests.delivery.office import OK, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 and so on are addresses of Linux")

LOOPBACK = (ip_network("127.0.0.0/8"),)
SOON = http.ConnectionTuning(next_address_s=0.1)


@contextlib.contextmanager
def silent(port: int) -> Iterator[str]:
    """An address that says nothing to whoever connects: its queue is full, and nobody takes from it."""
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.socket())
        listening.bind(("127.0.0.2", port))
        listening.listen(0)
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(("127.0.0.2", port))
        yield "127.0.0.2"


async def answers_200(_request, writer):
    writer.write(OK)


def where(*addresses: str, tuning: http.ConnectionTuning = SOON) -> dict[str, object]:
    """An office for which DNS says the same of every name."""
    return {"allow": LOOPBACK, "ask": lambda _: list(addresses), "connect": partial(http.connect, tuning=tuning)}


async def connect(office, tuning: http.ConnectionTuning = SOON) -> http.Connection:
    dispatcher = office.dispatcher
    network = dispatcher.connections.network
    return await http.connect(dispatcher.attempts, dispatcher.connections.target, network.resolver, network.tls, tuning)


async def test_an_address_that_is_silent_is_left_for_the_next_which_comes_first_from_then_on(serve, open_office):
    server = await serve(answers_200)
    with silent(server.port) as address:
        office = await open_office(
            f"http://two.example:{server.port}/", office=where(address, "127.0.0.1"), max_in_flight=1
        )
        resolver = office.dispatcher.connections.network.resolver
        resolver.tuning = replace(resolver.tuning, cache_s=-1.0)  # DNS is asked again each time
        office.put(3)
        await office.all_settled()
        office.check_books()
        assert {outcome for rows in office.outcomes.values() for _, outcome, _ in rows} == {"delivered"}
        resolver = office.dispatcher.connections.network.resolver
        assert await resolver.addresses("two.example") == ["127.0.0.1", address]
        office.dispatcher.connections.network.sockets.open += 1
        slow = http.ConnectionTuning(
            next_address_s=http.CONNECTION.connect_s + 1
        )  # the silent one would take all of it
        connection = await connect(office, slow)
        connection.close()


async def test_where_all_addresses_are_silent_it_is_a_time_out(serve, open_office):
    server = await serve(answers_200)
    with silent(server.port) as address:
        office = await open_office(f"http://two.example:{server.port}/", office=where(address, "127.0.0.2"))
        with pytest.raises(http.ConnectFailed, match="connect-timeout"):
            await connect(office, replace(SOON, connect_s=0.5))


async def test_only_the_first_few_of_many_addresses_are_tried(serve, open_office):
    server = await serve(answers_200)
    addresses = ("127.0.0.3", "127.0.0.4", "127.0.0.5", "127.0.0.1")
    office = await open_office(f"http://many.example:{server.port}/", office=where(*addresses))
    with pytest.raises(http.ConnectFailed, match="refused"):
        await connect(office)


async def test_that_its_name_had_no_turn_in_dns_is_no_attempt_and_no_fault_of_a_listener(serve, open_office):
    server = await serve(answers_200)
    office = await open_office(
        f"http://new.example:{server.port}/", office={"new": True, "tuning": Tuning(put_off_ms=0), **where("127.0.0.1")}
    )
    resolver, without_a_turn = office.dispatcher.connections.network.resolver, 0
    resolver.tuning = replace(resolver.tuning, answer_s=0.01)
    resolver.lookups.new.most = 0
    addresses = resolver.addresses

    async def counted(host: str) -> list[str]:
        nonlocal without_a_turn
        try:
            return await addresses(host)
        except names.NotAsked:
            without_a_turn += 1
            raise

    resolver.addresses = counted
    office.put(3)
    office.put(3, key="k")
    await until(lambda: without_a_turn > 2 * TRIP_AFTER)
    assert (office.dispatcher.circuit.state, office.dispatcher.circuit.faults) == (State.CLOSED, 0)
    resolver.tuning = replace(resolver.tuning, answer_s=60.0)
    resolver.lookups.new.most = 1
    await office.all_settled()
    office.check_books()
    assert [len(rows) for rows in office.outcomes.values()] == [1] * 6
    assert [post.message_id for post in server.posts if post.message_id >= "m-3"] == ["m-3", "m-4", "m-5"]
    assert server.probes == []
