"""The client's end of a tunnel: a WebSocket to the API that is kept open, and the local address.

For: connecting, reconnecting, passing each request on and its answer back. Not for: the API's end (api/tunnel.py),
output (cli/listen/show.py).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import httpx
import orjson
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, InvalidURI, WebSocketException

from broker.errors import ConfigurationError
from cli.listen.batches import failed_in, is_batch, notifications

REVOKED: Final = 4401  # the WebSocket close codes of api/tunnel.py
DELETED: Final = 4404
TAKEN_OVER: Final = 4409
# The largest WebSocket message that the client accepts. As JSON, 8 MiB of a request can take 16 MiB (escaped quotes).
TEXT_BYTES_MAX: Final = 32 << 20
ANSWER_S: Final = 120.0  # the longest `timeout_ms` that a listener may have
ALIVE_S: Final = 1.0
PAUSE_S_MIN: Final = 0.5
PAUSE_S_MAX: Final = 10.0


class Lost(Exception):
    """The error that a tunnel has ended and must not be opened again: another client has taken over, the listener was
    deleted or got another URL, or the API key is not valid any more.
    """


class TunnelClient:
    """The client's end of one tunnel, which passes requests on to the local address `target`.

    `on_event` is called for each event, with the event's name (listening, disconnected or answered) and its fields.
    `wants` is a function that says whether a message is passed on. All other messages are accepted and dropped. If
    `wants` is None, all messages are passed on.

    A batch is passed on if `wants` returns True for at least one of its messages. The batch is never split, because its
    signature is for the whole batch.
    """

    def __init__(
        self,
        url: str,
        key: str,
        queue_id: str,
        name: str,
        target: str,
        on_event: Callable[..., None],
        wants: Callable[[dict[str, Any]], bool] | None = None,
    ) -> None:
        self._wants = wants
        parts = urlsplit(target)
        self._place = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
        self._uri = (
            f"{url.replace('http', 'ws', 1).rstrip('/')}/v1/queues/{queue_id}/listen?{urlencode({'name': name})}"
        )
        self._key = key
        self._target = target
        self._on_event = on_event
        self._http = httpx.AsyncClient(timeout=ANSWER_S, trust_env=False)
        self._answering: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Keep the tunnel open until the task is cancelled.

        Raises Lost if the tunnel must not be opened again. Raises ConfigurationError if the API refuses the tunnel with
        a status below 500, except 429.
        """
        pause_s = PAUSE_S_MIN
        async with self._http:
            while True:
                began_s = time.monotonic()
                self._on_event("disconnected", reason=await self._connected())
                pause_s = PAUSE_S_MIN if time.monotonic() - began_s > PAUSE_S_MAX else min(pause_s * 2, PAUSE_S_MAX)
                await asyncio.sleep(pause_s)

    async def _connected(self) -> str:
        """Serve one connection until it ends, and return the reason of its end. Raises Lost if the tunnel must not be
        opened again. Raises ConfigurationError if the API refuses the tunnel with a status below 500, except 429.
        """
        headers = {"x-api-key": self._key}
        try:
            async with connect(
                self._uri, additional_headers=headers, max_size=TEXT_BYTES_MAX, proxy=None, user_agent_header="everput"
            ) as socket:
                await self._serve(socket)
        except InvalidStatus as error:
            status = error.response.status_code
            reason = f"{status} {_detail(error.response.body)}".strip()
            if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.TOO_MANY_REQUESTS:
                return f"the API answered {reason}"
            raise ConfigurationError(f"the API refused the tunnel: {reason}") from error
        except InvalidURI as error:
            raise ConfigurationError(str(error)) from error
        except ConnectionClosed as error:
            if error.rcvd is not None and error.rcvd.code in (REVOKED, DELETED, TAKEN_OVER):
                raise Lost(f"the tunnel has ended: {error.rcvd.reason}") from error
            return "the connection ended"
        except (OSError, TimeoutError, WebSocketException) as error:
            return f"{type(error).__name__}: {error}"
        return "the connection ended"

    async def _serve(self, socket: ClientConnection) -> None:
        async for text in socket:
            message = orjson.loads(text)
            if message["type"] == "listening":
                self._on_event("listening", **message["listener"])
                continue
            answer = self._alive if message["type"] == "live" else self._pass_on
            task = asyncio.create_task(self._answer(socket, message, answer))
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)

    async def _answer(self, socket: ClientConnection, message: dict[str, Any], answer: Callable[..., Any]) -> None:
        fields, shown = await answer(message)
        try:
            await socket.send(orjson.dumps({"number": message["number"], **fields}).decode())
        except ConnectionClosed:
            return  # Everput will send the message again
        if shown is not None:
            self._on_event("answered", request=message, resend=partial(self.resend, message), **shown)

    async def resend(self, message: dict[str, Any], number: int) -> None:
        """Send a request to the local address again, and show the answer with the request's number. The answer is not
        sent to the API.
        """
        _, shown = await self._pass_on_wanted(message)
        self._on_event("answered", resent=True, number=number, **shown)

    async def _alive(self, _message: dict[str, Any]) -> tuple[dict[str, Any], None]:
        """Return the answer to the API's request for liveness: whether a program at the local address accepts a
        connection within ALIVE_S seconds.
        """
        try:
            async with asyncio.timeout(ALIVE_S):
                _, writer = await asyncio.open_connection(*self._place)
                writer.close()
        except (OSError, TimeoutError):
            return {"alive": False}, None
        return {"alive": True}, None

    async def _pass_on(self, message: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any] | None]:
        if self._wants is not None and not any(map(self._wants, notifications(message))):
            return {"status": int(HTTPStatus.NO_CONTENT), "retry_after": None}, None
        return await self._pass_on_wanted(message)

    async def _pass_on_wanted(self, message: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        headers, body = message["headers"], message["body"]
        began_s, error, after, failed = time.monotonic(), None, None, list[str]()
        try:
            answer = await self._http.post(self._target, content=body.encode(), headers=headers)
            status, text = answer.status_code, answer.headers.get("retry-after", "")
            after = int(text) if text.isdecimal() else None
            if is_batch(headers.get("webhook-id")) and answer.is_success:
                failed = failed_in(answer.content, body)
        # The local program can't be reached, so it got nothing. Answer `away`: this does not count as an attempt.
        except httpx.ConnectError:
            status, error = int(HTTPStatus.BAD_GATEWAY), "nobody-there"
        except httpx.HTTPError as failure:
            status, error = int(HTTPStatus.BAD_GATEWAY), type(failure).__name__
        shown = {
            "status": status,
            "error": error,
            "took_ms": int((time.monotonic() - began_s) * 1000),
            "message_id": headers.get("webhook-id"),
            "attempt": headers.get("everput-attempt"),
            "body": body,
            "failed": failed,
            "to": self._target,
        }
        if error == "nobody-there":
            return {"away": True}, shown
        return {"status": status, "retry_after": after, "failed": failed}, shown


def _detail(body: bytes | bytearray | None) -> str:
    try:
        return str(orjson.loads(body or b"")["detail"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return ""
