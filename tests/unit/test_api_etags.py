"""ETag, If-None-Match and If-Match on items."""

from __future__ import annotations

import pytest
from api_client import make_api

from broker.core import events as ev
from broker.ports import ListenerCondition
from tests.apps import NoDeliveries


async def items(api) -> dict[str, str]:
    """A path of each kind of item."""
    queue_id = await api.queue("orders")
    queue = f"/v1/queues/{queue_id}"
    message = (await api.put(f"{queue}/messages", json={"data": "x"})).json()["message"]["id"]
    return {
        "listener": f"{queue}/listeners/{await api.listener(queue_id)}",
        "message": f"{queue}/messages/{message}",
        "queue": queue,
    }


@pytest.mark.parametrize("kind", ["queue", "listener", "message"])
async def test_what_is_known_is_not_sent_again(kind: str):
    api = await make_api()
    path = (await items(api))[kind]
    first = await api.get(path)
    tag = first.headers["etag"]
    for known in (tag, f'"other", {tag}', f"W/{tag}", "*"):
        answer = await api.get(path, headers={"if-none-match": known})
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", tag)
        assert "content-length" not in answer.headers
    answer = await api.get(path, headers={"if-none-match": '"1.0000000000000000"'})
    assert (answer.status_code, answer.json()) == (200, first.json())


UPDATES = {
    "queue": {"name": "new"},
    "listener": {"name": "new"},
}


@pytest.mark.parametrize("kind", ["queue", "listener"])
@pytest.mark.parametrize("method", ["PUT", "DELETE"])
async def test_a_change_is_made_to_the_version_it_names_and_to_no_other(kind: str, method: str):
    api = await make_api()
    path = (await items(api))[kind]
    body = {"json": UPDATES[kind]} if method == "PUT" else {}
    old = (await api.get(path)).headers["etag"]
    changed = await api.put(path, json={"name": "changed"}, headers={"if-match": old})
    assert changed.status_code == 200
    new = changed.headers["etag"]
    assert new != old
    # A GET of a listener also shows its condition, so its tag differs; the version in it does not.
    now = (await api.get(path)).headers["etag"]
    assert now == new if kind == "queue" else now.partition(".")[0] == new.partition(".")[0]
    for lost in (old, '"nonsense"', "", f"W/{new}"):
        answer = await api.request(method, path, headers={"if-match": lost}, **body)
        assert answer.status_code == 412
        assert answer.json()["type"] == "/problems/precondition-failed"
        assert (await api.get(path)).headers["etag"] == now
    answer = await api.request(method, path, headers={"if-match": f"{old}, {new}"}, **body)
    assert answer.status_code == 200
    unknown = path[:-1] + ("0" if path[-1] != "0" else "1")
    assert (await api.request(method, unknown, headers={"if-match": "*"}, **body)).status_code == 404


async def test_a_queue_s_tag_changes_with_its_listeners_names_and_not_with_what_is_not_in_it():
    api = await make_api()
    found = await items(api)

    async def tag() -> str:
        return (await api.get(found["queue"])).headers["etag"]

    before = await tag()
    await api.request("POST", f"{found['listener']}/pause")
    assert await tag() == before
    await api.put(found["listener"], json={"name": "renamed"})
    renamed = await tag()
    await api.request("DELETE", found["listener"])
    assert len({before, renamed, await tag()}) == 3


async def test_a_listener_s_lag_makes_another_tag_and_hinders_no_change():
    class Status(NoDeliveries):
        lag = 0

        async def condition(self, listener):
            self.lag += 1
            return ListenerCondition(state="live", lag=self.lag)

    api = await make_api(status=Status())
    path = (await items(api))["listener"]
    first = (await api.get(path)).headers["etag"]
    answer = await api.get(path, headers={"if-none-match": first})
    assert answer.status_code == 200
    assert answer.headers["etag"] != first
    assert (await api.put(path, json={"name": "new"}, headers={"if-match": first})).status_code == 200


@pytest.mark.parametrize("kind", ["queue", "listener"])
@pytest.mark.parametrize("method", ["PUT", "DELETE"])
async def test_of_two_processes_that_change_the_same_version_one_is_told(kind: str, method: str):
    """The other's change comes into the log between this one's look and its event."""
    api = await make_api()
    path = (await items(api))[kind]
    tag = (await api.get(path)).headers["etag"]

    async def late(_event):
        api.log.control.before = None
        assert (await api.put(path, json={"name": "first"}, headers={"if-match": tag})).status_code == 200

    api.log.control.before = late
    body = {"json": {"name": "second"}} if method == "PUT" else {}
    answer = await api.request(method, path, headers={"if-match": tag}, **body)
    assert answer.status_code == 412
    assert (await api.get(path)).json()[kind]["name"] == "first"


async def test_a_part_of_a_listener_is_changed_and_what_came_before_in_the_log_stays():
    """Another's change comes into the log between this one's look and its event."""
    api = await make_api()
    path = (await items(api))["listener"]

    async def late(_event):
        api.log.control.before = None
        assert (await api.put(path, json={"timeout_ms": 1234})).status_code == 200

    api.log.control.before = late
    assert (await api.put(path, json={"max_in_flight": 3})).status_code == 200
    listener = (await api.get(path)).json()["listener"]
    assert (listener["timeout_ms"], listener["max_in_flight"]) == (1234, 3)


async def test_a_change_that_others_are_always_before_is_a_503_and_changes_nothing():
    api = await make_api()
    path = (await items(api))["listener"]
    made = []

    async def late(event):
        if isinstance(event, ev.ListenerUpdated) and event.settings.max_in_flight == 3:
            made.append(event)
            assert (await api.put(path, json={"timeout_ms": 1000 + len(made)})).status_code == 200

    api.log.control.before = late
    assert (await api.put(path, json={"max_in_flight": 3})).status_code == 503
    listener = (await api.get(path)).json()["listener"]
    assert (listener["timeout_ms"], listener["max_in_flight"]) == (1000 + len(made), 64)
