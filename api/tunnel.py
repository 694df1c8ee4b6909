"""Tunnels: a listener on a client's own machine, reached over a WebSocket from the client to one API process.

For: this end of the WebSocket, and the addresses at which workers reach the listener, on a socket of this process. Not
for: the client's end (cli/listen/listen.py). While no client is connected, the listener's liveness_url answers 503.

A client that connects makes the listener's URLs those of the API process that it is connected to (docs/decisions/0060).
A page of the console may be the client, with its session's cookie. Browsers send no header of a page with a WebSocket,
so the parameter `organization` names the organization.

The WebSocket carries JSON texts: `listening` once, then `request` and `live`, each with a number. The client's answer
repeats the number and has `status` and `retry_after`, or `away` if its local address refused the connection, or
`alive`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final
from weakref import WeakValueDictionary

import orjson
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Scope
from starlette.websockets import WebSocket, WebSocketDisconnect

from api.auth import ORGANIZATION
from api.calls import Call, Service
from api.changes import ChangeLimits
from api.problems import MEDIA_TYPE, TooManyRequests, problem
from broker.clock import now_ms
from broker.commands.context import find_queue
from broker.commands.listeners import ListenerCommands, ListenerInput
from broker.core.delivery import TUNNEL_AWAY
from broker.core.entities import Listener
from broker.errors import BrokerError, Refused
from broker.outbound.addresses import TUNNEL_PROOF, tunnel_proof
from broker.ports import DirectoryView
from broker.tenant_slots import TenantSlots

ANSWER_S_MAX: Final = 125.0  # longer than any listener's `timeout_ms`
LIVE_S: Final = 2.5  # A tunnel's client must answer a liveness probe within 2.5 s: the worker waits only 3 s.
# Close codes of a tunnel's WebSocket: access was revoked, the listener was deleted, or another client took it over.
REVOKED: Final = 4401
DELETED: Final = 4404
TAKEN_OVER: Final = 4409
FAILED_MAX: Final = 1_000  # the most messages in a batch
_ID_CHARS: Final = 36  # characters of a message's id
_TOO_MANY_TUNNELS: Final = "Too many tunnels are open. Close one of this organization's tunnels, or try again later."
_NOT_PASSED_ON: Final = frozenset({"host", "connection", "content-length", "transfer-encoding", "user-agent"})


class Room:
    """The memory that requests on their way through tunnels share: a fixed number of bytes. A tunnel is the WebSocket
    of a client such as `everput listen`.

    Each request waits until enough bytes are free. The requests get their bytes in the order of arrival. A request that
    is larger than the whole memory waits until all bytes are free.
    """

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
            # If the request was cancelled while it waited for memory, it has no bytes to give back.
            if turn.cancel() or turn.cancelled():
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
    """The limits on the tunnels of one API process. A tunnel is the WebSocket of a client such as `everput listen`.

    The limits in bytes are for the requests of workers that wait until they are sent to a tunnel's client. A waiting
    request takes about three times its size in memory.
    """

    # The seconds between two checks that a tunnel's credentials are valid, and that its listener still uses the tunnel.
    look_s: float = 1.0
    # The most tunnels in this process.
    tunnels_max: int = 1_000
    # The most tunnels of one organization.
    each_max: int = 100
    # The most bytes of requests that wait to be sent to one tunnel's client.
    # If a request is larger than `tunnel_bytes_max`, it is sent alone, after all earlier requests to this client.
    tunnel_bytes_max: int = 16 << 20
    # The most bytes of requests that wait to be sent to clients, over all tunnels of one tenant in this process.
    tenant_bytes_max: int = 16 << 20
    # The most bytes of requests that wait to be sent to clients, over all tunnels of this process.
    all_bytes_max: int = 64 << 20


DEFAULT_BOUNDS: Final = TunnelBounds()


class Tunnel:
    """A tunnel: the WebSocket of one client, which is `everput listen` or a page of the console.

    A tunnel has a limit on the bytes of requests that wait until they are sent to its client. All tunnels of a tenant
    (usually the account that created the organization) share a second limit. All tunnels of the process share a third
    limit, which is in the class Tunnels.
    """

    def __init__(self, websocket: WebSocket, bytes_max: int, tenants_room: Room) -> None:
        self.room = Room(bytes_max)
        self.tenants_room = tenants_room
        self._websocket = websocket
        self._numbers = itertools.count()
        self._asked: dict[int, asyncio.Future[dict[str, Any]]] = {}

    @property
    def waiting(self) -> int:
        return len(self._asked)

    @contextlib.contextmanager
    def question(self) -> Iterator[tuple[int, asyncio.Future[dict[str, Any]]]]:
        """Yield a new number for a request to the client, and a future that gets the client's answer. If the client
        disconnects, the future is cancelled.
        """
        number = next(self._numbers)
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        try:
            yield number, answer
        finally:
            del self._asked[number]

    async def say(self, message: dict[str, Any]) -> None:
        """Send a message to the client. Wait while the WebSocket's send buffer is full. If the WebSocket is closed, do
        nothing.
        """
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):  # a closed WebSocket raises RuntimeError
            await self._websocket.send_text(orjson.dumps(message).decode())

    def answered(self, text: str) -> None:
        """Handle a WebSocket message in which the client answers a worker's request. Ignore invalid messages."""
        with contextlib.suppress(ValueError, AttributeError, TypeError):
            message = orjson.loads(text)
            answer = self._asked.get(message["number"]) if "number" in message else None
            if answer is not None and not answer.done():
                answer.set_result(message)

    def ended(self) -> None:
        for answer in self._asked.values():
            answer.cancel()


