"""A listener's signing secrets, its headers and its test, over the API."""

from __future__ import annotations

import asyncio
import contextlib
from ipaddress import ip_network

import orjson
import pytest
from api_client import Api, make_api, problem
from msgspec.structs import force_setattr

from broker.core.codec import encode
from broker.core.events import ListenerSecretRotated
from broker.core.signing import Signer, secret_bytes
from everput import verify_batch
from tests.listeners import Listeners

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
LOOPBACK = (ip_network("127.0.0.0/8"),)


@pytest.fixture
async def api() -> Api:
    return await make_api(allow_networks=LOOPBACK)


@contextlib.asynccontextmanager
async def listening(*answers: bytes):
    """A listener that gives these answers, one for each connection, and keeps what it got."""
    got: list[bytes] = []
    left = list(answers)

    async def serve(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        got.append(head + await reader.readexactly(length))
        answer = left.pop(0)
        writer.write(answer)
        if not answer:
            await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook", got


def taken_apart(request: bytes) -> tuple[dict[str, str], bytes]:
    head, _, body = request.partition(b"\r\n\r\n")
    return dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:]), body


def signature(secret: str, headers: dict[str, str], body: bytes) -> str:
    signer = Signer(secret_bytes(secret))
    return signer.sign(headers["webhook-id"].encode(), headers["webhook-timestamp"].encode(), body).decode()


async def path_of(api: Api, **more) -> str:
    queue_id = await api.queue()
    return f"/v1/queues/{queue_id}/listeners/{await api.listener(queue_id, **more)}"


async def test_the_secret_is_shown_to_who_asks_for_it(api):
    path = await path_of(api, secret=SECRET)
    answer = await api.get(f"{path}/secret")
    assert (answer.json()["secret"], answer.json()["former"]) == (SECRET, [])
    assert answer.headers["cache-control"] == "no-store"


async def test_after_a_rotation_old_and_new_sign_until_the_old_ones_time(api):
    path = await path_of(api, secret=SECRET)
    first = await api.request("POST", f"{path}/secret/rotate")
    new = first.json()["secret"]
    assert new.startswith("whsec_")
    assert new != SECRET
    assert len(first.json()["former"]) == 1
    assert (await api.get(f"{path}/secret")).json() == first.json()
    assert SECRET.encode() not in b"".join(api.log.control.records)
    assert new.encode() not in b"".join(api.log.control.records)
    ended = await api.request("POST", f"{path}/secret/rotate", json={"secret": SECRET, "overlap_s": 0})
    assert (ended.json()["secret"], ended.json()["former"]) == (SECRET, [])


async def test_so_many_former_secrets_and_no_more(api):
    path = await path_of(api)
    for _ in range(3):
        assert (await api.request("POST", f"{path}/secret/rotate")).status_code == 200
    problem(await api.request("POST", f"{path}/secret/rotate"), 422, "quota-reached")
    assert (await api.request("POST", f"{path}/secret/rotate", json={"overlap_s": 0})).json()["former"] == []


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"secret": "x"}, "/secret"),
        ({"overlap_s": -1}, "/overlap_s"),
        ({"overlap_s": 10**9}, "/overlap_s"),
        ({"x": 1}, "/x"),
    ],
)
async def test_a_rotation_that_is_not_as_it_must_be_is_422(api, body, pointer):
    answer = await api.request("POST", f"{await path_of(api)}/secret/rotate", json=body)
    assert problem(answer, 422)["errors"][0]["pointer"] == pointer


async def test_a_test_sends_one_marked_and_signed_message_and_tells_what_came_of_it(api):
    async with listening(b"HTTP/1.1 204 No Content\r\n\r\n") as (url, got):
        path = await path_of(api, notify_url=url, secret=SECRET, headers={"authorization": "Bearer mine"})
        new = (await api.request("POST", f"{path}/secret/rotate")).json()["secret"]
        test = (await api.request("POST", f"{path}/test")).json()["test"]
    assert (test["status"], test["error"]) == (204, None)
    headers, body = taken_apart(got[0])
    assert headers["everput-test"] == "true"
    assert headers["authorization"] == "Bearer mine"
    assert headers["webhook-id"] == test["message_id"] == orjson.loads(body)["message"]["id"]
    assert headers["webhook-signature"].split() == [signature(new, headers, body), signature(SECRET, headers, body)]
    assert api.log.messages.records == [[], []]


async def test_a_test_counts_as_stored_bytes_with_the_answer_that_is_kept(api):
    async def stored() -> int:
        return (await api.get("/v1/organizations")).json()["organizations"][0]["stored_bytes"]

    async with listening(b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 2000\r\n\r\n" + b"x" * 2_000) as (
        url,
        _,
    ):
        path = await path_of(api, notify_url=url)
        before = await stored()
        assert (await api.request("POST", f"{path}/test")).json()["test"]["status"] == 500
    assert await stored() >= before + len(encode(api.log.tests.events[-1])) > before + 2_000


