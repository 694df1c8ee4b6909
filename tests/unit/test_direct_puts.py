"""Puts that the protocol class answers by itself: the same answers, byte for byte, as those of the general way."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import dataclasses
import inspect
import itertools
import re
import socket
from collections import Counter
from importlib.metadata import version
from types import SimpleNamespace
from uuid import uuid4

import orjson
import pytest
from api_client import make_api
from hypothesis import example, given, settings
from hypothesis import strategies as st
from memory import MemoryLog, MemoryMessages
from test_api_server import serving
from uvicorn.protocols.http import httptools_impl

from broker.clock import now_ms
from broker.commands.organizations import create_key
from broker.core.codec import decode
from broker.errors import DiskNearlyFull, InDoubt, LogUnavailable
from cli.processes.direct import DIRECT_PUTS_MAX, DirectCycle
from cli.processes.server import PIPELINED_MAX

ONCE = b"GET /nowhere HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
CHANGING = (
    (rb"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", b"ID"),
    (rb"-message-[0-9a-f]{7}", b"-message-SHORT"),
    (rb"x-request-id: [0-9a-f]{16}\r\n", b"x-request-id: NEW\r\n"),
    (rb"\r\ndate: [^\r]*\r\n", b"\r\ndate: NOW\r\n"),
    (rb"2[0-9]{3}-[0-9]{2}-[0-9]{2}T[0-9:.]{8,15}Z", b"TIME"),
    (rb";t=[0-9]+", b";t=LATER"),
    (rb"retry-after: [0-9]+", b"retry-after: LATER"),
)


class LateMessages(MemoryMessages):
    """Acknowledges what was appended together from the last one to the first.

    late: the errors that writers are told, by the data of their message.
    """

    def __init__(self) -> None:
        super().__init__()
        self.late: dict[str, Exception] = {}
        self.most = 0  # so many were appended together
        self._owed: list = []

    def append(self, build, *, ordering_key=None, size=0):
        future = super().append(build, ordering_key=ordering_key, size=size)
        error = self._error(future.result())
        if error is not None:
            future = asyncio.get_running_loop().create_future()
            future.set_exception(error)
        return future

    def append_for(self, writer, build, *, ordering_key=None, size=0):
        self._owed.append((writer, super().append(build, ordering_key=ordering_key, size=size).result()))
        asyncio.get_running_loop().call_soon(self._tell)

    def _error(self, place):
        return self.late.get(decode(self.records[place[0]][place[1]][1]).data)

    def _tell(self):
        self.most = max(self.most, len(self._owed))
        while self._owed:
            writer, place = self._owed.pop()
            error = self._error(place)
            writer.set_result(place) if error is None else writer.set_exception(error)


class HeldMessages(MemoryMessages):
    """Acknowledges nothing before release(). held: the writers that wait."""

    def __init__(self) -> None:
        super().__init__()
        self.held: list = []
        self._open = False

    def append(self, build, *, ordering_key=None, size=0):
        place = super().append(build, ordering_key=ordering_key, size=size).result()
        future = asyncio.get_running_loop().create_future()
        self._hold(future, place)
        return future

    def append_for(self, writer, build, *, ordering_key=None, size=0):
        self._hold(writer, super().append(build, ordering_key=ordering_key, size=size).result())

    def release(self) -> None:
        self._open = True
        while self.held:
            writer, place = self.held.pop(0)
            writer.set_result(place)

    def _hold(self, writer, place) -> None:
        self.held.append((writer, place))
        if self._open:
            asyncio.get_running_loop().call_soon(self.release)


async def until(condition) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


def plain(answers: bytes) -> bytes:
    """Replace what differs between two answers to the same request."""
    for pattern, word in CHANGING:
        answers = re.sub(pattern, word, answers)
    return answers


class Way:
    """One API and its server. reached: the requests that the application saw."""

    def __init__(self, api, queue_id: str) -> None:
        self.api = api
        self.port = 0
        self.reached = 0
        self._ids = {b"QUEUE": queue_id.encode(), b"KEY": api.key.encode()}

    def sees(self, app):
        async def counted(scope, receive, send):
            self.reached += 1
            await app(scope, receive, send)

        counted.state = app.state
        return counted

    def name(self, word: bytes, text: str) -> None:
        """Have a word in requests stand for a text of this API."""
        self._ids[word] = text.encode()

    async def ask(self, *parts: bytes, apart_s: float = 0.0) -> bytes:
        """Send the parts, each in a write of its own, and return all answers until the server closes.

        apart_s: the pause after each part, in which the server reads it.
        """
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        async with asyncio.timeout(20):
            with contextlib.suppress(ConnectionError):
                for part in parts:
                    writer.write(self.spoken(part))
                    await writer.drain()
                    for _ in range(3):
                        await asyncio.sleep(apart_s / 3)
            answers = b""
            with contextlib.suppress(ConnectionError):
                answers = await reader.read()
        writer.close()
        return plain(answers)

    def spoken(self, request: bytes) -> bytes:
        """Replace the words by this API's texts."""
        for word, text in self._ids.items():
            request = request.replace(word, text)
        return request

    def stored(self) -> Counter:
        """Return what is stored, without what differs between two APIs."""
        return Counter((event.data, event.key, event.deliver_at_ms, event.traceparent) for event in events(self))


