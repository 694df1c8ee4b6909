"""A batch through a tunnel: to the local program, its answer back to the worker, and the lines that show it."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import orjson
import pytest
from api_client import make_api
from test_tunnel import connect, listeners, notify_url, tunnels_of

from broker.outbound.addresses import TUNNEL_PROOF
from cli.listen.batches import accepted, failed_in
from cli.listen.show import Show
from cli.listen.targets import wanted
from cli.listen.tunnel_client import TunnelClient
from tests.listeners import Listeners


def element(message_id: str, data: str) -> dict[str, Any]:
    body = {"queue": {"id": "q", "name": "orders"}, "message": {"id": message_id, "name": "n", "data": data}}
    return {"id": message_id, "content_type": "application/json", "attempt": 1, "body": body}


def asked(*elements: dict[str, Any]) -> dict[str, Any]:
    """A request with a batch, as the API hands it to the client."""
    headers = {"webhook-id": "batch_1", "everput-batch": str(len(elements)), "content-type": "application/json"}
    return {"type": "request", "number": 1, "headers": headers, "body": orjson.dumps(elements).decode()}


async def passed_on(target: str, request: dict[str, Any], **more: Any) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return what the client answers to the API for this request, and what it shows."""
    client = TunnelClient("http://127.0.0.1:1", "key", "q", "n", target, lambda *_, **__: None, **more)
    async with client._http:
        return await client._pass_on(request)


async def test_the_local_program_gets_the_whole_batch_and_rejects_some_of_it():
    request = asked(element("m-1", "one"), element("m-2", "two"), element("m-3", "three"))
    async with Listeners(body=lambda _: b'{"failed":["m-2","m-9",7]}') as local:
        answer, shown = await passed_on(local.url("hook"), request)
    (got,) = local.taken("hook")
    assert got.body.decode() == request["body"]
    assert got.headers["everput-batch"] == "3"
    assert answer == {"status": 200, "retry_after": None, "failed": ["m-2"]}
    assert shown is not None
    assert shown["failed"] == ["m-2"]


async def test_an_answer_with_a_status_of_its_own_rejects_the_whole_batch():
    async with Listeners(status={"hook": 500}, body=lambda _: b'{"failed":["m-1"]}') as local:
        answer, _ = await passed_on(local.url("hook"), asked(element("m-1", "one"), element("m-2", "two")))
    assert answer == {"status": 500, "retry_after": None, "failed": []}


async def test_a_batch_is_passed_on_whole_if_the_filter_matches_one_of_its_messages():
    def keeps(notification: dict[str, Any]) -> bool:
        return wanted([("data", "*keep*")], notification)

    async with Listeners() as local:
        drop = asked(element("m-1", "drop"), element("m-2", "drop"))
        dropped, shown = await passed_on(local.url("hook"), drop, wants=keeps)
        assert (dropped["status"], shown) == (204, None)
        both = asked(element("m-3", "drop"), element("m-4", "keep"))
        await passed_on(local.url("hook"), both, wants=keeps)
    assert [one.body.decode() for one in local.taken("hook")] == [both["body"]]


@pytest.mark.parametrize("answer", [b"", b"[]", b"{}", b"null", b'{"failed":null}', b'{"failed":{}}', b"[" * 100_000])
def test_an_answer_without_a_list_of_failed_messages_rejects_none(answer: bytes):
    assert failed_in(answer, asked(element("m-1", "one"))["body"]) == []


async def test_the_worker_gets_the_rejected_messages_as_a_listeners_own_answer():
    tunnels = tunnels_of()
    api = await make_api(tunnels=tunnels)
    queue_id = await api.queue()
    mine = connect(api, queue_id)
    await mine.next()
    await mine.next()
    (shown,) = await listeners(api, queue_id)
    path = notify_url(api, shown["id"]).split("/", 3)[3]
    transport = httpx.ASGITransport(tunnels.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://worker") as worker:
        for failed, body in (
            (["m-2"], b'{"failed":["m-2"]}'),
            (["m-1", 7, "x" * 37, None], b'{"failed":["m-1"]}'),
            ([], b""),
            ("m-1", b""),
            (["m-1"] * 1001, b""),
        ):
            posted = asyncio.create_task(worker.post(f"/{path}", content=b"[]", headers={"webhook-id": "batch_1"}))
            number = orjson.loads((await mine.next())["text"])["number"]
            mine.say(orjson.dumps({"number": number, "status": 200, "failed": failed}).decode())
            answer = await posted
            assert (answer.status_code, answer.content) == (200, body)
            assert answer.headers[TUNNEL_PROOF]
    await mine.leave()


def fields(**more: Any) -> dict[str, Any]:
    body = asked(element("m-1", "one"), element("m-2", "two"))["body"]
    shown = {"status": 200, "error": None, "took_ms": 3, "message_id": "batch_1", "attempt": None, "body": body}
    return {**shown, "failed": [], "to": "http://localhost/hook", **more}


def test_each_message_of_a_batch_has_its_line(capsys):
    Show(body=False, as_json=False)("answered", number=4, **fields(failed=["m-2"]))
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split("  ", 1)[1].split() == [
        "#4",
        "200",
        "3",
        "ms",
        "batch_1",
        "2",
        "messages",
        "http://localhost/hook",
    ]
    assert [line.split() for line in lines] == [
        ["accepted", "m-1", "attempt", "1"],
        ["failed", "m-2", "attempt", "1"],
    ]
    Show(body=True, as_json=False)("answered", **fields(status=500))
    _, *lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[::2]] == ["failed", "failed"]
    assert [orjson.loads(line)["message"]["data"] for line in lines[1::2]] == ["one", "two"]


def test_each_message_of_a_batch_is_in_the_line_of_json(capsys):
    Show(body=False, as_json=True)("answered", **fields(failed=["m-2"]))
    shown = orjson.loads(capsys.readouterr().out)
    assert shown["messages"] == [
        {"message_id": "m-1", "attempt": 1, "accepted": True},
        {"message_id": "m-2", "attempt": 1, "accepted": False},
    ]
    assert "body" not in shown


def test_a_batch_of_which_nothing_is_accepted_does_not_count_as_accepted():
    assert accepted(fields())
    assert accepted(fields(failed=["m-1"]))
    assert not accepted(fields(failed=["m-1", "m-2"]))
    assert not accepted(fields(status=503))
    assert accepted(fields(message_id="m", body="{}"))
