"""Real HTTP listeners for the tests: what they got, and what they answer.

For: every test that needs somebody to deliver to. Not for: a listener that breaks HTTP (tests/delivery)."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self, TypeVar

import httptools
import orjson

T = TypeVar("T")


async def until(condition: Callable[[], T | Awaitable[T]], *, what: str, within_s: float = 60.0) -> T:
    """The condition's first true value; an assertion error that says what did not come about."""
    deadline = time.monotonic() + within_s
    while True:
        found = condition()
        if isinstance(found, Awaitable):
            found = await found
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        await asyncio.sleep(0.01)


@contextlib.contextmanager
def nobody() -> Iterator[int]:
    """A port of 127.0.0.1 that refuses whoever connects, and that nobody else is given meanwhile."""
    with socket.socket() as kept:
        kept.bind(("127.0.0.1", 0))
        yield kept.getsockname()[1]


@dataclass(frozen=True, slots=True)
class Got:
    """One POST. at: monotonic seconds."""

    path: str
    headers: dict[str, str]
    body: bytes
    at: float

    @property
    def message_id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def data(self) -> str:
        return str(orjson.loads(self.body)["message"]["data"])


@dataclass
class Listeners:
    """One server for any number of listeners, each at a path of its own.

    status: what a path answers, 200 if it says nothing. down: paths that answer 503, to probes too.
    hangs: paths that answer no POST before let_go(). hanging: what they got. ended: every POST, and when it was
    answered, whatever the answer.
    """

    got: list[Got] = field(default_factory=list)
    status: dict[str, int] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: dict[str, float] = field(default_factory=dict)
    down: set[str] = field(default_factory=set)
    hangs: set[str] = field(default_factory=set)
    hanging: list[Got] = field(default_factory=list)
    ended: list[tuple[Got, float]] = field(default_factory=list)
    decide: Callable[[Got], int] | None = None
    body: Callable[[Got], bytes] = lambda _: b""
    probes: Counter[str] = field(default_factory=Counter)
    port: int = 0
    _server: Any = None
    held_answers: list[Callable[[], None]] = field(default_factory=list)

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", self.port, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}/{path}"

    def let_go(self) -> None:
        """Answer what hangs, and let nothing more hang."""
        self.hangs.clear()
        self.hanging.clear()
        answers, self.held_answers = self.held_answers, []
        for answer in answers:
            answer()

    def taken(self, path: str) -> list[Got]:
        """What a path got and answered 2xx."""
        return [one for one in self.got if one.path == path]

    def ids(self, path: str) -> Counter[str]:
        return Counter(one.message_id for one in self.taken(path))


class _Connection(asyncio.Protocol):
    def __init__(self, listeners: Listeners) -> None:
        self.all = listeners

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self._begin()

    def _begin(self) -> None:
        self.parser = httptools.HttpRequestParser(self)
        self.path = ""
        self.headers: dict[str, str] = {}
        self.body = b""

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        """A part of it, where the network cuts it in two."""
        self.path += url.decode()

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode().lower()] = value.decode()

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        path = self.path.lstrip("/")
        if self.parser.get_method() == b"GET":
            self.all.probes[path] += 1
            self._answer(503 if path in self.all.down else 200)
        else:
            got = Got(path, self.headers, self.body, time.monotonic())
            delay_s = self.all.delay_s.get(path, 0.0)
            if path in self.all.hangs:
                self.all.hanging.append(got)
                self.all.held_answers.append(partial(self._post, got))
            elif delay_s:
                asyncio.get_running_loop().call_later(delay_s, self._post, got)
            else:
                self._post(got)
        self.path, self.headers, self.body = "", {}, b""

    def _post(self, got: Got) -> None:
        status = 503 if got.path in self.all.down else self.all.status.get(got.path, 200)
        if self.all.decide is not None:
            status = self.all.decide(got)
        if 200 <= status < 300:
            self.all.got.append(got)
        self.all.ended.append((got, time.monotonic()))
        self._answer(status, self.all.body(got))

    def _answer(self, status: int, body: bytes = b"") -> None:
        more = "".join(f"{name}: {value}\r\n" for name, value in self.all.headers.items())
        head = f"HTTP/1.1 {status} Said\r\n{more}content-length: {len(body)}\r\n\r\n"
        self.transport.write(head.encode() + body)