def events(way: Way) -> list:
    return [decode(value) for records in way.api.log.messages.records for _, value, _ in records]


class TwoWays:
    """The same API twice: with direct puts, and with the general way alone."""

    def __init__(self, direct: Way, general: Way) -> None:
        self.direct = direct
        self.general = general

    async def same(self, *parts: bytes, broken: bool = False, apart_s: float = 0.0) -> bytes:
        """Ask both, and return what both answer.

        broken: the server may close before it has answered all. Then of pipelined puts without an answer the direct way
        has stored more: it appends them together, and the general way one after the other.
        """
        direct, general = await asyncio.gather(
            *(way.ask(*parts, apart_s=apart_s) for way in (self.direct, self.general))
        )
        assert direct == general, parts
        if broken:
            assert self.direct.stored() >= self.general.stored()
            return direct
        assert self.direct.stored() == self.general.stored()
        counts = [way.api.app.state.requests for way in (self.direct, self.general)]
        assert counts[0].answered == counts[1].answered
        assert {name: sum(took.counts) for name, took in counts[0].took.items()} == {
            name: sum(took.counts) for name, took in counts[1].took.items()
        }
        return direct


@contextlib.asynccontextmanager
async def two_ways(*, request_s=0.4, messages=MemoryMessages, **parts):
    async with contextlib.AsyncExitStack() as stack:
        ways = []
        for options in ({}, {"direct_puts": None}):
            log = MemoryLog()
            log.messages = messages()
            api = await make_api(log=log, **parts)
            if "organization_bytes_max" in parts:  # It binds no organization that the shell created.
                organizations, name = log.control.state.organizations, api.organization_id
                organizations[name] = dataclasses.replace(organizations[name], by_shell=False)
            way = Way(api, await api.queue())
            inner = api.app
            api.app = way.sees(inner)
            way.port = await stack.enter_async_context(serving(api, request_s=request_s, **options))
            api.app = inner
            api.server.config.timeout_keep_alive = 1.0 if request_s < 1 else 75  # A part that is dropped has no answer.
            remembered = b"GET /v1/queues/QUEUE HTTP/1.1\r\nhost: x\r\nx-api-key: KEY\r\nconnection: close\r\n\r\n"
            assert b" 200 " in await way.ask(remembered)  # so that the key is known
            api.app.state.requests.answered.clear()
            api.app.state.requests.took.clear()
            way.reached = 0
            ways.append(way)
        yield TwoWays(*ways)


def put(
    body: bytes = b'{"data":"d"}',
    *lines: bytes,
    path: bytes = b"/v1/queues/QUEUE/messages",
    key: bytes = b"KEY",
    host: bytes = b"x",
    kind: bytes = b"application/json",
    length: bytes | None = None,
    http: bytes = b"1.1",
    method: bytes = b"PUT",
) -> bytes:
    """A put as most clients send it."""
    head = [b"%b %b HTTP/%b" % (method, path, http), b"Host: " + host, b"X-API-Key: " + key, b"Accept: */*"]
    head += [b"Content-Type: " + kind, b"Content-Length: %b" % (b"%d" % len(body) if length is None else length)]
    return b"\r\n".join([*head, *lines, b"", body])


