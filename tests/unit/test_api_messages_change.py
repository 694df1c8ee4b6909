"""PUT and DELETE of a message: what is answered, and what GET and the list show afterwards."""

from __future__ import annotations

from typing import Any

import pytest
from api_client import Api, make_api, problem

from broker.errors import Busy, InDoubt


class Place:
    """One message with two listeners that were there before it, and one that came after."""

    def __init__(self, api: Api) -> None:
        self.api = api

    async def make(self) -> None:
        self.queue_id = await self.api.queue("orders")
        self.a = await self.api.listener(self.queue_id, name="a")
        self.b = await self.api.listener(self.queue_id, name="b")
        put = await self.api.put(f"{self.messages}", json={"data": "old", "key": "k", "name": "n"})
        self.id = put.json()["message"]["id"]
        await self.api.put(self.messages, json={"data": "same partition", "key": "k"})
        self.late = await self.api.listener(self.queue_id, name="late")
        self.api.log.changes.states = {self.a: "delivered", self.b: "pending"}

    @property
    def messages(self) -> str:
        return f"/v1/queues/{self.queue_id}/messages"

    @property
    def message(self) -> str:
        return f"{self.messages}/{self.id}"

    async def update(self, body: Any) -> Any:
        return await self.api.put(self.message, json=body)

    async def delete(self) -> Any:
        return await self.api.request("DELETE", self.message)

    async def listed(self) -> list[dict[str, Any]]:
        return list((await self.api.get(self.messages)).json()["messages"])


@pytest.fixture
async def place() -> Place:
    made = Place(await make_api())
    await made.make()
    return made


def states(answer: Any) -> dict[str, str]:
    return {one["name"]: one["state"] for one in answer.json()["message"]["listeners"]}


async def test_an_update_says_who_had_the_message_before_and_is_what_is_shown_from_then_on(place: Place):
    answer = await place.update({"data": "new"})
    assert answer.status_code == 200
    shown = answer.json()["message"]
    assert (shown["id"], shown["name"], shown["key"], shown["data"]) == (place.id, "n", "k", "new")
    assert states(answer) == {"a": "delivered", "b": "pending"}
    assert answer.json()["_links"]["self"]["href"] == f"http://api.example.com{place.message}"
    got = (await place.api.get(place.message)).json()["message"]
    assert (got["data"], got["updated_at"], got["created_at"]) == ("new", shown["updated_at"], shown["created_at"])
    assert got["updated_at"] is not None
    newest, oldest = sorted(await place.listed(), key=lambda one: one["id"] == place.id)
    assert (oldest["data"], newest["data"], newest["updated_at"]) == ("new", "same partition", None)
    event = place.api.log.changes.events[0]
    assert (event.partition, event.offset, event.queue_id, event.actor[:4]) == (0, 0, place.queue_id, "key:")


async def test_a_deletion_says_who_had_the_message_and_hides_it(place: Place):
    await place.update({"data": "new"})
    answer = await place.delete()
    assert answer.status_code == 200
    assert answer.json()["message"]["data"] == "new"
    assert states(answer) == {"a": "delivered", "b": "cancelled"}
    assert (await place.api.get(place.message)).status_code == 404
    assert [one["data"] for one in await place.listed()] == ["same partition"]
    assert (await place.delete()).status_code == 404
    assert (await place.update({"data": "x"})).status_code == 404


async def test_nobody_who_says_who_had_it_is_unknown_and_the_change_holds_all_the_same(place: Place):
    place.api.log.changes.states = None
    assert states(await place.update({"data": "new"})) == {"a": "unknown", "b": "unknown"}
    place.api.log.changes.states = {place.a: "parked"}
    assert states(await place.delete()) == {"a": "cancelled", "b": "unknown"}


async def test_an_update_that_loses_against_a_deletion_is_404(place: Place):
    changes = place.api.log.changes
    append = changes.append

    async def deleted_first(event: Any) -> Any:
        changes.append = append
        await place.delete()
        return await append(event)

    changes.append = deleted_first
    assert (await place.update({"data": "new"})).status_code == 404


async def test_a_message_that_only_a_newer_program_reads_is_there_for_its_own_queue_and_503(place: Place):
    records = place.api.log.messages.records[0]
    records[:] = [(key, value.replace(b'"v":1', b'"v":99'), queue) for key, value, queue in records]
    for method, body in (("GET", None), ("PUT", {"data": "new"}), ("DELETE", None)):
        said = problem(await place.api.request(method, place.message, json=body), 503, "unreadable")
        assert "newer version" in said["detail"]
    other = await place.api.queue("others")
    said = problem(await place.api.get(f"/v1/queues/{other}/messages/{place.id}"), 404, "not-found")
    assert said["detail"].startswith("No message of this queue has this ID.")


