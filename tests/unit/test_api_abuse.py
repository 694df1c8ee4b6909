"""A live server and clients that mean no good, over plain sockets: nothing is a 500, nothing gets in by the side."""

from __future__ import annotations

import asyncio
import contextlib
import re
import tracemalloc

import orjson
import pytest
from api_client import Api, make_api
from test_api_server import WEBSOCKET, serving

from api.calls import Call
from api.problems import Malformed
from api.shapes import BatchBody, parse
from api.tunnel import Tunnels
from broker.errors import Refused
from cli.processes.server import PIPELINED_MAX


async def exchange(port: int, *parts: bytes) -> bytes:
    """All that the server says to these bytes until it closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.suppress(ConnectionError):
        for part in parts:
            writer.write(part)
            await writer.drain()
    async with asyncio.timeout(20):
        said = b""
        with contextlib.suppress(ConnectionError):
            while chunk := await reader.read(1 << 16):
                said += chunk
    writer.close()
    return said


def request(api: Api, method: str, path: str, body: bytes = b"", *lines: bytes, last: bool = True) -> bytes:
    head = [f"{method} {path} HTTP/1.1".encode(), b"host: x", b"x-api-key: " + api.key.encode(), *lines]
    if body:
        head += [b"content-type: application/json", b"content-length: %d" % len(body)]
    if last:
        head.append(b"connection: close")
    return b"\r\n".join([*head, b"", body])


def statuses(said: bytes) -> list[int]:
    return [int(one) for one in re.findall(rb"(?:^|[^\w])HTTP/1\.1 (\d{3}) ", said)]


async def test_pipelined_requests_are_answered_each_and_in_their_order():
    api = await make_api()
    path = f"/v1/queues/{await api.queue()}/messages"
    sent = b""
    for number in range(30):
        body = orjson.dumps({"data": str(number)}) if number % 3 else b"{"
        sent += request(api, "PUT", path, body, b"x-request-id: r%d" % number, last=number == 29)
    async with serving(api) as port:
        said = await exchange(port, sent[:1000], sent[1000:1001], sent[1001:])
    assert statuses(said) == [200 if number % 3 else 400 for number in range(30)]
    assert re.findall(rb"x-request-id: (\w+)", said) == [b"r%d" % number for number in range(30)]


@pytest.mark.parametrize("count", [60, 10_000])
async def test_of_many_pipelined_requests_so_many_are_answered_and_the_rest_is_neither_held_nor_done(count):
    api = await make_api()
    path = f"/v1/queues/{await api.queue()}/messages"
    puts = request(api, "PUT", path, b'{"data":"x"}', last=False) * count
    async with serving(api) as port:
        said = await exchange(port, *(puts[at : at + (1 << 16)] for at in range(0, len(puts), 1 << 16)))
    answers = said.split(b"HTTP/1.1 200 ")[1:]
    assert sum(map(len, api.log.messages.records)) <= PIPELINED_MAX + 1
    if count == 60:  # more may be on its way when the connection is closed, and then answers are lost
        assert len(answers) == PIPELINED_MAX + 1
        assert [b"connection: close" in answer for answer in answers] == [False] * PIPELINED_MAX + [True]


async def test_a_websocket_behind_a_request_that_is_not_answered_yet_is_not_opened():
    api = await make_api(tunnels=Tunnels("tunnel://127.0.0.1:7"))
    path = f"/v1/queues/{await api.queue()}"
    upgrade = WEBSOCKET % (b"x", b"x-api-key: " + api.key.encode() + b"\r\n")
    first = request(api, "PUT", f"{path}/messages", b'{"data":"x"}', last=False)
    async with serving(api, websockets=True) as port:
        said = await exchange(port, first + upgrade.replace(b"/v1/queues/x", path.encode()))
    assert statuses(said) == [200]
    assert b"connection: close" in said
    assert list(api.log.control.state.listeners) == []


SMUGGLED = b'PUT /v1/queues HTTP/1.1\r\nhost: x\r\nx-api-key: KEY\r\ncontent-length: 19\r\n\r\n{"name":"smuggled"}'


@pytest.mark.parametrize(
    "lines",
    [
        b"content-length: 4\r\ntransfer-encoding: chunked",
        b"transfer-encoding: chunked\r\ncontent-length: 4",
        b"transfer-encoding: chunked, identity",
        b"transfer-encoding: identity, chunked\r\ncontent-length: 4",
        b"transfer-encoding: chunkedx",
        b"transfer-encoding : chunked",
        b"transfer-encoding:\x0bchunked",
        b"content-length: 4\r\ncontent-length: 5",
        b"content-length: 4, 5",
        b"content-length: +4",
        b"content-length: 0x4",
        b"content-length: -1",
        b"content-length: 99999999999999999999999999",
        b"content-length: 4\r\n folded: x",
        b"x: y\nz: w",
        b"x\x00y: z",
        b"x: y\rz",
    ],
)
async def test_no_second_request_is_smuggled_in_behind_a_first(lines):
    api = await make_api()
    head = b"GET /v1/queues HTTP/1.1\r\nhost: x\r\nx-api-key: " + api.key.encode() + b"\r\n" + lines + b"\r\n\r\n"
    async with serving(api, request_s=0.5) as port:
        said = await exchange(port, head + b"0\r\n\r\n" + SMUGGLED.replace(b"KEY", api.key.encode()))
    assert statuses(said)[0] in (200, 400, 408, 501)
    assert len(statuses(said)) == 1 or statuses(said)[1] in (400, 408)
    assert list(api.log.control.state.queues) == []


BOMBS = {
    "arrays in arrays": b"[" * 1_000_000,
    "objects in objects": b'{"a":' * 200_000 + b"1" + b"}" * 200_000,
    "arrays that end": b'{"name":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "many fields": b"{" + b",".join(b'"f%d":0' % number for number in range(100_000)) + b"}",
    "many elements": b"[" + b"0," * 900_000 + b"0]",
    "a long number": b'{"name":' + b"9" * 1_000_000 + b"}",
    "a long fraction": b'{"name":0.' + b"9" * 1_000_000 + b"}",
    "a huge exponent": b'{"name":1e999999999}',
    "a tiny exponent": b'{"name":1e-999999999}',
    "a long escape": b'{"name":"' + b"\\u0041" * 150_000 + b'"}',
    "a lone surrogate": b'{"name":"\\ud83e"}',
    "surrogates the wrong way round": b'{"name":"\\udd8a\\ud83e"}',
    "invalid UTF-8": b'{"name":"\xc3\x28"}',
    "overlong UTF-8": b'{"name":"\xc0\xaf"}',
    "a surrogate in UTF-8": b'{"name":"\xed\xa0\xbe"}',
    "NUL in a name": b'{"name":"a\\u0000b"}',
    "NUL outside": b'{"name":"a"}\0',
    "a byte order mark": b'\xef\xbb\xbf{"name":"a"}',
    "UTF-16": '{"name":"a"}'.encode("utf-16"),
    "NaN": b'{"name":NaN}',
    "two values": b'{"name":"a"}{"name":"b"}',
    "a comment": b'{"name":"a"/*x*/}',
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
async def test_no_body_brings_the_server_down_or_gets_a_500(bomb):
    api = await make_api()
    path = f"/v1/queues/{await api.queue()}"
    async with serving(api) as port:
        for method, at in (("PUT", "/v1/queues"), ("PUT", f"{path}/messages"), ("POST", f"{path}/messages/batch")):
            assert statuses(await exchange(port, request(api, method, at, bomb)))[0] in (400, 422)
        assert statuses(await exchange(port, request(api, "GET", "/v1/queues"))) == [200]
    assert len(api.log.control.state.queues) == 1


def test_a_large_body_that_does_not_fit_is_refused_without_objects_of_all_of_it():
    body = b'{"messages":[' + b'{"a":0},' * 500_000 + b'{"a":0}]}'
    tracemalloc.start()
    try:
        with pytest.raises(Refused) as refused:
            parse(body, BatchBody)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert refused.value.pointer == "/messages/0/a"
    with pytest.raises(Malformed):
        parse(b'{"messages":[' + b'{"data":"d"},' * 10_000, BatchBody)


async def test_of_a_field_given_twice_the_last_counts():
    api = await make_api()
    answer = await api.put("/v1/queues", content=b'{"name":"first","name":"last"}')
    assert answer.json()["queue"]["name"] == "last"


@pytest.mark.parametrize(
    "line",
    [
        b"x-request-id: a%0d%0aevil: 1",
        b"x-request-id: a\\r\\nevil: 1",
        b"x-request-id: a\xc4\x8d\xc4\x8aevil: 1",
        b"x-request-id: a evil: 1",
        b"x-request-id: " + b"a" * 200,
        b'x-request-id: "><script>',
        b"origin: https://evil.example",
        b"x-forwarded-host: evil.example",
        b"x-forwarded-proto: https",
        b"forwarded: host=evil.example",
        b"x-original-url: /v1/organizations",
        b"x-http-method-override: DELETE",
    ],
)
async def test_no_header_of_a_request_comes_back_as_a_header_or_changes_where_it_goes(line):
    api = await make_api()
    queue_id = await api.queue()
    async with serving(api) as port:
        said = await exchange(port, request(api, "GET", f"/v1/queues/{queue_id}", b"", line))
    head, _, body = said.partition(b"\r\n\r\n")
    assert statuses(said) == [200]
    assert b"evil" not in said
    assert b"script" not in said
    assert b"access-control" not in head
    assert orjson.loads(body)["_links"]["self"]["href"] == f"http://x/v1/queues/{queue_id}"
    assert len(re.findall(rb"x-request-id: [0-9a-f]{16}\r\n", head + b"\r\n")) == 1


@pytest.mark.parametrize(
    "host", [b'"><script>', b"x y", b"\xff\xfe", b"a:b:c", b"[::1", b"x" * 5000, b"", b"evil.example\\@x"]
)
async def test_a_host_header_that_names_no_host_is_a_problem(host):
    api = await make_api()
    head = b"GET /v1/queues HTTP/1.1\r\nhost: " + host + b"\r\nx-api-key: " + api.key.encode()
    async with serving(api) as port:
        said = await exchange(port, head + b"\r\nconnection: close\r\n\r\n")
    assert statuses(said)[0] in (400, 421)
    orjson.loads(said.partition(b"\r\n\r\n")[2])


async def test_many_slow_clients_take_nothing_from_a_quick_one():
    api = await make_api()
    async with serving(api, request_s=2.0) as port:
        slow = [await asyncio.open_connection("127.0.0.1", port) for _ in range(200)]
        for number, (_, writer) in enumerate(slow):
            writer.write((b"GET /v1/que", b"PUT /v1/queues HTTP/1.1\r\nx: ", b"")[number % 3])
        for _ in range(5):
            assert statuses(await exchange(port, request(api, "GET", "/v1/queues"))) == [200]
        async with asyncio.timeout(20):
            for reader, writer in slow:
                with contextlib.suppress(ConnectionError):
                    await reader.read()
                writer.close()


ANONYMOUS = (b"PUT /v1/accounts", b"POST /v1/sessions", b"PUT /v1/organizations")


async def slow_bodies(port: int, heads: list[bytes]) -> list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Connections that have sent a head, and one byte of its body."""
    made = []
    for head in heads:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head + b"\r\nhost: x\r\ncontent-type: application/json\r\n\r\n{")
        made.append((reader, writer))
    return made


