"""What becomes of a dispatcher's connections: who counts them, who keeps them, who has the message of one that ends.

Real sockets."""

from __future__ import annotations

import asyncio

from broker.core.flow import WHOLE
from broker.outbound.connection import Connection
from tests.delivery.office import OK, paused, until


async def takes(_request, writer):
    writer.write(OK)


async def test_a_connection_that_nobody_needs_when_it_is_made_is_not_kept_where_sockets_are_few(serve, open_office):
    server = await serve(takes)
    office = await open_office(server, office={"sockets": 2})
    office.put(2)
    assert office.dispatcher.busy == office.dispatcher.connections.network.sockets.open == 2
    office.dispatcher.drop(office.dispatcher.streams[0])  # the partition was given up
    await until(lambda: server.connections == 2 and not office.dispatcher.busy)
    await until(lambda: office.dispatcher.connections.network.sockets.open == server.open <= 1)
    assert not server.posts


async def test_a_connection_that_is_closed_while_it_is_made_is_counted_once(serve, open_office, monkeypatch):
    office = await open_office(await serve(takes))
    made = Connection.connection_made

    def connection_made(connection, transport):
        made(connection, transport)
        office.dispatcher.close()  # its listener has ended

    monkeypatch.setattr(Connection, "connection_made", connection_made)
    office.put(1)
    await until(lambda: not office.dispatcher.busy)
    assert office.dispatcher.connections.network.sockets.open == 0


async def test_a_connection_that_has_ended_before_it_is_used_is_no_attempt_under_way(serve, open_office, monkeypatch):
    office = await open_office(await serve(takes), retry_first_ms=100)
    made = Connection.connection_made

    def connection_made(connection, transport):
        made(connection, transport)
        connection.connection_lost(None)
        transport.abort()
        monkeypatch.setattr(Connection, "connection_made", made)

    monkeypatch.setattr(Connection, "connection_made", connection_made)
    office.put(1)
    await office.all_settled()
    assert office.outcomes[0] == [(1, "failed", "closed"), (2, "delivered", 200)]
    await until(lambda: office.dispatcher.connections.network.sockets.open == 1)


async def test_what_a_listener_gives_back_with_its_connection_after_it_was_paused_is_not_sent_again(serve, open_office):
    free = asyncio.Event()

    async def closes_the_second(request, writer):
        if request.number == 2:
            await free.wait()
            writer.transport.abort()
        else:
            writer.write(OK)

    server = await serve(closes_the_second)
    office = await open_office(server)
    office.put()
    await office.all_settled()
    office.put()
    await until(lambda: len(server.posts) == 2)
    office.dispatcher.update(paused(office.dispatcher.listener, "by hand"), share=WHOLE)
    free.set()
    await until(lambda: not office.dispatcher.busy)
    assert office.dispatcher.held == 0
    office.dispatcher.update(paused(office.dispatcher.listener, None), share=WHOLE)
    await office.all_settled()
    assert [(post.message_id, post.attempt) for post in server.posts] == [("m-0", 1), ("m-1", 1), ("m-1", 1)]
