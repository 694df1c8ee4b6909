"""The client: requests and answers, what is sent again and what is not, signatures."""

from __future__ import annotations

import asyncio
import base64
import hmac
import inspect
import json
import subprocess
import sys
from urllib.parse import unquote

import httpx
import pytest
from api_client import make_api

import everput
from api.reference import OPERATION_DOCS
from broker.core import signing
from everput import (
    AsyncClient,
    BatchMessage,
    Client,
    InvalidSignature,
    NoAnswer,
    NotReached,
    Problem,
    verify,
    verify_batch,
)


@pytest.fixture
async def api():
    return await make_api()


def asked(api) -> AsyncClient:
    return AsyncClient("http://api.example.com", api.key, transport=httpx.ASGITransport(api.app))


async def test_what_is_made_is_found_changed_and_deleted(api):
    async with asked(api) as client:
        queue = (await client.send(everput.create_queue("orders"))).queue
        tag = client.etag
        assert (await client.send(everput.rename_queue(queue.id, "others", if_match=tag))).queue.name == "others"
        with pytest.raises(Problem) as refused:
            await client.send(everput.rename_queue(queue.id, "lost", if_match=tag))
        assert (refused.value.status, refused.value.code) == (412, "precondition-failed")
        made = await client.send(
            everput.create_listener(
                queue.id, name="l", notify_url="https://8.8.8.8/n", liveness_url="https://8.8.8.8/l", max_in_flight=3
            )
        )
        found = await client.send(everput.get_listener(queue.id, made.listener.id))
        assert found.listener.max_in_flight == 3
        assert (await client.send(everput.pause_listener(queue.id, found.listener.id))).listener.paused
        assert (await client.send(everput.get_secret(queue.id, found.listener.id))).secret == made.listener.secret
        put = (await client.send(everput.put_message(queue.id, "ü"))).message
        assert (await client.send(everput.get_message(queue.id, put.id))).message.data == "ü"
        batch = await client.send(everput.put_batch(queue.id, [{"data": str(number)} for number in range(150)]))
        ids = {put.id, *(one.message.id for one in batch.messages)}
        listed = [one.id async for page in client.pages(everput.list_messages(queue.id)) for one in page.messages]
        assert set(listed) == ids
        assert len(listed) == 151
        await client.send(everput.delete_queue(queue.id))
        with pytest.raises(Problem) as refused:
            await client.send(everput.get_queue(queue.id))
        assert refused.value.status == 404


async def test_a_redrive_of_an_empty_list_is_not_one_of_all(api):
    async with asked(api) as client:
        queue = (await client.send(everput.create_queue("orders"))).queue
        urls = {"notify_url": "https://8.8.8.8/n", "liveness_url": "https://8.8.8.8/l"}
        made = (await client.send(everput.create_listener(queue.id, name="l", **urls))).listener
        assert (await client.send(everput.redrive_listener(queue.id, made.id))).count == 0
        with pytest.raises(Problem) as refused:
            await client.send(everput.redrive_listener(queue.id, made.id, []))
        assert refused.value.status == 422


async def test_a_key_finds_its_organization_and_makes_another_key(api):
    api.key = await api.key_with(("keys", "queues"))
    async with asked(api) as client:
        (organization,) = (await client.send(everput.list_organizations())).organizations
        assert organization.id == api.organization_id
        key = (await client.send(everput.create_key(organization.id, "deploy", ["queues"]))).key
        pages = [page async for page in client.pages(everput.list_keys(organization.id))]
        assert key.id in {one.id for page in pages for one in page.keys}
        await client.send(everput.revoke_key(organization.id, key.id))