async def test_a_test_of_a_listener_with_batches_sends_a_batch_of_one_message(api):
    accepts, rejects = (
        b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        for body in (b'{"failed":[]}', b'{"failed":["%b"]}' % (b"0" * 36))
    )
    async with listening(accepts, rejects) as (url, got):
        path = await path_of(api, notify_url=url, secret=SECRET, batch={})
        test = (await api.request("POST", f"{path}/test")).json()["test"]
        other = (await api.request("POST", f"{path}/test")).json()["test"]
    assert (test["status"], test["error"], other["error"]) == (200, None, None), "another message is rejected"
    headers, body = taken_apart(got[0])
    assert (headers["everput-test"], headers["everput-batch"], "everput-attempt" in headers) == ("true", "1", False)
    assert headers["webhook-id"] == test["batch_id"]
    (message,) = verify_batch(SECRET, headers, body)
    assert (message.id, message.attempt) == (test["message_id"], 1)
    assert orjson.loads(message.body)["message"]["id"] == message.id


async def test_a_test_tells_that_the_listener_rejects_the_message_of_the_batch(api):
    async with Listeners(body=lambda got: b'{"failed":["%b"]}' % got.body[8:44]) as local:
        path = await path_of(api, notify_url=local.url("hook"), batch={})
        test = (await api.request("POST", f"{path}/test")).json()["test"]
        assert (test["status"], test["error"]) == (200, "failed-in-batch")
        assert test["message_id"] in test["answer"]["body"]
        local.status["hook"] = 500
        test = (await api.request("POST", f"{path}/test")).json()["test"]
        assert (test["status"], test["error"]) == (500, None)


