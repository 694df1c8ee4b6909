"""The fixtures of deliveries without Kafka: listeners on loopback, offices, and that nothing of them is left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.delivery.office import Behaviour, ListenerServer, Office, listener_at, until


@pytest.fixture
async def leaves_nothing_behind() -> AsyncIterator[None]:
    """No task outlives the test."""
    before = asyncio.all_tasks()
    yield
    await until(lambda: not (asyncio.all_tasks() - before - {asyncio.current_task()}))


@pytest.fixture
async def serve(leaves_nothing_behind):
    """serve(behaviour) starts a listener; at the end none of its connections may be open."""
    servers: list[ListenerServer] = []

    async def start(behaviour: Behaviour, **options) -> ListenerServer:
        server = ListenerServer(behaviour, **options)
        await server.start()
        servers.append(server)
        return server

    yield start
    try:
        await until(lambda: not any(server.open for server in servers))
    finally:
        for server in servers:
            await server.stop()


@pytest.fixture
async def open_office(serve):
    """open_office(url or server, settings…) employs a dispatcher; at the end it has no connection and counts none."""
    offices: list[Office] = []

    async def start(where: str | ListenerServer, *, office: dict | None = None, **settings) -> Office:
        url = where if isinstance(where, str) else where.url
        made = Office(listener_at(url, **settings), **(office or {}))
        await made.start()
        offices.append(made)
        return made

    yield start
    for office in offices:
        await office.stop()
    dispatchers = [office.dispatcher for office in offices]
    await until(
        lambda: not any(one.connections.idle or one.busy or one.connections.network.sockets.open for one in dispatchers)
    )