def test_the_client_can_ask_for_all_that_the_reference_tells_of_and_expects_what_it_tells():
    made: dict[tuple[str, str], type] = {}
    for ask in vars(everput).values():
        if inspect.isfunction(ask) and ask.__module__ == "everput.requests":
            needed = [one for one in inspect.signature(ask).parameters.values() if one.default is one.empty]
            names = {one.name: f"{{{one.name}}}" for one in needed if one.kind is not one.VAR_KEYWORD}
            request = ask(**{**names, **({"messages": []} if "messages" in names else {})})
            made[request.method, unquote(request.path)] = request.answer
    # Server-sent events are for pages; each language has libraries for them. Only a browser signs in with a provider.
    for_programs = (one for one in OPERATION_DOCS.items() if one[1].media != "text/event-stream")
    asked = {where: one.answer for where, one in for_programs if one.name != "startOidc"}
    assert made == asked


async def test_a_person_signs_up_and_acts_in_an_organization(api):
    url, network = "http://api.example.com", httpx.ASGITransport(api.app)
    who = "ann@example.com", "correct horse battery"
    async with AsyncClient(url, None, transport=network) as anybody:
        account = (await anybody.send(everput.create_account(*who))).account
        token = (await anybody.send(everput.start_session(*who))).session.token
    async with AsyncClient(url, token, transport=network) as ann:
        assert (await ann.send(everput.get_session())).account == account
        assert (await ann.send(everput.change_password(who[1], "another password"))).account == account
        made = (await ann.send(everput.create_organization("Ann's"))).organization
    async with AsyncClient(url, token, organization=made.id, transport=network) as ann:
        queue = (await ann.send(everput.create_queue("orders"))).queue
        assert (await ann.send(everput.put_message(queue.id, "first"))).message.id
        await ann.send(everput.end_session())
        with pytest.raises(Problem, match="401"):
            await ann.send(everput.get_queue(queue.id))


async def test_the_log_is_read_line_by_line(api):
    queue_id = await api.queue()
    api.key = await api.key_with(("audit",))
    async with asked(api) as client:
        lines = [line async for line in client.lines(everput.read_log(types=["queue"], queue=queue_id))]
    assert [line.event["type"] for line in lines if line.event] == ["queue.created"]
    assert lines[-1].complete is True


class Answers:
    """A network that gives these answers, one after the other; None: it breaks."""

    def __init__(self, *answers: httpx.Response | None) -> None:
        self.answers = list(answers)
        self.asked: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        answer = self.answers.pop(0)
        if answer is None:
            raise httpx.ReadError("broken")
        return answer


def problem(status: int, code: str, **headers: str) -> httpx.Response:
    body = {"type": f"/problems/{code}", "title": "T", "status": status, "detail": "d"}
    return httpx.Response(status, json=body, headers=headers)


PUT = {
    "message": {"id": "0180994c-b6b2-7d0e-b7ad-414716e83386", "name": "n"},
    "_links": {"self": {"href": "http://x/"}},
}
DONE = httpx.Response(200, json=PUT)


def send(network: Answers, request):
    with Client("http://x", "k", transport=httpx.MockTransport(network)) as client:
        return client.send(request)


def test_a_put_is_sent_again_with_its_key_until_it_is_answered():
    network = Answers(None, problem(503, "in-doubt"), problem(409, "in-flight"), problem(429, "x"), DONE)
    assert send(network, everput.put_message("q", "data")).message.name == "n"
    keys = {request.headers["idempotency-key"] for request in network.asked}
    assert len(network.asked) == 5
    assert len(keys) == 1
    assert len({request.content for request in network.asked}) == 1


def test_each_put_has_a_key_of_its_own():
    one, other = everput.put_message("q", "data"), everput.put_message("q", "data")
    assert one.headers != other.headers


@pytest.mark.parametrize("lost", [None, problem(503, "in-doubt"), httpx.Response(502)])
def test_what_must_not_happen_twice_is_not_sent_again_in_doubt(lost):
    network = Answers(lost)
    with pytest.raises((NoAnswer, Problem)):
        send(network, everput.create_queue("orders"))
    assert len(network.asked) == 1