@pytest.mark.parametrize(
    ("answer", "status", "error"),
    [
        (b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1/\r\ncontent-length: 0\r\n\r\n", 302, None),
        (b"HTTP/1.1 500 Oops\r\n\r\n", 500, None),
        (b"no http", None, "garbage"),
        (b"", None, "timeout"),
    ],
)
async def test_whatever_the_listener_answers_is_told(api, answer, status, error):
    async with listening(answer) as (url, _):
        path = await path_of(api, notify_url=url, timeout_ms=200)
        test = (await api.request("POST", f"{path}/test")).json()["test"]
    assert (test["status"], test["error"]) == (status, error)
    assert test["took_ms"] >= 0
    (event,) = api.log.tests.events
    assert (event.listener_id, event.message_id, event.status, event.error, event.took_ms) == (
        path.rpartition("/")[2],
        test["message_id"],
        *(status, error, test["took_ms"]),
    )
    assert event.actor.startswith("key:")
    assert len(event.answers) == (status is not None)


async def test_a_listener_that_is_not_there_and_one_that_may_not_be_are_told_apart(api):
    async with listening() as (url, _):
        pass
    path = await path_of(api, notify_url=url)
    assert (await api.request("POST", f"{path}/test")).json()["test"]["error"] == "refused"
    forbidding = await make_api()
    path = await path_of(forbidding, notify_url="http://localhost.example/")
    listener = forbidding.log.control.state.listeners[path.rpartition("/")[2]]
    object.__setattr__(listener, "notify_url", "http://127.0.0.1:8/")
    assert (await forbidding.request("POST", f"{path}/test")).json()["test"]["error"] == "no-address"


async def test_tests_of_a_listener_come_so_often_and_no_oftener(api):
    async with listening(*[b"HTTP/1.1 204 No Content\r\n\r\n"] * 5) as (url, got):
        path = await path_of(api, notify_url=url)
        answers = [await api.request("POST", f"{path}/test") for _ in range(6)]
    assert [answer.status_code for answer in answers] == [200] * 5 + [429]
    assert answers[5].headers["ratelimit-policy"] == '"tests";q=5;w=10'
    assert answers[5].headers["ratelimit"].startswith('"tests";r=0;t=')
    assert len(got) == 5


async def test_a_headers_value_is_neither_in_the_log_nor_shown_and_stays_when_it_is_sent_back_hidden(api):
    async with listening(*[b"HTTP/1.1 204 No Content\r\n\r\n"] * 2) as (url, got):
        path = await path_of(api, notify_url=url, headers={"authorization": "Bearer mine", "x-team": "blue"})
        shown = (await api.get(path)).json()["listener"]["headers"]
        assert shown == {"authorization": "…", "x-team": "…"}
        answer = await api.put(path, json={"headers": {**shown, "x-team": "red"}})
        assert answer.json()["listener"]["headers"] == shown
        await api.request("POST", f"{path}/test")
        await api.put(path, json={"max_in_flight": 3})
        await api.request("POST", f"{path}/test")
    for request in got:
        headers, _ = taken_apart(request)
        assert (headers["authorization"], headers["x-team"]) == ("Bearer mine", "red")
    assert all(("authorization", "…") in event.answers[0][6] for event in api.log.tests.events)
    records = b"".join([*api.log.control.records, *map(encode, api.log.tests.events)])
    assert not any(value in records for value in (b"Bearer", b"blue", b'"red"'))
    assert problem(await api.put(path, json={"headers": {"y": "…"}}), 422)["errors"][0]["pointer"] == "/headers/y"
    problem(await api.put(path.rpartition("/")[0], json={"name": "n", "headers": {"y": "…"}}), 422)
    assert (await api.put(path, json={"headers": {}})).json()["listener"]["headers"] == {}


async def test_a_headers_value_in_the_url_is_hidden_in_the_answer_of_a_test_and_in_the_log(api):
    async with listening(b"HTTP/1.1 404 Not Found\r\ncontent-length: 14\r\n\r\nno /mine-42/in") as (url, _):
        path = await path_of(api, notify_url=f"{url}/mine-42/in", headers={"authorization": "Bearer mine-42"})
        test = (await api.request("POST", f"{path}/test")).json()["test"]
    assert (test["answer"]["request"]["url"], test["answer"]["body"]) == (f"{url}/…/in", "no /…/in")
    (event,) = api.log.tests.events
    assert b"mine-42" not in encode(event)


async def test_header_values_go_to_another_origin_only_when_they_are_given_again(api):
    async with listening(*[b"HTTP/1.1 204 No Content\r\n\r\n"] * 2) as (mine, got), listening() as (other, theirs):
        path = await path_of(api, notify_url=mine, headers={"authorization": "Bearer mine", "x-team": "blue"})
        events = len(api.log.control.records)
        for body, pointer in (
            ({"notify_url": other}, "/headers"),
            ({"notify_url": mine.replace("http:", "https:"), "max_in_flight": 3}, "/headers"),
            ({"notify_url": other, "headers": {"authorization": "new", "x-team": "…"}}, "/headers/x-team"),
        ):
            refused = problem(await api.put(path, json=body), 422)
            assert refused["errors"][0]["pointer"] == pointer
            assert "headers" in refused["detail"] or "value" in refused["detail"]
        assert len(api.log.control.records) == events
        assert (await api.put(path, json={"notify_url": mine.replace("/hook", "/new")})).status_code == 200
        await api.request("POST", f"{path}/test")
        assert taken_apart(got[0])[0]["authorization"] == "Bearer mine"
        changed = await api.put(path, json={"notify_url": mine, "liveness_url": other})
        assert changed.status_code == 200
        assert theirs == []


@pytest.mark.parametrize("given", [{"authorization": "theirs"}, {}])
async def test_what_is_sent_to_another_origin_is_what_was_given_for_it(api, given):
    async with listening(b"HTTP/1.1 204 No Content\r\n\r\n") as (other, theirs):
        path = await path_of(api, headers={"authorization": "Bearer mine", "x-team": "blue"})
        assert (await api.put(path, json={"notify_url": other, "headers": given})).status_code == 200
        await api.request("POST", f"{path}/test")
    assert taken_apart(theirs[0])[0].get("authorization") == given.get("authorization")
    assert b"Bearer mine" not in theirs[0]
    assert b"blue" not in theirs[0]


async def test_header_names_that_differ_only_in_case_are_refused(api):
    queue_id = await api.queue()
    twice = {"X-Team": "blue", "x-other": "a", "x-team": "red"}
    listener = {"name": "l", "notify_url": "http://127.0.0.1:8/n", "liveness_url": "http://127.0.0.1:8/l"}
    answer = await api.put(f"/v1/queues/{queue_id}/listeners", json={**listener, "headers": twice})
    assert problem(answer, 422)["errors"][0]["pointer"] == "/headers/x-team"
    path = f"/v1/queues/{queue_id}/listeners/{await api.listener(queue_id, headers={'X-Team': 'blue'})}"
    answer = await api.put(path, json={"headers": {"X-Team": "…", "X-TEAM": "red"}})
    assert problem(answer, 422)["errors"][0]["pointer"] == "/headers/X-TEAM"


async def test_a_listener_without_headers_moves_to_another_origin_at_once(api):
    path = await path_of(api)
    assert (await api.put(path, json={"notify_url": "https://other.example/n"})).status_code == 200


async def test_a_header_of_an_old_event_is_hidden_and_sealed_by_the_next_change(api):
    path = await path_of(api, headers={"x-team": "blue"})
    listener = api.log.control.state.listeners[path.rpartition("/")[2]]
    force_setattr(listener.settings, "sealed_headers", {})
    force_setattr(listener.settings, "headers", {"x-team": "blue"})
    assert (await api.get(path)).json()["listener"]["headers"] == {"x-team": "…"}
    await api.put(path, json={"max_in_flight": 3})
    now = api.log.control.state.listeners[listener.id].settings
    assert now.headers == {}
    assert now.sealed_headers["x-team"].startswith("gAAAA")


async def test_a_listener_that_is_deleted_while_its_secret_changes_is_404(api):
    path = await path_of(api)

    async def deleted(event):
        if isinstance(event, ListenerSecretRotated):
            assert (await api.request("DELETE", path)).status_code == 200

    api.log.control.after = deleted
    problem(await api.request("POST", f"{path}/secret/rotate"), 404, "not-found")
