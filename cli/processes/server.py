"""An HTTP server on a socket that is bound already: uvicorn with our settings, and bounds on what a client may do.

For: the API processes and the listeners of `everput demo`. Not for: signals (the process has its own) or the app."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any, Final

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request
from websockets.server import ServerProtocol

from api.clients import Clients
from api.problems import MEDIA_TYPE, framework_problem
from cli.processes.hosts import ANY, Hosts
from cli.processes.sockets import BACKLOG

KEEP_ALIVE_S: Final = 75  # Keep connections for longer than common proxies do, which is 60 s.
FINISH_S: Final = 7  # for running requests, after should_exit
HEAD_BYTES_MAX: Final = 32 << 10
REQUEST_S: Final = 60.0
FRAMING_BYTES_MAX: Final = 32 << 10  # The limit is for chunk extensions and trailers, which are neither head nor body.
_CHUNK_BYTES: Final = 20  # A chunk has a size of up to 16 digits and two line ends.
PIPELINED_MAX: Final = 32  # This many requests of a connection may wait for the answer to the one before.
WEBSOCKET_TEXT_BYTES_MAX: Final = 64 << 10  # A tunnel's client sends only short answers.
_READ_BYTES_MIN: Final = 64 << 10  # A client that reads less of its answer within request_s seconds is dropped.
_LOOK_TICKS: Final = 20  # of 100 ms

# These are uvicorn's lines about clients that break the protocol, do not read, or were refused.
# Anybody may cause thousands of them; what matters has a line of our own.
_CLIENTS_FAULTS: Final = (
    "ASGI callable returned without completing",  # The answer was cut off (stream.cut), or the WebSocket was refused.
    "opening handshake failed",
    "parser failed",
    "Invalid UTF-8 sequence",
)
_uvicorn = logging.getLogger("uvicorn.error")
_uvicorn.setLevel(logging.ERROR)
_uvicorn.addFilter(lambda record: not record.getMessage().startswith(_CLIENTS_FAULTS))


class _Config(uvicorn.Config):
    connections_max: int | None = None
    hosts: Hosts = Hosts([ANY])
    clients: Clients | None = None
    connections_of: Counter[str]  # by client


class Server(uvicorn.Server):
    """An HTTP server with bounds. Await serve(sockets=[…]); set should_exit to end it.

    app: ASGI.
    accepts: called once when requests are accepted.
    request_s: how long a client may take to send a request, to begin its first one, or to read its answer.
    connections_max: concurrent clients; None for no limit.
    websockets: whether the app accepts some.
    hosts: accepted names; another name in the header Host is answered 421.
    clients: one client may have half of connections_max; None: all.
    """

    config: _Config

    def __init__(
        self,
        app: Any,
        *,
        accepts: Callable[[], None] = lambda: None,
        request_s: float = REQUEST_S,
        connections_max: int | None = None,
        websockets: bool = False,
        hosts: Hosts | None = None,
        clients: Clients | None = None,
        look_ticks: int = _LOOK_TICKS,
    ) -> None:
        self._look_ticks = look_ticks
        super().__init__(
            _Config(
                app,
                loop="none",
                http=_Connection,
                ws=_WebSocket if websockets else "none",
                ws_max_size=WEBSOCKET_TEXT_BYTES_MAX,
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                headers=[("x-content-type-options", "nosniff")],
                proxy_headers=False,
                backlog=BACKLOG,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=FINISH_S,
            )
        )
        self.config.connections_max = connections_max
        self.config.clients = clients
        self.config.connections_of = Counter()
        if hosts is not None:
            self.config.hosts = hosts
        self._accepts = accepts
        self._request_s = request_s

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._accepts()

    async def on_tick(self, counter: int) -> bool:
        if counter % self._look_ticks == 0:
            before = asyncio.get_running_loop().time() - self._request_s
            for connection in list(self.server_state.connections):
                if isinstance(connection, _Connection):
                    connection.close_if_waiting_since(before)
                if isinstance(connection, _Written):
                    connection.drop_if_unread_since(before)
        return await super().on_tick(counter)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Written(asyncio.Protocol):
    """A connection that is dropped when its client does not read its answer, because closing would wait for that."""

    transport: asyncio.Transport
    loop: asyncio.AbstractEventLoop
    _unread_since = 0.0  # The client has read little of its answer since this time; 0.0: nothing is left to read.
    _unread_bytes = 0

    def resume_writing(self) -> None:
        self._unread_since = 0.0
        super().resume_writing()

    def drop_if_unread_since(self, before: float) -> None:
        """Drop the connection if the client has read little or nothing of its answer since that time."""
        left = self.transport.get_write_buffer_size()
        if not left or not self._unread_since or left <= self._unread_bytes - _READ_BYTES_MIN:
            self._unread_since = self.loop.time() if left else 0.0
            self._unread_bytes = left
        elif self._unread_since < before:
            self.transport.abort()


class _WebSocket(_Written, WebSocketsSansIOProtocol):
    """A WebSocket that ignores a client's text before it is open, which uvicorn's protocol would raise an error for."""

    def keepalive_timeout(self) -> None:
        """Drop a client that answers no ping, because it may not read, either."""
        super().keepalive_timeout()
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if self.handshake_initiated and not self.handshake_complete:
            self.transport.abort()
        else:
            super().data_received(data)


class _Lingering:
    """A connection's transport whose close() waits until the client has sent its whole request.

    Closing earlier would reset the connection, and a client that is still sending would never see its answer
    (RFC 9112, 9.6).
    """

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self._transport = transport
        self.close = close

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class _Connection(_Written, HttpToolsProtocol):
    """A client's connection, with the bounds that uvicorn lacks, and with errors as problem details.

    The size of a head, the time of a request, and the bytes of a chunked body's framing are bounded. Trailers are
    dropped (RFC 9112, 7.1.2), because uvicorn would append them to the headers. After too many unanswered requests,
    further ones are dropped: uvicorn would hold them all. The answer to the last accepted one says that the connection
    closes (RFC 9112, 9.3.2 and 9.6).
    """

    config: _Config
    # The rest of a request has been awaited since this time; None: none is under way.
    _waiting_since: float | None = None
    # The bytes of an unfinished head. The read in which it began does not count, so the count is below 0 until its end.
    _head_bytes = 0
    _read_bytes = 0  # in this read
    _in_head = False
    # The bytes that came after the head and are no content, such as chunk sizes. A whole read is added at its end, so
    # the head and the content in it are subtracted before: the count is below 0 until then.
    _framing_bytes = 0
    _client_name: str | None = None
    _last_taken = False  # no request comes after this one
    _deaf = False  # and another one began
    _closing = False  # The last answer was sent; the rest of its request is read and dropped until request_s is over.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._waiting_since = self.loop.time()
        connections_max = self.config.connections_max
        if connections_max is not None and len(self.connections) > connections_max:
            self._refuse(503, "This process has as many connections as it may.", b"retry-after: 1\r\n")
            return
        clients, of = self.config.clients, self.config.connections_of
        if connections_max is None or clients is None or self.client is None:
            return
        self._client_name = name = clients.peer(self.client[0])
        if name is not None:
            of[name] += 1
            if of[name] * 2 > connections_max:
                self._refuse(503, "Your network address has as many connections as it may.", b"retry-after: 1\r\n")

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._release_client()

    def handle_websocket_upgrade(self) -> None:
        """Hand the connection over to a WebSocket, unless the request was refused or opens none.

        uvicorn's protocol does not answer a head that the websockets library can't read, and has no time limit before a
        WebSocket is open.
        """
        if self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self._take_last()  # Its answer must not come before those of earlier requests.
            self._deaf = True
            return
        if not self._opens_websocket():
            self._refuse(400, "The request does not open a WebSocket: RFC 6455, section 4.2.1, says what it must have.")
            return
        self._release_client()  # another protocol has the transport now
        super().handle_websocket_upgrade()

    def _opens_websocket(self) -> bool:
        """Return whether the websockets library accepts the request's head, in the way that uvicorn asks it."""
        trial = ServerProtocol()
        lines = [b"%b: %b\r\n" % pair for pair in self.headers]
        trial.receive_data(b"%b %b HTTP/1.1\r\n%b\r\n" % (self.parser.get_method(), self.url, b"".join(lines)))
        request = next(iter(trial.events_received()), None)
        return isinstance(request, Request) and trial.accept(request).status_code == HTTPStatus.SWITCHING_PROTOCOLS

    def _release_client(self) -> None:
        name, of = self._client_name, self.config.connections_of
        if name is not None:
            self._client_name = None
            of[name] -= 1
            if not of[name]:
                del of[name]

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        self._read_bytes = len(data)
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES_MAX and not self.transport.is_closing():
                self._refuse_head()
        elif self._waiting_since is not None:  # the request is not complete
            self._framing_bytes += len(data)
            if self._framing_bytes > FRAMING_BYTES_MAX and not self.transport.is_closing():
                self._refuse_unfinished(
                    431, f"Chunk extensions and trailers may have at most {FRAMING_BYTES_MAX} bytes."
                )

    def on_message_begin(self) -> None:
        if self._last_taken:
            self._deaf = True
            raise BufferError  # the parser stops here
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = -self._read_bytes
        self._waiting_since = self.loop.time()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._framing_bytes = -self._read_bytes
        # A head that comes in one small read needs no counting.
        if self._read_bytes > HEAD_BYTES_MAX or self._head_bytes >= 0:
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > HEAD_BYTES_MAX:
                self._refuse_head()
                return
        if not self.transport.is_closing() and self._is_well_formed():
            super().on_headers_complete()
            if len(self.pipeline) >= PIPELINED_MAX:
                self._take_last()
            elif self.cycle is not None and not self.cycle.keep_alive:
                self._last_taken = True
                self.cycle.transport = _Lingering(self.transport, self._close_when_received)  # type: ignore[assignment]

    def _close_when_received(self) -> None:
        """Close the connection when the client has sent its whole request, or when close_if_waiting_since() does."""
        if self._waiting_since is None:
            self.transport.close()
        else:
            self._closing = True

    def _take_last(self) -> None:
        """Close when the newest request is answered, and say so in its answer."""
        self._last_taken = True
        self.cycle.scope["headers"].append((b"connection", b"close"))  # type: ignore[attr-defined]
        self.cycle.keep_alive = False

    def _is_well_formed(self) -> bool:
        """Check the headers that say whom the request is for and where it ends. If they are wrong, answer and close.

        RFC 9112, 3.2 (Host) and 6.1 (Transfer-Encoding, of which httptools accepts any that ends in chunked).
        """
        host = coding = None
        hosts = 0
        for name, value in self.headers:
            if name == b"host":
                host = value
                hosts += 1
            elif name == b"transfer-encoding":
                coding = value if coding is None else b""
        if coding is not None and coding.lower() != b"chunked":
            self._refuse(501, "The only transfer coding that is understood is chunked.")
        elif hosts > 1 or (host is None and self.parser.get_http_version() != "1.0"):
            self._refuse(400, "A request has the header Host, once.")
        elif host is not None and host not in self.config.hosts:
            self._refuse(421, "This server does not answer to that host name; --public-url or --allowed-host adds one.")
        else:
            return True
        return False

    def on_chunk_header(self) -> None:
        self._framing_bytes -= _CHUNK_BYTES

    def on_body(self, body: bytes) -> None:
        self._framing_bytes -= len(body)
        if not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._waiting_since = None
        if self._closing:
            self.transport.close()
        elif not self.transport.is_closing():
            super().on_message_complete()

    def close_if_waiting_since(self, before: float) -> None:
        """Close the connection if the client has owed the rest of a request since that time."""
        if self._waiting_since is None or self._waiting_since > before or self.transport.is_closing():
            return
        self._refuse_unfinished(408, "The request took too long to arrive.")

    def send_400_response(self, msg: str) -> None:
        if not self.transport.is_closing() and not self._deaf:
            self._refuse(400, msg)

    def _refuse_unfinished(self, status: int, detail: str) -> None:
        """Answer an incomplete request and close; only close if its answer has begun."""
        if self._in_head or (self.cycle is not None and not self.cycle.response_started):
            self._refuse(status, detail)
        else:
            self.transport.close()

    def _refuse_head(self) -> None:
        status = 414 if len(self.url) > HEAD_BYTES_MAX // 2 else 431
        self._refuse(status, f"The request's line and headers may have at most {HEAD_BYTES_MAX} bytes.")

    def _refuse(self, status: int, detail: str, header: bytes = b"") -> None:
        """Answer without the app, and close. header: an additional one, with its line end."""
        answer = framework_problem(status, detail)
        lines = [b"HTTP/1.1 %d %s" % (status, HTTPStatus(status).phrase.encode()), b"content-type: " + MEDIA_TYPE]
        lines.append(b"x-content-type-options: nosniff")
        lines += [b"content-length: %d" % len(answer.body), header + b"connection: close", b"", answer.body]
        self.transport.write(b"\r\n".join(lines))
        self.transport.close()
