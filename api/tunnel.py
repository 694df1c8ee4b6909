"""Tunnels: a client's own machine as a listener, over a WebSocket that the client holds to one API process.

For: the WebSocket's end, and the addresses at which workers reach the listener through it, on a socket of this
process's own. Not for: the client's end (cli/listen/listen.py). While no client is connected the liveness answer is
503.

Whoever connects makes its listener's URLs those of the process it is connected to: docs/decisions/0060.
JSON texts: `listening` once, then `request` and `live`, each with a number that the client's answer repeats: `status`
and `retry_after`, or `away` when the local address could not be connected to; `alive`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
from collections import deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any, Final
from weakref import WeakValueDictionary

import orjson
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.websockets import WebSocket, WebSocketDisconnect

from api.calls import Call, Service
from api.changes import Changes
from api.problems import MEDIA_TYPE, TooManyRequests, problem
from broker.commands.context import find_queue, now_ms
from broker.commands.listeners import ListenerCommands, ListenerInput
from broker.core.api_keys import ApiKey
from broker.core.entities import Listener
from broker.errors import BrokerError, Refused
from broker.outbound.addresses import AWAY, TUNNEL_PROOF, tunnel_proof
from broker.ports import DirectoryView
from broker.tenant_slots import TenantSlots

ANSWER_S_MAX: Final = 125.0  # longer than any listener's timeout_ms
LIVE_S: Final = 2.5  # a probe waits for three seconds
REVOKED: Final = 4401  # These close codes say that the key or listener has ended, or that another client has connected.
DELETED: Final = 4404
TAKEN_OVER: Final = 4409
_NOT_PASSED_ON: Final = frozenset({"host", "connection", "content-length", "transfer-encoding", "user-agent"})


class Room:
    """A bounded number of bytes. Who finds no room waits in turn; more than all of it waits for all of it."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._left = bytes_max
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @contextlib.asynccontextmanager
    async def held(self, size: int) -> AsyncIterator[None]:
        size = min(size, self._bytes_max)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        self._admit()
        try:
            await turn
            yield
        finally:
            if turn.cancel() or turn.cancelled():  # it left before its turn
                self._admit()
            else:
                self._left += size
                self._admit()

    def _admit(self) -> None:
        while self._waiting and (self._waiting[0][1].cancelled() or self._waiting[0][0] <= self._left):
            size, turn = self._waiting.popleft()
            if not turn.cancelled():
                self._left -= size
                turn.set_result(None)


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelBounds:
    """The bounds of one process's tunnels.

    look_s: how often a tunnel checks that its key and listener still exist.
    tunnels_max, each_max: tunnels in this process, and of one organization.
    tunnel_bytes_max, tenant_bytes_max, all_bytes_max: of requests that a client has not taken yet, for one tunnel, for
        all of one tenant, and for all. Each request is in memory about three times.
    """

    look_s: float = 1.0
    tunnels_max: int = 1_000
    each_max: int = 100
    tunnel_bytes_max: int = 16 << 20
    tenant_bytes_max: int = 16 << 20
    all_bytes_max: int = 64 << 20


DEFAULT_BOUNDS: Final = TunnelBounds()


class Tunnel:
    """A client's socket. room, tenants_room: for requests that are being passed on, the socket's own and its
    tenant's.
    """

    def __init__(self, websocket: WebSocket, bytes_max: int, tenants_room: Room) -> None:
        self.room = Room(bytes_max)
        self.tenants_room = tenants_room
        self._websocket = websocket
        self._numbers = itertools.count()
        self._asked: dict[int, asyncio.Future[dict[str, Any]]] = {}

    @contextlib.contextmanager
    def question(self) -> Iterator[tuple[int, asyncio.Future[dict[str, Any]]]]:
        """Yield a number for the client's answer, and a future of that answer, which is cancelled when the client has
        gone.
        """
        number = next(self._numbers)
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        try:
            yield number, answer
        finally:
            del self._asked[number]

    async def say(self, message: dict[str, Any]) -> None:
        """Send a message as soon as the client has taken most of what was sent before."""
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):  # RuntimeError: it is closed
            await self._websocket.send_text(orjson.dumps(message).decode())

    def answered(self, text: str) -> None:
        """Handle a message of the client. Nonsense is ignored."""
        with contextlib.suppress(ValueError, AttributeError, TypeError):
            message = orjson.loads(text)
            answer = self._asked.get(message["number"]) if "number" in message else None
            if answer is not None and not answer.done():
                answer.set_result(message)

    def ended(self) -> None:
        for answer in self._asked.values():
            answer.cancel()


