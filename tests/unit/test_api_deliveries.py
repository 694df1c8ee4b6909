"""A listener's outstanding deliveries over REST: pages that stay right while things change, and the redrive."""

from __future__ import annotations

import pytest
from api_client import Api, make_api, problem
from memory import MemoryCursors

from broker.core.cursor import Cursor
from broker.core.events import DeliveryParked, DeliverySetAside, KeptDelivery
from broker.core.ids import message_id
from broker.kafka.outstanding import KafkaOutstanding
from broker.kafka.read_slots import ReadSlots
from broker.settings import KafkaSettings
from tests.outstanding_topic import OutstandingTopic

PARTITIONS = 3


@pytest.fixture
def topic() -> OutstandingTopic:
    return OutstandingTopic(records_a_read=4)


@pytest.fixture
async def api(topic) -> Api:
    kafka = KafkaSettings(bootstrap="unused", partitions=PARTITIONS)
    return await make_api(outstanding=KafkaOutstanding(kafka, topic, ReadSlots()))


def the_id(number: int) -> str:
    return message_id(at_ms=1_700_000_000_000, partition=number % PARTITIONS, random_bits=number)


def kept(listener_id: str, number: int, /, *, parked: bool = False, **more) -> KeptDelivery:
    fields = {
        "at_ms": 1_700_000_060_000,
        "organization_id": "o",
        "listener_id": listener_id,
        "queue_id": "q",
        "message_id": the_id(number),
        "partition": number % PARTITIONS,
        "offset": number,
        "number": 7,
        "status": 500,
        "error": None,
        "put_at_ms": 1_700_000_000_000,
        "name": f"m{number}",
        "data": "secret data",
        **more,
    }
    return DeliveryParked(**fields) if parked else DeliverySetAside(**fields, next_at_ms=1_700_000_120_000)


async def listener_of(api: Api) -> tuple[str, str]:
    """Its id and its path."""
    queue_id = await api.queue()
    listener_id = await api.listener(queue_id)
    return listener_id, f"/v1/queues/{queue_id}/listeners/{listener_id}"


async def names(api: Api, path: str) -> list[str]:
    return [one["message"]["name"] for one in (await api.get(path)).json()["deliveries"]]


async def test_each_is_shown_with_its_attempts_and_its_error(api, topic):
    listener_id, path = await listener_of(api)
    await topic.keep(
        kept(listener_id, 0), kept("another", 1), kept(listener_id, 1, parked=True, error="timeout", status=None)
    )
    answer = (await api.get(f"{path}/deliveries")).json()
    assert answer["deliveries"] == [
        {
            "message": {"id": the_id(0), "name": "m0", "created_at": "2023-11-14T22:13:20.000Z"},
            "state": "retrying",
            "attempts": 7,
            "last_status": 500,
            "last_error": None,
            "last_attempt_at": "2023-11-14T22:14:20.000Z",
            "next_attempt_at": "2023-11-14T22:15:20.000Z",
        },
        {
            "message": {"id": the_id(1), "name": "m1", "created_at": "2023-11-14T22:13:20.000Z"},
            "state": "parked",
            "attempts": 7,
            "last_status": None,
            "last_error": "timeout",
            "last_attempt_at": "2023-11-14T22:14:20.000Z",
            "next_attempt_at": None,
        },
    ]
    assert list(answer["_links"]) == ["self"]


async def test_what_was_delivered_or_written_anew_is_shown_as_it_is_now(api, topic):
    listener_id, path = await listener_of(api)
    await topic.keep(*(kept(listener_id, number) for number in range(30)))
    await topic.keep(kept(listener_id, 0, parked=True))
    await topic.append({1: [(f"{listener_id}:{the_id(1)}".encode(), None)]})
    shown = await names(api, f"{path}/deliveries")
    assert sorted(shown) == sorted(f"m{number}" for number in range(30) if number != 1)
    assert await names(api, f"{path}/deliveries?state=parked") == ["m0"]
    assert len(await names(api, f"{path}/deliveries?state=retrying")) == 28


