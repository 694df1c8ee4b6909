"""An HTTP server on a bound socket: uvicorn with our settings, and with bounds on what a client may do.

For: API processes, and the listeners of `everput demo`. Not for: signals (the process handles them) or the application.
"""

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
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request
from websockets.server import ServerProtocol

from api.clients import Clients
from api.direct_puts import DirectPuts
from api.problems import MEDIA_TYPE, framework_problem
from cli.processes.direct import DirectConfig, DirectCycle, DirectPutProtocol
from cli.processes.hosts import ANY, Hosts
from cli.processes.sockets import BACKLOG

KEEP_ALIVE_S: Final = 75  # longer than the 60 s of most proxies, so that the proxy closes an idle connection first
FINISH_S: Final = 7  # requests that still run at shutdown have this many seconds to finish
HEAD_BYTES_MAX: Final = 32 << 10
REQUEST_S: Final = 60.0
# A request with a chunked body may have at most this many bytes of chunk extensions and trailers.
FRAMING_BYTES_MAX: Final = 32 << 10
# This many bytes of each chunk do not count as framing: 16 digits for the chunk's size, and two line ends.
_CHUNK_BYTES: Final = 20
# While this many requests of a connection wait for the answer to an earlier one, further requests are dropped.
PIPELINED_MAX: Final = 32
WEBSOCKET_TEXT_BYTES_MAX: Final = 64 << 10  # longer WebSocket messages are refused; a tunnel's client sends short ones
# A client that reads fewer bytes than this of a waiting answer in `request_s` seconds is disconnected.
_READ_BYTES_MIN: Final = 64 << 10
_TICKS_PER_S: Final = 10  # uvicorn counts ten ticks a second
_LOOK_TICKS: Final = 20  # the server looks for slow and idle clients every 20 ticks of uvicorn (100 ms each)

# uvicorn logs lines that begin with these texts if a client breaks the protocol, does not read, or is refused.
# Everput drops log lines of uvicorn that begin with these texts, because any client can cause thousands of such lines.
_CLIENTS_FAULTS: Final = (
    # uvicorn logs this text if an answer was cut off, or if a WebSocket was refused
    "ASGI callable returned without completing",
    "opening handshake failed",
    "parser failed",
    "Invalid UTF-8 sequence",
)
_uvicorn = logging.getLogger("uvicorn.error")
_uvicorn.setLevel(logging.ERROR)
_uvicorn.addFilter(lambda record: not record.getMessage().startswith(_CLIENTS_FAULTS))


class _Config(DirectConfig):
    connections_max: int | None = None
    hosts: Hosts = Hosts([ANY])
    clients: Clients | None = None
    connections_of: Counter[str]  # connections by client


