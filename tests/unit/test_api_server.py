"""The server in front of the API: what it answers to what is hardly HTTP, and to clients that never finish."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import urllib.error
import urllib.request

import httpx
import orjson
import pytest
from api_client import as_documented, make_api

from api.clients import Clients
from api.streams import Stream, answer_stream
from api.tunnel import Tunnels
from broker.commands.organizations import SCOPES, create_key
from broker.core.delivery import TUNNEL_AWAY
from cli.processes import admin
from cli.processes.hosts import Hosts
from cli.processes.server import FRAMING_BYTES_MAX, HEAD_BYTES_MAX, PIPELINED_MAX, Server

UNFINISHED = (
    b"PUT /v1/queues HTTP/1.1\r\nhost: x\r\nx-api-key: KEY\r\n"
    b"content-type: application/json\r\ncontent-length: 9\r\n\r\n{"
)

WEBSOCKET = (
    b"GET /v1/queues/x/listen?name=n HTTP/1.1\r\nhost: %b\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n%b\r\n"
)


@contextlib.asynccontextmanager
async def serving(api=None, **options):
    api = api or await make_api()
    listening = socket.create_server(("127.0.0.1", 0))
    direct_puts = getattr(getattr(api.app, "state", None), "direct_puts", None)
    api.server = server = Server(api.app, **{"look_ticks": 1, "direct_puts": direct_puts, **options})
    task = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        await task
        await api.bare.aclose()


@contextlib.asynccontextmanager
async def live_api(**parts):
    """An Api whose requests go over HTTP to a live server. server: its options."""
    options = parts.pop("server", {})
    api = await make_api(**parts)
    await api.bare.aclose()
    async with serving(api, **options) as port:
        api.bare = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", timeout=60, event_hooks={"response": [as_documented]}
        )
        yield api


class EachPeer(Clients):
    """Takes loopback addresses for clients: tests have no others."""

    def peer(self, host: str) -> str | None:
        return host


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
    ("sent", "expected"),
    [
        (b"GET /v1/queues HTTP/1.1\r\nx: " + b"a" * HEAD_BYTES_MAX + b"\r\n\r\n", 431),
        (b"GET /v1/queues?" + b"a" * HEAD_BYTES_MAX + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET /v1/queues HTTP/1.1\r\n" + b"x: y\r\n" * (HEAD_BYTES_MAX // 5) + b"\r\n", 431),
    ],
)
async def test_a_head_over_the_limit_is_431_and_414_where_the_url_is_most_of_it(sent, expected):
    async with serving() as port:
        status, _ = await said(port, sent)
        assert status == expected


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


async def test_one_client_has_no_more_than_half_of_the_connections():
    api = await make_api()
    request = b"GET /v1/queues HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n"
    async with serving(api, connections_max=4, clients=EachPeer()) as port:

        async def connect(own: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            return await asyncio.open_connection("127.0.0.1", port, local_addr=(own, 0))

        async def status(own: str) -> int:
            reader, writer = await connect(own)
            with contextlib.suppress(ConnectionError):
                writer.write(request)
                await writer.drain()
            line = await reader.readline()
            writer.close()
            return int(line.split()[1])

        held = [await connect("127.0.0.2") for _ in range(2)]
        async with asyncio.timeout(10):
            while len(api.server.server_state.connections) < 2:
                await asyncio.sleep(0.01)
            assert await status("127.0.0.2") == 503
            assert await status("127.0.0.3") == 401
            for _, writer in held:
                writer.close()
            while await status("127.0.0.2") != 401:
                await asyncio.sleep(0.01)


async def test_one_connection_too_many_is_503_and_the_others_go_on():
    api = await make_api()
    async with serving(api, connections_max=2) as port:
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        for reader, writer in held:
            writer.write(b"GET /nowhere HTTP/1.1\r\nhost: x\r\n\r\n")
            assert b" 404 " in await reader.readline()
        status, problem = await said(port)
        assert status == problem["status"] == 503
        held[0][1].close()
        async with asyncio.timeout(10):
            while (await said(port, b"BREW / HTTP/1.1\r\n\r\n"))[0] != 400:
                await asyncio.sleep(0.01)
        held[1][1].close()


@pytest.mark.parametrize("read", [False, True])
async def test_a_client_that_never_reads_its_answer_is_dropped(read):
    api = await make_api()

    async def much(scope, receive, send):
        headers = [(b"content-length", b"%d" % (64 << 20))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": bytes(64 << 20)})

    api.app = much
    async with serving(api, request_s=0.2) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 16)
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        got = 0
        async with asyncio.timeout(30):
            while not read and (not got or api.server.server_state.connections):
                got = got or len(await reader.read(1))  # and nothing after it
                await asyncio.sleep(0.01)
            with contextlib.suppress(ConnectionError):
                while got < 64 << 20 and (chunk := await reader.read(1 << 20)):
                    got += len(chunk)
        assert (got >= 64 << 20) == read
        writer.close()


async def test_a_client_that_does_not_read_the_reference_has_little_of_it_held():
    async with serving(api := await make_api()) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 10)
        writer.write(b"GET /v1/openapi.json HTTP/1.1\r\nhost: x\r\n\r\n" * PIPELINED_MAX)
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.pause_reading()
        (connection,) = api.server.server_state.connections
        async with asyncio.timeout(20):
            while not connection.transport.get_write_buffer_size():
                await asyncio.sleep(0.01)
        assert connection.transport.get_write_buffer_size() < 128 << 10
        writer.transport.abort()


CHUNKED = b"PUT /v1/queues HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n"


@pytest.mark.parametrize("path", ["/v1/queues", "/v1/accounts", "/nowhere"])
async def test_a_client_that_sends_on_gets_its_answer_before_the_connection_closes(path: str):
    """Python's urllib asks for the connection to be closed, sends all of its body, and only then reads."""
    api = await make_api()
    async with serving(api) as port:

        def answered() -> int:
            headers = {"X-API-KEY": api.key, "Content-Type": "application/json"}
            url = f"http://127.0.0.1:{port}{path}"
            large = urllib.request.Request(url, data=bytes(32 << 20), method="PUT", headers=headers)
            try:
                return urllib.request.urlopen(large, timeout=30).status
            except urllib.error.HTTPError as error:
                with error:
                    return error.code

        assert [await asyncio.to_thread(answered) for _ in range(3)] == [404 if path == "/nowhere" else 413] * 3