async def test_a_usual_put_does_not_reach_the_application():
    async with two_ways() as ways:
        answers = await ways.same(put(), put(b'{"data":"2","name":"n","key":"k"}'), ONCE)
        assert answers.count(b"HTTP/1.1 200 OK\r\n") == 2
        assert (ways.direct.reached, ways.general.reached) == (1, 3)


USUAL = [
    put(),
    put(b'{"data":""}'),
    put(orjson.dumps({"data": "é\u2028\0😀" * 50, "name": "näme", "key": "k" * 200})),
    put(b'{"data":"d","name":null,"key":null,"deliver_at":null}'),
    put(b'{"data":"d","deliver_at":"2001-01-01T00:00:00+02:00"}'),
    put(b'{"data":"d"}', b"Connection: keep-alive"),
    put(b'{"data":"d"}', b"connection: Keep-Alive", b"User-Agent: python/3", b"accept-encoding: gzip, br"),
    put(b'{"data":"d"}', b"X-Request-Id: mine-1"),
    put(b'{"data":"d"}', b"X-Request-Id: not one"),
    put(b'{"data":"d"}', b"X-Request-Id: evp_secret"),
    put(b'{"data":"d"}', b"Everput-Organization: other", b"Authorization: Bearer evs_x"),
    put(b'{"data":"d"}', kind=b"application/json; charset=utf-8"),
    put(b'{"data":"d"}', host=b"127.0.0.1:8080"),
    put(b' {"data" : "a", "data" : "b"} '),
    put(b'{"data":"d"}', length=b"0012"),
    put(orjson.dumps({"data": "x" * 60_000})),
]


@pytest.mark.parametrize("request_", USUAL, ids=range(len(USUAL)))
@pytest.mark.parametrize("parts", ["whole", "head first", "in the body", "in the head"])
async def test_a_usual_put_has_the_same_answer_both_ways(request_, parts):
    head, _, body = request_.partition(b"\r\n\r\n")
    head += b"\r\n\r\n"
    sent = {
        "whole": [request_],
        "head first": [head, body],
        "in the body": [head + body[:3], body[3:]],
        "in the head": [head[:30], head[30:] + body],
    }[parts]
    async with two_ways(request_s=5) as ways:
        assert (await ways.same(*sent, request_, ONCE)).count(b"HTTP/1.1 200 OK\r\n") == 2
        assert ways.direct.reached < ways.general.reached


async def test_a_repeated_head_is_not_parsed_again():
    async with two_ways(request_s=60) as ways:
        reader, writer = await asyncio.open_connection("127.0.0.1", ways.direct.port)

        async def answer(request: bytes) -> bytes:
            writer.write(ways.direct.spoken(request))
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
            return head + await reader.readexactly(int(re.search(rb"content-length: (\d+)", head)[1]))

        assert b" 200 " in await answer(put())
        (connection,) = ways.direct.api.server.server_state.connections
        parser, connection.parser = connection.parser, None
        for data in ("", "d", "other", "x" * 60_000):
            assert b" 200 " in await answer(put(orjson.dumps({"data": data})))
        connection.parser = parser
        assert b" 422 " in await answer(put(b'{"data":1}'))
        assert b" 401 " in await answer(put(key=b"nonsense"))
        assert b" 200 " in await answer(put())
        writer.close()
        assert sorted(event.data for event in events(ways.direct)) == sorted(["d", "", "d", "other", "x" * 60_000, "d"])
        assert ways.direct.reached == 2


