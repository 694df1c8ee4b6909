"""The admin address of a process: whether the process runs and is ready, its metrics, and its state.

For: `/health`, `/health/live`, `/health/ready`, `/metrics` and `/state`, without an API key, on a loopback address by
default. Not for: which metrics there are (cli/processes/metrics.py), all processes of a supervisor
(cli/processes/admin_all.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from api.problems import MEDIA_TYPE, Problem, framework_problem, problem
from broker.core.damage import Damage
from broker.core.digests import digests, fields_hash, state_hash
from broker.errors import BrokerError, Unavailable
from broker.ports import DirectoryView
from cli.processes.hosts import Hosts
from cli.processes.metrics import new_registry
from cli.processes.server import Server
from cli.processes.sockets import address, bind

_RANGES_SHOWN: Final = 3


class Health:
    """The health of one process, which the process's admin address shows.

    `view` is the directory that the process has folded from the topic `control`. It is None at first. `ready` is True
    once the process has started. `registry` holds the metrics. Await `look` before the metrics are read, because it
    updates some of them.
    """

    def __init__(self) -> None:
        self.look: Callable[[], Awaitable[None]] = _nothing
        self.registry: CollectorRegistry = new_registry()
        self.view: DirectoryView | None = None
        self.ready = False

    async def check(self) -> None:
        """Raise Unavailable if the process has not started, if Kafka can't be reached, or if the process has not yet
        read all events of the topic `control`.
        """
        if self.view is None or not self.ready:
            raise Unavailable("This process is starting. Try again later.")
        await self.view.caught_up()

    async def check_whole(self) -> None:
        """Raise Unavailable if the process is not ready. Raise Damaged if a part of the log can't be read.

        The two errors are separate because a restart of the process can't repair the log.
        """
        await self.check()
        if self.view is not None and self.view.state.damage:
            raise Damaged(
                f"these ranges of the log are altered or missing: {damage_text(self.view.state.damage)}. "
                "Repair them with `everput mend`."
            )

    def state(self) -> dict[str, Any]:
        """Return a summary of the directory that this process has folded from the topic `control`. Raises Unavailable
        while the process starts.

        `position` is the offset in `control` of the next event to apply. `sha256` is a hash of the whole directory.
        `fields` is a hash of the names and types of the directory's fields. Compare the `sha256` of two processes only
        if their `position` and `fields` are equal. `digests` has a checksum of each item, such as a queue.
        """
        if self.view is None:
            raise Unavailable("This process is starting. Try again later.")
        directory = self.view.state
        return {
            "position": self.view.position,
            "sha256": state_hash(directory),
            "fields": fields_hash(),
            "digests": digests(directory),
        }


class Damaged(Unavailable):
    """The error that a part of the log was altered or is missing."""

    code = "log-damaged"


def damage_text(damage: Damage) -> str:
    """Describe the first three damaged ranges of the log, and say how many more there are."""
    ranges = list(damage)
    more = f", and {len(ranges) - _RANGES_SHOWN} more" if len(ranges) > _RANGES_SHOWN else ""
    return ", ".join(map(str, ranges[:_RANGES_SHOWN])) + more


def make_app(
    check: Callable[[], Awaitable[None]],
    check_whole: Callable[[], Awaitable[None]],
    metrics: Callable[[], Awaitable[CollectorRegistry]],
    states: Callable[[], Awaitable[dict[str, Any]]],
) -> Starlette:
    """Create the application of an admin address.

    `check` is called for /health/ready, and raises Unavailable if a process is not ready. `check_whole` is called for
    /health. It raises Unavailable if a process is not ready, and Damaged if the log is damaged. `metrics` returns the
    current metrics. `states` returns the state of each process, by the process's name.
    """

    async def live(_request: Request) -> Response:
        return JSONResponse({"status": "live"})

    def checked(look: Callable[[], Awaitable[None]], status: str) -> Callable[[Request], Awaitable[Response]]:
        async def answer(_request: Request) -> Response:
            try:
                await look()
            except BrokerError as error:
                return _response(problem(error))
            return JSONResponse({"status": status})

        return answer

    async def show(_request: Request) -> Response:
        return Response(generate_latest(await metrics()), headers={"content-type": CONTENT_TYPE_PLAIN_0_0_4})

    async def state(_request: Request) -> Response:
        try:
            return JSONResponse({"states": await states()})
        except BrokerError as error:
            return _response(problem(error))

    routes = [
        Route("/health/live", live),
        Route("/health/ready", checked(check, "ready")),
        Route("/health", checked(check_whole, "ok")),
        Route("/metrics", show),
        Route("/state", state),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _refused})
    app.router.redirect_slashes = False
    return app


async def _nothing() -> None: ...


def process_app(health: Health) -> Starlette:
    """Create the application for the admin address of one process."""

    async def metrics() -> CollectorRegistry:
        await health.look()
        return health.registry

    async def states() -> dict[str, Any]:
        return {os.environ.get("EVERPUT_PROCESS", ""): health.state()}

    return make_app(health.check, health.check_whole, metrics, states)


@contextlib.asynccontextmanager
async def serving(app: Starlette, host: str, port: int, hosts: Hosts) -> AsyncIterator[str]:
    """Serve the application inside the `with` block, and yield its URL. Raises ConfigurationError if the address can't
    be bound.
    """
    with bind(host, port) as listening:
        server = Server(app, hosts=hosts)
        task = asyncio.create_task(server.serve(sockets=[listening]))
        try:
            yield address(listening, host)
        finally:
            server.should_exit = True
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def _refused(_request: Request, error: Exception) -> Response:
    return _response(framework_problem(getattr(error, "status_code", 400), str(getattr(error, "detail", ""))))


def _response(answer: Problem) -> Response:
    headers: dict[str, Any] = {name.decode(): value.decode() for name, value in answer.headers}
    return Response(answer.body, answer.status, headers, media_type=MEDIA_TYPE.decode())
