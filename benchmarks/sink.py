"""The listeners: one process that takes every POST, counts what arrives by path and number, and measures how long it
took.

`python -m benchmarks.sink PORT`. GET /stats answers what was received. GET /count answers only the number of messages,
which is cheap. GET /reset forgets everything. Any other GET is a liveness answer. Paths: /ok… answers 200, /five… after
5 ms, /fifty… after 50 ms, /slow… after a second, /dead… 503 (liveness too), /refuse… 422, /busy… 429, /drip… 200
without end, /hang… never. /back… is dead from GET /bury to GET /revive. /aside… answers 200; its messages are counted
separately, and not reset.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import defaultdict

import httptools
import orjson
import uvloop

from benchmarks.marks import MARK, percentiles

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
REFUSED = b"HTTP/1.1 422 Unprocessable\r\ncontent-length: 0\r\n\r\n"
BUSY = b"HTTP/1.1 429 Too Many\r\ncontent-length: 0\r\n\r\n"
ENDLESS = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n"
BAD = {b"/refuse": REFUSED, b"/busy": BUSY, b"/drip": ENDLESS}
UNAVAILABLE = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"


class Received:
    """The messages that the sink has received."""

    buried = False
    aside = 0

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.by_path: defaultdict[bytes, set[int]] = defaultdict(set)  # the messages' numbers
        self.posts = 0
        self.first_at = self.last_at = 0.0
        self.latency_ms: list[float] = []  # from put to delivery, on healthy paths
        self.revived_at = self.first_good_answer_at = 0.0

    def take(self, path: bytes, body: bytes) -> None:
        """Count the messages of a request, which may be a batch."""
        now = time.time_ns()
        for mark in MARK.finditer(body):
            self.posts += 1
            self.by_path[path].add(int(mark[1]))
            self.latency_ms.append((now - int(mark[2])) / 1e6)
        self.last_at = now / 1e9
        self.first_at = self.first_at or self.last_at

    @property
    def unique(self) -> int:
        return sum(map(len, self.by_path.values()))

    def stats(self) -> bytes:
        unique = self.unique
        return orjson.dumps(
            {
                "unique": unique,
                "aside": self.aside,
                "duplicates": self.posts - unique,
                "seconds": self.last_at - self.first_at,
                "first_at": self.first_at,
                "last_at": self.last_at,
                "revived_at": self.revived_at,
                "first_good_answer_at": self.first_good_answer_at,
                "e2e_ms": percentiles(self.latency_ms),
            }
        )


class Listener(asyncio.Protocol):
    def __init__(self, received: Received) -> None:
        self.received = received

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)
        self.body: list[bytes] = []

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.path = url

    def on_body(self, body: bytes) -> None:
        self.body.append(body)

    def on_message_complete(self) -> None:
        body, self.body = b"".join(self.body), []
        if self.parser.get_method() == b"GET":
            self._get()
        elif self.path.startswith(b"/dead") or (self.path.startswith(b"/back") and self.received.buried):
            self.transport.write(UNAVAILABLE)
        elif self.path.startswith(b"/aside"):
            self.received.aside += 1
            self.transport.write(OK)
        elif self.path.startswith((b"/five", b"/fifty")):
            self.received.take(self.path, body)
            after_s = 0.05 if self.path.startswith(b"/fifty") else 0.005
            asyncio.get_running_loop().call_later(after_s, self.transport.write, OK)
        elif self.path.startswith(b"/slow"):
            asyncio.get_running_loop().call_later(1, self.transport.write, OK)
        elif answer := next((answer for path, answer in BAD.items() if self.path.startswith(path)), b""):
            self.transport.write(answer)
        elif not self.path.startswith(b"/hang"):
            self.received.take(self.path, body)
            self.transport.write(OK)

    def _get(self) -> None:
        answer = b""
        if self.path == b"/stats":
            answer = self.received.stats()
        elif self.path == b"/count":
            answer = b"%d" % self.received.unique
        elif self.path == b"/reset":
            self.received.reset()
        elif self.path == b"/bury":
            self.received.buried = True
        elif self.path == b"/revive":
            self.received.buried = False
            self.received.revived_at = time.time()
        elif self.path.startswith(b"/dead") or (self.path.startswith(b"/back") and self.received.buried):
            self.transport.write(UNAVAILABLE)
            return
        elif self.path.startswith(b"/back"):
            self.received.first_good_answer_at = self.received.first_good_answer_at or time.time()
        self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(answer), answer))


async def main(port: int) -> None:
    received = Received()
    server = await asyncio.get_running_loop().create_server(lambda: Listener(received), "127.0.0.1", port, backlog=4096)
    print("ready", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