BODY_LIKE_A_HEAD = b"PUT /v1/queues/QUEUE/messages HTTP/1.1\r\ncontent-encoding: "
BEFORE_THAT_BODY = put(b"", key=b"nonsense", length=b"%d" % (len(BODY_LIKE_A_HEAD) - len("QUEUE") + len(str(uuid4()))))
FIRST = [
    [put()],
    [put() + b"\r\n"],
    [put(b'  {"data":"d"}') + b"\r\n"],
    [BEFORE_THAT_BODY, BODY_LIKE_A_HEAD + put()],
    [b"\r\n" + put()],
    [put(length=b"0012")],
    [put()[:-3], put()[-3:] + put()],
    [put(b'{"data":"PUT /v1/queues/QUEUE/messages HTTP/1.1"}')[:-40], put()[-12:].rjust(40) + put()],
    [put(b'{"data":"d"}', b"x: a,\r\n b")],
    [put(b'{"data":"d"}', b"x: content-length: 12", b"Content-LENGTH : 12")],
    [put(b'{"data":"d"}', b"x: " + b"a" * 2_000)],
    [put(b"{")],
    [put(method=b"GET")],
]
NEXT = [
    put(b'{"data":"longer"}'),
    put() + b"\r\n",
    put(b'  {"data":"d"}') + b"  ",
    BODY_LIKE_A_HEAD + put(),
    put() + put(),
    put() + put()[:-1],
    put()[:-1],
    put()[:-12],
    put(length=b"0012"),
    put(length=b"00012"),
    put(length=b"000012"),
    put(length=b"12 "),
    put(length=b" 12"),
    put(length=b"+12"),
    put(length=b"1_2"),
    put(length="1\u0662".encode()),
    put(length=b""),
    put(b"", length=b"0"),
    put(length=b"11"),
    put(length=b"13"),
    put(b"{"),
    put(b'{"data":"\r\n\r\n"}'),
    put(key=b"nonsense"),
    put(b'{"data":"d"}', b"Connection: close"),
    put(orjson.dumps({"data": "x" * 70_000})),
]


@pytest.mark.parametrize("first", FIRST, ids=range(len(FIRST)))
async def test_what_follows_a_put_has_the_same_answer_both_ways(first):
    async def followed_by(request_: bytes) -> None:
        async with two_ways(request_s=1.0) as ways:
            await ways.same(*first, request_, put(), put(b'{"data":"last"}'), ONCE, broken=True, apart_s=0.02)

    await asyncio.gather(*map(followed_by, NEXT))


