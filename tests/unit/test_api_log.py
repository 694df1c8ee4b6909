"""GET of the log: an organization's events in order, filtered, resumable, and nobody else's."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import orjson
import pytest
from api_client import Api, make_api

from api import log
from broker.audit.reader import ReaderTuning
from broker.commands.organizations import SCOPES, create_key, create_organization
from broker.core import events as ev
from broker.core.catalogue import types_named
from broker.core.ids import parse_message_id
from broker.errors import LogUnavailable

# All but key.used, which is recorded a moment after the request.
MADE = "type=organization,key.created,queue,listener,message"


async def make_audited(**parts: Any) -> Api:
    api = await make_api(**parts)
    control = api.log.control
    _, api.key = await create_key(
        control, control, organization_id=api.organization_id, name="all", scopes=SCOPES, actor="shell"
    )
    return api


async def read(api: Api, query: str = "") -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(events with their places, cursor lines)."""
    answer = await api.get(f"/v1/log{query}")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-ndjson"
    lines = [orjson.loads(line) for line in answer.content.splitlines()]
    assert "cursor" in lines[-1]
    return [line for line in lines if "event" in line], [line for line in lines if "cursor" in line]


def types(lines: Sequence[dict[str, Any]]) -> list[str]:
    return [line["event"]["type"] for line in lines]


async def put(api: Api, queue_id: str, data: str = "d") -> str:
    return (await api.put(f"/v1/queues/{queue_id}/messages", json={"data": data})).json()["message"]["id"]


async def test_an_organization_s_events_come_in_the_order_of_the_log_and_the_last_line_says_that_they_are_all():
    api = await make_audited()
    queue_id = await api.queue("orders")
    await api.listener(queue_id)
    ids = [await put(api, queue_id) for _ in range(5)]
    events, cursors = await read(api, f"?{MADE}")
    assert types(events)[:3] == ["organization.created", "key.created", "key.created"]
    assert set(types(events)[3:5]) == {"queue.created", "listener.created"}
    assert {line["event"]["message_id"] for line in events if line["topic"] == "messages"} == set(ids)
    places = [(line["log_ms"], line["topic"] == "messages", line["partition"], line["offset"]) for line in events]
    assert places == sorted(places)
    assert cursors[-1]["complete"] is True
    assert (await read(api, f"?{MADE}"))[0] == events


async def test_who_when_and_which_request_are_said_of_what_a_request_did():
    api = await make_audited()
    answer = await api.put("/v1/queues", json={"name": "q"}, headers={"x-request-id": "req-7"})
    (line,), _ = await read(api, "?type=queue.created")
    event = line["event"]
    assert event["request_id"] == answer.headers["x-request-id"] == "req-7"
    assert event["actor"].startswith("key:")
    assert event["at_ms"] > 0
    assert (await read(api, f"?actor={event['actor']}&type=queue"))[0] == [line]
    assert (await read(api, "?actor=key:another"))[0] == []


async def test_filters_by_queue_and_listener_find_events_that_name_only_the_listener_even_after_its_end():
    api = await make_audited()
    queue_id, other_id = await api.queue("orders"), await api.queue("others")
    listener_id, other_listener = await api.listener(queue_id), await api.listener(other_id)
    for one, of in ((listener_id, queue_id), (other_listener, other_id)):
        await api.request("POST", f"/v1/queues/{of}/listeners/{one}/pause")
        await api.request("DELETE", f"/v1/queues/{of}/listeners/{one}")
    await put(api, queue_id)
    await put(api, other_id)
    of_queue, _ = await read(api, f"?queue={queue_id}")
    assert sorted(types(of_queue)) == sorted(
        ["queue.created", "listener.created", "listener.paused", "listener.deleted", "message.put"]
    )
    of_listener, _ = await read(api, f"?listener={listener_id}&type=listener.paused,listener.deleted")
    assert types(of_listener) == ["listener.paused", "listener.deleted"]


async def test_a_queue_s_events_are_also_what_happened_to_the_replays_of_its_listeners():
    api = await make_audited()
    queue_id = await api.queue("orders")
    listener_id = await api.listener(queue_id)
    path = f"/v1/queues/{queue_id}/listeners/{listener_id}"
    await put(api, queue_id)
    answer = await api.request("POST", f"{path}/replay", json={"from": "2020-01-01T00:00:00Z"})
    replay_id = answer.json()["replay"]["id"]
    await api.request("POST", f"{path}/replays/{replay_id}/pause")
    found, _ = await read(api, f"?queue={queue_id}&type=replay")
    assert types(found) == ["replay.started", "replay.paused"]