class Tunnels:
    """The tunnels of one API process. address: `tunnel://host:port`, where workers reach app; set once it is served."""

    def __init__(self, address: str = "", bounds: TunnelBounds = DEFAULT_BOUNDS) -> None:
        self.address = address
        self.bounds = bounds
        self._open: dict[str, Tunnel] = {}
        self._rooms: WeakValueDictionary[str, Room] = WeakValueDictionary()  # by tenant, while it has tunnels
        self._room = Room(bounds.all_bytes_max)
        routes = [Route("/{token}/notify", self._notify, methods=["POST"]), Route("/{token}/live", self._live)]
        self.app = Starlette(routes=routes)

    @contextlib.contextmanager
    def opened(self, token: str, websocket: WebSocket, tenant: str) -> Iterator[Tunnel]:
        """Register the socket inside the `with` block. tenant: its tunnels share one room."""
        room = self._rooms.setdefault(tenant, Room(self.bounds.tenant_bytes_max))
        tunnel = self._open[token] = Tunnel(websocket, self.bounds.tunnel_bytes_max, room)
        try:
            yield tunnel
        finally:
            del self._open[token]
            tunnel.ended()

    async def _notify(self, request: Request) -> Response:
        token = request.path_params["token"]
        tunnel = self._open.get(token)
        answer = None
        with contextlib.suppress(TimeoutError, ClientDisconnect):
            async with asyncio.timeout(ANSWER_S_MAX):
                answer = {"away": True} if tunnel is None else await self._passed_on(request, token, tunnel)
        if answer and answer.get("away") is True:
            return _response(token, AWAY)
        status = answer.get("status") if answer else None
        if not isinstance(status, int) or not 200 <= status < AWAY:
            return _response(token, 503)
        after = answer.get("retry_after") if answer else None
        return _response(token, status, after if isinstance(after, int) else None)

    async def _passed_on(self, request: Request, token: str, tunnel: Tunnel) -> dict[str, Any] | None:
        """Pass the request on and return the client's answer; None when the client or the worker has gone.

        The body is held only until it is sent.
        """
        told = request.headers.get("content-length", "")
        size = int(told) if told.isdecimal() else self.bounds.tunnel_bytes_max
        with tunnel.question() as (number, answer):
            async with tunnel.room.held(size), tunnel.tenants_room.held(size), self._room.held(size):
                if self._open.get(token) is not tunnel:
                    return {"away": True}  # The client has received nothing of the request.
                await tunnel.say(await _message(request, number))
            return await _unless_left(request, answer)

    async def _live(self, request: Request) -> Response:
        token = request.path_params["token"]
        tunnel = self._open.get(token)
        alive = False
        if tunnel is not None:
            with contextlib.suppress(TimeoutError), tunnel.question() as (number, answer):
                async with asyncio.timeout(LIVE_S):
                    await tunnel.say({"type": "live", "number": number})
                    told = await _unless_left(request, answer)
                    alive = told is not None and told.get("alive") is True
        return _response(token, 204 if alive else 503)


async def _message(request: Request, number: int) -> dict[str, Any]:
    headers = {name: value for name, value in request.headers.items() if name not in _NOT_PASSED_ON}
    body = b"".join([part async for part in request.stream()])  # not request.body(), which would keep it
    return {"type": "request", "number": number, "headers": headers, "body": body.decode(errors="replace")}


