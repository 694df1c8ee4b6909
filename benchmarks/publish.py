"""The publishers: many connections that each PUT one message after the other, as fast as they are answered.

`python -m benchmarks.publish KEY MESSAGES CONNECTIONS SIZE [RATE [ORDERING_KEYS]]` prints one JSON line with rate,
latency and errors. It reads the URLs from standard input, separated by commas, and puts to them in turn.
"""

from __future__ import annotations

import asyncio
import sys
import time
from urllib.parse import urlsplit

import httptools
import orjson
import uvloop

from benchmarks.marks import payload, percentiles


class Publisher(asyncio.Protocol):
    """A connection that PUTs messages until the run has no more."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.parser = httptools.HttpResponseParser(self)

    def put(self) -> None:
        number = next(self.run.numbers, None)
        if number is None:
            self.run.finished()
            return
        due = self.run.due(number)
        if due > 0:
            asyncio.get_running_loop().call_later(due, self._put, number)
        else:
            self._put(number)

    def _put(self, number: int) -> None:
        data = payload(number, time.time_ns(), self.run.size).encode()
        keys = self.run.ordering_keys
        body = b'{"key":"k%d","data":"%b"}' % (number % keys, data) if keys else b'{"data":"%b"}' % data
        self.at = time.perf_counter()
        head = self.run.heads[number % len(self.run.heads)]
        self.transport.write(b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body))

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        self.run.latency_ms.append((time.perf_counter() - self.at) * 1e3)
        if self.parser.get_status_code() == 200:
            self.run.accepted += 1
        else:
            self.run.errors += 1
        self.put()


class Run:
    """All publishers of one run. `rate` is the number of PUTs per second over all of them; 0 is as fast as they are
    answered. The messages have `ordering_keys` different ordering keys, or none.
    """

    def __init__(self, urls: list[str], key: str, messages: int, size: int, rate: float, ordering_keys: int) -> None:
        parts = urlsplit(urls[0])
        self.host, self.port = parts.hostname or "", parts.port or 80
        self.heads = [
            (
                f"PUT {urlsplit(url).path} HTTP/1.1\r\nhost: {parts.netloc}\r\nx-api-key: {key}\r\n"
                "content-type: application/json\r\n"
            ).encode()
            for url in urls
        ]
        self.numbers = iter(range(messages))
        self.size, self.rate, self.ordering_keys = size, rate, ordering_keys
        self.latency_ms: list[float] = []
        self.accepted = self.errors = 0
        self.done = asyncio.Event()

    def due(self, number: int) -> float:
        return self.start + number / self.rate - time.perf_counter() if self.rate else 0.0

    def finished(self) -> None:
        self.open -= 1
        if not self.open:
            self.done.set()

    async def go(self, connections: int) -> dict[str, object]:
        loop = asyncio.get_running_loop()
        publishers = [
            (await loop.create_connection(lambda: Publisher(self), self.host, self.port))[1] for _ in range(connections)
        ]
        self.open = connections
        self.start = time.perf_counter()
        for publisher in publishers:
            publisher.put()
        await self.done.wait()
        took = time.perf_counter() - self.start
        return {
            "per_s": round(self.accepted / took),
            "accepted": self.accepted,
            "errors": self.errors,
            "ms": percentiles(self.latency_ms),
        }


async def main(key: str, messages: str, connections: str, size: str, rate: str = "0", ordering_keys: str = "0") -> None:
    run = Run(sys.stdin.read().strip().split(","), key, int(messages), int(size), float(rate), int(ordering_keys))
    print(orjson.dumps(await run.go(int(connections))).decode())


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:]))
