"""Sessions that act in an organization: who may, from where, how often, and in whose name it stands in the log."""

from __future__ import annotations

import pytest
from api_client import Api, make_api, problem
from test_api_accounts import SAME, bearer, organization, register

from broker.core.codec import decode


async def member(api: Api) -> dict[str, str]:
    """What the console sends: the token of a new account, and its new organization."""
    token = await register(api)
    return {**bearer(token), "everput-organization": await organization(api, token)}


async def test_a_member_makes_a_queue_and_puts_a_message_and_the_log_names_the_account():
    api = await make_api()
    headers = await member(api)
    account = (await api.bare.get("/v1/sessions", headers=headers)).json()["account"]["id"]
    made = await api.bare.put("/v1/queues", json={"name": "orders"}, headers=headers)
    queue_id = made.json()["queue"]["id"]
    put = await api.bare.put(f"/v1/queues/{queue_id}/messages", json={"data": "first"}, headers=headers)
    assert put.status_code == 200
    shown = await api.bare.get(f"/v1/queues/{queue_id}/messages", headers=headers)
    assert [one["data"] for one in shown.json()["messages"]] == ["first"]
    events = [decode(record) for record in api.log.control.records]
    (queue_made,) = [event for event in events if getattr(event, "queue_id", None) == queue_id]
    (put_event,) = [decode(value) for records in api.log.messages.records for _, value, _ in records]
    assert {queue_made.actor, put_event.actor} == {f"account:{account}"}
    assert queue_made.organization_id == put_event.organization_id == headers["everput-organization"]
    problem(await api.get(f"/v1/queues/{queue_id}"), 404)  # the key is another organization's


@pytest.mark.parametrize(
    ("headers", "status"),
    [({}, 403), ({"sec-fetch-site": "cross-site"}, 403), (SAME, 200), ({"origin": "http://api.example.com"}, 200)],
)
async def test_with_a_cookie_only_the_servers_own_pages_change_something(headers, status):
    api = await make_api()
    token = await register(api)
    cookie = {"cookie": f"everput_session={token}", "everput-organization": await organization(api, token)}
    answer = await api.bare.put("/v1/queues", json={"name": "orders"}, headers={**headers, **cookie})
    assert answer.status_code == status
    assert (await api.bare.get("/v1/queues", headers=cookie)).status_code == 200


async def test_a_session_that_names_no_organization_and_one_that_has_ended_are_401():
    api = await make_api()
    headers = await member(api)
    problem(await api.bare.get("/v1/queues", headers={"authorization": headers["authorization"]}), 401)
    assert (await api.bare.delete("/v1/sessions", headers=headers)).status_code == 200
    problem(await api.bare.get("/v1/queues", headers=headers), 401, "unauthenticated")


async def test_of_a_key_and_an_organization_the_key_counts():
    api = await make_api()
    other = (await member(api))["everput-organization"]
    assert (await api.put("/v1/queues", json={"name": "x"}, headers={"everput-organization": other})).status_code == 200
    assert [queue.name for queue in api.log.control.state.queues_of(api.organization_id)] == ["x"]


async def test_members_may_ask_as_often_as_keys():
    api = await make_api(requests_per_s=0.5)
    headers = await member(api)
    answers = [await api.bare.get("/v1/queues", headers=headers) for _ in range(6)]
    assert [answer.status_code for answer in answers] == [200] * 5 + [429]
    assert answers[0].headers["ratelimit-policy"] == '"members";q=5;w=10'
    assert (await api.get("/v1/queues")).status_code == 200
    assert (await api.bare.get("/v1/sessions", headers=headers)).status_code == 200


async def test_without_a_limit_a_member_is_not_slowed_down_as_sessions_are():
    api = await make_api()
    headers = await member(api)
    for _ in range(70):
        answer = await api.bare.get("/v1/queues", headers=headers)
        assert (answer.status_code, answer.headers.get("ratelimit")) == (200, None)