def test_what_was_certainly_not_done_is_sent_again():
    network = Answers(problem(503, "log-unavailable"), problem(429, "too-many-requests"), problem(422, "name-taken"))
    with pytest.raises(Problem, match="422"):
        send(network, everput.create_queue("orders"))
    assert len(network.asked) == 3


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 503 Down\r\ncontent-length: 0\r\n\r\n"])
async def test_a_request_that_was_sent_once_is_not_said_to_have_reached_nobody(answer: bytes):
    async def serve_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"data")
        server.close()
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve_once, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    for kind in (NoAnswer, NotReached):  # In the second round, no server listens any more.
        async with AsyncClient(url, "k", give_up_after_s=1.0) as client:
            with pytest.raises(NoAnswer, match="ConnectError") as failed:
                await client.send(everput.put_message("q", "data", idempotency_key="k"))
        assert type(failed.value) is kind


async def test_a_request_whose_client_is_closed_has_no_answer():
    asked = asyncio.Event()

    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(never, "127.0.0.1")
    client = AsyncClient(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "k")
    request = asyncio.ensure_future(client.send(everput.list_queues()))
    await asked.wait()
    await client.close()
    with pytest.raises(NoAnswer):
        await request
    server.close()


def test_it_waits_as_long_as_it_is_asked_to_and_not_for_ever():
    network = Answers(problem(503, "log-unavailable", **{"retry-after": "100"}))
    with pytest.raises(Problem, match="503"):
        send(network, everput.get_queue("q"))
    assert len(network.asked) == 1


def test_an_answer_that_is_not_everputs_is_none():
    with pytest.raises(NoAnswer):
        send(Answers(httpx.Response(200, text="<html>")), everput.get_queue("q"))


def test_a_next_page_is_asked_for_where_the_first_one_was():
    page = {"queues": [], "_links": {"self": {"href": "http://inside/"}}}
    more = {**page, "_links": {**page["_links"], "next": {"href": "http://inside/v1/queues?cursor=abc&limit=2"}}}
    network = Answers(httpx.Response(200, json=more), httpx.Response(200, json=page))
    with Client("http://outside", "k", transport=httpx.MockTransport(network)) as client:
        assert len(list(client.pages(everput.list_queues()))) == 2
    assert str(network.asked[1].url) == "http://outside/v1/queues?cursor=abc&limit=2"


def log_lines(*numbers: int, cursor: str | None = None, complete: bool = False) -> bytes:
    lines = [{"topic": "control", "event": {"number": number}} for number in numbers]
    return b"".join(
        json.dumps(one).encode() + b"\n"
        for one in [*lines, *([] if cursor is None else [{"cursor": cursor, "complete": complete}])]
    )


def test_a_reading_of_the_log_goes_on_where_it_broke_off_and_nothing_comes_twice():
    network = Answers(
        None,
        httpx.Response(200, content=log_lines(1, 2, cursor="a") + log_lines(3) + b'{"topic"'),
        problem(503, "busy"),
        httpx.Response(200, content=log_lines(3, cursor="b") + log_lines(4, cursor="c", complete=True)),
    )
    with Client("http://x", "k", transport=httpx.MockTransport(network)) as client:
        lines = list(client.lines(everput.read_log(types=["queue"], limit=10)))
    assert [line.event["number"] for line in lines if line.event] == [1, 2, 3, 4]
    assert [line.cursor for line in lines if line.cursor] == ["a", "b", "c"]
    assert [dict(request.url.params) for request in network.asked[-2:]] == [
        {"type": "queue", "limit": "8", "cursor": "a"}
    ] * 2


def test_a_reading_of_the_log_ends_at_its_limit():
    network = Answers(httpx.Response(200, content=log_lines(1, 2, cursor="a")))
    with Client("http://x", "k", transport=httpx.MockTransport(network)) as client:
        assert len(list(client.lines(everput.read_log(limit=2)))) == 3