async def test_a_reading_that_is_cut_into_pieces_by_cursors_gives_each_event_once():
    api = await make_audited()
    queue_id = await api.queue("orders")
    for _ in range(20):
        await put(api, queue_id)
    whole, _ = await read(api, f"?{MADE}")
    pieces, query = [], f"?{MADE}&limit=3"
    for _ in range(50):
        events, cursors = await read(api, query)
        assert len(events) <= 3
        pieces += events
        query = f"?{MADE}&limit=3&cursor={cursors[-1]['cursor']}"
        if cursors[-1]["complete"]:
            break
    assert pieces == whole
    await put(api, queue_id)
    events, _ = await read(api, query)
    assert types(events) == ["message.put"]


async def test_time_bounds_are_those_of_the_log():
    api = await make_audited()
    for at_ms in (1_000_000_000_000, 1_000_000_001_000, 1_000_000_002_000):
        api.records.add("deliveries", 1, attempt(api, at_ms))
    events, cursors = await read(api, "?from=2001-09-09T01:46:41Z&to=2001-09-09T01:46:42Z")
    assert [line["log_ms"] for line in events] == [1_000_000_001_000]
    assert cursors[-1]["complete"] is True


def attempt(api: Api, at_ms: int, message_id: str = "m", offset: int = 0, **more: Any) -> ev.DeliveryAttempted:
    fields: dict[str, Any] = {
        "listener_id": "l",
        "queue_id": "q",
        "partition": 1,
        "number": 1,
        "outcome": "failed",
        "status": 500,
        "error": None,
        "took_ms": 3,
        "next_at_ms": None,
        "actor": "worker",
        **more,
    }
    return ev.DeliveryAttempted(
        at_ms=at_ms, organization_id=api.organization_id, message_id=message_id, offset=offset, **fields
    )


async def test_the_story_of_a_message_is_its_put_and_each_attempt():
    api = await make_audited()
    queue_id = await api.queue("orders")
    first, second = await put(api, queue_id), await put(api, queue_id)
    at_ms, partition = parse_message_id(first) or (0, 0)
    api.records.add("deliveries", partition, attempt(api, at_ms, first, partition=partition))
    api.records.add("deliveries", partition, attempt(api, at_ms, "another", offset=4, partition=partition))
    api.records.add(
        "deliveries",
        partition,
        ev.DeliveriesSettled(
            at_ms=at_ms,
            organization_id=api.organization_id,
            listener_id="l2",
            queue_id=queue_id,
            partition=partition,
            rows=((0, at_ms, 200, 2), (1, at_ms, 200, 2)),
        ),
    )
    events, _ = await read(api, f"?message={first}")
    assert types(events) == ["message.put", "delivery.attempted", "deliveries.settled"]
    assert events[-1]["event"]["rows"] == [[0, at_ms, 200, 2]]
    assert types((await read(api, f"?message={second}"))[0]) == ["message.put"]


async def test_a_secret_is_never_shown():
    api = await make_audited()
    queue_id = await api.queue("orders")
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    await api.listener(queue_id, secret=secret, headers={"authorization": "Bearer of-theirs"})
    text = (await api.get("/v1/log")).text
    assert "listener.created" in text
    for hidden in ("whsec_", "sealed_secret", "secret_sha256", "of-theirs", "gAAAAA"):
        assert hidden not in text


async def test_neither_tokens_in_urls_nor_places_in_shared_partitions_are_shown():
    api = await make_audited()
    queue_id = await api.queue("orders")
    url = "https://l.example/n?token=of-theirs"
    listener_id = await api.listener(queue_id, notify_url=url, liveness_url=url)
    await api.put(f"/v1/queues/{queue_id}/listeners/{listener_id}", json={"notify_url": f"{url}-too"})
    answer = await api.request(
        "POST",
        f"/v1/queues/{queue_id}/listeners/{listener_id}/replay",
        json={"from": "beginning", "notify_url": "https://8.8.8.8/?token=of-theirs"},
    )
    assert answer.status_code == 200, answer.text
    text = (await api.get("/v1/log")).text
    assert "of-theirs" not in text
    assert text.count('"notify_url":"https://l.example/n?token=…"') == 2
    assert text.count('"notify_url":"https://8.8.8.8/?token=…"') == 1
    assert not any(f"{name}_offsets" in text for name in ("start", "end", "before", "after"))
    shown = (await api.get(f"/v1/queues/{queue_id}/listeners/{listener_id}")).json()["listener"]
    assert shown["notify_url"] == f"{url}-too"  # its owner's own


