"""uvicorn's HTTP/1.1 protocol, which answers the usual put of a message by itself (docs/decisions/0260).

For: recognizing a usual put, pipelined requests, the order of answers, and writing several answers at once. Not for:
what a put checks and answers (api/direct_puts.py), what a client may do (server.py).

A put is usual if it is small and valid, and needs no wait and no refusal. It then has no ASGI scope and no task. The
protocol collects the request's head itself. If the put turns out not to be usual, the protocol repeats the parser's
calls to uvicorn, which then answers it. tests/unit/test_direct_puts.py has a contract test of the parts of uvicorn that
this file depends on.

On one connection, a client usually repeats the head of its put, perhaps with another Content-Length. Such a put is
recognized by its bytes, and the parser does not see it.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from api.direct_puts import LENGTH_DIGITS_MAX, DirectPut, DirectPuts
from api.problems import Headers

log = logging.getLogger(__name__)

# If a connection has 32 unanswered puts that bypass ASGI, uvicorn handles the connection's next request.
DIRECT_PUTS_MAX: Final = 32
# A connection remembers the head of its newest put if the head has at most this many bytes.
_REMEMBERED_BYTES_MAX: Final = 1024
_LENGTH: Final = b"\r\ncontent-length: "
_END: Final = b"\r\n\r\n"


class DirectConfig(uvicorn.Config):
    """The configuration of a server.

    The object `direct_puts` answers a put without ASGI if the put is small and valid, and need not wait. If
    `direct_puts` is None, uvicorn passes all requests to the ASGI application.
    """

    direct_puts: DirectPuts | None = None
    # The headers that uvicorn adds to each answer: as (name, value) pairs, and encoded as the lines of an HTTP head.
    default_lines: tuple[list[tuple[bytes, bytes]], bytes] = ([], b"")


class _NoEvent:
    """A replacement for the asyncio.Event that uvicorn sets when more of a request arrives. A put without ASGI has no
    task that could wait for the event, so set() does nothing.
    """

    def set(self) -> None:
        pass


class _Head(NamedTuple):
    """The head of a usual put: the bytes before and after the digits of its Content-Length, its URL and its headers."""

    before: bytes
    after: bytes
    url: bytes
    sent: Mapping[bytes, bytes]

    @classmethod
    def of(cls, head: bytes, url: bytes, sent: Mapping[bytes, bytes]) -> _Head | None:
        """Return the head of a put, in the form in which it can be recognized again. Return None if the head is long,
        or written in an unusual way. `head` has the bytes of a socket read before its last Content-Length bytes.
        """
        if (
            len(head) > _REMEMBERED_BYTES_MAX
            or not head.startswith(b"PUT ")
            or head.find(_END) != len(head) - len(_END)
        ):
            return None
        at, digits = head.lower().find(_LENGTH) + len(_LENGTH), sent[b"content-length"]
        after = head[at + len(digits) :]
        if at < len(_LENGTH) or not head.startswith(digits, at) or not after.startswith(b"\r\n"):
            return None
        return cls(head[:at], after, url, sent)

    def body_in(self, data: bytes) -> bytes:
        """Return the body if `data` is one whole request with this head, and perhaps another Content-Length. Otherwise,
        return an empty body.
        """
        at = len(self.before)
        end = data.find(b"\r", at, at + LENGTH_DIGITS_MAX + 1)
        if end < 0 or not data.startswith(self.before) or not data.startswith(self.after, end):
            return b""
        digits, body = data[at:end], data[end + len(self.after) :]
        return body if digits.isdigit() and int(digits) == len(body) else b""


class DirectCycle(DirectPut):
    """A put that the server answers without ASGI. It has all attributes that uvicorn reads from the current request.

    `answer` is the head of the HTTP answer, or None while there is no answer. `content` is the body of the answer.
    """

    __slots__ = (
        "answer",
        "body",
        "connection",
        "content",
        "disconnected",
        "keep_alive",
        "response_complete",
        "response_started",
    )
    message_event: Final = _NoEvent()

    def __init__(
        self, connection: DirectPutProtocol, puts: DirectPuts, url: bytes, sent: Mapping[bytes, bytes], scheme: str
    ) -> None:
        super().__init__(puts, url, sent, scheme)
        self.connection = connection
        self.answer: bytes | None = None
        self.content = self.body = b""
        self.keep_alive = True
        self.disconnected = self.response_started = self.response_complete = False

    def send(self, status: int, headers: Headers, body: bytes) -> None:
        """Store the answer to this put. It is written as soon as the answers to all earlier requests on the connection
        are written.
        """
        lines = [STATUS_LINE[status], self.connection.default_lines(), *[b"%b: %b\r\n" % pair for pair in headers]]
        self.answer, self.content = b"".join(lines), body
        self.connection.write_answers()


class DirectPutProtocol(HttpToolsProtocol):
    """A connection that answers usual puts without ASGI."""

    config: DirectConfig
    # True while the head of a request arrives.
    # on_header() drops trailers (headers after the body of a request), as RFC 9112, 7.1.2 permits.
    in_head = False
    last_taken = False  # True once no more requests are accepted: the connection closes after the last answer
    _arriving = False  # True while a request arrives
    _whole: DirectCycle | None = None  # the newest usual put that has arrived completely in the current socket read
    # The head of the newest request, if it was a usual put that came in one socket read; otherwise None.
    _head: _Head | None = None
    # The put that is arriving now, if it may be answered without ASGI; otherwise None.
    _candidate: DirectCycle | None = None
    _before: Any = None  # the request before the arriving put, if that request has no answer yet; otherwise None
    # If the connection is idle after an answer without ASGI: the loop time at which it became idle. Otherwise 0.0.
    # After an answer by uvicorn, _idle_since stays 0.0, because uvicorn then closes the idle connection by itself.
    _idle_since = 0.0

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.unanswered: deque[DirectCycle] = deque()

    def begun(self) -> None:
        """Do nothing. A subclass can override this method. It is called after uvicorn has begun to handle a request."""

    def close_if_idle(self) -> None:
        """Close the connection if its client has sent nothing for `timeout_keep_alive` seconds after a put that was
        answered without ASGI.
        """
        if self._idle_since and self._idle_since + self.timeout_keep_alive < self.loop.time():
            self.timeout_keep_alive_handler()

    def data_received(self, data: bytes) -> None:
        self._idle_since = 0.0
        if self._head is not None and self._repeats(self._head, data):
            return
        between, self._whole = not self._arriving, None
        super().data_received(data)
        whole = self._whole
        if whole is not None and between:
            self._head = _Head.of(data[: -int(whole.sent[b"content-length"])], whole.url, whole.sent)
        candidate = self._candidate
        if candidate is not None and self._is_for_uvicorn(candidate):
            self._candidate = None
            self._leave_to_uvicorn(candidate)

    def _repeats(self, head: _Head, data: bytes) -> bool:
        """Answer the put in these bytes without the parser, and return True. Do nothing and return False if they are no
        put with this head, or if uvicorn must answer it.
        """
        puts, body = self._direct_puts(), head.body_in(data)
        if puts is None or not puts.takes(len(body)) or self.last_taken or self.transport.is_closing():
            return False
        before, candidate = self.cycle, DirectCycle(self, puts, head.url, head.sent, self.scheme or "http")
        self.cycle = candidate  # type: ignore[assignment]
        if not self._begin(candidate, body):
            self.cycle = before
            return False
        self._unset_keepalive_if_required()
        return True

    def _direct_puts(self) -> DirectPuts | None:
        """Return the object that answers usual puts. Return None if uvicorn must answer the connection's next request,
        for example because uvicorn has not answered the request before.
        """
        cycle = self.cycle
        if (
            self.pipeline
            or self.flow.write_paused
            or self.access_log
            or self.limit_concurrency is not None
            or not (
                cycle is None
                or cycle.response_complete
                or (isinstance(cycle, DirectCycle) and cycle.keep_alive and len(self.unanswered) < DIRECT_PUTS_MAX)
            )
        ):
            return None
        return self.config.direct_puts

    def _begin(self, candidate: DirectCycle, body: bytes) -> bool:
        """Check a put and append its message, and return True. Return False if uvicorn must answer the put."""
        self.unanswered.append(candidate)
        if not candidate.begin(body):
            self.unanswered.pop()
            return False
        # If two or more puts of this connection wait for answers, stop reading from the connection, as uvicorn does.
        if len(self.unanswered) > 1:
            self.flow.pause_reading()
        return True

    def _is_for_uvicorn(self, candidate: DirectCycle) -> bool:
        """Return whether uvicorn must take over a put whose body has not arrived completely.

        uvicorn must take over if a part of the body has arrived, if earlier puts are unanswered, or if the API key is
        not known to permit this put. uvicorn then holds the body in memory, and api/bodies.py limits the memory for
        bodies.
        """
        return bool(candidate.body or self.unanswered) or not candidate.is_permitted()

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self.in_head = self._arriving = True
        self._head = None

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.in_head:
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        cycle, puts = self.cycle, self._direct_puts()
        if puts is not None and self.parser.get_method() == b"PUT" and self.parser.get_http_version() == "1.1":
            sent = dict(self.headers)
            if len(sent) == len(self.headers) and sent.get(b"host") and puts.looks_usual(self.url, sent):
                self._before = None if cycle is None or cycle.response_complete else cycle
                candidate = DirectCycle(self, puts, self.url, sent, self.scheme or "http")
                self._candidate = self.cycle = candidate  # type: ignore[assignment]
                return
        self._begin_in_uvicorn()

    def _begin_in_uvicorn(self) -> None:
        url, headers = self.url, self.headers
        super().on_message_begin()
        super().on_url(url)
        for name, value in headers:
            super().on_header(name, value)
        super().on_headers_complete()
        self.begun()

    def _leave_to_uvicorn(self, candidate: DirectCycle) -> None:
        """Hand a put over to uvicorn, with its head and the part of its body that has arrived. uvicorn then answers the
        put as if it had received these bytes itself.
        """
        self.cycle = self._before
        self._begin_in_uvicorn()
        if not candidate.keep_alive:  # the server is stopping
            self.cycle.keep_alive = False
        if candidate.body:
            super().on_body(candidate.body)

    def on_body(self, body: bytes) -> None:
        candidate = self._candidate
        if candidate is None:
            super().on_body(body)
        else:
            candidate.body += body

    def on_message_complete(self) -> None:
        self._arriving = False
        candidate = self._candidate
        if candidate is None:
            super().on_message_complete()
            return
        self._candidate = None
        if not self._begin(candidate, candidate.body):
            self._leave_to_uvicorn(candidate)
            super().on_message_complete()
            return
        self._whole, self._before = candidate, None
        candidate.body = b""

    def default_lines(self) -> bytes:
        """Return the header lines that every answer has."""
        headers = self.server_state.default_headers
        known, lines = self.config.default_lines
        if known is not headers:
            lines = b"".join(b"%b: %b\r\n" % pair for pair in headers)
            self.config.default_lines = headers, lines
        return lines

    def write_answers(self) -> None:
        """Write the finished answers in the order of the requests, with a single write. Stop at the first request
        without an answer, because all later answers must wait for it.
        """
        unanswered = self.unanswered
        written: list[bytes] = []
        keep_alive = True
        while unanswered and (answer := unanswered[0].answer) is not None:
            cycle = unanswered.popleft()
            cycle.response_started = cycle.response_complete = True
            keep_alive = cycle.keep_alive
            written += (answer, b"\r\n" if keep_alive else b"connection: close\r\n\r\n", cycle.content)
        if not written or self.transport.is_closing():
            return
        self.transport.write(b"".join(written))
        if not keep_alive:
            self.transport.close()
        elif self.pipeline and not unanswered:
            self.on_response_complete()
        elif not unanswered:
            self.flow.resume_reading()
            self._idle_since = self.loop.time()