async def test_a_client_that_never_ends_its_body_after_its_answer_is_cut_off():
    api = await make_api()
    async with serving(api, request_s=0.5) as port:
        head = f"PUT /v1/queues HTTP/1.1\r\nhost: x\r\nx-api-key: {api.key}\r\nconnection: close\r\n"
        head += f"content-type: application/json\r\ncontent-length: {1 << 40}\r\n\r\n"
        status, problem = await said(port, head.encode(), b"x")
        assert status == problem["status"] == 413  # and said() saw the end of the connection


async def headers_seen(*parts: bytes) -> list[tuple[bytes, bytes]]:
    """The headers that the app has at the end of a request that is sent in these parts."""
    seen = []

    async def app(scope, receive, send):
        while (await receive()).get("more_body"):
            pass
        seen.extend(scope["headers"])
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    api = await make_api()
    api.app = app
    async with serving(api) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for part in parts:
            writer.write(part)
            await writer.drain()
        assert b" 204 " in await reader.readuntil(b"\r\n\r\n")
        writer.close()
    return seen


@pytest.mark.parametrize("parts", [1, 2])
async def test_trailers_are_dropped(parts):
    body = b"2\r\n{}\r\n0\r\nx-api-key: evp_1\r\ncontent-type: application/json\r\n\r\n"
    sent = (CHUNKED + b"\r\n", body) if parts == 2 else (CHUNKED + b"\r\n" + body,)
    assert await headers_seen(*sent) == [(b"host", b"x"), (b"transfer-encoding", b"chunked")]


async def test_an_api_key_that_comes_as_a_trailer_counts_for_nothing():
    api = await make_api()
    end = b"0\r\nx-api-key: " + api.key.encode() + b"\r\n\r\n"
    async with serving(api) as port:
        body = b'11\r\n{"name":"orders"}\r\n' + end
        head = CHUNKED + b"content-type: application/json\r\nconnection: close\r\n\r\n"
        assert (await said(port, head + body))[0] == 401
    assert list(api.log.control.state.queues) == []


