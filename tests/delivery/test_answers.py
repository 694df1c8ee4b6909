"""What one answer does to one listener's deliveries: every way a listener can answer, on real sockets."""

from __future__ import annotations

import asyncio
import itertools
import logging
import ssl
from functools import partial
from ipaddress import ip_network

import orjson
import pytest

from broker.clock import now_ms
from broker.core.flow import WHOLE
from broker.core.signing import Signer
from broker.outbound import connection as http
from tests.certificates import make_certificate
from tests.delivery.office import OK, until


async def answer_200(_request, writer):
    writer.write(OK)


def says(data: bytes, *, close: bool = False):
    async def behaviour(_request, writer):
        writer.write(data)
        if close:
            writer.close()

    return behaviour


async def hangs(request, _writer):
    await until(request.given_up)


async def slow(_request, writer):
    await asyncio.sleep(0.1)
    writer.write(OK)


async def slow_in_small_pieces(_request, writer):
    for byte in b"HTTP/1.1 200 OK\r\nx-padding: abc\r\ncontent-length: 2\r\n\r\nok":
        writer.write(bytes([byte]))
        await asyncio.sleep(0.001)


async def trickles_for_ever(_request, writer):
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.02)


def endless(head: bytes, piece: bytes):
    async def behaviour(_request, writer):
        writer.write(head)
        while True:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)

    return behaviour


