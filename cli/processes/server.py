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

KEEP_ALIVE_S: Final = 75  # most proxies close an idle connection after 60 s, before the server does
FINISH_S: Final = 7  # at shutdown, running requests have this many seconds to finish
HEAD_BYTES_MAX: Final = 32 << 10
REQUEST_S: Final = 60.0
# The chunk extensions and trailers of a request with a chunked body may have at most this many bytes in total.
FRAMING_BYTES_MAX: Final = 32 << 10
# 20 bytes of each chunk do not count towards FRAMING_BYTES_MAX: up to 16 digits of its size, and two line ends.
_CHUNK_BYTES: Final = 20
# If 32 requests of a connection wait for the answer to an earlier request, the server drops all later requests.
PIPELINED_MAX: Final = 32
WEBSOCKET_TEXT_BYTES_MAX: Final = 64 << 10  # longer WebSocket messages are refused; a tunnel's client sends short ones
# A client is disconnected if an answer waits and it reads less than 64 KiB of it in `request_s` seconds.
_READ_BYTES_MIN: Final = 64 << 10
_TICKS_PER_S: Final = 10  # uvicorn counts ten ticks a second
_LOOK_TICKS: Final = 20  # every 20 ticks of uvicorn (2 s), the server looks for slow and idle clients

# uvicorn logs a line that begins with one of these texts if a client breaks the protocol, reads nothing or is refused.
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
    """An HTTP server that limits what a client may do. Await `serve(sockets=[…])` to run the server. Set `should_exit`
    to True to end it.

    The server closes a connection if its client takes longer than `request_s` seconds to send a request, or reads its
    answer too slowly. A request for a host that is not in `hosts` is answered 421. At most `connections_max`
    connections may be open. If `clients` is given, one client may have at most half as many HTTP connections. Proxies
    and loopback addresses may have more.

    `accepts` is called once, when the server begins to accept requests. `direct_puts` answers usual puts (small, valid,
    and without a need to wait) without calling `app`.
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
        """Whether the server must end. Once it is set to True, running requests have FINISH_S seconds to finish."""
        return self._exits.is_set()

    @should_exit.setter
    def should_exit(self, ends: bool) -> None:
        if ends:
            self._exits.set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._accepts()

    async def main_loop(self) -> None:
        """Call `on_tick` once a second. If `look_ticks` is less than 10, call it every `look_ticks` tenths of a second.
        uvicorn's own loop would call `on_tick` ten times a second, which takes more processor time.
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
    """A connection that is aborted if its client reads too little of an answer. An abort is needed because a normal
    close would wait until the client has read the answer.
    """

    transport: asyncio.Transport
    loop: asyncio.AbstractEventLoop
    # The loop time since which the client has read less than 64 KiB of an answer that waits.
    # _unread_since is 0.0 if no answer waits, or if the client has read enough.
    _unread_since = 0.0
    _unread_bytes = 0

    def resume_writing(self) -> None:
        self._unread_since = 0.0
        super().resume_writing()

    def drop_if_unread_since(self, before: float) -> None:
        """Disconnect the client if an answer has waited since the loop time `before`, and the client has read less than
        64 KiB of the answer since then.
        """
        left = self.transport.get_write_buffer_size()
        if not left or not self._unread_since or left <= self._unread_bytes - _READ_BYTES_MIN:
            self._unread_since = self.loop.time() if left else 0.0
            self._unread_bytes = left
        elif self._unread_since < before:
            self.transport.abort()


