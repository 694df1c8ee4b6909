"""The best that an installation could do, for comparison: an empty PUT through Starlette, and a bare HTTP poster.

`python -m benchmarks.limits empty PORT` serves the empty PUT. `… post PORT POSTS CONNECTIONS SIZE` POSTs to a sink on
that port, and prints the posts per second.
"""

from __future__ import annotations

import asyncio
import sys
import time

import httptools
import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from benchmarks.marks import payload


async def empty(request: Request) -> Response:
    await request.body()
    return Response(b"{}", media_type="application/json")


app = Starlette(routes=[Route("/v1/queues/{queue_id}/messages", empty, methods=["PUT"])])


class Poster(asyncio.Protocol):
    def __init__(self, run: Posts) -> None:
        self.run = run

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.parser = httptools.HttpResponseParser(self)

    def post(self) -> None:
        number = next(self.run.numbers, None)
        if number is None:
            self.run.open -= 1
            if not self.run.open:
                self.run.done.set()
            return
        body = self.run.body
        self.transport.write(
            b"POST /ok HTTP/1.1\r\nhost: 127.0.0.1\r\nwebhook-id: %d\r\ncontent-length: %d\r\n\r\n%b"
            % (number, len(body), body)
        )

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        self.post()


class Posts:
    def __init__(self, posts: int, size: int) -> None:
        self.numbers = iter(range(posts))
        self.body = payload(0, time.time_ns(), size).encode()
        self.done = asyncio.Event()


async def post(port: int, posts: int, connections: int, size: int) -> None:
    run = Posts(posts, size)
    loop = asyncio.get_running_loop()
    posters = [(await loop.create_connection(lambda: Poster(run), "127.0.0.1", port))[1] for _ in range(connections)]
    run.open = connections
    start = time.perf_counter()
    for poster in posters:
        poster.post()
    await run.done.wait()
    print(round(posts / (time.perf_counter() - start)))


if __name__ == "__main__":
    if sys.argv[1] == "empty":
        uvicorn.run(
            app, host="127.0.0.1", port=int(sys.argv[2]), loop="uvloop", http="httptools",
            access_log=False, log_level="warning",
        )  # fmt: skip
    else:
        uvloop.run(post(*map(int, sys.argv[2:])))