async def _unless_left(request: Request, answer: asyncio.Future[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the answer, or None if the client or the worker goes first."""
    left = asyncio.create_task(_left(request))
    waiting: list[asyncio.Future[Any]] = [answer, left]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        left.cancel()
    return answer.result() if answer.done() and not answer.cancelled() else None


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _response(token: str, status: int, retry_after_s: int | None = None) -> Response:
    """Make a response with the proof that this is an API process, without which a worker does not believe it."""
    headers = {TUNNEL_PROOF: tunnel_proof(token)}
    if retry_after_s is not None:
        headers["retry-after"] = str(retry_after_s)
    return Response(status_code=status, headers=headers)


async def deny(websocket: WebSocket, error: BrokerError) -> None:
    """Answer a WebSocket that is not accepted with a problem."""
    status, headers, body = problem(error)
    told = {name.decode(): value.decode() for name, value in headers}
    told["x-content-type-options"] = "nosniff"  # The server adds this header to other answers.
    await websocket.send_denial_response(Response(body, status, told, media_type=MEDIA_TYPE.decode()))


class Listen:
    """The WebSocket at /v1/queues/{queue_id}/listen?name=…. It serves the listener of that name, which is created if
    needed.
    """

    def __init__(
        self, service: Service, commands: ListenerCommands, view: DirectoryView, tunnels: Tunnels, changes: Changes
    ) -> None:
        self._service = service
        self._commands = commands
        self._view = view
        self._tunnels = tunnels
        self._changes = changes
        self._slots = TenantSlots(
            tunnels.bounds.tunnels_max,
            tunnels.bounds.each_max,
            tenant_of=view.state.tenant_of,
            refusal=lambda: TooManyRequests("This organization holds as many tunnels here as it may.", retry_after_s=1),
        )

    async def serve(self, websocket: WebSocket) -> None:
        token = secrets.token_urlsafe(24)
        url = f"{self._tunnels.address}/{token}"
        try:
            call = Call(websocket.scope, websocket.receive, self._service)
            api_key = await call.admit_api_key("queues")
            with self._slots.slot(call.organization_id):
                self._changes.take(call.headers, call.organization_id)
                listener = await self._listener(call, websocket.query_params.get("name", ""), url)
                await websocket.accept()
                await self._hold(websocket, token, api_key, listener)
        except WebSocketDisconnect:  # The client has gone before it was accepted.
            pass
        except BrokerError as error:  # The socket is not accepted yet; later nothing may refuse it.
            await deny(websocket, error)

    async def _hold(self, websocket: WebSocket, token: str, api_key: ApiKey, listener: Listener) -> None:
        """Hold the socket until one of the two sides ends it."""
        tenant = self._view.state.tenant_of(api_key.organization_id)
        with self._tunnels.opened(token, websocket, tenant) as tunnel, contextlib.suppress(WebSocketDisconnect):
            await tunnel.say({"type": "listening", "listener": {"id": listener.id, "name": listener.name}})
            watching = asyncio.create_task(self._watch(websocket, api_key, listener))
            try:
                while True:
                    tunnel.answered(await websocket.receive_text())
            except (KeyError, RuntimeError):  # a binary message; it is closed
                pass
            finally:
                watching.cancel()

    async def _listener(self, call: Call, name: str, url: str) -> Listener:
        """Return the listener, whose URLs lead here from now on (BrokerError)."""
        if not name:
            raise Refused("The listener needs a name. Add the parameter `name`.")
        await self._view.caught_up()
        queue = await find_queue(self._view, call.organization_id, call.path("queue_id"))
        listener_input = ListenerInput(name=name, notify_url=f"{url}/notify", liveness_url=f"{url}/live")
        known = next((one for one in queue.listeners.values() if one.name == name), None)
        if known is None:
            return (await self._commands.create_listener(call.context(), queue.id, listener_input, tunnel=True))[0]
        return await self._commands.update_listener(call.context(), queue.id, known.id, listener_input, tunnel=True)

    async def _watch(self, websocket: WebSocket, api_key: ApiKey, listener: Listener) -> None:
        """Wait until the key is revoked, or another client serves the listener, or it is deleted."""
        while (end := self._end(api_key, listener)) is None:
            await asyncio.sleep(self._tunnels.bounds.look_s)
        with contextlib.suppress(RuntimeError, WebSocketDisconnect):
            await websocket.close(*end)

    def _end(self, api_key: ApiKey, listener: Listener) -> tuple[int, str] | None:
        state = self._view.state
        if api_key.id not in state.keys:
            return REVOKED, "its API key was revoked"
        if api_key.has_expired(now_ms()):
            return REVOKED, "its API key has expired"
        now = state.listeners.get(listener.id)
        if now is None:
            return DELETED, "it was deleted"
        return None if now.notify_url == listener.notify_url else (TAKEN_OVER, "another client has connected for it")