@pytest.mark.parametrize("anonymous", [True, False])
async def test_bodies_that_never_end_keep_nobody_from_putting_a_body_in_pieces(anonymous, monkeypatch):
    in_pieces: list[Call] = []
    rest = Call._rest

    async def noted(self, *given):
        in_pieces.append(self)
        return await rest(self, *given)

    async def begun(count: int) -> None:
        async with asyncio.timeout(20):
            while len(in_pieces) < count:
                await asyncio.sleep(0.005)

    monkeypatch.setattr(Call, "_rest", noted)
    api = await make_api(body_bytes_max=8 << 20)
    path = f"/v1/queues/{await api.queue()}/messages"
    put = b"PUT " + path.encode() + b" HTTP/1.1\r\nx-api-key: " + api.key.encode() + b"\r\ncontent-length: 8000000"
    heads = [ANONYMOUS[number % 3] + b" HTTP/1.1\r\ncontent-length: 16000" for number in range(120)]
    async with serving(api, request_s=4.0) as port:
        slow = await slow_bodies(port, heads if anonymous else [put] * 120)
        mine = request(api, "PUT", path, b'{"data":"in pieces"}')
        so_many = 80 if anonymous else 120  # without a session no body is read for an organization
        await begun(so_many)
        for put_so_far in range(5):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(mine[:-5])
            await writer.drain()
            await begun(so_many + put_so_far + 1)
            for number, (_, other) in enumerate(slow):
                other.write(b" " if number % 2 else b"")
            writer.write(mine[-5:])
            assert statuses(await reader.read()) == [200]
            writer.close()
        async with asyncio.timeout(20):
            for reader, writer in slow:
                said = b""
                with contextlib.suppress(ConnectionError):
                    said = await reader.read()
                assert statuses(said) in ([408], [401])
                writer.close()