class Tunnels:
    """The tunnels of one API process: its connections to clients such as `everput listen`.

    `address` is `tunnel://host:port`, where workers reach this process. Until the process listens at this address,
    `address` is empty.
    """

    def __init__(self, address: str = "", bounds: TunnelBounds = DEFAULT_BOUNDS) -> None:
        self.address = address
        self.bounds = bounds
        self._open: dict[str, Tunnel] = {}
        # For each tenant, the memory that the requests to all its tunnels share.
        # If a tenant has no tunnel and no request through a tunnel in this process, its entry disappears.
        self._rooms: WeakValueDictionary[str, Room] = WeakValueDictionary()
        self._room = Room(bounds.all_bytes_max)
        routes = [Route("/{token}/notify", self._notify, methods=["POST"]), Route("/{token}/live", self._live)]
        self.app = Starlette(routes=routes)

    @property
    def waiting(self) -> int:
        """The number of requests and liveness probes from workers that a tunnel's client has not answered yet. Such a
        client is, for example, `everput listen`.
        """
        return sum(tunnel.waiting for tunnel in self._open.values())

    @contextlib.contextmanager
    def opened(self, token: str, websocket: WebSocket, tenant: str) -> Iterator[Tunnel]:
        """Create the tunnel for a WebSocket, yield the tunnel, and remove it at the end of the `with` block. Workers
        reach the tunnel by its `token`. All tunnels of a tenant share one limit on the bytes of requests that wait
        until they are sent.
        """
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
            return _response(token, TUNNEL_AWAY)
        status = answer.get("status") if answer else None
        if not isinstance(status, int) or not 200 <= status < TUNNEL_AWAY:
            return _response(token, 503)
        after, failed = (answer.get("retry_after"), answer.get("failed")) if answer else (None, None)
        return _response(token, status, after if isinstance(after, int) else None, _ids(failed))

    async def _passed_on(self, request: Request, token: str, tunnel: Tunnel) -> dict[str, Any] | None:
        """Send a worker's HTTP request to the client through the tunnel, and return the client's answer. Return None if
        the client or the worker disconnects before the answer. If the tunnel was closed before the request was sent,
        return `{"away": True}`, as for a client whose local address refused the connection.

        The request's body is held in memory only until the body is sent.
        """
        length = request.headers.get("content-length", "")
        size = int(length) if length.isdecimal() else self.bounds.tunnel_bytes_max
        with tunnel.question() as (number, answer):
            async with tunnel.room.held(size), tunnel.tenants_room.held(size), self._room.held(size):
                if self._open.get(token) is not tunnel:
                    # The tunnel was closed while the request waited for memory. Its client has received nothing of it.
                    return {"away": True}
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
                    reply = await _unless_left(request, answer)
                    alive = reply is not None and reply.get("alive") is True
        return _response(token, 204 if alive else 503)


async def _message(request: Request, number: int) -> dict[str, Any]:
    headers = {name: value for name, value in request.headers.items() if name not in _NOT_PASSED_ON}
    # Read the stream instead of calling Starlette's request.body(), which would keep a second reference to the body.
    body = b"".join([part async for part in request.stream()])
    return {"type": "request", "number": number, "headers": headers, "body": body.decode(errors="replace")}