@pytest.mark.parametrize("limit", [1, 2, 7, 1_000])
async def test_page_by_page_none_is_missed_though_they_are_tried_meanwhile(api, topic, limit):
    listener_id, path = await listener_of(api)
    await topic.keep(*(kept(listener_id, number) for number in range(40)))
    seen, where, pages = [], f"{path}/deliveries?limit={limit}", 0
    while where is not None:
        answer = (await api.get(where)).json()
        assert len(answer["deliveries"]) <= limit
        seen += [one["message"]["name"] for one in answer["deliveries"]]
        where = answer["_links"].get("next", {}).get("href", "").removeprefix("http://api.example.com") or None
        if pages < 12:
            await topic.keep(kept(listener_id, 3 * pages, status=503))
        pages += 1
    assert set(seen) == {f"m{number}" for number in range(40)}


async def test_what_waits_for_its_time_is_pending_and_no_redrive_counts_it(api, topic):
    listener_id, path = await listener_of(api)
    await topic.keep(kept(listener_id, 0, number=0, status=None), kept(listener_id, 1))
    (shown,) = (await api.get(f"{path}/deliveries?state=pending")).json()["deliveries"]
    assert (shown["message"]["name"], shown["attempts"], shown["last_attempt_at"]) == ("m0", 0, None)
    assert shown["next_attempt_at"] == "2023-11-14T22:15:20.000Z"
    assert await names(api, f"{path}/deliveries?state=retrying") == ["m1"]
    assert (await api.request("POST", f"{path}/redrive")).json()["count"] == 1
    assert await names(api, f"{path}/deliveries?state=pending") == ["m0"]


@pytest.mark.parametrize("query", ["state=delivered", "cursor=x", "cursor=LTEuMA", "cursor=OTk5OTkuMA", "limit=0"])
async def test_a_query_that_makes_no_sense_is_refused(api, query):
    _, path = await listener_of(api)
    problem(await api.get(f"{path}/deliveries?{query}"), 422)


async def test_a_redrive_is_an_event_and_says_how_many_it_is_of(api, topic):
    listener_id, path = await listener_of(api)
    await topic.keep(*(kept(listener_id, number, parked=number % 2 == 0) for number in range(10)), kept("another", 1))
    assert (await api.request("POST", f"{path}/redrive")).json()["count"] == 10
    body = {"messages": [the_id(2), the_id(3), the_id(99), the_id(3)]}
    assert (await api.request("POST", f"{path}/redrive", json=body)).json()["count"] == 2
    redrives = api.log.control.state.listeners[listener_id].redrives
    assert (redrives.count, redrives.of_all) == (2, 1)
    assert dict(redrives.of_messages) == {the_id(number): 2 for number in (2, 3)}


async def test_a_redrive_of_messages_that_are_not_outstanding_is_neither_stored_nor_one_of_all(api, topic):
    listener_id, path = await listener_of(api)
    await topic.keep(kept(listener_id, 0, parked=True))
    before = len(api.log.control.records)
    body = {"messages": [the_id(number) for number in range(1, 1000)]}
    assert (await api.request("POST", f"{path}/redrive", json=body)).json()["count"] == 0
    assert api.log.control.state.listeners[listener_id].redrives.count == 0
    assert b"listener.redriven" not in b"".join(api.log.control.records[before:])


async def test_a_redrive_of_a_message_includes_a_retry_that_waits_in_a_workers_memory(topic):
    kafka = KafkaSettings(bootstrap="unused", partitions=2)
    cursors = MemoryCursors()
    api = await make_api(outstanding=KafkaOutstanding(kafka, topic, ReadSlots()), cursors=cursors)
    listener_id, path = await listener_of(api)
    messages = path.split("/listeners")[0] + "/messages"
    ids = [(await api.put(messages, json={"data": "x"})).json()["message"]["id"] for _ in range(8)]
    there = [int(one[15:18], 16) for one in ids]
    in_first = [one for one, partition in zip(ids, there, strict=True) if partition == 0]
    retrying, waiting, delivered = in_first[:3]
    # Of the first partition, the first message has failed twice, the second waits for its first attempt.
    cursors.committed[listener_id] = {0: Cursor(top=len(in_first), open=(0, 1), attempts=(2, 0))}
    body = {"messages": [delivered, retrying, waiting, retrying, message_id(at_ms=1, partition=0, random_bits=7)]}
    assert (await api.request("POST", f"{path}/redrive", json=body)).json()["count"] == 1
    assert dict(api.log.control.state.listeners[listener_id].redrives.of_messages) == {retrying: 1}