@pytest.mark.parametrize(
    ("first", "again"),
    [
        (b"0\r\n", b"x: " + b"y" * 1000 + b"\r\n"),
        (b"0\r\nx: ", b"y" * 1000),
        (b"", b"1;" + b"y" * 1000 + b"\r\nx\r\n"),
        (b"", b"1;y=" + b'"' * 2 + b"y" * 1000 + b"\r\nx\r\n"),
        (b"0" * 1000, b"0" * 1000),
    ],
    ids=["trailers", "one long trailer", "chunk extensions", "quoted chunk extensions", "a long chunk size"],
)
async def test_what_is_neither_head_nor_body_is_bounded(first, again):
    api = await make_api()
    head = CHUNKED + b"content-type: application/json\r\nx-api-key: " + api.key.encode() + b"\r\n\r\n"
    async with serving(api) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head + first)
        sent = 0
        async with asyncio.timeout(20):
            with contextlib.suppress(ConnectionError):
                while sent < 64 << 20:
                    sent += len(again)
                    writer.write(again)
                    await writer.drain()
            with contextlib.suppress(ConnectionError):
                answer = await reader.read()
                assert not answer or int(answer.split()[1]) in (400, 422, 431)
        assert sent < 64 << 20
        writer.close()


async def test_a_body_in_many_small_chunks_is_whole():
    api = await make_api()
    queue_id = await api.queue()
    head = b"PUT /v1/queues/" + queue_id.encode() + b"/messages HTTP/1.1\r\nhost: x\r\nx-api-key: " + api.key.encode()
    head += b"\r\ntransfer-encoding: chunked\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n"
    body = orjson.dumps({"data": "x" * 10 * FRAMING_BYTES_MAX})
    async with serving(api) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head + b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n")
        assert b" 200 " in await reader.readline()
        writer.close()


QUOTED = (
    b"x - at `$`" + b".[" * 8000,
    b"field `" * 2000,
    b"y" * 16_000,
    b"[" * 16_000,
    b"x - at `$`" + b".[" * 500_000,
)


@pytest.mark.parametrize("name", QUOTED, ids=["places", "fields", "a long name", "brackets", "a million brackets"])
async def test_an_error_quotes_little_of_a_body(name):
    api = await make_api()
    queue_id = await api.queue()
    paths = [("PUT", f"/v1/queues/{queue_id}/messages"), ("POST", f"/v1/queues/{queue_id}/messages/batch")]
    if len(name) <= 16_000:
        paths += [("POST", "/v1/sessions"), ("PUT", "/v1/accounts"), ("PUT", "/v1/queues")]
    for method, path in paths:
        answer = await api.request(method, path, content=b'{"' + name + b'":1}')
        assert answer.status_code == 422
        assert len(answer.content) < 2000


@pytest.mark.parametrize("query", ["queues?%s=1", "log?type=%s", "log?actor=%s", "log?cursor=%s", "queues?at=%s"])
async def test_an_error_quotes_little_of_a_query(query):
    api = await make_api()
    _, key = await create_key(
        api.log.control, api.log.control, organization_id=api.organization_id, name="all", scopes=SCOPES
    )
    answer = await api.request("GET", "/v1/" + query % ("x" * 30_000), headers={"x-api-key": key})
    assert answer.status_code == 422
    assert len(answer.content) < 2000


async def test_an_error_quotes_little_of_a_header_and_of_a_scope():
    api = await make_api()
    queue_id = await api.queue()
    listener_id = await api.listener(queue_id)
    administrator = {"x-api-key": await api.key_with(("keys",))}
    keys, long = f"/v1/organizations/{api.organization_id}/keys", "z" * 15_000
    for answer in (
        await api.put(f"/v1/queues/{queue_id}/listeners/{listener_id}", json={"headers": {long: "1"}}),
        await api.put(keys, json={"name": "k", "scopes": [long]}, headers=administrator),
    ):
        assert answer.status_code == 422
        assert len(answer.content) < 2000


@pytest.mark.parametrize(
    ("host", "status"),
    [
        (b"127.0.0.1:8080", 401),
        (b"[::1]:8080", 401),
        (b"93.184.216.34", 401),
        (b"localhost", 401),
        (b"api:8080", 401),
        (b"Broker.Example", 401),
        (b"broker.example.:443", 401),
        (b"evil.example", 421),
        (b"evil.example:8080", 421),
        (b"localhost.evil.example", 421),
        (b"127.0.0.1.evil.example", 421),
        (b"broker.example.evil.example", 421),
        (b"[::1].evil.example", 421),
        (b"user@broker.example", 421),
        (b"broker.example, evil.example", 421),
        (b"", 421),
        (b"\xff", 421),
        (b"x" * 5000, 421),
    ],
)
async def test_a_request_to_a_name_that_is_not_the_servers_is_refused(host, status):
    async with serving(hosts=Hosts(["broker.example"])) as port:
        head = b"GET /v1/queues HTTP/1.1\r\nhost: " + host + b"\r\nconnection: close\r\n\r\n"
        assert (await said(port, head))[0] == status