@pytest.mark.parametrize("answer", [problem(403, "forbidden"), httpx.Response(200, content=b"<html>\n")])
def test_a_reading_of_the_log_that_is_refused_says_so(answer):
    with (
        Client("http://x", "k", transport=httpx.MockTransport(Answers(answer))) as client,
        pytest.raises((Problem, NoAnswer)),
    ):
        list(client.lines(everput.read_log()))


# Signatures

SECRET = signing.secret_text(b"k" * 32)
BODY = b'{"queue":{},"message":{}}'


def headers(*secrets: str, at_s: int = 1_000) -> dict[str, str]:
    signed = [
        signing.Signer(signing.secret_bytes(secret)).sign(b"m-1", b"%d" % at_s, BODY).decode() for secret in secrets
    ]
    return {"Webhook-Id": "m-1", "Webhook-Timestamp": str(at_s), "Webhook-Signature": " ".join(signed)}


def test_what_was_signed_with_one_of_the_secrets_is_taken():
    assert verify(SECRET, headers(SECRET), BODY, now_s=1_000) == "m-1"
    other = signing.secret_text(b"o" * 32)
    assert verify(SECRET, headers(other, SECRET), BODY, now_s=1_299) == "m-1"


@pytest.mark.parametrize(
    ("sent", "body", "now_s"),
    [
        (headers(signing.secret_text(b"o" * 32)), BODY, 1_000),
        (headers(SECRET), BODY + b" ", 1_000),
        ({**headers(SECRET), "Webhook-Id": "m-2"}, BODY, 1_000),
        (headers(SECRET), BODY, 1_301),
        (headers(SECRET), BODY, 699),
        ({**headers(SECRET), "Webhook-Timestamp": "x"}, BODY, 1_000),
        ({**headers(SECRET), "Webhook-Timestamp": "9" * 400}, BODY, 1_000),  # more than a float holds
        ({**headers(SECRET), "Webhook-Id": "m-\udcff"}, BODY, 1_000),  # as a server decodes a byte that is not UTF-8
        ({**headers(SECRET), "Webhook-Signature": "v1,\udcff"}, BODY, 1_000),
        ({**headers(SECRET), "Webhook-Signature": "v1, é"}, BODY, 1_000),
        ({}, BODY, 1_000),
    ],
)
def test_all_else_is_refused(sent, body, now_s):
    with pytest.raises(InvalidSignature):
        verify(SECRET, sent, body, now_s=now_s)


@pytest.mark.parametrize("key", [b"", b"k" * 23, b"k" * 65])
@pytest.mark.parametrize("prefix", ["whsec_", ""])
def test_a_secret_that_is_empty_short_or_long_verifies_nothing(key, prefix):
    signature = "v1," + base64.b64encode(hmac.digest(key, b"m-1.1000." + BODY, "sha256")).decode()
    signed = {"webhook-id": "m-1", "webhook-timestamp": "1000", "webhook-signature": signature}
    with pytest.raises(ValueError, match="24 to 64 bytes"):
        verify(prefix + base64.b64encode(key).decode(), signed, BODY, now_s=1_000)


@pytest.mark.parametrize("secret", ["whsec_?", "whsec_é"])
def test_a_secret_that_is_not_base64_is_an_error(secret):
    with pytest.raises(ValueError, match="base64"):
        verify(secret, headers(SECRET), BODY)


# Batches

ELEMENTS = (
    b'[ {"id":"m-1","content_type":"application/json","attempt":1,"body": {"a" : [1.50, "\xc3\xbc"]}},\n'
    b'{"id":"m-2","content_type":"text/plain","attempt":3,"body_base64":"/wA=","traceparent":"00-1-2-00","new":[]} ]'
)


def signed(body: bytes, request_id: str = "batch_1", *, at_s: int = 1_000) -> dict[str, str]:
    signer = signing.Signer(signing.secret_bytes(SECRET))
    signature = signer.sign(request_id.encode(), b"%d" % at_s, body).decode()
    return {"Webhook-Id": request_id, "Webhook-Timestamp": str(at_s), "Webhook-Signature": signature}