class _WebSocket(_Written, WebSocketsSansIOProtocol):
    """A WebSocket connection. If its client sends data before the WebSocket is open, the connection is aborted: in this
    case, uvicorn's class would raise an error.
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
    """A transport with another close(), which closes the connection only after the client has sent its whole request.

    With the usual close(), a client that is still sending would get a reset, and would not see the answer (RFC 9112,
    9.6).
    """

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self._transport = transport
        self.close = close

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class _Connection(_Written, DirectPutProtocol):
    """The connection of a client, with limits that uvicorn lacks. Errors are answered with problem details.

    Three things are limited: the size of a request's head, the time for sending a request, and the bytes of chunk
    extensions and trailers. Trailers are dropped. If PIPELINED_MAX requests wait for the answer to an earlier request,
    all later requests are dropped, and the connection closes after the last answer.
    """

    config: _Config
    # The loop time since which the server waits for a first request, or for the rest of a request; None if for neither.
    _waiting_since: float | None = None
    # How many bytes of a request's head came after the head's first socket read; negative during the first read.
    _head_bytes = 0
    _read_bytes = 0  # bytes of the current socket read
    # The bytes of a request's chunk extensions and trailers, without those in the socket read that ends its head.
    # Each later socket read adds its bytes to _framing_bytes. Each chunk subtracts its content and 20 bytes.
    # Chunks in the socket read that ends the head are subtracted, but not added. So _framing_bytes can be negative.
    _framing_bytes = 0
    _client_name: str | None = None
    # True if the client has sent a request after the last one that is accepted. Then all further bytes are dropped.
    _deaf = False
    # True if a request was answered before it had arrived completely. The connection closes when the rest has arrived.
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
        """Hand the connection over to a WebSocket. If earlier requests are unanswered, drop the WebSocket request
        instead, and close the connection after the answers to the earlier requests.

        If the WebSocket request is not valid, answer 400. uvicorn would give no answer, and would leave the connection
        open without a time limit.
        """
        if self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            # Close the connection after the answers to earlier requests, and drop the WebSocket request.
            self._take_last()
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
        if self.last_taken:
            self._deaf = True
            raise BufferError  # this stops the parser
        super().on_message_begin()
        self._head_bytes = -self._read_bytes
        self._waiting_since = self.loop.time()

    def on_headers_complete(self) -> None:
        self.in_head = False
        self._framing_bytes = -self._read_bytes
        # A head that came in one socket read of at most HEAD_BYTES_MAX bytes is small enough. Check all other heads.
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
            waiting += len(self.unanswered) - 1  # The first of these puts does not wait: it is being answered.
        if waiting >= PIPELINED_MAX:
            self._take_last()
        elif self.cycle is not None and not isinstance(self.cycle, DirectCycle) and not self.cycle.keep_alive:
            self.last_taken = True
            self.cycle.transport = _Lingering(self.transport, self._close_when_received)  # type: ignore[assignment]

    def _close_when_received(self) -> None:
        """Close the connection when the client has sent its whole request. If that takes longer than the time limit for
        a request, close_if_waiting_since() closes the connection before.
        """
        if self._waiting_since is None:
            self.transport.close()
        else:
            self._closing = True

    def _take_last(self) -> None:
        """Close the connection after the answer to the newest request, and announce that in the answer's header."""
        self.last_taken = True
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
        """Close the connection if the server has been waiting since the loop time `before` or longer, for the first
        request or for the rest of a request. If a request has begun, but its answer has not, first answer 408.
        """
        if self._waiting_since is None or self._waiting_since > before or self.transport.is_closing():
            return
        self._refuse_unfinished(408, "The request took too long to arrive.")

    def send_400_response(self, msg: str) -> None:
        if not self.transport.is_closing() and not self._deaf:
            self._refuse(400, msg)

    def _refuse_unfinished(self, status: int, detail: str) -> None:
        """Close a connection whose request has not arrived completely. If the answer to the request has not begun,
        first answer with an error.
        """
        if self.in_head or (self.cycle is not None and not self.cycle.response_started):
            self._refuse(status, detail)
        else:
            self.transport.close()

    def _refuse_head(self) -> None:
        status = 414 if len(self.url) > HEAD_BYTES_MAX // 2 else 431
        self._refuse(status, f"The request's line and headers may have at most {HEAD_BYTES_MAX} bytes.")

    def _refuse(self, status: int, detail: str, header: bytes = b"") -> None:
        """Answer with an error instead of calling the application, and close the connection. `header` is one more
        header line, with its CRLF.
        """
        answer = framework_problem(status, detail)
        lines = [b"HTTP/1.1 %d %s" % (status, HTTPStatus(status).phrase.encode()), b"content-type: " + MEDIA_TYPE]
        lines.append(b"x-content-type-options: nosniff")
        lines += [b"content-length: %d" % len(answer.body), header + b"connection: close", b"", answer.body]
        self.transport.write(b"\r\n".join(lines))
        self.transport.close()