async def _unless_left(request: Request, answer: asyncio.Future[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the client's answer, or None if the client or the worker disconnects first."""
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


def _ids(failed: Any) -> list[str]:
    """Return the ids of the messages of a batch that the client did not accept. `failed` is the value of the field
    `failed` in the client's answer. Invalid ids are left out.
    """
    if not isinstance(failed, list) or len(failed) > FAILED_MAX:
        return []
    return [one for one in failed if isinstance(one, str) and len(one) <= _ID_CHARS]


def _response(token: str, status: int, retry_after_s: int | None = None, failed: Sequence[str] = ()) -> Response:
    """Create a response with a header that proves that the response comes from an API process. A worker that sends
    through a tunnel refuses a response without this header, because another program may have taken the port.
    """
    headers = {TUNNEL_PROOF: tunnel_proof(token)}
    if retry_after_s is not None:
        headers["retry-after"] = str(retry_after_s)
    content = orjson.dumps({"failed": failed}) if failed else None
    return Response(content, status, headers, media_type="application/json" if failed else None)


async def deny(websocket: WebSocket, error: BrokerError) -> None:
    """Refuse a WebSocket before it is accepted, with problem details."""
    status, headers, body = problem(error)
    answered = {name.decode(): value.decode() for name, value in headers}
    # The server adds the header `x-content-type-options` to its other answers, but not to the refusal of a WebSocket.
    answered["x-content-type-options"] = "nosniff"
    await websocket.send_denial_response(Response(body, status, answered, media_type=MEDIA_TYPE.decode()))


class Listen:
    """The handler of the WebSocket at /v1/queues/{queue_id}/listen?name=…&organization=…. It connects the client with
    the listener of this name. If the listener does not exist, the handler creates it. If the listener's URLs are not
    those of a tunnel, the client is refused.
    """

    def __init__(
        self, service: Service, commands: ListenerCommands, view: DirectoryView, tunnels: Tunnels, changes: ChangeLimits
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
            refusal=lambda: TooManyRequests(_TOO_MANY_TUNNELS, retry_after_s=1),
        )

    async def serve(self, websocket: WebSocket) -> None:
        token = secrets.token_urlsafe(24)
        url = f"{self._tunnels.address}/{token}"
        try:
            call = Call(_with_organization(websocket), websocket.receive, self._service)
            await call.admit("queues")
            with self._slots.slot(call.organization_id):
                self._changes.take(call.headers, call.organization_id)
                listener, created = await self._listener(call, websocket.query_params.get("name", ""), url)
                await websocket.accept()
                await self._hold(websocket, token, call, listener, created=created)
        except WebSocketDisconnect:  # The client closed the connection before the WebSocket was accepted.
            pass
        except BrokerError as error:
            await deny(websocket, error)

    async def _hold(self, websocket: WebSocket, token: str, call: Call, listener: Listener, *, created: bool) -> None:
        """Serve the WebSocket until one of its two sides closes it."""
        tenant = self._view.state.tenant_of(call.organization_id)
        with self._tunnels.opened(token, websocket, tenant) as tunnel, contextlib.suppress(WebSocketDisconnect):
            known = {"id": listener.id, "name": listener.name, "created": created}
            await tunnel.say({"type": "listening", "listener": known})
            watching = asyncio.create_task(self._watch(websocket, call, listener))
            try:
                while True:
                    tunnel.answered(await websocket.receive_text())
            except (KeyError, RuntimeError):  # KeyError: a binary message came. RuntimeError: the WebSocket is closed.
                pass
            finally:
                watching.cancel()

    async def _listener(self, call: Call, name: str, url: str) -> tuple[Listener, bool]:
        """Return the listener of this name, and whether it was created. If there is no such listener, create it.
        Otherwise, change the listener's URLs, so that workers send its messages to this process. Raises NameTaken if
        the listener's URLs are not those of a tunnel.
        """
        if not name:
            raise Refused("The listener needs a name. Add the parameter `name`.")
        await self._view.caught_up()
        queue = await find_queue(self._view, call.organization_id, call.path("queue_id"))
        listener_input = ListenerInput(name=name, notify_url=f"{url}/notify", liveness_url=f"{url}/live")
        known = next((one for one in queue.listeners.values() if one.name == name), None)
        if known is None:
            return (await self._commands.create_listener(call.context(), queue.id, listener_input, tunnel=True))[
                0
            ], True
        commands = self._commands
        return await commands.update_listener(call.context(), queue.id, known.id, listener_input, tunnel=True), False

    async def _watch(self, websocket: WebSocket, call: Call, listener: Listener) -> None:
        """Wait until the tunnel must end, and then close its WebSocket. The tunnel ends if the client's API key or
        session is no longer valid, if the account's role no longer permits the tunnel, or if the listener is deleted.
        It also ends if the listener's `notify_url` changes, usually because another client has taken the listener over.
        """
        while (end := self._end(call, listener)) is None:
            await asyncio.sleep(self._tunnels.bounds.look_s)
        with contextlib.suppress(RuntimeError, WebSocketDisconnect):
            await websocket.close(*end)

    def _end(self, call: Call, listener: Listener) -> tuple[int, str] | None:
        state = self._view.state
        if call.api_key is not None:
            if call.api_key.id not in state.keys:
                return REVOKED, "its API key was revoked"
            if call.api_key.has_expired(now_ms()):
                return REVOKED, "its API key has expired"
        else:
            try:
                call.check_still_in()
            except BrokerError:
                return REVOKED, "its session has ended, or its account may no longer do this"
        now = state.listeners.get(listener.id)
        if now is None:
            return DELETED, "its listener was deleted"
        return None if now.notify_url == listener.notify_url else (TAKEN_OVER, "another client now serves its listener")


def _with_organization(websocket: WebSocket) -> Scope:
    """Return the ASGI scope of a WebSocket. If the URL has the parameter `organization`, add the header
    `Everput-Organization` with the parameter's value, because a page in a browser can't add headers to a WebSocket.
    """
    organization_id = websocket.query_params.get("organization")
    if organization_id is None:
        return websocket.scope
    return {**websocket.scope, "headers": [*websocket.scope["headers"], (ORGANIZATION, organization_id.encode())]}