async def test_a_star_accepts_every_name():
    async with serving(hosts=Hosts(["*"])) as port:
        head = b"GET /v1/queues HTTP/1.1\r\nhost: any.example\r\nconnection: close\r\n\r\n"
        assert (await said(port, head))[0] == 401


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (b"", 400),
        (b"host: x\r\nhost: x\r\n", 400),
        (b"host: x\r\nhost: y\r\n", 400),
        (b"host: x\r\ntransfer-encoding: gzip, chunked\r\n", 501),
        (b"host: x\r\ntransfer-encoding: gzip\r\ntransfer-encoding: chunked\r\n", 501),
        (b"host: x\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n", 501),
    ],
)
async def test_a_request_without_one_host_or_with_another_coding_than_chunked_is_refused(lines, status):
    api = await make_api()
    async with serving(api) as port:
        more = b"x-api-key: " + api.key.encode() + b"\r\ncontent-type: application/json\r\n"
        refused = b"GET /v1/queues HTTP/1.1\r\n" + lines + more + b"\r\n"
        second = b"PUT /v1/queues HTTP/1.1\r\nhost: x\r\n" + more + b'content-length: 17\r\n\r\n{"name":"orders"}'
        answered, _ = await said(port, refused + (b"0\r\n\r\n" if b"transfer" in lines else b"") + second)
        assert answered in (status, 400)
    assert list(api.log.control.state.queues) == [], "nothing that follows a refused request is done"


async def test_the_admin_address_and_that_of_tunnels_answer_to_the_servers_names_only():
    async def state() -> dict:
        return {}

    checked = admin.make_app(state, state, state, state)
    for app in (checked, Tunnels().app):
        async with admin.serving(app, "127.0.0.1", 0, Hosts(["broker.example"])) as url:
            port = int(url.rpartition(":")[2])
            for host, status in ((b"evil.example", 421), (b"broker.example", 404), (b"127.0.0.1", 404)):
                head = b"GET /nowhere HTTP/1.1\r\nhost: " + host + b"\r\nconnection: close\r\n\r\n"
                async with asyncio.timeout(10):
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.write(head)
                    assert int((await reader.read()).split()[1]) == status
                    writer.close()


async def test_http_1_0_needs_no_host():
    async with serving() as port:
        assert (await said(port, b"GET /v1/queues HTTP/1.0\r\n\r\n"))[0] == 401


@pytest.mark.parametrize("path", [b"/v1/queues", b"/nowhere", b"/console", b"/docs", b"/v1/openapi.json"])
async def test_no_answer_may_be_taken_for_another_type(path):
    async with serving() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET " + path + b" HTTP/1.1\r\nhost: x\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.count(b"x-content-type-options: nosniff\r\n") == 1
        writer.close()


async def test_a_refused_websocket_is_no_error_of_ours(caplog):
    api = await make_api(tunnels=Tunnels("tunnel://127.0.0.1:7"))
    async with serving(api, websockets=True) as port:
        for line in (b"", b"x-api-key: nonsense\r\n", b"sec-websocket-version: 99\r\n"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(WEBSOCKET % (b"x", line))
            answer = await reader.read()
            assert int(answer.split()[1]) in (400, 401)
            assert b"x-content-type-options: nosniff" in answer.lower()
            writer.close()
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.parametrize("silent", ["reads nothing", "answers no ping"])
async def test_a_tunnel_whose_client_is_silent_gives_its_place_back(silent):
    tunnels = Tunnels("tunnel://127.0.0.1:7")
    api = await make_api(tunnels=tunnels)
    path = f"/{await api.queue()}/"
    async with serving(api, websockets=True, request_s=0.5 if silent == "reads nothing" else 60) as port:
        api.server.config.ws_ping_interval = api.server.config.ws_ping_timeout = 0.2
        if silent == "reads nothing":
            api.server.config.ws_ping_interval = None
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 10)
        head = WEBSOCKET % (b"x", b"x-api-key: " + api.key.encode() + b"\r\n")
        writer.write(head.replace(b"/x/", path.encode()))
        assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
        writer.transport.pause_reading()
        async with httpx.AsyncClient(transport=httpx.ASGITransport(tunnels.app), base_url="http://w") as worker:
            (listener,) = api.log.control.state.listeners.values()
            notify = "/" + listener.notify_url.split("/", 3)[3]
            sending = [asyncio.create_task(worker.post(notify, content=b"x" * (15 << 20))) for _ in range(4)]
            async with asyncio.timeout(20):
                while api.server.server_state.connections or api.server.server_state.tasks:
                    await asyncio.sleep(0.01)
                answers = await asyncio.gather(*sending)
        assert {answer.status_code for answer in answers} <= {503, TUNNEL_AWAY}
        writer.transport.abort()


