"""The server on the API's socket while an API process starts. It answers 503 instead of letting clients wait.

For: when the server begins to answer before the application exists, and with which error. Not for: serving
(cli/processes/server.py), the application (api/app.py).

All API processes of a server share the socket, and a connection that one process accepts is lost to the others. So
during a start of the usual length, the process accepts no connections: other processes do, or the kernel holds them. A
process that has waited KAFKA_S seconds for Kafka begins to answer, because without Kafka the other processes can't do
much either (docs/decisions/0173).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from api.clients import Clients
from api.direct_puts import DirectPuts
from api.problems import MEDIA_TYPE, problem
from broker.errors import LogUnavailable, Unavailable, ViewBehind
from cli.processes.hosts import Hosts
from cli.processes.server import Server

KAFKA_S: Final = 2.0
READING_S: Final = 8.0

App = Callable[[MutableMapping[str, Any], Any, Any], Awaitable[None]]


class StartupServer:
    """The HTTP server of an API process. If the start of the process takes long, this server answers all requests with
    503 until `open` is called.

    Construct it in the running event loop. Call `close` to end it.
    """

    def __init__(self, listening: socket.socket, *, connections_max: int, hosts: Hosts, clients: Clients) -> None:
        self._listening = listening
        self._app: App | None = None
        self._before_end: Callable[[], None] = lambda: None
        self._why: Unavailable = LogUnavailable("Kafka can't be reached. Nothing was stored; try again.")
        self._accepts = asyncio.Event()
        self._server = Server(
            self,
            accepts=self._accepts.set,
            connections_max=connections_max,
            websockets=True,
            hosts=hosts,
            clients=clients,
        )
        self._serving: asyncio.Task[None] | None = None
        self._later = asyncio.get_running_loop().call_later(KAFKA_S, self._begin)

    def kafka_is_there(self) -> None:
        """Record that Kafka answers. From now on, an answer 503 says that this process still reads the log, and no
        longer that Kafka can't be reached.

        If the server accepts no connections yet, it begins to accept them READING_S seconds after this call.
        """
        self._why = ViewBehind("This server is starting and still reads the log. Nothing was stored; try again.")
        self._later.cancel()
        self._later = asyncio.get_running_loop().call_later(READING_S, self._begin)

    async def open(
        self, app: App, direct_puts: DirectPuts | None, *, before_end: Callable[[], None] = lambda: None
    ) -> None:
        """Let the application and `direct_puts` answer all requests from now on, and return when the server accepts
        connections. Before this call, the server accepted no connections, or answered all requests with 503.

        `close` first calls `before_end`, and then waits for running requests. So `before_end` must end requests that
        would run for long.
        """
        self._app, self._before_end = app, before_end
        self._server.config.direct_puts = direct_puts
        self._begin()
        await self._accepts.wait()

    async def served(self) -> None:
        """Wait until the server has ended. Call this after `open`."""
        if self._serving is not None:
            await asyncio.shield(self._serving)

    async def close(self) -> None:
        """End the server. Running requests get a few seconds to finish."""
        self._later.cancel()
        self._before_end()
        if self._serving is not None:
            self._server.should_exit = True
            await self._serving

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """Answer a request: with the application if this server is ready, otherwise with an error that says why not."""
        if self._app is not None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1013, "reason": str(self._why)})
        else:
            answer = problem(self._why)
            headers = [*answer.headers, (b"content-type", MEDIA_TYPE), (b"content-length", b"%d" % len(answer.body))]
            await send({"type": "http.response.start", "status": answer.status, "headers": headers})
            await send({"type": "http.response.body", "body": answer.body})

    def _begin(self) -> None:
        self._later.cancel()
        if self._serving is None:
            self._serving = asyncio.create_task(self._server.serve(sockets=[self._listening]))