class Server(uvicorn.Server):
    """An HTTP server with bounds. Await `serve(sockets=[…])`, and set `should_exit` to end it.

    `accepts` is called once, when the server accepts requests. A client has `request_s` seconds to send a request, and
    must read its answer at a minimum rate. A request for a host that is not in `hosts` is answered 421. With `clients`,
    one client may have at most half of the `connections_max` connections. `direct_puts` answers small, valid puts that
    need not wait, without the app.
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
        direct_puts: DirectPuts | None = None,
        look_ticks: int = _LOOK_TICKS,
    ) -> None:
        self._look_ticks = look_ticks
        self._exits = asyncio.Event()
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
        self.config.direct_puts = direct_puts
        self.config.connections_of = Counter()
        if hosts is not None:
            self.config.hosts = hosts
        self._accepts = accepts
        self._request_s = request_s

    @property
    def should_exit(self) -> bool:
        """Whether the server must end. After this property is set to True, running requests get FINISH_S seconds."""
        return self._exits.is_set()

    @should_exit.setter
    def should_exit(self, ends: bool) -> None:
        if ends:
            self._exits.set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._accepts()

    async def main_loop(self) -> None:
        """Call `on_tick` once a second, or every `look_ticks` tenths of a second if that is more often. uvicorn's own
        loop calls `on_tick` ten times a second.
        """
        counter, step = 0, min(self._look_ticks, _TICKS_PER_S)
        while not await self.on_tick(counter):
            counter += step
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(step / _TICKS_PER_S):
                    await self._exits.wait()

    async def on_tick(self, counter: int) -> bool:
        if counter % self._look_ticks == 0:
            before = asyncio.get_running_loop().time() - self._request_s
            for connection in list(self.server_state.connections):
                if isinstance(connection, _Connection):
                    connection.close_if_waiting_since(before)
                    connection.close_if_idle()
                if isinstance(connection, _Written):
                    connection.drop_if_unread_since(before)
        return await super().on_tick(counter)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Written(asyncio.Protocol):
    """A connection that is aborted if its client reads too little of an answer. A normal close would wait for the
    client.
    """

    transport: asyncio.Transport
    loop: asyncio.AbstractEventLoop
    # The time since which the client has read too little of its answer; 0.0 if it has read enough.
    _unread_since = 0.0
    _unread_bytes = 0

    def resume_writing(self) -> None:
        self._unread_since = 0.0
        super().resume_writing()

    def drop_if_unread_since(self, before: float) -> None:
        """Disconnect the client if it has read little or nothing of its answer since the time `before`."""
        left = self.transport.get_write_buffer_size()
        if not left or not self._unread_since or left <= self._unread_bytes - _READ_BYTES_MIN:
            self._unread_since = self.loop.time() if left else 0.0
            self._unread_bytes = left
        elif self._unread_since < before:
            self.transport.abort()


class _WebSocket(_Written, WebSocketsSansIOProtocol):
    """A WebSocket that is aborted if its client sends data before the WebSocket is open. uvicorn's class would raise an
    error.
    """

    def keepalive_timeout(self) -> None:
        """Disconnect a client that does not answer a ping, because it has probably stopped reading."""
        super().keepalive_timeout()
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if self.handshake_initiated and not self.handshake_complete:
            self.transport.abort()
        else:
            super().data_received(data)


class _Lingering:
    """A transport whose `close` waits until the client has sent its whole request.

    An earlier close would reset the connection. After a reset, a client that is still sending would not see the answer
    (RFC 9112, 9.6).
    """

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self._transport = transport
        self.close = close

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class _Connection(_Written, DirectPutProtocol):
    """The connection of a client, with bounds that uvicorn lacks, and with errors as problem details.

    The size of a head, the time of a request, and the framing of a chunked body are bounded. Trailers are dropped.
    While PIPELINED_MAX requests wait for their answers, further requests are dropped, and the last answer closes the
    connection.
    """

    config: _Config
    # The time since which the server waits for a first request, or for the rest of a request. None if it does not wait.
    _waiting_since: float | None = None
    # The bytes of a head that came after the socket read in which the head began. During that read, it is negative.
    _head_bytes = 0
    _read_bytes = 0  # bytes of the current socket read
    # The bytes of chunk sizes, extensions and trailers that came after the socket read in which the head ended.
    # In a chunked request, the content and 20 bytes (_CHUNK_BYTES) for each chunk do not count as framing.
    # _framing_bytes can be negative: content that came with the end of the head is subtracted, but was never added.
    _framing_bytes = 0
    _client_name: str | None = None
    _last_taken = False  # True if this connection accepts no more requests, and closes after the last answer
    # True if the client has begun a request after the last one that is accepted. All further bytes are dropped.
    _deaf = False
    # True if a request was answered before all of it had arrived. When all has arrived, the connection closes.
    _closing = False

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
        """Hand the connection over to a WebSocket. If earlier requests are unanswered, or the request is no valid
        WebSocket request, close the connection after the answers instead.

        uvicorn itself does not answer an invalid WebSocket request, and has no time limit before a WebSocket is open.
        """
        if self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self._take_last()  # drop the WebSocket request, and close after the answers to earlier requests
            self._deaf = True
            return
        if not self._opens_websocket():
            self._refuse(400, "The request does not open a WebSocket: RFC 6455, section 4.2.1, says what it must have.")
            return
        self._release_client()  # the WebSocket has the connection now
        super().handle_websocket_upgrade()

    def _opens_websocket(self) -> bool:
        """Return whether the websockets library accepts this request, by asking the library as uvicorn does."""
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
        if self.in_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES_MAX and not self.transport.is_closing():
                self._refuse_head()
        elif self._waiting_since is not None:  # the request is incomplete
            self._framing_bytes += len(data)
            if self._framing_bytes > FRAMING_BYTES_MAX and not self.transport.is_closing():
                self._refuse_unfinished(
                    431, f"Chunk extensions and trailers may have at most {FRAMING_BYTES_MAX} bytes."
                )

    def on_message_begin(self) -> None:
        if self._last_taken:
            self._deaf = True
            raise BufferError  # this stops the parser
        super().on_message_begin()
        self._head_bytes = -self._read_bytes
        self._waiting_since = self.loop.time()

    def on_headers_complete(self) -> None:
        self.in_head = False
        self._framing_bytes = -self._read_bytes
        # A head that came in one socket read of at most HEAD_BYTES_MAX bytes can't be too large.
        if self._read_bytes > HEAD_BYTES_MAX or self._head_bytes >= 0:
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > HEAD_BYTES_MAX:
                self._refuse_head()
                return
        if not self.transport.is_closing() and self._is_well_formed():
            super().on_headers_complete()

    def begun(self) -> None:
        waiting = len(self.pipeline)
        if self.unanswered:
            waiting += len(self.unanswered) - 1  # The first one is being answered.
        if waiting >= PIPELINED_MAX:
            self._take_last()
        elif self.cycle is not None and not isinstance(self.cycle, DirectCycle) and not self.cycle.keep_alive:
            self._last_taken = True
            self.cycle.transport = _Lingering(self.transport, self._close_when_received)  # type: ignore[assignment]

    def _close_when_received(self) -> None:
        """Close the connection when the client has sent its whole request, or after the time limit for a request."""
        if self._waiting_since is None:
            self.transport.close()
        else:
            self._closing = True

    def _take_last(self) -> None:
        """Close the connection after the answer to the newest request, and announce that in the answer's header."""
        self._last_taken = True
        if not isinstance(self.cycle, DirectCycle):
            self.cycle.scope["headers"].append((b"connection", b"close"))  # type: ignore[attr-defined]
        self.cycle.keep_alive = False

    def _is_well_formed(self) -> bool:
        """Return whether the headers Host and Transfer-Encoding of a request are valid (RFC 9112, 3.2 and 6.1), and the
        server accepts the host. If not, answer with an error and close the connection.
        """
        names = dict(self.headers)
        usual = len(names) == len(self.headers) and b"transfer-encoding" not in names
        if usual and names.get(b"host", b"") in self.config.hosts:
            return True
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
        """Close the connection if it has waited for the rest of a request since the time `before`, or for longer.
        Answer with an error first, unless the answer has begun.
        """
        if self._waiting_since is None or self._waiting_since > before or self.transport.is_closing():
            return
        self._refuse_unfinished(408, "The request took too long to arrive.")

    def send_400_response(self, msg: str) -> None:
        if not self.transport.is_closing() and not self._deaf:
            self._refuse(400, msg)

    def _refuse_unfinished(self, status: int, detail: str) -> None:
        """Answer an incomplete request with an error, unless its answer has begun. Close the connection."""
        if self.in_head or (self.cycle is not None and not self.cycle.response_started):
            self._refuse(status, detail)
        else:
            self.transport.close()

    def _refuse_head(self) -> None:
        status = 414 if len(self.url) > HEAD_BYTES_MAX // 2 else 431
        self._refuse(status, f"The request's line and headers may have at most {HEAD_BYTES_MAX} bytes.")

    def _refuse(self, status: int, detail: str, header: bytes = b"") -> None:
        """Send an error as the answer, without the application, and close the connection. `header` is a further line of
        the answer's head.
        """
        answer = framework_problem(status, detail)
        lines = [b"HTTP/1.1 %d %s" % (status, HTTPStatus(status).phrase.encode()), b"content-type: " + MEDIA_TYPE]
        lines.append(b"x-content-type-options: nosniff")
        lines += [b"content-length: %d" % len(answer.body), header + b"connection: close", b"", answer.body]
        self.transport.write(b"\r\n".join(lines))
        self.transport.close()
