"""The server in front of the API: what it answers to what is hardly HTTP, and to clients that never finish."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import orjson
import pytest
from api_client import make_api

from cli.server import HEAD_BYTES_MAX, Server

UNFINISHED = (
    b"PUT /v1/queues HTTP/1.1\r\nx-api-key: KEY\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{"
)


@contextlib.asynccontextmanager
async def serving(api=None, **options):
    api = api or await make_api()
    listening = socket.create_server(("127.0.0.1", 0))
    server = Server(api.app, **options)
    task = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        await task
        await api.bare.aclose()


async def said(port: int, *parts: bytes) -> tuple[int, dict]:
    """What is answered to these bytes until the server closes the connection: status and problem."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    async with asyncio.timeout(10):
        with contextlib.suppress(ConnectionError):
            for part in parts:
                writer.write(part)
                await writer.drain()
        answer = await reader.read()
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    if not head:
        return 0, {}
    assert b"content-type: application/problem+json" in head
    return int(head.split()[1]), orjson.loads(body)


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01 is no HTTP\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"BREW / HTTP/1.1\r\n\r\n",
        b"GET /v1/queues /x HTTP/1.1\r\n\r\n",
        b"PUT /v1/queues HTTP/1.1\r\ncontent-length: x\r\n\r\n",
        b"PUT /v1/queues HTTP/1.1\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}",
        b"PUT /v1/queues HTTP/1.1\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /v1/queues HTTP/1.1\r\nx: \x00\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_a_problem_with_status_400(sent):
    async with serving() as port:
        status, problem = await said(port, sent)
        assert status == problem["status"] == 400


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /v1/queues HTTP/1.1\r\nx: " + b"a" * HEAD_BYTES_MAX + b"\r\n\r\n",
        b"GET /v1/queues?" + b"a" * HEAD_BYTES_MAX + b" HTTP/1.1\r\n\r\n",
        b"GET /v1/queues HTTP/1.1\r\n" + b"x: y\r\n" * (HEAD_BYTES_MAX // 5) + b"\r\n",
    ],
)
async def test_a_head_over_the_limit_is_431(sent):
    async with serving() as port:
        status, _ = await said(port, sent)
        assert status == 431


async def test_a_head_without_end_is_cut_off():
    async with serving() as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /v1/queues HTTP/1.1\r\nx: ")
        sent = 0
        async with asyncio.timeout(10):
            with contextlib.suppress(ConnectionError):
                while sent < 64 << 20:
                    sent += 65536
                    writer.write(b"a" * 65536)
                    await writer.drain()
        assert sent < 64 << 20
        writer.close()


async def test_many_requests_on_a_connection_are_not_taken_for_one_long_head():
    async with serving() as port:
        one = b"GET /nowhere HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 9000 + b"\r\n\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(one * 20)
        for _ in range(20):
            assert b" 404 " in await reader.readuntil(b"\r\n\r\n")
            await reader.readuntil(b"}")
        writer.close()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", 0),
        (b"GET /v1/queues HT", 408),
        (b"GET /v1/queues HTTP/1.1\r\nx-api-key: ", 408),
        (UNFINISHED, 408),
    ],
)
async def test_a_request_that_never_comes_whole_is_given_up(sent, status):
    api = await make_api()
    async with serving(api, request_s=0.2) as port:
        assert (await said(port, sent.replace(b"KEY", api.key.encode())))[0] == status