@pytest.mark.parametrize("path", [b"/nowhere", b"/v1/queues", b"/console"])
async def test_a_websocket_where_there_is_none_is_a_404(path):
    async with serving(websockets=True) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(WEBSOCKET.replace(b"/v1/queues/x/listen?name=n", path) % (b"x", b""))
        answer = (await reader.read()).lower()
        assert answer.startswith(b"http/1.1 404 ")
        assert b"x-content-type-options: nosniff" in answer
        assert b"application/problem+json" in answer
        writer.close()


@pytest.mark.parametrize(
    "lines",
    [
        b"".join(b"x-%d: 1\r\n" % number for number in range(200)),
        b"x: " + b"a" * 9000 + b"\r\n",
        b"content-length: 5\r\n",
        b"transfer-encoding: chunked\r\n",
        b"sec-websocket-version: 12\r\n",
    ],
)
async def test_a_head_that_opens_no_websocket_is_answered_and_its_connection_closed(lines):
    api = await make_api(tunnels=Tunnels("tunnel://127.0.0.1:7"))
    async with serving(api, websockets=True) as port:
        status, problem = await said(port, WEBSOCKET % (b"x", lines))
    assert (status, problem["title"]) == (400, "Bad Request")


async def test_a_websocket_that_was_refused_for_its_host_is_not_opened_nor_an_error(caplog):
    api = await make_api(tunnels=Tunnels("tunnel://127.0.0.1:7"))
    reached = []

    async def app(scope, receive, send):
        reached.append(scope["type"])

    api.app = app
    async with serving(api, websockets=True, hosts=Hosts([])) as port:
        status, _ = await said(port, WEBSOCKET % (b"evil.example", b""))
    assert (status, reached) == (421, [])
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.parametrize("early", [b"\x81\x05hello", b"\x81\x85\0\0\0\0\xff\xff\xff\xff\xff", b"\xff\xff", b""])
async def test_a_client_that_speaks_or_leaves_before_its_websocket_is_open_is_no_error_of_ours(caplog, early):
    api = await make_api(tunnels=Tunnels("tunnel://127.0.0.1:7"))
    queue_id = await api.queue()
    inner, begun, gone = api.app, asyncio.Event(), asyncio.Event()

    async def app(scope, receive, send):
        begun.set()
        await gone.wait()
        await inner(scope, receive, send)

    api.app = app
    async with serving(api, websockets=True) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = WEBSOCKET % (b"x", b"x-api-key: " + api.key.encode() + b"\r\n")
        writer.write(head.replace(b"/x/", b"/" + queue_id.encode() + b"/"))
        await begun.wait()
        if early:
            writer.write(early)
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
        else:
            writer.transport.abort()
        async with asyncio.timeout(10):
            while api.server.server_state.connections:
                await asyncio.sleep(0.01)
        gone.set()
        async with asyncio.timeout(10):
            while api.server.server_state.tasks:
                await asyncio.sleep(0.01)
        writer.close()
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_a_stream_that_its_client_does_not_read_is_one_line(caplog):
    async def endless():
        while True:
            yield bytes(1 << 20)

    async def close() -> None: ...

    api = await make_api()

    async def app(scope, receive, send):
        await answer_stream(scope, receive, send, Stream(b"text/plain", endless(), close, take_s=0.2), b"r1", [])

    api.app = app
    async with serving(api) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 16)
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await reader.read(1)
        async with asyncio.timeout(20):
            while not caplog.records:
                await asyncio.sleep(0.01)
        writer.close()
    assert [record.getMessage().split()[0] for record in caplog.records] == ["stream.cut"]
    assert caplog.records[0].exc_info is None