def test_a_signed_batch_gives_its_messages_with_their_bodies_byte_for_byte():
    assert verify_batch(SECRET, signed(ELEMENTS), ELEMENTS, now_s=1_000) == [
        BatchMessage(
            id="m-1", content_type="application/json", body='{"a" : [1.50, "ü"]}'.encode(), attempt=1, traceparent=None
        ),
        BatchMessage(id="m-2", content_type="text/plain", body=b"\xff\x00", attempt=3, traceparent="00-1-2-00"),
    ]
    assert verify_batch(SECRET, signed(b"[]"), b"[]", now_s=1_000) == []


def test_a_request_with_a_single_message_gives_a_batch_of_one():
    sent = {**signed(BODY, "m-1"), "Everput-Attempt": "2", "Content-Type": "application/json"}
    one = BatchMessage(id="m-1", content_type="application/json", body=BODY, attempt=2)
    assert verify_batch(SECRET, sent, BODY, now_s=1_000) == [one]


@pytest.mark.parametrize("attempt", ["", "x", "9" * 400, "-1"])
def test_a_header_that_is_not_signed_changes_no_message(attempt):
    sent = {**signed(BODY, "m-1"), "everput-attempt": attempt, "everput-batch": "7"}
    assert [one.attempt for one in verify_batch(SECRET, sent, BODY, now_s=1_000)] == [1]
    assert len(verify_batch(SECRET, {**signed(ELEMENTS), "everput-batch": "x"}, ELEMENTS, now_s=1_000)) == 2


def test_a_batch_that_is_not_signed_is_not_read():
    deep = b"[" * 100_000
    for sent in ({}, signed(ELEMENTS), {**signed(deep), "webhook-id": "m-1"}):
        with pytest.raises(InvalidSignature):
            verify_batch(SECRET, sent, deep, now_s=1_000)
    with pytest.raises(InvalidSignature):
        verify_batch(SECRET, signed(ELEMENTS), ELEMENTS, now_s=1_301)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[1]",
        b"[{}]",
        b"[" * 100_000,
        b'[{"id":"m","content_type":"a","attempt":1,"body":%b}]' % (b"[" * 1_000_000 + b"]" * 1_000_000),
        b'[{"id":"m","content_type":"a","attempt":1}]',
        b'[{"id":"m","content_type":"a","attempt":1,"body":1,"body_base64":""}]',
        b'[{"id":"m","content_type":"a","attempt":1,"body_base64":"?"}]',
        b'[{"id":7,"content_type":"a","attempt":1,"body":1}]',
        b'[{"id":"\xff","content_type":"a","attempt":1,"body":1}]',
        ELEMENTS[:-1],
    ],
)
def test_a_signed_body_that_is_no_batch_is_an_error(body):
    with pytest.raises(ValueError, match="not a batch"):
        verify_batch(SECRET, signed(body), body, now_s=1_000)


async def test_the_client_sets_and_clears_a_listeners_batch(api):
    async with asked(api) as client:
        queue = (await client.send(everput.create_queue("orders"))).queue
        urls = {"notify_url": "https://8.8.8.8/n", "liveness_url": "https://8.8.8.8/l"}
        made = (await client.send(everput.create_listener(queue.id, name="l", **urls, batch={}))).listener
        assert made.batch is not None
        assert (made.batch.max_messages, made.batch.max_bytes, made.batch.wait_ms) == (100, 1 << 20, 100)
        changed = await client.send(everput.update_listener(queue.id, made.id, batch=None))
        assert changed.listener.batch is None


def test_the_client_imports_nothing_of_the_server():
    server = {"broker", "api", "cli", "projections", "aiokafka", "starlette"}
    code = f"import sys, everput; assert not {server} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