CHUNKED = (
    b"PUT /v1/queues/QUEUE/messages HTTP/1.1\r\nhost: x\r\nx-api-key: KEY\r\ncontent-type: application/json\r\n"
    b'transfer-encoding: chunked\r\n\r\nc\r\n{"data":"d"}\r\n0\r\nx-api-key: z\r\n\r\n'
)
UNUSUAL = [
    put(key=b"nonsense"),
    put(key=b""),
    put(path=b"/v1/queues/QUEUE/messages?x=1"),
    put(path=b"/v1/queues/QUEUE/messages#f"),
    put(path=b"/v1/queues/QUEUE/messages/"),
    put(path=b"/v1/queues/QUEUE/%6dessages"),
    put(path=b"/v1/queues//messages"),
    put(path=b"/v1/queues/messages"),
    put(path=b"/v1/queues/x/QUEUE/messages"),
    put(path=b"/v1/queues/11111111-1111-4111-8111-111111111111/messages"),
    put(path=b"http://x/v1/queues/QUEUE/messages"),
    put(path=b"/v1/queues/\xff/messages"),
    put(path=b"*"),
    put(method=b"GET"),
    put(method=b"DELETE"),
    put(http=b"1.0"),
    put(b'{"data":"d"}', b"Connection: keep-alive", http=b"1.0"),
    put(kind=b"text/plain"),
    put(kind=b"application/json; charset=latin-1"),
    put(kind=b"APPLICATION/JSON"),
    put(b""),
    put(b"{"),
    put(b'{"data":1}'),
    put(b'{"data":"d","more":1}'),
    put(b'{"data":"\xff"}'),
    put(b'{"data":"\\ud800"}'),
    put(b"[" * 2000),
    put(b'{"data":"d","name":""}'),
    put(b'{"data":"d","key":""}'),
    put(b'{"data":"d","deliver_at":"2099-01-01T00:00:00Z"}'),
    put(b'{"data":"d"}', b"Connection: close"),
    put(b'{"data":"d"}', b"Connection: keep-alive, close"),
    put(b'{"data":"d"}', b"Idempotency-Key: one"),
    put(b'{"data":"d"}', b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    put(b'{"data":"d"}', b"Content-Encoding: gzip"),
    put(b'{"data":"d"}', b"Expect: 100-continue"),
    put(b'{"data":"d"}', b"Upgrade: h2c", b"Connection: upgrade"),
    put(b'{"data":"d"}', b"Upgrade: websocket", b"Connection: upgrade"),
    put(b'{"data":"d"}', b"X-API-Key: second"),
    put(b'{"data":"d"}', b"Host: x"),
    put(b'{"data":"d"}', b"Content-Length: 12"),
    put(b'{"data":"d"}', b"Content-Length: 13"),
    put(b'{"data":"d"}', b"Transfer-Encoding: chunked"),
    put(host=b""),
    put(host=b"evil.example"),
    put(length=b"-1"),
    put(length=b"1x"),
    put(length=b"99999999999999999999999"),
    put(length=b"4000000"),
    put(b'{"data":"d"}', b"x: " + b"a" * 40_000),
    put(b'{"data":"d"}', b"broken header"),
    put(orjson.dumps({"data": "x" * 70_000})),
    put(orjson.dumps({"data": "x" * 1_100_000})),
    CHUNKED,
]


@pytest.mark.parametrize("request_", UNUSUAL, ids=range(len(UNUSUAL)))
async def test_an_unusual_put_has_the_same_answer_both_ways(request_):
    async with two_ways() as ways:
        await ways.same(request_, ONCE)
        await ways.same(put(), request_, put(), ONCE)
        await ways.same(put() + request_ + put() + ONCE)


async def test_keys_that_may_not_put_are_refused_the_same_way(monkeypatch):
    async with two_ways() as ways:
        for way in (ways.direct, ways.general):
            control = way.api.log.control
            made = {"organization_id": way.api.organization_id, "name": "k"}
            other = await way.api.queue("other")
            for word, more in {
                b"SCOPE": {"scopes": ("queues",)},
                b"PUTS": {"scopes": ("messages:put",)},
                b"NARROW": {"queue_ids": (other,)},
                b"ENDED": {"expires_at_ms": now_ms() + 3_600_000},
            }.items():
                way.name(word, (await create_key(control, control, **made, **more))[1])
            way.name(b"THEIRS", await way.api.another_organization())
        words = (b"SCOPE", b"PUTS", b"NARROW", b"ENDED", b"THEIRS")
        for _ in range(2):  # The general way looks a key up, and the direct way knows it from then on.
            for word in words:
                await ways.same(put(key=word), put(key=word), ONCE)
        monkeypatch.setattr("api.auth.now_ms", lambda: now_ms() + 3_600_000)  # the key's end
        assert b" 401 " in await ways.same(put(key=b"ENDED"), ONCE)
        for way in (ways.direct, ways.general):
            assert (await way.api.bare.request("DELETE", "/v1/nothing")).status_code == 404
            way.api.log.control.state.keys_by_sha256.clear()
        assert b" 401 " in await ways.same(put(key=b"PUTS"), ONCE)


@pytest.mark.parametrize(
    "limits",
    [
        {"requests_per_s": 0.3},
        {"bytes_per_s": 1, "body_bytes_max": 100},
        {"requests_per_s": 0.3, "bytes_per_s": 1, "body_bytes_max": 80},
        {"body_bytes_max": 40},
    ],
    ids=str,
)
async def test_limits_refuse_the_same_puts(limits):
    async with two_ways(**limits) as ways:
        for _ in range(3):
            await ways.same(put(), put(b'{"data":"%b"}' % (b"x" * 60)), ONCE)


async def test_an_account_at_its_bound_of_bytes_is_refused_the_same_way():
    async with two_ways(organization_bytes_max=3000) as ways:
        answers = [await ways.same(put(b'{"data":"%b"}' % (b"x" * 900)), ONCE) for _ in range(4)]
        assert b" 200 " in answers[0]
        assert b" 507 " in answers[-1]


@pytest.mark.parametrize("error", [LogUnavailable("away"), DiskNearlyFull("full"), RuntimeError("a bug")], ids=str)
async def test_a_log_that_takes_nothing_is_answered_the_same_way(error):
    async with two_ways() as ways:
        for way in (ways.direct, ways.general):
            way.api.log.messages.failing = error
        assert b"HTTP/1.1 50" in await ways.same(put(), put(), ONCE)
        await ways.same(put() + put() + ONCE)


async def test_a_failed_append_is_answered_the_same_way_and_in_its_place():
    async with two_ways(messages=LateMessages) as ways:
        for way in (ways.direct, ways.general):
            way.api.log.messages.late = {
                "2": InDoubt("in doubt"),
                "4": LogUnavailable("away"),
                "5": RuntimeError("bug"),
            }
        answers = await ways.same(b"".join(put(b'{"data":"%d","name":"n%d"}' % (n, n)) for n in range(7)) + ONCE)
        statuses = [int(found) for found in re.findall(rb"HTTP/1\.1 (\d+)", answers)]
        assert statuses == [200, 200, 503, 200, 503, 500, 200, 404]
        assert re.findall(rb'"name":"n(\d)', answers) == [b"0", b"1", b"3", b"6"]


@pytest.mark.parametrize("count", [2, DIRECT_PUTS_MAX, PIPELINED_MAX + 1, PIPELINED_MAX + 2, 100])
@pytest.mark.parametrize("messages", [MemoryMessages, LateMessages])
async def test_pipelined_puts_are_answered_in_order_and_as_many_as_before(count, messages):
    async with two_ways(messages=messages) as ways:
        puts = [put(b'{"data":"d","name":"n%d"}' % number) for number in range(count)]
        answers = await ways.same(b"".join(puts) + ONCE)
        names = re.findall(rb'"name":"n(\d+)"', answers)
        assert names == [b"%d" % number for number in range(min(count, PIPELINED_MAX + 1))]


async def test_pipelined_puts_of_one_read_are_appended_together():
    async with two_ways(messages=LateMessages) as ways:
        await ways.direct.ask(b"".join(put(b'{"data":"%d"}' % number) for number in range(5)) + ONCE)
        assert ways.direct.reached == 1
        assert ways.direct.api.log.messages.most == 5


PIECES = [
    *USUAL[:14],
    put(b'{"data":"d"}', b"Idempotency-Key: one"),
    put(b"{"),
    put(path=b"/v1/queues/x/messages"),
    put(key=b"nonsense"),
    put(method=b"GET"),
    put(b'{"data":"d"}', b"Expect: 100-continue"),
    put(b'{"data":"d"}', b"Connection: close"),
    put(http=b"1.0"),
    put(host=b"evil.example"),
    put(length=b"40"),
    put(length=b"3"),
    b"\r\n",
    b"garbage\r\n\r\n",
    CHUNKED,
]


@settings(max_examples=50, deadline=None)
@given(
    pieces=st.lists(st.sampled_from(PIECES), min_size=1, max_size=6),
    cuts=st.lists(st.integers(0, 1500), max_size=4),
    flips=st.lists(st.tuples(st.integers(0, 1500), st.integers(0, 255)), max_size=2),
    apart=st.booleans(),
)
@example(pieces=[PIECES[0]] * 3, cuts=[200, 250], flips=[], apart=False)
async def test_whatever_is_sent_has_the_same_answer_both_ways(pieces, cuts, flips, apart):
    sent = bytearray(b"".join(pieces))
    for place, byte in flips:
        sent[place % len(sent)] = byte
    sent += ONCE
    if apart:
        cuts += itertools.accumulate(map(len, pieces))
    ends = sorted({0, len(sent), *(cut % len(sent) for cut in cuts)})
    parts = [bytes(sent[begin:end]) for begin, end in itertools.pairwise(ends)]
    async with two_ways(request_s=1.0) as ways:  # a busy machine must not make one of the two ways late
        await ways.same(*parts, broken=True, apart_s=0.01 if apart else 0.0)


async def test_an_answer_under_way_at_a_stop_is_whole_and_says_that_the_connection_closes():
    async def stopped(way: Way) -> bytes:
        asking, messages = asyncio.create_task(way.ask(put() + put())), way.api.log.messages
        await until(lambda: messages.held)
        way.api.server.should_exit = True
        (connection,) = way.api.server.server_state.connections
        await until(lambda: not connection.cycle.keep_alive)
        messages.release()
        return await asking

    async with two_ways(messages=HeldMessages) as ways:
        direct, general = await stopped(ways.direct), await stopped(ways.general)
        assert direct == general
        assert re.findall(rb"connection: close|HTTP/1.1 200", direct) == [b"HTTP/1.1 200"] * 2 + [b"connection: close"]


async def test_a_head_whose_body_is_to_come_at_a_stop_is_still_answered():
    async def stopped(way: Way) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", way.port)
        head, end, body = way.spoken(put()).partition(b"\r\n\r\n")
        writer.write(head + end)
        server = way.api.server
        await until(lambda: server.server_state.connections)
        (connection,) = server.server_state.connections
        await until(lambda: connection.cycle is not None)
        server.should_exit = True
        await until(lambda: not connection.cycle.keep_alive)
        writer.write(body)
        async with asyncio.timeout(10):
            answer = await reader.read()
        writer.close()
        return plain(answer)

    async with two_ways(request_s=60) as ways:
        direct, general = await stopped(ways.direct), await stopped(ways.general)
        assert direct == general
        assert b" 200 OK" in direct
        assert b"connection: close" in direct


async def test_a_client_that_leaves_before_its_answer_harms_nobody(caplog):
    async with two_ways(messages=HeldMessages) as ways:
        for way in (ways.direct, ways.general):
            messages = way.api.log.messages
            _, writer = await asyncio.open_connection("127.0.0.1", way.port)
            writer.write(way.spoken(put()))
            await until(lambda m=messages: m.held)
            writer.transport.abort()
            await until(lambda w=way: not w.api.server.server_state.connections)
            messages.release()
        await ways.same(put(), ONCE)
    assert [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []


async def test_a_client_that_reads_no_answers_has_few_of_them_held():
    async with two_ways(request_s=60) as ways:
        way, many = ways.direct, 20
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", way.port))
        await until(lambda: way.api.server.server_state.connections)
        (connection,) = way.api.server.server_state.connections
        connection.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        records, flow = way.api.log.messages.records, connection.flow
        for rounds in range(1, 1000):
            await asyncio.get_running_loop().sock_sendall(client, way.spoken(put()) * many)
            await until(
                lambda n=rounds: sum(map(len, records)) == n * many or (flow.write_paused and connection.pipeline)
            )
            assert connection.transport.get_write_buffer_size() < 256 << 10
            if flow.write_paused and connection.pipeline:
                break
        else:
            raise AssertionError("the server appends on and on")
        client.close()
        assert way.reached, "a put that comes while answers are not read goes the general way"


async def test_a_connection_without_requests_is_closed_after_a_direct_answer_too():
    api = await make_api()
    way = Way(api, await api.queue())
    async with serving(api) as way.port:
        api.server.config.timeout_keep_alive = 0.3
        await api.put("/v1/queues", json={"name": "other"})  # so that the key is known
        assert b" 200 " in await way.ask(put())  # which returns when the server has closed


class Spans:
    """ports.Tracing. names: of the spans that have ended."""

    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

    def __init__(self) -> None:
        self.names: list[str] = []

    def put(self, _parent, _queue):
        return SimpleNamespace(traceparent=self.traceparent, end=lambda *, error: self.names.append("put"))

    def append(self, _put, _queue):
        return SimpleNamespace(traceparent=self.traceparent, end=lambda *, error: self.names.append("append"))


async def test_a_process_that_traces_has_no_direct_puts():
    spans = Spans()
    async with two_ways(tracing=spans) as ways:
        await ways.same(put(), ONCE)
    assert sorted(spans.names) == ["append", "append", "put", "put"]


def test_uvicorn_reads_nothing_of_a_request_under_way_that_a_direct_put_lacks():
    """The protocol puts a DirectCycle where uvicorn has its own. What a direct put never comes to is left out."""
    assert version("uvicorn").startswith("0.54.")
    tree = ast.parse(inspect.getsource(httptools_impl.HttpToolsProtocol).lstrip())
    names = {"cycle", "existing_cycle"}
    read = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and getattr(node.value, "attr", getattr(node.value, "id", None)) in names
    }
    by_tasks = {"run_asgi", "more_body"}
    assert read - by_tasks <= {name for name in dir(DirectCycle) if not name.startswith("_")}
    assert read >= {"response_complete", "disconnected", "keep_alive", "message_event", "body"}


def test_uvicorn_has_what_direct_puts_call():
    wanted = {
        "on_message_begin": ["self"],
        "on_url": ["self", "url"],
        "on_header": ["self", "name", "value"],
        "on_headers_complete": ["self"],
        "on_body": ["self", "body"],
        "on_message_complete": ["self"],
        "on_response_complete": ["self"],
        "timeout_keep_alive_handler": ["self"],
    }
    found = {
        name: list(inspect.signature(getattr(httptools_impl.HttpToolsProtocol, name)).parameters) for name in wanted
    }
    assert found == wanted
    source = inspect.getsource(httptools_impl.HttpToolsProtocol.shutdown)
    assert "self.cycle.response_complete" in source
    assert "self.cycle.keep_alive = False" in source
    assert httptools_impl.STATUS_LINE[200] == b"HTTP/1.1 200 OK\r\n"