async def test_another_organization_sees_nothing_of_it_whatever_it_asks_for():
    api = await make_audited()
    queue_id = await api.queue("orders")
    listener_id = await api.listener(queue_id)
    message_id = await put(api, queue_id, api.organization_id)
    control = api.log.control
    organization = (await create_organization(control, control, name="another")).id
    _, theirs = await create_key(control, control, organization_id=organization, name="theirs", scopes=("audit",))
    for query in ("", f"?queue={queue_id}", f"?listener={listener_id}", "?actor=shell"):
        answer = await api.bare.get(f"/v1/log{query}", headers={"x-api-key": theirs})
        events = [orjson.loads(line).get("event") for line in answer.content.splitlines()]
        assert {event["organization_id"] for event in events if event} <= {organization}
        assert queue_id not in answer.text
    answer = await api.bare.get(f"/v1/log?message={message_id}", headers={"x-api-key": theirs})
    assert answer.status_code == 404


async def test_a_key_without_the_scope_is_refused():
    api = await make_api()
    assert (await api.get("/v1/log")).status_code == 403


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("type=nothing", "type"),
        ("type=", "type"),
        ("from=yesterday", "from"),
        ("cursor=zzz", "cursor"),
        ("cursor=AQEA", "cursor"),
        ("limit=0", "limit"),
        ("actor=", "actor"),
        ("actor=somebody", "actor"),
        ("to=2026-13-01T00:00:00Z", "to"),
        ("colour=blue", "colour"),
    ],
)
async def test_a_bad_parameter_is_named(query: str, parameter: str):
    api = await make_audited()
    answer = await api.get(f"/v1/log?{query}")
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["parameter"] == parameter


@pytest.mark.parametrize(
    "message_id", ["x", "019b76d9-05ab-7003-8123-456789abcdef", "019b76d9-05ab-7fff-8123-456789abcdef"]
)
async def test_a_message_that_is_not_there_is_404(message_id: str):
    api = await make_audited()
    assert (await api.get(f"/v1/log?message={message_id}")).status_code == 404


@pytest.mark.parametrize("query", ["queue=x", "listener=x", "queue=", "listener="])
async def test_a_queue_or_listener_that_never_was_is_404(query: str):
    api = await make_audited()
    answer = await api.get(f"/v1/log?{query}")
    assert (answer.status_code, answer.json()["type"]) == (404, "/problems/not-found")


async def test_a_head_has_no_body_and_leaves_nothing_open():
    api = await make_audited()
    for _ in range(20):
        answer = await api.request("HEAD", "/v1/log")
        assert (answer.status_code, answer.content) == (200, b"")


async def test_more_readings_than_there_is_room_for_are_told_to_come_again():
    api = await make_audited(reading=ReaderTuning(settle_ms=0, open_each_max=0))
    answer = await api.get("/v1/log")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")


async def test_an_answer_that_can_t_be_finished_is_cut_off_without_a_last_line():
    api = await make_audited(reading=ReaderTuning(settle_ms=0, slice_events=2))
    queue_id = await api.queue("orders")
    for _ in range(12):
        await put(api, queue_id)
    reads = 0

    async def fails_at_the_fifth() -> None:
        nonlocal reads
        reads += 1
        if reads > 4:
            raise LogUnavailable("away")

    api.records.before_read = fails_at_the_fifth
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        await asyncio.Event().wait()

    scope = {"type": "http", "method": "GET", "path": "/v1/log", "query_string": b"", "scheme": "http"}
    scope["raw_path"] = b"/v1/log"
    await api.app({**scope, "headers": [(b"x-api-key", api.key.encode())]}, receive, send)
    lines = b"".join(message.get("body", b"") for message in sent).splitlines()
    assert sent[-1]["more_body"] is True  # the server closes the connection: the answer has no end
    assert orjson.loads(lines[-1])["complete"] is False


async def test_a_type_that_is_named_again_and_again_is_looked_up_once(monkeypatch):
    api = await make_audited()
    looked_up = list[str]()
    monkeypatch.setattr(log, "types_named", lambda text: (looked_up.append(text), types_named(text))[1])
    await read(api, "?type=" + ",".join(["queue", "key"] * 1_000))
    assert looked_up == ["queue", "key"]
