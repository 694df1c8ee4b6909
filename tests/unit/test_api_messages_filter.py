"""GET of a queue's messages with filters, and with the states of their deliveries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from api_client import Api, make_api, problem
from memory import MemoryCursors

from broker.commands import listing
from broker.core.cursor import Cursor
from broker.core.entities import Listener
from broker.core.events import DeliveryParked, DeliverySetAside
from broker.kafka.outstanding import KafkaOutstanding
from broker.kafka.queue_states import KafkaQueueStates
from broker.kafka.read_slots import ReadSlots
from broker.settings import KafkaSettings
from tests.apps import NoDeliveries
from tests.outstanding_topic import OutstandingTopic

KAFKA = KafkaSettings(bootstrap="unused", partitions=2)


@dataclass
class Worked(NoDeliveries):
    """ports.Deliveries after workers have committed these cursors and written this topic `outstanding`."""

    cursors: MemoryCursors = field(default_factory=MemoryCursors)
    topic: OutstandingTopic = field(default_factory=OutstandingTopic)
    reads_max: int = 32

    def of_queue(self, listeners: Sequence[Listener]) -> KafkaQueueStates:
        outstanding = KafkaOutstanding(KAFKA, self.topic, ReadSlots())
        return KafkaQueueStates(self.cursors, outstanding, listeners, KAFKA.partitions, reads_max=self.reads_max)


class Shop:
    """A queue with the listeners `a` and `b`, and its messages by name, each with (partition, offset)."""

    def __init__(self, api: Api, work: Worked) -> None:
        self.api, self.work = api, work
        self.places: dict[str, tuple[int, int]] = {}
        self.ids: dict[str, str] = {}

    async def begin(self) -> Shop:
        self.queue_id = await self.api.queue("orders")
        self.path = f"/v1/queues/{self.queue_id}/messages"
        self.a = await self.api.listener(self.queue_id, name="a")
        self.b = await self.api.listener(self.queue_id, name="b")
        return self

    async def put(self, name: str, **more: Any) -> str:
        before = [len(records) for records in self.api.log.messages.records]
        answer = await self.api.put(self.path, json={"data": "dö", "name": name, **more})
        after = [len(records) for records in self.api.log.messages.records]
        (partition,) = [number for number in (0, 1) if before[number] != after[number]]
        self.places[name] = partition, before[partition]
        self.ids[name] = answer.json()["message"]["id"]
        return self.ids[name]

    def settle(self, listener_id: str, *, but: dict[str, int] | None = None) -> None:
        """Commit cursors at the end of the log. but: attempts made, by the name of each open message."""
        committed = self.work.cursors.committed.setdefault(listener_id, {})
        for number, records in enumerate(self.api.log.messages.records):
            opened = sorted(
                (self.places[name][1], made) for name, made in (but or {}).items() if self.places[name][0] == number
            )
            offsets, attempts = tuple(one for one, _ in opened), tuple(made for _, made in opened)
            committed[number] = Cursor(top=len(records), open=offsets, attempts=attempts)

    async def keep(self, listener_id: str, name: str, *, parked: bool, number: int = 3) -> None:
        partition, offset = self.places[name]
        fields: dict[str, Any] = {
            "at_ms": 2_000_000_000_000,
            "organization_id": self.api.organization_id,
            "listener_id": listener_id,
            "queue_id": self.queue_id,
            "message_id": self.ids[name],
            "partition": partition,
            "offset": offset,
            "number": number,
            "status": 500,
            "error": None,
            "put_at_ms": 1_999_999_000_000,
            "name": name,
            "data": "dö",
        }
        aside = DeliveryParked(**fields) if parked else DeliverySetAside(**fields, next_at_ms=2_000_000_120_000)
        await self.work.topic.keep(aside)

    async def names(self, query: str) -> list[str]:
        """The names on all pages, sorted."""
        path: str | None = f"{self.path}?{query}"
        found: list[str] = []
        while path is not None:
            answer = await self.api.get(path)
            assert answer.status_code == 200, answer.text
            found += [one["name"] for one in answer.json()["messages"]]
            link = answer.json()["_links"].get("next")
            path = None if link is None else link["href"].removeprefix("http://api.example.com")
        return sorted(found)

    async def states(self, query: str = "") -> dict[str, list[tuple[str, str, int | None]]]:
        answer = await self.api.get(f"{self.path}?deliveries=true&{query}")
        return {
            one["name"]: [(row["name"], row["state"], row["attempts"]) for row in one["listeners"]]
            for one in answer.json()["messages"]
        }


@pytest.fixture
async def shop() -> Shop:
    work = Worked()
    return await Shop(await make_api(deliveries=work), work).begin()


async def lived_in(shop: Shop) -> None:
    """One message in each state for `a`; `b` has all but the newest."""
    for name in ("delivered", "trying", "retrying", "parked", "open"):
        await shop.put(name)
    later = datetime.now(UTC) + timedelta(hours=1)
    await shop.put("later", deliver_at=f"{later:%Y-%m-%dT%H:%M:%SZ}")
    shop.settle(shop.a, but={"trying": 2, "open": 0})
    shop.settle(shop.b)
    await shop.keep(shop.a, "retrying", parked=False)
    await shop.keep(shop.a, "parked", parked=True)
    for listener_id in (shop.a, shop.b):
        await shop.keep(listener_id, "later", parked=False, number=0)
    await shop.put("new")


async def test_each_message_has_the_state_of_each_of_its_deliveries(shop: Shop):
    await lived_in(shop)
    assert await shop.states() == {
        "delivered": [("a", "delivered", None), ("b", "delivered", None)],
        "trying": [("a", "retrying", 2), ("b", "delivered", None)],
        "retrying": [("a", "retrying", 3), ("b", "delivered", None)],
        "parked": [("a", "parked", 3), ("b", "delivered", None)],
        "open": [("a", "pending", 0), ("b", "delivered", None)],
        "later": [("a", "scheduled", 0), ("b", "scheduled", 0)],
        "new": [("a", "pending", 0), ("b", "pending", 0)],
    }


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("state=parked", ["parked"]),
        ("state=retrying", ["retrying", "trying"]),
        ("state=scheduled", ["later"]),
        ("state=pending", ["new", "open"]),
        ("state=delivered", ["delivered", "open", "parked", "retrying", "trying"]),
        ("state=parked&listener=B", []),
        ("state=pending&listener=B", ["new"]),
        ("state=delivered&listener=A", ["delivered"]),
        ("q=RET", ["retrying"]),
        ("name=parked", ["parked"]),
        ("name=parke", []),
        ("name=trying&state=parked", []),
    ],
)
@pytest.mark.parametrize("limit", [1, 100])
async def test_a_filter_leaves_the_messages_that_it_describes(shop: Shop, query: str, expected: list[str], limit: int):
    await lived_in(shop)
    query = query.replace("listener=A", f"listener={shop.a}").replace("listener=B", f"listener={shop.b}")
    assert await shop.names(f"{query}&limit={limit}") == expected


async def test_a_redriven_delivery_is_retrying_and_a_finished_one_is_delivered(shop: Shop):
    await lived_in(shop)
    path = f"/v1/queues/{shop.queue_id}/listeners/{shop.a}/redrive"
    assert (await shop.api.request("POST", path, json={})).status_code == 200
    assert (await shop.states())["parked"][0] == ("a", "retrying", 3)
    partition, _ = shop.places["retrying"]
    shop.work.topic.write(partition, f"{shop.a}:{shop.ids['retrying']}".encode(), None)
    assert (await shop.states())["retrying"][0] == ("a", "delivered", None)


async def test_ids_and_keys_are_found(shop: Shop):
    await shop.put("first", key="customer-12")
    await shop.put("second")
    assert await shop.names("key=customer-12") == ["first"]
    assert await shop.names("key=CUSTOMER-12") == []
    assert await shop.names("q=Customer") == ["first"]
    for length in (8, 13, 15, 18, 19, 36):
        assert "second" in await shop.names(f"q={shop.ids['second'][:length]}")
    assert await shop.names(f"q={shop.ids['second']}") == ["second"]
    assert await shop.names("q=0180994c-b6b2-7d0e-b7ad-414716e83386") == []
    await shop.put("third", key="0180994c-b6b2-7d0e-b7ad-414716e83386")  # such a key is no id, nor is its beginning
    assert await shop.names("q=0180994c-b6b2-7d0") == ["third"]


async def test_only_the_messages_of_a_listener_and_only_its_states_are_shown(shop: Shop):
    await shop.put("before")
    late = await shop.api.listener(shop.queue_id, name="late")
    await shop.put("after")
    assert await shop.names(f"listener={late}") == ["after"]
    assert await shop.states(f"listener={late}") == {"after": [("late", "pending", 0)]}
    assert [len(rows) for rows in (await shop.states()).values()] == [3, 2]


@pytest.mark.parametrize("query", ["deliveries=true", "deliveries=true&state=delivered", "state=delivered"])
async def test_a_page_of_a_queue_with_many_listeners_has_fewer_messages(
    shop: Shop, query: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(listing, "_DELIVERIES_MAX", 7)
    for number in range(8):
        await shop.put(f"m{number}")
    shop.settle(shop.a)
    first = (await shop.api.get(f"{shop.path}?{query}")).json()
    if "deliveries" in query:
        assert len(first["messages"]) == 3
    assert len(await shop.names(query)) == 8


async def test_a_page_ends_when_it_has_read_enough_bytes(shop: Shop, monkeypatch: pytest.MonkeyPatch):
    for name, value in {"_STEP": 1, "_BYTES_MAX": 8, "_TIME_S": 60.0}.items():
        monkeypatch.setattr(listing, name, value)
    for number in range(8):
        await shop.put(f"m{number}")
    first = (await shop.api.get(f"{shop.path}?state=pending")).json()
    assert [message["size"] for message in first["messages"]] == [3] * 3
    assert len(await shop.names("state=pending")) == 8


async def test_without_listeners_no_message_has_a_state():
    api = await make_api()
    queue_id = await api.queue("orders")
    await api.put(f"/v1/queues/{queue_id}/messages", json={"data": "m"})
    for state in listing.STATES:
        assert (await api.get(f"/v1/queues/{queue_id}/messages?state={state}")).json()["messages"] == []
    (message,) = (await api.get(f"/v1/queues/{queue_id}/messages?deliveries=true")).json()["messages"]
    assert message["listeners"] == []


async def test_the_data_may_be_left_out_and_its_size_remains(shop: Shop):
    await shop.put("m")
    for query, data in (("", "dö"), ("data=true", "dö"), ("data=false", "")):
        (message,) = (await shop.api.get(f"{shop.path}?{query}")).json()["messages"]
        assert (message["data"], message["size"]) == (data, 3)
        assert "listeners" not in message


async def test_where_too_much_is_outstanding_a_settled_delivery_is_unknown(shop: Shop):
    await lived_in(shop)
    shop.work.topic.records_a_read = 1
    shop.work.reads_max = 1
    seen = {state for states in (await shop.states()).values() for _, state, _ in states}
    assert {"unknown", "pending"} <= seen
    assert "parked" not in seen


async def test_a_request_that_finds_nothing_ends_in_time_and_the_next_one_continues(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(listing, "_TIME_S", 0.0)
    monkeypatch.setattr(listing, "_STEP", 1)
    await lived_in(shop)
    first = (await shop.api.get(f"{shop.path}?state=delivered&limit=2")).json()
    assert first["messages"] == []
    assert "next" in first["_links"]
    assert len(await shop.names("state=delivered&limit=2")) == 5


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("state=lost", "state"),
        ("state=", "state"),
        ("state=PARKED", "state"),
        ("listener=a", "listener"),
        ("listener=0180994c-b6b2-4d0e-b7ad-414716e83386", "listener"),
        ("name=", "name"),
        (f"name={'x' * 201}", "name"),
        (f"key={'x' * 201}", "key"),
        ("q=", "q"),
        (f"q={'%F0%9F%98%80' * 201}", "q"),
        ("deliveries=yes", "deliveries"),
        ("data=0", "data"),
    ],
)
async def test_a_bad_filter_is_named(shop: Shop, query: str, parameter: str):
    body = problem(await shop.api.get(f"{shop.path}?{query}"), 422, "bad-parameter")
    assert [one["parameter"] for one in body["errors"]] == [parameter]


@pytest.mark.parametrize("text", ["%00", "%2A(%3F%3A", "..%2F..", "%27%20OR%201=1", "%E2%80%AE", "0" * 200, "-" * 13])
async def test_any_text_may_be_searched_for(shop: Shop, text: str):
    await shop.put("m")
    for name in ("q", "name", "key"):
        assert await shop.names(f"{name}={text}") == []


async def test_a_key_without_the_scope_of_messages_sees_no_states(shop: Shop):
    key = await shop.api.key_with(("queues",))
    answer = await shop.api.get(f"{shop.path}?deliveries=true", headers={"x-api-key": key})
    problem(answer, 403)
    theirs = await shop.api.another_organization()
    problem(await shop.api.get(f"{shop.path}?state=parked", headers={"x-api-key": theirs}), 404)