async def test_a_change_of_a_version_that_is_no_longer_is_412(place: Place):
    first = (await place.api.get(place.message)).headers["etag"]
    updated = await place.api.put(place.message, json={"data": "new"}, headers={"if-match": first})
    assert updated.status_code == 200
    for method, body in (("PUT", {"data": "newer"}), ("DELETE", None)):
        refused = await place.api.request(method, place.message, json=body, headers={"if-match": first})
        assert refused.status_code == 412
    assert (await place.api.get(place.message)).json()["message"]["data"] == "new"
    now = {"if-match": (await place.api.get(place.message)).headers["etag"]}
    assert (await place.api.request("DELETE", place.message, headers=now)).status_code == 200


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
@pytest.mark.parametrize("first", ["PUT", "DELETE"])
async def test_of_two_changes_of_one_version_the_second_in_the_log_is_412(place: Place, method: str, first: str):
    """The other's change comes into the log between this one's look and its event."""
    tag = {"if-match": (await place.api.get(place.message)).headers["etag"]}
    changes = place.api.log.changes
    append = changes.append

    async def late(event: Any) -> Any:
        changes.append = append
        body = {"data": "theirs"} if first == "PUT" else None
        assert (await place.api.request(first, place.message, json=body, headers=tag)).status_code == 200
        return await append(event)

    changes.append = late
    body = {"data": "ours"} if method == "PUT" else None
    assert (await place.api.request(method, place.message, json=body, headers=tag)).status_code == 412
    shown = await place.api.get(place.message)
    assert shown.status_code == (200 if first == "PUT" else 404)
    if first == "PUT":
        assert shown.json()["message"]["data"] == "theirs"
        again = {"if-match": shown.headers["etag"]}
        updated = await place.api.put(place.message, json={"data": "ours"}, headers=again)
        assert (updated.status_code, updated.json()["message"]["data"]) == (200, "ours")
        now = await place.api.get(place.message)
        assert now.json()["message"]["data"] == "ours"
        assert now.headers["etag"].partition(".")[0] == updated.headers["etag"].partition(".")[0]


async def test_a_change_of_a_version_that_can_t_be_told_to_count_is_in_doubt(place: Place):
    tag = {"if-match": (await place.api.get(place.message)).headers["etag"]}

    async def too_much(_event: Any) -> Any:
        raise Busy("later")

    place.api.log.changes.counted = too_much
    answer = await place.api.put(place.message, json={"data": "new"}, headers=tag)
    assert (answer.status_code, answer.json()["type"]) == (503, "/problems/in-doubt")


async def test_a_page_of_long_updates_is_short_and_goes_on(place: Place):
    ids = [place.id]
    for _ in range(12):
        answer = await place.api.put(place.messages, json={"data": "", "key": "k"})
        ids.append(answer.json()["message"]["id"])
    for message_id in ids:
        place.id = message_id
        assert (await place.update({"data": "x" * (1 << 20)})).status_code == 200
    path: str | None = f"{place.messages}?limit=100"
    pages = []
    while path is not None:
        page = (await place.api.get(path)).json()
        pages.append(page["messages"])
        link = page["_links"].get("next")
        path = None if link is None else link["href"].removeprefix("http://api.example.com")
    assert sum(len(one["data"]) > 1000 for page in pages for one in page) == 13
    assert {one["id"] for page in pages for one in page} >= set(ids)
    assert max(sum(len(one["data"]) for one in page) for page in pages) <= 8 << 20


@pytest.mark.parametrize(
    ("body", "pointer"),
    [({}, "/data"), ({"data": 1}, "/data"), ({"data": "x", "name": "n"}, "/name"), ({"data": "x" * 1048577}, "/data")],
)
async def test_a_bad_update_is_refused_by_name(place: Place, body: Any, pointer: str):
    answer = await place.update(body)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == pointer
    assert not place.api.log.changes.events


async def test_another_organization_s_message_can_be_neither_changed_nor_deleted(place: Place):
    headers = {"x-api-key": await place.api.another_organization()}
    assert (await place.api.request("PUT", place.message, json={"data": "x"}, headers=headers)).status_code == 404
    assert (await place.api.request("DELETE", place.message, headers=headers)).status_code == 404
    elsewhere = place.message.replace(place.queue_id, await place.api.queue("other"))
    assert (await place.api.request("DELETE", elsewhere)).status_code == 404
    assert not place.api.log.changes.events


async def test_a_change_in_doubt_says_so(place: Place):
    place.api.log.changes.failing = InDoubt("the change may have been stored")
    answer = await place.delete()
    assert answer.status_code == 503
    assert "may have been stored" in answer.json()["detail"]
