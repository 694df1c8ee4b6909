"""Keys that may less: some scopes, some queues, for some time. What is made, refused and shown.

Not for: what such a key may ask on each route (test_isolation.py), who may make keys (test_api_accounts.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from api_client import Api, make_api, problem

from api.openapi import document
from api.reference import OPERATION_DOCS
from broker.clock import now_ms
from broker.commands.organizations import SCOPES, create_key
from broker.core import codec
from broker.core import events as ev
from broker.core.api_keys import EXPIRED_KEYS_KEPT_MS
from broker.core.directory import Directory
from broker.core.keys import SCOPES as SCOPE_WORDS
from broker.core.keys import SCOPES_WHOLE, covers

OPERATIONS = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
LATER = "2099-12-31T00:00:00.000Z"


@pytest.fixture
async def api() -> Api:
    return await make_api()


async def manager(api: Api, **limits: Any) -> dict[str, str]:
    """What a key with the scope `keys` sends."""
    scopes = ("keys", "messages")
    made = create_key(
        api.log.control, api.log.control, organization_id=api.organization_id, name="m", scopes=scopes, **limits
    )
    return {"x-api-key": (await made)[1]}


async def make(api: Api, headers: dict[str, str], **body: Any) -> Any:
    path = f"/v1/organizations/{api.organization_id}/keys"
    return await api.bare.put(path, json={"name": "new", **body}, headers=headers)


async def test_a_key_for_a_queue_and_a_time_is_shown_as_such_and_stands_in_the_log_so(api):
    queue_id = await api.queue()
    headers = await manager(api)
    wanted = {"scopes": ["messages:put"], "queues": [queue_id, queue_id], "expires_at": LATER}
    made = (await make(api, headers, **wanted)).json()["key"]
    assert (made["scopes"], made["queues"], made["expires_at"]) == (["messages:put"], [queue_id], LATER)
    path = f"/v1/organizations/{api.organization_id}/keys"
    listed = (await api.bare.get(path, headers=headers)).json()["keys"]
    assert {key["name"]: (key["queues"], key["expires_at"]) for key in listed} == {
        "first": (None, None),
        "m": (None, None),
        "new": ([queue_id], LATER),
    }
    event = codec.decode(api.log.control.records[-1])
    event = event if isinstance(event, ev.KeyCreated) else codec.decode(api.log.control.records[-2])
    assert event.queue_ids == (queue_id,)


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"queues": []}, "/queues"),
        ({"queues": ["QUEUE", "no-id"]}, "/queues/1"),
        ({"queues": ["THEIRS"]}, "/queues/0"),
        ({"queues": ["QUEUE"] * 101}, "/queues"),
        ({"queues": ["QUEUE"], "scopes": ["messages", "keys"]}, "/scopes/1"),
        ({"expires_at": "2020-01-01T00:00:00Z"}, "/expires_at"),
        ({"expires_at": "2099-01-01T00:00:00"}, "/expires_at"),
        ({"expires_at": "tomorrow"}, "/expires_at"),
        ({"scopes": ["messages:get"]}, "/scopes/0"),
    ],
)
async def test_limits_that_are_not_as_they_must_be_are_422(api, body, pointer):
    queue_id = await api.queue()
    other = {"x-api-key": await api.another_organization()}
    theirs = (await api.bare.put("/v1/queues", json={"name": "theirs"}, headers=other)).json()["queue"]["id"]
    if "queues" in body:
        body = {**body, "queues": [{"QUEUE": queue_id, "THEIRS": theirs}.get(one, one) for one in body["queues"]]}
    answer = await make(api, await manager(api), **{"scopes": ["messages"], **body})
    assert problem(answer, 422)["errors"][0]["pointer"] == pointer


async def test_no_key_makes_one_that_may_more_or_lasts_longer_than_itself(api):
    headers = await manager(api, expires_at_ms=now_ms() + 3_600_000)
    soon = "2099-01-01T00:00:00Z"
    for body in (
        {"scopes": ["queues"]},
        {"scopes": ["audit"]},
        {"scopes": ["messages"]},
        {"scopes": ["messages"], "expires_at": soon},
    ):
        problem(await make(api, headers, **body), 403, "forbidden")
    listed = (await api.bare.get(f"/v1/organizations/{api.organization_id}/keys", headers=headers)).json()["keys"]
    own = next(key["expires_at"] for key in listed if key["name"] == "m")
    made = await make(api, headers, scopes=["keys", "messages", "messages:put"], expires_at=own)
    assert made.status_code == 200
    child = {"x-api-key": made.json()["key"]["secret"]}
    problem(await make(api, child, scopes=["messages"]), 403, "forbidden")
    assert (await make(api, child, scopes=["messages:put"], expires_at=own)).status_code == 200


async def test_a_part_of_a_scope_does_not_give_the_whole(api):
    control = api.log.control
    scopes = ("keys", "messages:put")
    made = await create_key(control, control, organization_id=api.organization_id, name="m", scopes=scopes)
    problem(await make(api, {"x-api-key": made[1]}, scopes=["messages"]), 403, "forbidden")
    assert not covers(("messages:put",), "messages")
    assert all(covers(SCOPES_WHOLE, scope) for scope in SCOPES)


def test_a_key_of_an_older_version_means_what_it_meant():
    old = codec.decode(
        b'{"type":"key.created","at_ms":1,"organization_id":"o","actor":"","request_id":"","v":1,"key_id":"k",'
        b'"name":"n","prefix":"p","secret_sha256":"s","scopes":["messages"]}'
    )
    directory = Directory()
    directory.apply(ev.OrganizationCreated(at_ms=0, organization_id="o", name="acme"))
    assert directory.apply(old)
    key = directory.keys["k"]
    assert (key.queue_ids, key.expires_at_ms, key.is_for("any"), key.has_expired(1 << 50)) == (None, None, True, False)


def test_keys_that_expired_a_month_ago_are_let_go_when_another_is_made():
    directory = Directory()
    directory.apply(ev.OrganizationCreated(at_ms=0, organization_id="o", name="acme"))

    def make_key(number: int, at_ms: int, expires_at_ms: int | None) -> None:
        fields = {"key_id": f"k{number}", "name": "n", "prefix": "p", "secret_sha256": f"s{number}", "scopes": ()}
        directory.apply(ev.KeyCreated(at_ms=at_ms, organization_id="o", expires_at_ms=expires_at_ms, **fields))

    make_key(1, 0, 10)
    make_key(2, 0, 11)
    make_key(3, 0, None)
    make_key(4, EXPIRED_KEYS_KEPT_MS + 10, None)
    assert [key.id for key in directory.keys_of("o")] == ["k2", "k3", "k4"]
    assert "s1" not in directory.keys_by_sha256


def test_the_reference_says_what_each_scope_may():
    routes = [(method, path, None) for method, path in OPERATION_DOCS]
    about = document(routes, server="")["components"]["securitySchemes"]["key"]["description"]
    for scope in SCOPES:
        assert f"- `{scope}`: {SCOPE_WORDS[scope]}." in about
        assert f"| `{scope}` | {SCOPE_WORDS[scope]} |" in OPERATIONS