async def test_what_is_redriven_counts_as_retrying_from_then_on_and_what_is_parked_later_as_parked(api, topic):
    listener_id, path = await listener_of(api)
    await topic.keep(kept(listener_id, 0, parked=True), kept(listener_id, 1, parked=True))
    await api.request("POST", f"{path}/redrive", json={"messages": [the_id(1)]})
    assert await names(api, f"{path}/deliveries?state=parked") == ["m0"]
    assert await names(api, f"{path}/deliveries?state=retrying") == ["m1"]
    await topic.keep(kept(listener_id, 1, parked=True, redrives=1))
    assert await names(api, f"{path}/deliveries?state=parked") == ["m0", "m1"]


async def test_a_cancelled_redrive_leaves_parked_what_was_not_attempted_since(api, topic):
    listener_id, path = await listener_of(api)
    await topic.keep(*(kept(listener_id, number, parked=True) for number in range(4)), kept(listener_id, 4))
    assert (await api.request("POST", f"{path}/redrive")).json()["count"] == 5
    assert await names(api, f"{path}/deliveries?state=parked") == []
    await topic.keep(kept(listener_id, 0, redrives=1), kept(listener_id, 1, parked=True, redrives=1))
    answer = await api.request("DELETE", f"{path}/redrive")
    assert (answer.status_code, answer.json()["count"]) == (200, 3)
    assert answer.json()["_links"]["deliveries"]["href"].endswith(f"{path}/deliveries")
    assert sorted(await names(api, f"{path}/deliveries?state=parked")) == ["m1", "m2", "m3"]
    assert sorted(await names(api, f"{path}/deliveries?state=retrying")) == ["m0", "m4"]
    assert all(
        one["next_attempt_at"] for one in (await api.get(f"{path}/deliveries?state=retrying")).json()["deliveries"]
    )
    before = len(api.log.control.records)
    assert (await api.request("DELETE", f"{path}/redrive")).json()["count"] == 0
    assert len(api.log.control.records) == before, "there was nothing to cancel"
    assert (await api.request("POST", f"{path}/redrive", json={"messages": [the_id(2)]})).json()["count"] == 1
    assert sorted(await names(api, f"{path}/deliveries?state=parked")) == ["m1", "m3"]


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"messages": []}, "/messages"),
        ({"messages": ["no id"]}, "/messages/0"),
        ({"messages": [the_id(1), "5f0e6f0a-33c1-4a8e-8f1d-b5b9f6f0c001"]}, "/messages/1"),
        ({"messages": [the_id(1)] * 1001}, "/messages"),
        ({"message": [the_id(1)]}, "/message"),
    ],
)
async def test_a_redrive_of_nothing_or_of_what_is_no_message_is_refused(api, body, pointer):
    listener_id, path = await listener_of(api)
    answer = problem(await api.request("POST", f"{path}/redrive", json=body), 422)
    assert answer["errors"][0]["pointer"] == pointer
    assert api.log.control.state.listeners[listener_id].redrives.count == 0


async def test_a_body_that_is_not_said_to_be_json_redrives_nothing(api):
    listener_id, path = await listener_of(api)
    problem(await api.request("POST", f"{path}/redrive", content=b"{}", headers={"content-type": "text/plain"}), 415)
    assert api.log.control.state.listeners[listener_id].redrives.count == 0


async def test_another_organizations_listener_is_not_found(api):
    listener_id, path = await listener_of(api)
    theirs = {"x-api-key": await api.another_organization()}
    problem(await api.get(f"{path}/deliveries", headers=theirs), 404)
    problem(await api.request("POST", f"{path}/redrive", headers=theirs), 404)
    problem(await api.request("DELETE", f"{path}/redrive", headers=theirs), 404)
    assert api.log.control.state.listeners[listener_id].redrives.count == 0
