"""Tunnels: a client's own machine as a listener, over a WebSocket that the client holds to one API process.

For: the WebSocket's end, and the addresses at which workers reach the listener through it, on a socket of this
process's own. Not for: the client's end (cli/listen.py). While no client is connected the liveness answer is 503.

Whoever connects makes its listener's URLs those of the process it is connected to: docs/decisions/0060.
JSON texts: `listening` once, then `request` and `live`, each with a number that the client's answer repeats: `status`
and `retry_after`, or `away` when the local address could not be connected to; `alive`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
from typing import Any, Final

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.websockets import WebSocket, WebSocketDisconnect

from api.auth import check_scope
from api.calls import Call, Service
from api.problems import MEDIA_TYPE, problem
from broker.commands import Commands, ListenerWishes, find_queue
from broker.core.directory import Listener
from broker.delivery.guard import AWAY
from broker.errors import BrokerError, Refused
from broker.ports import DirectoryView

ANSWER_S_MAX: Final = 125.0  # longer than any listener's timeout_ms
LIVE_S: Final = 2.5  # a probe waits for three seconds
LOOK_S: Final = 1.0
DELETED: Final = 4404  # close codes: the listener is no more; another client has connected for it
TAKEN_OVER: Final = 4409
_NOT_PASSED_ON: Final = frozenset({"host", "connection", "content-length", "transfer-encoding", "user-agent"})


class Tunnel:
    """One client's socket."""

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket
        self._numbers = itertools.count()
        self._asked: dict[int, asyncio.Future[dict[str, Any]]] = {}

    async def ask(self, message: dict[str, Any], timeout_s: float) -> dict[str, Any] | None:
        """The client's answer; None when there is none in time."""
        number = next(self._numbers)
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        try:
            async with asyncio.timeout(timeout_s):
                await self._websocket.send_text(orjson.dumps({**message, "number": number}).decode())
                return await answer
        except (TimeoutError, asyncio.CancelledError, WebSocketDisconnect, RuntimeError):  # RuntimeError: it is closed
            return None
        finally:
            del self._asked[number]

    def answered(self, text: str) -> None:
        """What the client says; what makes no sense is passed over."""
        with contextlib.suppress(ValueError, AttributeError, TypeError):
            message = orjson.loads(text)
            answer = self._asked.get(message["number"]) if "number" in message else None
            if answer is not None and not answer.done():
                answer.set_result(message)

    def ended(self) -> None:
        for answer in self._asked.values():
            answer.cancel()


class Tunnels:
    """Those of one API process. address: `tunnel://host:port`, where workers reach app; set once it is served."""

    def __init__(self, address: str = "") -> None:
        self.address = address
        self._open: dict[str, Tunnel] = {}
        routes = [Route("/{token}/notify", self._notify, methods=["POST"]), Route("/{token}/live", self._live)]
        self.app = Starlette(routes=routes)

    @contextlib.contextmanager
    def opened(self, token: str, websocket: WebSocket) -> Any:
        """The socket is there meanwhile."""
        tunnel = self._open[token] = Tunnel(websocket)
        try:
            yield tunnel
        finally:
            del self._open[token]
            tunnel.ended()

    async def _notify(self, request: Request) -> Response:
        tunnel = self._open.get(request.path_params["token"])
        if tunnel is None:
            return Response(status_code=AWAY)
        headers = {name: value for name, value in request.headers.items() if name not in _NOT_PASSED_ON}
        body = (await request.body()).decode(errors="replace")
        answer = await tunnel.ask({"type": "request", "headers": headers, "body": body}, ANSWER_S_MAX)
        if answer and answer.get("away") is True:
            return Response(status_code=AWAY)
        status = answer.get("status") if answer else None
        if not isinstance(status, int) or not 200 <= status < AWAY:
            return Response(status_code=503)
        after = answer.get("retry_after") if answer else None
        return Response(status_code=status, headers={"retry-after": str(after)} if isinstance(after, int) else None)

    async def _live(self, request: Request) -> Response:
        tunnel = self._open.get(request.path_params["token"])
        answer = tunnel and await tunnel.ask({"type": "live"}, LIVE_S)
        return Response(status_code=204 if answer and answer.get("alive") is True else 503)


class Listen:
    """The WebSocket at /v1/queues/{queue_id}/listen?name=…: a listener of that name, made if there is none."""

    def __init__(self, service: Service, commands: Commands, view: DirectoryView, tunnels: Tunnels) -> None:
        self._service = service
        self._commands = commands
        self._view = view
        self._tunnels = tunnels

    async def serve(self, websocket: WebSocket) -> None:
        token = secrets.token_urlsafe(24)
        url = f"{self._tunnels.address}/{token}"
        try:
            listener = await self._listener(websocket, url)
        except BrokerError as error:
            status, headers, body = problem(error)
            told = {name.decode(): value.decode() for name, value in headers}
            await websocket.send_denial_response(Response(body, status, told, media_type=MEDIA_TYPE.decode()))
            return
        await websocket.accept()
        with self._tunnels.opened(token, websocket) as tunnel, contextlib.suppress(WebSocketDisconnect):
            shown = {"id": listener.id, "name": listener.name}
            await websocket.send_text(orjson.dumps({"type": "listening", "listener": shown}).decode())
            watching = asyncio.create_task(self._watch(websocket, listener, url))
            try:
                while True:
                    tunnel.answered(await websocket.receive_text())
            except (KeyError, RuntimeError):  # a binary message; it is closed
                pass
            finally:
                watching.cancel()

    async def _listener(self, websocket: WebSocket, url: str) -> Listener:
        """The listener, whose URLs lead here from now on (BrokerError)."""
        call = Call(websocket.scope, websocket.receive, self._service)
        call.key = await self._service.keys.find(call.key_text, call.headers)
        check_scope(call.key, "queues")
        name = websocket.query_params.get("name", "")
        if not name:
            raise Refused("the listener needs a name, in the parameter `name`")
        await self._view.caught_up()
        queue = await find_queue(self._view, call.key.organization_id, call.path("queue_id"))
        wishes = ListenerWishes(name=name, notify_url=f"{url}/notify", liveness_url=f"{url}/live")
        known = next((one for one in queue.listeners.values() if one.name == name), None)
        if known is None:
            return (await self._commands.create_listener(call.context(), queue.id, wishes, tunnel=True))[0]
        return await self._commands.update_listener(call.context(), queue.id, known.id, wishes, tunnel=True)

    async def _watch(self, websocket: WebSocket, listener: Listener, url: str) -> None:
        """Until the listener is another client's, or no more."""
        while True:
            await asyncio.sleep(LOOK_S)
            now = self._view.state.listeners.get(listener.id)
            if now is None or now.notify_url != f"{url}/notify":
                code, reason = (DELETED, "deleted") if now is None else (TAKEN_OVER, "another has connected for it")
                with contextlib.suppress(RuntimeError, WebSocketDisconnect):
                    await websocket.close(code, reason)
                return