FAILS = {
    "hangs": (hangs, "timeout"),
    "trickles a header for ever": (trickles_for_ever, "timeout"),
    "says half a status line and waits": (says(b"HTTP/1.1 20"), "timeout"),
    "closes without a word": (says(b"", close=True), "closed"),
    "closes in the status line": (says(b"HTTP/1.1 20", close=True), "closed"),
    "closes in the headers": (says(b"HTTP/1.1 200 OK\r\ncontent-le", close=True), "closed"),
    "sends headers without end": (endless(b"HTTP/1.1 200 OK\r\n", b"x-more: %b\r\n" % (b"y" * 1000)), "too-large"),
    "sends one header without end": (endless(b"HTTP/1.1 200 OK\r\nx: ", b"y" * 1000), "too-large"),
    "sends a huge header": (says(b"HTTP/1.1 200 OK\r\nx: %b\r\n\r\n" % (b"y" * 1_000_000)), "too-large"),
    "says 100 without end": (endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100), "too-large"),
    "talks garbage": (says(b"\x16\x03\x01\x00\xff hello there\r\n\r\n"), "garbage"),
    "talks another protocol": (says(b"220 mail.example ESMTP\r\n"), "garbage"),
    "changes the protocol": (says(b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n"), "garbage"),
    "has two lengths": (says(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx"), "garbage"),
    "answers 500": (says(b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n"), 500),
    "answers 404": (says(b"HTTP/1.1 404 No\r\ncontent-length: 0\r\n\r\n"), 404),
    "answers 503": (says(b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n"), 503),
    "answers 301": (says(b"HTTP/1.1 301 Moved\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n"), 301),
    "answers 304": (says(b"HTTP/1.1 304 Same\r\n\r\n"), 304),
    "answers 999": (says(b"HTTP/1.1 999 What\r\ncontent-length: 0\r\n\r\n"), 999),
    "answers 500 and hangs": (says(b"HTTP/1.1 500 No\r\ncontent-length: 10\r\n\r\n"), 500),
    "answers 500 and closes": (says(b"HTTP/1.1 500 No\r\ncontent-length: 10\r\n\r\n", close=True), 500),
}

TAKES = {
    "answers 200": answer_200,
    "answers 204": says(b"HTTP/1.1 204 None\r\n\r\n"),
    "answers 299": says(b"HTTP/1.1 299 Fine\r\ncontent-length: 0\r\n\r\n"),
    "is slow": slow,
    "answers in small pieces": slow_in_small_pieces,
    "says 100 before": says(b"HTTP/1.1 100 Continue\r\n\r\n" + OK),
    "says 103 twice before": says(b"HTTP/1.1 103 Hints\r\nlink: x\r\n\r\n" * 2 + OK),
    "answers in chunks": says(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
    "answers in chunks with trailers": says(
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nretry-after: 9\r\n\r\n"
    ),
    "speaks HTTP/1.0": says(b"HTTP/1.0 200 OK\r\n\r\nfine", close=True),
    "speaks HTTP/1.0 and does not close": says(b"HTTP/1.0 200 OK\r\n\r\nfine"),
    "asks for close": says(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"),
    "closes after the status": says(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n", close=True),
    "closes in the middle of the body": says(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf", close=True),
    "never ends its body": says(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf"),
    "sends a body without end": endless(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 1000),
    "sends chunks without end": endless(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"3\r\nabc\r\n"),
    "talks garbage after the answer": says(OK + b"\x00\xffgarbage"),
    "sends a broken chunk": says(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nnonsense\r\n"),
}


def only_at_first(behaviour, times: int):
    """Behave badly for the first requests and well after."""
    counter = itertools.count(1)

    async def changing(request, writer):
        await (behaviour if next(counter) <= times else answer_200)(request, writer)

    return changing


@pytest.mark.parametrize("bad", FAILS)
async def test_a_bad_answer_fails_its_attempt_once_and_the_message_comes_again(serve, open_office, bad):
    behaviour, said = FAILS[bad]
    server = await serve(only_at_first(behaviour, 2))
    office = await open_office(server, timeout_ms=1_000 if said == "timeout" else 60_000)
    office.put(3)
    await office.all_settled()
    office.check_books()
    rows = [row for rows in office.outcomes.values() for row in rows]
    assert [row[2] for row in rows if row[1] == "failed"] == [said, said]
    assert len(server.posts) == 5
    assert not any(request.target.startswith("/elsewhere") for request in server.posts)


@pytest.mark.parametrize("good", TAKES)
async def test_a_2xx_however_it_ends_takes_the_message_at_the_first_attempt(serve, open_office, good):
    server = await serve(TAKES[good])
    office = await open_office(server, max_in_flight=2, timeout_ms=60_000)
    office.put(3)
    await office.all_settled()
    office.check_books()
    assert [len(rows) for rows in office.outcomes.values()] == [1, 1, 1]
    assert [(request.message_id, request.attempt) for request in sorted(server.posts, key=lambda r: r.message_id)] == [
        ("m-0", 1),
        ("m-1", 1),
        ("m-2", 1),
    ]


async def test_the_request_is_what_was_promised_and_its_signature_is_right(serve, open_office):
    server = await serve(answer_200)
    office = await open_office(server, headers={"x-team": "orders", "Content-Length": "7", "HOST": "elsewhere"})
    office.put()
    await office.all_settled()
    (request,) = server.posts
    headers = request.headers
    assert (request.method, request.target) == ("POST", "/hook?x=1")
    assert headers["host"] == f"127.0.0.1:{server.port}"
    assert headers["content-type"] == "application/json"
    assert headers["x-team"] == "orders"
    assert headers["everput-attempt"] == "1"
    assert orjson.loads(request.body) == {
        "queue": {"id": "q-1", "name": "orders"},
        "message": {"id": "m-0", "name": "n", "data": "{}"},
    }
    expected = Signer(b"k" * 32).sign(b"m-0", headers["webhook-timestamp"].encode(), request.body)
    assert headers["webhook-id"] == "m-0"
    assert headers["webhook-signature"] == expected.decode()


async def test_a_former_secret_signs_besides_until_its_time(serve, open_office):
    server = await serve(answer_200)
    office = await open_office(server)
    old, ended = (Signer(b"o" * 32), now_ms() + 60_000), (Signer(b"e" * 32), now_ms() - 1)
    dispatcher = office.dispatcher
    dispatcher.update(dispatcher.listener, share=WHOLE, opened=dispatcher.opened._replace(former=(ended, old)))
    office.put()
    await office.all_settled()
    (request,) = server.posts
    signed = (b"m-0", request.headers["webhook-timestamp"].encode(), request.body)
    expected = [Signer(b"k" * 32).sign(*signed), old[0].sign(*signed)]
    assert request.headers["webhook-signature"] == b" ".join(expected).decode()


async def test_a_repeat_has_the_same_id_and_body_and_the_next_number(serve, open_office):
    server = await serve(only_at_first(FAILS["answers 500"][0], 2))
    office = await open_office(server)
    office.put()
    await office.all_settled()
    assert [request.attempt for request in server.posts] == [1, 2, 3]
    assert len({(request.message_id, request.body) for request in server.posts}) == 1


async def test_connections_are_used_again(serve, open_office):
    server = await serve(answer_200)
    office = await open_office(server, max_in_flight=1)
    office.put(50)
    await office.all_settled()
    assert server.connections == 1
    assert len(server.posts) == 50


async def test_a_connection_closed_while_idle_costs_no_attempt(serve, open_office):
    async def closes_at_the_second_request(request, writer):
        served[request.connection] = served.get(request.connection, 0) + 1
        if served[request.connection] == 1:
            writer.write(OK)
        else:
            writer.close()

    served: dict[int, int] = {}
    server = await serve(closes_at_the_second_request)
    office = await open_office(server, max_in_flight=1)
    office.put(5)
    await office.all_settled()
    office.check_books()
    assert all(rows == [(1, "delivered", 200)] for rows in office.outcomes.values())
    assert {request.attempt for request in server.posts} == {1}
    assert office.dispatcher.circuit.faults == 0


async def test_a_connection_that_is_closed_under_every_repeat_is_a_failure_in_the_end(serve, open_office):
    async def closes_when_used_again(request, writer):
        if request.message_id == "m-1":
            writer.close()
        else:
            writer.write(OK)

    server = await serve(closes_when_used_again)
    office = await open_office(server, max_in_flight=1, max_attempts=2)
    office.put(1)
    await office.all_settled()
    office.put(1)
    await office.all_settled()
    assert office.outcomes[1] == [(1, "failed", "closed"), (2, "parked", "closed")]
    assert [request.attempt for request in server.posts if request.message_id == "m-1"] == [1, 1, 2]


async def test_an_answer_nobody_asked_for_is_not_taken_for_the_next_messages(serve, open_office):
    async def says_yes_twice_and_then_no_more(request, writer):
        if request.number == 1:
            writer.write(OK + OK)
        elif request.attempt == 1:
            await hangs(request, writer)
        else:
            writer.write(OK)

    server = await serve(says_yes_twice_and_then_no_more)
    office = await open_office(server, max_in_flight=1, timeout_ms=1_000)
    office.put(2)
    await office.all_settled()
    assert office.outcomes[0] == [(1, "delivered", 200)]
    assert office.outcomes[1][-1][:2] == (2, "delivered")


async def test_410_says_that_the_listener_is_gone(serve, open_office):
    server = await serve(says(b"HTTP/1.1 410 Gone\r\ncontent-length: 0\r\n\r\n"))
    office = await open_office(server, max_attempts=1)
    office.put()
    await office.all_settled()
    assert office.gone == ["l-1"]
    assert office.outcomes[0] == [(1, "parked", 410)]


@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_is_honoured_and_holds_everything_back(serve, open_office, status):
    times: list[float] = []
    loop = asyncio.get_running_loop()

    async def too_much(request, writer):
        times.append(loop.time())
        if request.number == 1:
            writer.write(b"HTTP/1.1 %d Slow\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n" % status)
        else:
            writer.write(OK)

    server = await serve(too_much)
    office = await open_office(server, max_in_flight=1)
    office.put(3)
    await office.all_settled()
    office.check_books()
    assert times[1] - times[0] >= 0.95
    assert office.dispatcher.limits.flow.limit == 1


async def test_a_retry_after_that_is_no_number_is_passed_over(serve, open_office):
    answer = b"HTTP/1.1 503 Slow\r\nretry-after: %b\r\ncontent-length: 0\r\n\r\n"
    server = await serve(only_at_first(says(answer % b"-1"), 1))
    office = await open_office(server)
    office.put()
    await office.all_settled()
    assert office.outcomes[0] == [(1, "failed", 503), (2, "delivered", 200)]


async def test_after_the_last_attempt_the_delivery_is_parked_and_settled(serve, open_office):
    server = await serve(FAILS["answers 404"][0])
    office = await open_office(server, max_attempts=3)
    office.put(2)
    await office.all_settled()
    office.check_books()
    assert sorted(office.parked) == [0, 1]
    assert [row[0] for row in office.outcomes[0]] == [1, 2, 3]


async def test_a_record_that_is_no_message_is_parked_and_holds_nobody_up(serve, open_office):
    server = await serve(answer_200)
    office = await open_office(server)
    office.put(value=b"garbage")
    office.put()
    await office.all_settled()
    assert office.parked == [0]
    assert [request.message_id for request in server.posts] == ["m-1"]


# Before there is a connection


async def failing_to_connect(office) -> str:
    office.put()
    await until(lambda: office.outcomes[0])
    return office.outcomes[0][0][2]


async def test_nobody_listening_is_refused(serve, open_office):
    server = await serve(answer_200)
    await server.stop()
    office = await open_office(server.url)
    assert await failing_to_connect(office) == "refused"


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n", b"garbage\r\n\r\n"])
async def test_no_log_line_has_the_url_of_a_listener(serve, open_office, caplog, answer):
    """Its path or query may hold a token; log lines name a listener by its id."""
    caplog.set_level(logging.DEBUG, "broker")
    server = await serve(says(answer, close=True))
    office = await open_office(f"{server.url}&token=of-theirs", max_attempts=1)
    office.put(8)
    await until(lambda: "circuit.opened" in caplog.text or len(office.parked) == 8)
    assert "attempt.failed" in caplog.text
    assert "of-theirs" not in caplog.text


async def test_an_address_that_is_not_allowed_is_never_connected_to(serve, open_office):
    server = await serve(answer_200)
    office = await open_office(server, office={"allow": ()})
    assert await failing_to_connect(office) == "no-address"
    assert server.connections == 0


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b"])
async def test_a_name_without_an_address_is_a_dns_failure(serve, open_office, host):
    def no_dns(name: str) -> list[str]:
        name.encode("idna")
        raise OSError("no such name")

    office = await open_office("http://no-such-host.invalid/", office={"ask": no_dns})
    office.dispatcher.connections.target = office.dispatcher.connections.target._replace(host=host)
    assert await failing_to_connect(office) == "no-address"


async def test_a_name_leads_only_to_its_addresses_that_are_allowed(serve, open_office):
    server = await serve(answer_200)
    asked: list[str] = []

    def rebinding(name: str) -> list[str]:
        asked.append(name)
        return ["127.0.0.2", "127.0.0.1"] if len(asked) == 1 else []

    office = await open_office(
        f"http://rebinding.example:{server.port}/",
        office={"allow": (ip_network("127.0.0.1/32"),), "ask": rebinding},
    )
    office.put(3)
    await office.all_settled()
    assert asked == ["rebinding.example"]  # the address that was checked is the one that is used
    assert {request.headers["host"] for request in server.posts} == {f"rebinding.example:{server.port}"}


async def test_a_listener_that_accepts_and_never_finishes_the_handshake_times_out(serve, open_office):
    server = await serve(answer_200)
    soon = partial(http.connect, tuning=http.ConnectionTuning(connect_s=0.1))
    office = await open_office(server.url.replace("http://", "https://"), office={"connect": soon})
    assert await failing_to_connect(office) in ("connect-timeout", "refused", "tls")


@pytest.fixture
def certificate(tmp_path):
    """For 127.0.0.1, signed by itself: (a server's context, a client's that trusts it)."""
    return contexts(tmp_path, "127.0.0.1")


def contexts(tmp_path, address):
    pem, key_pem = make_certificate(tmp_path, address)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(pem, key_pem)
    return server, ssl.create_default_context(cafile=str(pem))


async def test_a_trusted_certificate_is_delivered_over(serve, open_office, certificate):
    server_tls, client_tls = certificate
    server = await serve(answer_200, tls=server_tls)
    office = await open_office(server, office={"tls": client_tls}, max_in_flight=1)
    office.put(3)
    await office.all_settled()
    office.check_books()
    assert server.connections == 1


async def test_a_certificate_that_nobody_vouches_for_fails_the_attempt(serve, open_office, certificate):
    server = await serve(answer_200, tls=certificate[0])
    office = await open_office(server, office={"tls": http.tls_context()})
    assert await failing_to_connect(office) == "tls"
    assert server.posts == []


async def test_a_certificate_for_another_host_fails_the_attempt(serve, open_office, tmp_path):
    server_tls, client_tls = contexts(tmp_path, "127.0.0.9")
    server = await serve(answer_200, tls=server_tls)
    office = await open_office(server, office={"tls": client_tls})
    assert await failing_to_connect(office) == "tls"
    assert server.posts == []
