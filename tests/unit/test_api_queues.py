"""Queues, listeners and messages over the API: what is asked and what is answered."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from uuid import UUID, uuid4

import pytest
from api_client import Api, make_api

from api.health import LISTENERS_OF_PAGE_MAX
from broker.core.codec import decode_message
from broker.core.control_events import ListenerCreated
from broker.core.health import Facts
from broker.core.ids import parse_message_id
from broker.errors import Busy, LogUnavailable
from broker.ports import Attempt, Backlog, DeliveryState, ListenerCondition
from broker.settings import SmtpSettings
from everput.answers.listeners import ListenerHealth, ListenerNow
from tests.apps import NoDeliveries

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.fixture
async def api() -> Api:
    return await make_api()


async def test_a_new_queue_is_answered_as_getting_started_shows_it(api):
    answer = await api.put("/v1/queues", json={"name": "myapp.io/deletion-request-queue"})
    assert answer.status_code == 200
    body = answer.json()
    queue_id = body["queue"]["id"]
    assert str(UUID(queue_id)) == queue_id
    assert body == {
        "queue": {"id": queue_id, "name": "myapp.io/deletion-request-queue", "listeners": []},
        "_links": {"self": {"href": f"http://api.example.com/v1/queues/{queue_id}"}},
    }


async def test_links_start_with_the_public_url_when_there_is_one():
    api = await make_api(public_url="https://broker.example/")
    body = (await api.put("/v1/queues", json={"name": "a"})).json()
    assert body["_links"]["self"]["href"] == f"https://broker.example/v1/queues/{body['queue']['id']}"


async def test_a_queue_shows_its_listeners(api):
    queue_id = await api.queue("orders")
    listener_id = await api.listener(queue_id)
    body = (await api.get(f"/v1/queues/{queue_id}")).json()
    assert body["queue"] == {"id": queue_id, "name": "orders", "listeners": [{"id": listener_id, "name": "listener"}]}


async def test_a_renamed_queue_keeps_its_id_and_frees_its_name(api):
    queue_id = await api.queue("old")
    answer = await api.put(f"/v1/queues/{queue_id}", json={"name": "new"})
    assert answer.json()["queue"] == {"id": queue_id, "name": "new", "listeners": []}
    assert (await api.put("/v1/queues", json={"name": "old"})).status_code == 200
    assert (await api.put(f"/v1/queues/{queue_id}", json={"name": "old"})).status_code == 422
    assert (await api.put(f"/v1/queues/{queue_id}", json={"name": "new"})).status_code == 200


async def test_a_deleted_queue_is_gone_with_its_listeners(api):
    queue_id = await api.queue()
    listener_id = await api.listener(queue_id)
    assert (await api.request("DELETE", f"/v1/queues/{queue_id}")).json()["queue"]["id"] == queue_id
    assert (await api.get(f"/v1/queues/{queue_id}")).status_code == 404
    assert (await api.get(f"/v1/queues/{queue_id}/listeners/{listener_id}")).status_code == 404
    assert (await api.put("/v1/queues", json={"name": "queue"})).status_code == 200


async def test_pages_of_a_list_hold_everything_once(api):
    made = {await api.queue(f"queue {number}") for number in range(7)}
    found: list[str] = []
    path = "/v1/queues?limit=3"
    while path:
        body = (await api.get(path)).json()
        assert len(body["queues"]) <= 3
        found += [queue["id"] for queue in body["queues"]]
        path = body["_links"].get("next", {}).get("href")
    assert len(found) == 7
    assert set(found) == made


async def test_a_list_is_searched_by_name(api):
    queue_id = await api.queue("a&b=c")
    await api.queue("other")
    body = (await api.get("/v1/queues", params={"name": "a&b=c"})).json()
    assert [queue["id"] for queue in body["queues"]] == [queue_id]
    assert (await api.get("/v1/queues?name=none")).json()["queues"] == []


async def test_a_new_listener_is_answered_with_its_id_its_name_and_a_link(api):
    queue_id = await api.queue()
    body = {
        "name": "myapp.io/deletion-request-listener",
        "notify_url": "https://8.8.8.8/deletion/listener",
        "liveness_url": "https://8.8.8.8/live",
    }
    answer = await api.put(f"/v1/queues/{queue_id}/listeners", json=body)
    assert answer.status_code == 200
    listener = answer.json()["listener"]
    assert body.items() <= listener.items()
    assert listener["secret"].startswith("whsec_")
    assert listener["max_in_flight"] == 64
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", listener["created_at"])
    href = f"http://api.example.com/v1/queues/{queue_id}/listeners/{listener['id']}"
    assert answer.json()["_links"] == {"self": {"href": href}}


async def test_the_signing_secret_is_in_no_other_answer_and_not_in_the_log(api):
    queue_id = await api.queue()
    listener_id = await api.listener(queue_id, secret=SECRET)
    listener = await api.get(f"/v1/queues/{queue_id}/listeners/{listener_id}")
    listed = await api.get(f"/v1/queues/{queue_id}/listeners")
    assert "secret" not in listener.text
    assert "secret" not in listed.text
    records = b"".join(api.log.control.records)
    assert SECRET.encode() not in records
    assert api.key.encode() not in records


async def test_a_listener_begins_now_at_a_time_or_at_the_beginning(api):
    queue_id = await api.queue()
    for _ in range(3):
        await api.put(f"/v1/queues/{queue_id}/messages", json={"data": "x"})
    now = await api.listener(queue_id, name="now")
    beginning = await api.listener(queue_id, name="beginning", **{"from": "beginning"})
    earlier = await api.listener(queue_id, name="earlier", **{"from": "2026-01-31T12:00:00+01:00"})
    listeners = api.log.control.state.listeners
    assert listeners[now].start_offsets == (1, 2)
    assert listeners[beginning].start_offsets == listeners[earlier].start_offsets == (0, 0)


async def test_an_update_changes_what_it_says_and_keeps_the_rest(api):
    queue_id = await api.queue()
    listener_id = await api.listener(queue_id, rate_per_s=5, headers={"authorization": "x"})
    path = f"/v1/queues/{queue_id}/listeners/{listener_id}"
    before = (await api.get(path)).json()["listener"]
    changed = {"notify_url": "https://8.8.8.8/other", "rate_per_s": None, "max_attempts": 3, "retry_max_s": 60}
    answer = await api.put(path, json=changed)
    assert (before["retry_first_ms"], before["retry_max_s"]) == (1_000, 3_600)
    condition = ListenerNow.__annotations__.keys() | ListenerHealth.__annotations__.keys()  # only a GET shows it
    assert answer.json()["listener"] == {key: one for key, one in {**before, **changed}.items() if key not in condition}
    assert (await api.get(path)).json()["listener"] == {**before, **changed}


async def test_a_paused_listener_says_so_until_it_is_resumed(api):
    queue_id = await api.queue()
    path = f"/v1/queues/{queue_id}/listeners/{await api.listener(queue_id)}"
    for _ in range(2):
        assert (await api.request("POST", f"{path}/pause")).json()["listener"]["paused"] == "asked for"
    for _ in range(2):
        assert (await api.request("POST", f"{path}/resume")).json()["listener"]["paused"] is None
    assert len([record for record in api.log.control.records if b"listener.paused" in record]) == 1


async def test_a_listeners_condition_is_shown_when_it_is_known():
    facts = Facts(down=True, parked=2, retrying=1, accepted=1, refused=9, refused_at_ms=1_000, error="refused")

    class Status(NoDeliveries):
        async def facts(self, listeners):
            return {one.id: facts for one in listeners}

        async def backlogs(self, listeners):
            return {one.id: Backlog(3, 0) for one in listeners}

        async def condition(self, listener):
            return ListenerCondition(state="down", lag=3, oldest_pending_at_ms=0, last_error="refused", facts=facts)

    api = await make_api(status=Status())
    queue_id = await api.queue()
    listener = (await api.get(f"/v1/queues/{queue_id}/listeners/{await api.listener(queue_id)}")).json()["listener"]
    assert listener["state"] == "down"
    assert listener["lag"] == 3
    assert listener["oldest_pending_at"] == "1970-01-01T00:00:00.000Z"
    assert listener["last_error"] == "refused"
    counts = {"health": "down", "parked": 2, "retrying": 1}
    latest = {"recent_attempts": 10, "recent_failures": 9}
    times = {"last_success_at": None, "last_failure_at": "1970-01-01T00:00:01.000Z"}
    assert counts | latest | times == {name: listener[name] for name in (*counts, *latest, *times)}
    (listed,) = (await api.get(f"/v1/queues/{queue_id}/listeners")).json()["listeners"]
    assert listed == {name: one for name, one in listener.items() if name not in ("state", "lag", "oldest_pending_at")}
    (listed,) = (await api.get(f"/v1/queues/{queue_id}/listeners?backlog=true")).json()["listeners"]
    assert listed == {name: one for name, one in listener.items() if name != "state"}


class CountedStatus(NoDeliveries):
    """Knows these facts about listeners, and counts how often it is asked."""

    def __init__(self) -> None:
        self.known: dict[str, Facts] = {}
        self.asked = 0
        self.away = False

    async def facts(self, listeners):
        self.asked += 1
        if self.away:
            raise LogUnavailable("Kafka does not answer")
        return {one.id: self.known[one.id] for one in listeners if one.id in self.known}


async def test_a_list_of_queues_counts_the_states_of_their_listeners_in_one_look_if_asked_for():
    status = CountedStatus()
    api = await make_api(status=status)
    orders, invoices, empty = await api.queue("orders"), await api.queue("invoices"), await api.queue("empty")
    accepts = Facts(accepted=3, accepted_at_ms=1_000)
    refuses = Facts(refused=9, refused_at_ms=1_000, parked=4, retrying=5)
    for number, facts in enumerate((accepts, accepts, refuses, Facts(down=True, parked=1), refuses)):
        status.known[await api.listener(orders, name=f"l-{number}")] = facts
    await api.listener(invoices)
    listed = (await api.get("/v1/queues?health=true&limit=2")).json()
    more = (await api.get(listed["_links"]["next"]["href"])).json()
    fields = ("health", "parked", "retrying")
    told = {one["id"]: [one[name] for name in fields] for one in (*listed["queues"], *more["queues"])}
    assert told == {
        orders: [{"down": 1, "failing": 2, "healthy": 2}, 9, 10],
        invoices: [{"new": 1}, 0, 0],
        empty: [{}, 0, 0],
    }
    assert status.asked == 2, "once for each page"
    status.away = True
    plain = (await api.get("/v1/queues")).json()["queues"]
    assert plain == [{name: value for name, value in one.items() if name not in fields} for one in plain]
    assert (await api.get("/v1/queues?health=true")).json()["queues"] == plain, "Kafka does not answer"
    status.away = False
    assert (await api.get("/v1/queues?health=true&at=2026-01-31T12:00:00Z")).json()["queues"] == []
    assert (await api.get("/v1/queues?health=yes")).json()["errors"][0]["parameter"] == "health"


async def test_a_list_of_queues_has_their_backlogs_if_asked_for():
    class Waiting(NoDeliveries):
        away = False

        async def backlogs(self, listeners):
            if self.away:
                raise Busy("too many large reads")
            return {one.id: Backlog(*known[one.name]) for one in listeners}

    known = {"a": (3, 2_000), "b": (4, 1_000), "c": (0, None)}
    status = Waiting()
    api = await make_api(status=status)
    orders, idle, empty = await api.queue("orders"), await api.queue("idle"), await api.queue("empty")
    for queue_id, name in ((orders, "a"), (orders, "b"), (orders, "c"), (idle, "c")):
        await api.listener(queue_id, name=name)
    listed = (await api.get("/v1/queues?backlog=true&health=true")).json()["queues"]
    assert {one["id"]: (one["lag"], one["oldest_pending_at"], one["health"]) for one in listed} == {
        orders: (7, "1970-01-01T00:00:01.000Z", {"new": 3}),
        idle: (0, None, {"new": 1}),
        empty: (0, None, {}),
    }
    status.away = True
    listed = (await api.get("/v1/queues?backlog=true&health=true")).json()["queues"]
    assert all("lag" not in one and "oldest_pending_at" not in one and "health" in one for one in listed)
    plain = (await api.get("/v1/queues?backlog=false")).json()["queues"]
    assert all(one.keys() == {"id", "name", "listeners"} for one in plain)


async def test_a_page_of_queues_with_their_health_ends_before_it_has_too_many_listeners():
    api = await make_api()
    sizes = {await api.queue(f"q-{size}"): size for size in (LISTENERS_OF_PAGE_MAX + 1, 700, 301, 300, 0)}
    urls = {"notify_url": "https://8.8.8.8/n", "liveness_url": "https://8.8.8.8/l"}
    for queue_id, size in sizes.items():
        for number in range(size):
            await api.log.control.append(
                ListenerCreated(
                    at_ms=1,
                    organization_id=api.organization_id,
                    queue_id=queue_id,
                    listener_id=str(uuid4()),
                    name=f"l-{number}",
                    sealed_secret="",
                    start_offsets=(0, 0),
                    **urls,
                )
            )
    pages, path = [], "/v1/queues?health=true"
    while path:
        body = (await api.get(path)).json()
        pages.append([(one["id"], sum(one["health"].values())) for one in body["queues"]])
        path = body["_links"].get("next", {}).get("href")
    assert dict(one for page in pages for one in page) == sizes
    assert sum(map(len, pages)) == len(sizes)
    counts = [[size for _, size in page] for page in pages]
    assert all(sum(page) <= LISTENERS_OF_PAGE_MAX or len(page) == 1 for page in counts)
    assert all(sum(page) + after[0] > LISTENERS_OF_PAGE_MAX for page, after in itertools.pairwise(counts))
    assert len((await api.get("/v1/queues")).json()["queues"]) == len(sizes)


async def test_a_put_message_is_answered_with_its_id_and_a_made_name(api):
    queue_id = await api.queue("myapp.io/delete-user")
    answer = await api.put(f"/v1/queues/{queue_id}/messages", json={"data": '{ "userId": "481512342" }'})
    assert answer.status_code == 200
    message = answer.json()["message"]
    assert list(message) == ["id", "name"]
    assert re.fullmatch(r"myapp\.io/delete-user-message-[0-9a-f]{7}", message["name"])
    href = f"http://api.example.com/v1/queues/{queue_id}/messages/{message['id']}"
    assert answer.json()["_links"] == {"self": {"href": href}}


async def test_a_message_id_tells_the_partition_that_holds_the_message(api):
    queue_id = await api.queue()
    for _ in range(4):
        message_id = (await api.put(f"/v1/queues/{queue_id}/messages", json={"data": "x"})).json()["message"]["id"]
        _, partition = parse_message_id(message_id)
        key, value, header = api.log.messages.records[partition][-1]
        assert key.decode() == message_id
        assert header.decode() == queue_id
        assert decode_message(value).message_id == message_id


@pytest.mark.parametrize("data", ["", "x" * (1 << 20), "ü" * (1 << 19), "\u0000\u001f\u2028🦊", '{"a":"b"}'])
async def test_any_string_up_to_a_mebibyte_comes_back_as_it_was_put(api, data):
    queue_id = await api.queue()
    put = await api.put(f"/v1/queues/{queue_id}/messages", json={"data": data, "name": "mine", "key": "k"})
    message = (await api.get(f"/v1/queues/{queue_id}/messages/{put.json()['message']['id']}")).json()["message"]
    assert message["data"] == data
    assert message["name"] == "mine"
    assert message["key"] == "k"
    assert message["listeners"] == []


async def test_a_message_shows_each_listeners_delivery():
    class Deliveries:
        async def states(self, message_id, partition, offset, listeners, at_ms, deliver_at_ms=0):
            attempt = Attempt(number=1, at_ms=1500, status=None, took_ms=20, error="timeout")
            return {listeners[0].id: DeliveryState(state="retrying", attempts=(attempt,), next_attempt_at_ms=2500)}

    api = await make_api(deliveries=Deliveries())
    queue_id = await api.queue()
    listener_id = await api.listener(queue_id)
    await api.listener(queue_id, name="began later")
    message_id = (await api.put(f"/v1/queues/{queue_id}/messages", json={"data": "x"})).json()["message"]["id"]
    message = (await api.get(f"/v1/queues/{queue_id}/messages/{message_id}")).json()["message"]
    at = "1970-01-01T00:00:01.500Z"
    assert message["listeners"] == [
        {
            "id": listener_id,
            "name": "listener",
            "state": "retrying",
            "attempts": [{"number": 1, "at": at, "status": None, "took_ms": 20, "error": "timeout"}],
            "next_attempt_at": "1970-01-01T00:00:02.500Z",
        }
    ]


async def test_who_did_it_and_which_request_stand_in_the_events(api):
    await api.put("/v1/queues", json={"name": "a"}, headers={"x-request-id": "r-1"})
    assert b'"request_id":"r-1"' in api.log.control.records[-1]
    assert b'"actor":"key:' in api.log.control.records[-1]


async def test_a_revoked_key_is_refused_at_once(api):
    from broker.core.events import KeyRevoked

    assert (await api.get("/v1/queues")).status_code == 200
    key_id = next(iter(api.log.control.state.keys))
    await api.log.control.append(KeyRevoked(at_ms=1, organization_id=api.organization_id, key_id=key_id))
    assert (await api.get("/v1/queues")).status_code == 401


async def test_the_queue_of_the_alerts_is_made_once_and_only_everput_puts_into_it(api):
    asked = {"name": "everput.alerts"}
    queue_id = (await api.put("/v1/queues", json=asked)).json()["queue"]["id"]
    assert (await api.put("/v1/queues", json=asked)).json()["queue"]["id"] == queue_id
    await api.listener(queue_id)
    path = f"/v1/queues/{queue_id}"
    assert (await api.put(f"{path}/messages", json={"data": "d"})).status_code == 422
    batch = {"messages": [{"data": "d"}]}
    assert (await api.request("POST", f"{path}/messages/batch", json=batch)).status_code == 422
    assert (await api.put(path, json={"name": "mine"})).status_code == 422
    assert (await api.request("DELETE", path)).status_code == 422
    other = await api.queue("other")
    assert (await api.put(f"/v1/queues/{other}", json=asked)).status_code == 422


async def test_thresholds_of_alerts_are_set_for_a_queue_and_for_a_listener(api):
    answer = await api.put("/v1/queues", json={"name": "orders", "alerts": {"parked": 10, "lag_s": 0}})
    queue = answer.json()["queue"]
    assert queue["alerts"] == {"parked": 10, "lag_s": 0}
    path = f"/v1/queues/{queue['id']}"
    changed = await api.put(path, json={"alerts": {"down_s": 5}})
    assert changed.json()["queue"]["alerts"] == {"down_s": 5}
    assert (await api.put(path, json={"name": "renamed"})).json()["queue"]["alerts"] == {"down_s": 5}
    assert "alerts" not in (await api.put(path, json={"alerts": {}})).json()["queue"]
    stale = {"if-match": changed.headers["etag"]}
    assert (await api.put(path, json={"alerts": {"parked": 1}}, headers=stale)).status_code == 412
    listener = f"{path}/listeners/{await api.listener(queue['id'], alerts={'failing_s': 9})}"
    assert (await api.get(listener)).json()["listener"]["alerts"] == {"failing_s": 9}
    assert (await api.put(listener, json={"max_in_flight": 3})).json()["listener"]["alerts"] == {"failing_s": 9}
    assert "alerts" not in (await api.put(listener, json={"alerts": {}})).json()["listener"]
    refused = await api.put(listener, json={"alerts": {"parked": -1}})
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/alerts/parked")


SMTP = SmtpSettings(host="127.0.0.1", port=25, tls=False, sender="everput@example.com")
MAIL = {"name": "mail", "notify_url": "mailto:ops@example.com", "liveness_url": "mailto:ops@example.com"}


async def test_only_alerts_are_mailed_and_only_where_the_operator_wants_it():
    api = await make_api(smtp=SMTP)
    alerts, other = await api.queue("everput.alerts"), await api.queue("orders")
    made = await api.put(f"/v1/queues/{alerts}/listeners", json=MAIL)
    assert made.json()["listener"]["notify_url"] == "mailto:ops@example.com"
    refused = await api.put(f"/v1/queues/{other}/listeners", json=MAIL)
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/notify_url")
    listener = f"/v1/queues/{other}/listeners/{await api.listener(other)}"
    assert (await api.put(listener, json={"notify_url": MAIL["notify_url"]})).status_code == 422
    mails = f"/v1/queues/{alerts}/listeners/{made.json()['listener']['id']}"
    batched = await api.put(mails, json={"batch": {}})
    assert (batched.status_code, batched.json()["errors"][0]["pointer"]) == (422, "/batch")
    wrong = MAIL | {"name": "two", "notify_url": "mailto:a@b.example,c@d.example"}
    assert (await api.put(f"/v1/queues/{alerts}/listeners", json=wrong)).status_code == 422
    api = await make_api()
    alerts = await api.queue("everput.alerts")
    assert (await api.put(f"/v1/queues/{alerts}/listeners", json=MAIL)).status_code == 422


async def test_an_organization_that_a_stranger_has_made_sends_no_mail_unless_nobody_may_register():
    for registration, status in [(True, 422), (False, 200)]:
        api = await make_api(smtp=SMTP, registration=registration)
        organization = replace(api.log.control.state.organizations[api.organization_id], by_shell=False)
        api.log.control.state.organizations[api.organization_id] = organization
        alerts = await api.queue("everput.alerts")
        assert (await api.put(f"/v1/queues/{alerts}/listeners", json=MAIL)).status_code == status
