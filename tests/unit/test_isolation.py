"""Tenants don't meet: every route of the application, tried with another organization's keys, sessions and ids.

The routes come from the application itself: one that has no entry here fails. Each request is then made by its owner,
too: it is a good one, and only who asks was wrong before.
"""

from __future__ import annotations

import inspect
import itertools
import re
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any

import orjson
import pytest
from api_client import Api, Socket, make_api
from starlette.routing import WebSocketRoute

import cli.processes.api
from api import console
from api.app import make_app
from api.calls import Resource
from api.problem_pages import PROBLEM_TYPES, SAME_AS
from api.tunnel import Tunnels
from broker.clock import now_ms
from broker.commands.accounts import AccountCommands
from broker.commands.context import Context, shell_context
from broker.commands.invitations import InvitationCommands
from broker.commands.organizations import SCOPES, create_key, create_organization
from broker.core.keys import SCOPES_OF_QUEUES
from tests.apps import cheap_passwords

QUEUE = "/v1/queues/{queue_id}"
LISTENER = f"{QUEUE}/listeners/{{listener_id}}"
KEYS = "/v1/organizations/{organization_id}/keys"
MEMBERS = "/v1/organizations/{organization_id}/members"
INVITATIONS = "/v1/organizations/{organization_id}/invitations"
URLS = {"notify_url": "http://127.0.0.1:8/", "liveness_url": "http://127.0.0.1:8/"}

# What belongs to an organization, with a body that is accepted: by id.
OWNED: dict[str, Any] = {
    f"GET {QUEUE}": None,
    f"PUT {QUEUE}": {"name": "renamed"},
    f"DELETE {QUEUE}": None,
    f"GET {QUEUE}/listeners": None,
    f"PUT {QUEUE}/listeners": {"name": "one more", **URLS},
    f"GET {LISTENER}": None,
    f"PUT {LISTENER}": {"name": "renamed"},
    f"DELETE {LISTENER}": None,
    f"POST {LISTENER}/pause": None,
    f"POST {LISTENER}/resume": None,
    f"GET {LISTENER}/deliveries": None,
    f"POST {LISTENER}/redrive": None,
    f"DELETE {LISTENER}/redrive": None,
    f"GET {QUEUE}/statistics": None,
    f"GET {LISTENER}/statistics": None,
    f"POST {LISTENER}/replay": {"from": "beginning"},
    f"GET {LISTENER}/replays": None,
    f"GET {LISTENER}/replays/{{replay_id}}": None,
    f"DELETE {LISTENER}/replays/{{replay_id}}": None,
    f"POST {LISTENER}/replays/{{replay_id}}/pause": None,
    f"POST {LISTENER}/replays/{{replay_id}}/resume": None,
    f"POST {LISTENER}/test": None,
    f"GET {LISTENER}/secret": None,
    f"POST {LISTENER}/secret/rotate": None,
    f"GET {QUEUE}/messages": None,
    f"PUT {QUEUE}/messages": {"data": "x"},
    f"POST {QUEUE}/messages/batch": {"messages": [{"data": "x"}]},
    f"GET {QUEUE}/messages/{{message_id}}": None,
    f"PUT {QUEUE}/messages/{{message_id}}": {"data": "changed"},
    f"DELETE {QUEUE}/messages/{{message_id}}": None,
    f"GET {KEYS}": None,
    f"PUT {KEYS}": {"name": "one more"},
    f"GET {KEYS}/{{key_id}}": None,
    f"DELETE {KEYS}/{{key_id}}": None,
}
# What has no id in its path: it is of whoever asks, and shows nothing of anybody else.
OF_THE_ASKER: dict[str, Any] = {
    "GET /v1/queues": None,
    "PUT /v1/queues": {"name": "anna's queue"},  # the name is free in another organization
    "GET /v1/log": None,
    "GET /v1/overview": None,
}
PASSWORD = "correct horse battery"
OF_THE_SESSION: dict[str, Any] = {
    "GET /v1/organizations": None,
    "PUT /v1/organizations": {"name": "anna's organization"},
    "POST /v1/accounts/password": {"password": PASSWORD, "new_password": "another password"},
    "POST /v1/accounts/delete": {"password": PASSWORD, "even_if_last": True},
    "GET /v1/sessions": None,
    "DELETE /v1/sessions": None,
}
# What only a member's session may ask; the id is a colleague's.
OF_MEMBERS: dict[str, Any] = {
    f"GET {MEMBERS}": None,
    f"PUT {MEMBERS}/{{account_id}}": {"role": "auditor"},
    f"DELETE {MEMBERS}/{{account_id}}": None,
    f"GET {INVITATIONS}": None,
    f"PUT {INVITATIONS}": {"email": "new@example.com"},
    f"DELETE {INVITATIONS}/{{invitation_id}}": None,
}
# Whoever is signed in and has a token, which names the organization: tests/unit/test_invitations.py.
BY_TOKEN: dict[str, Any] = {"POST /v1/invitations/accept": {"token": "evi_unknown"}}
# Whoever is signed in, and has an account that is linked to a provider: tests/unit/test_oidc.py.
OF_LINKED: dict[str, Any] = {"POST /v1/accounts/unlink": {"password": PASSWORD}}
# WebSockets, which answer what they refuse as the others do: tests/unit/test_tunnel.py has what they do else.
SOCKETS = {f"GET {QUEUE}/listen": "name=one more"}
# Streams that do not end by themselves: tests/unit/test_api_watch.py has what they tell, and whom they refuse.
STREAMS = {"GET /v1/changes"}
OPEN = {
    "PUT /v1/accounts",
    "POST /v1/invitations/register",  # the token names the organization: tests/unit/test_invitations.py
    "POST /v1/accounts/password-reset",
    "PUT /v1/accounts/password-reset",
    "POST /v1/sessions",
    "POST /v1/sessions/oidc",  # tests/unit/test_oidc.py
    "GET /console/oidc",
    "GET /v1/openapi.json",
    "GET /docs",
}
OPEN |= {f"GET /docs/{file}" for file in ("reference.css", "reference.js", "reference.json", "schemas.js", "try.js")}
# The console's files know nobody: what they show they ask the API for, as whoever is signed in.
OPEN |= {"GET /", "GET /problems", "GET /console/", "GET /console/samples.json"} | {
    f"GET /problems/{code}" for code in (*PROBLEM_TYPES, *SAME_AS)
}
OPEN |= {f"GET /console/{file.name}".removesuffix("/index.html") for file in console.console_files()}


def routes(api: Api) -> list[str]:
    """`METHOD /path` of every route."""
    found = []
    for route in api.app.routes:
        endpoint = getattr(route, "endpoint", None)
        methods = set(endpoint.methods) if isinstance(endpoint, Resource) else set(getattr(route, "methods", ()) or ())
        methods |= {"GET"} if isinstance(route, WebSocketRoute) else set()
        found += [f"{method} {route.path}" for method in sorted(methods - {"HEAD", "OPTIONS"}) or ["ANY"]]
    return found


@dataclass
class Tenant:
    """An organization with one of everything, a key with all scopes, and a member's session."""

    key: dict[str, str]
    session: dict[str, str]
    ids: dict[str, str]

    def member(self, where: Tenant | None = None) -> dict[str, str]:
        """The session, as acting in this tenant's organization, or in another's."""
        return {**self.session, "everput-organization": (where or self).ids["organization_id"]}


async def tenant(api: Api, who: str) -> Tenant:
    control = api.log.control
    account = {"email": f"{who}@example.com", "password": PASSWORD}
    assert (await api.bare.put("/v1/accounts", json=account)).status_code == 200
    token = (await api.bare.post("/v1/sessions", json=account)).json()["session"]["token"]
    api.bare.cookies.clear()
    session = {"authorization": f"Bearer {token}"}
    made = await api.bare.put("/v1/organizations", json={"name": f"{who}'s organization"}, headers=session)
    organization_id = made.json()["organization"]["id"]
    people = AccountCommands(control, control, cheap_passwords())
    colleague = await people.create_account(f"{who}s-colleague@example.com", PASSWORD)
    await people.members.join(colleague.id, organization_id)
    _, secret = await create_key(control, control, organization_id=organization_id, name=f"{who}'s key", scopes=SCOPES)
    key, _ = await create_key(control, control, organization_id=organization_id, name=f"{who}'s other key")
    headers = {"x-api-key": secret}
    queue = (await api.bare.put("/v1/queues", json={"name": f"{who}'s queue"}, headers=headers)).json()["queue"]
    path = f"/v1/queues/{queue['id']}"
    listener = await api.bare.put(f"{path}/listeners", json={"name": f"{who}'s listener", **URLS}, headers=headers)
    message = await api.bare.put(f"{path}/messages", json={"data": f"{who}'s data"}, headers=headers)
    listener_path = f"{path}/listeners/{listener.json()['listener']['id']}"
    replay = await api.bare.post(f"{listener_path}/replay", json={"from": "beginning"}, headers=headers)
    invitation, _ = await InvitationCommands(control, control).invite(
        shell_context(organization_id), f"{who}s-friend@example.com"
    )
    ids = {
        "organization_id": organization_id,
        "invitation_id": invitation.id,
        "account_id": colleague.id,
        "key_id": key.id,
        "queue_id": queue["id"],
        "listener_id": listener.json()["listener"]["id"],
        "message_id": message.json()["message"]["id"],
        "replay_id": replay.json()["replay"]["id"],
    }
    return Tenant(headers, session, ids)


def all_there_is(api: Api) -> tuple[object, ...]:
    """What is in the log, but for the keys' uses."""
    control = [record for record in api.log.control.records if b'"type":"key.used"' not in record]
    return (
        control,
        [list(records) for records in api.log.messages.records],
        [*api.log.claims.records, *api.log.changes.events],
    )


async def ask(api: Api, route: str, ids: dict[str, str], body: Any, headers: dict[str, str]) -> Any:
    method, _, path = route.partition(" ")
    for name in re.findall(r"{(\w+)}", path):
        path = path.replace(f"{{{name}}}", ids[name])
    sent = {} if body is None else {"json": body}
    return await api.bare.request(method, path, headers=headers, **sent)


@pytest.fixture
async def api() -> Api:
    return await make_api(allow_networks=(ip_network("127.0.0.0/8"),), tunnels=Tunnels("tunnel://127.0.0.1:8"))


def test_the_application_has_all_parts_that_production_has():
    signature = inspect.signature(make_app).parameters
    parts = {name for name, one in signature.items() if one.kind is one.KEYWORD_ONLY and one.default is one.empty}
    assert not any(one.default is None for one in signature.values())
    wired = set(re.findall(r"^            (\w+)=", inspect.getsource(cli.processes.api), re.MULTILINE))
    assert parts <= wired


async def test_every_route_has_an_entry_and_every_entry_is_a_route(api):
    entries = {*OWNED, *OF_THE_ASKER, *OF_THE_SESSION, *OF_MEMBERS, *BY_TOKEN, *OF_LINKED, *SOCKETS, *STREAMS, *OPEN}
    missing = set(routes(api)) - entries
    assert not missing, f"how is this kept from other organizations? {sorted(missing)}"
    assert entries <= set(routes(api))


@pytest.mark.parametrize("route", OWNED)
async def test_another_organizations_id_is_404_and_nothing_happens(api, route):
    owner, stranger = await tenant(api, "anna"), await tenant(api, "stranger")
    before = all_there_is(api)
    names = re.findall(r"{(\w+)}", route)
    mixtures = itertools.product([owner.ids, stranger.ids], repeat=len(names))
    for mixture in mixtures:
        ids = {name: whose[name] for name, whose in zip(names, mixture, strict=True)}
        if all(whose is stranger.ids for whose in mixture):
            continue
        for headers in (stranger.key, stranger.session, stranger.member(), stranger.member(owner)):
            answer = await ask(api, route, ids, OWNED[route], headers)
            unauthorised = headers is stranger.session and KEYS not in route
            assert answer.status_code == (401 if unauthorised else 404), answer.text
            assert "anna" not in answer.text
    assert all_there_is(api) == before
    assert (await ask(api, route, owner.ids, OWNED[route], owner.key)).status_code == 200


@pytest.mark.parametrize("route", OF_MEMBERS)
async def test_members_are_shown_to_members_and_removed_by_members_only(api, route):
    owner, stranger = await tenant(api, "anna"), await tenant(api, "stranger")
    before = all_there_is(api)
    names = re.findall(r"{(\w+)}", route)
    for mixture in itertools.product([owner.ids, stranger.ids], repeat=len(names)):
        ids = {name: whose[name] for name, whose in zip(names, mixture, strict=True)}
        if all(whose is stranger.ids for whose in mixture):
            continue
        for headers, status in ((stranger.session, 404), (stranger.key, 401), (owner.key, 401), ({}, 401)):
            answer = await ask(api, route, ids, OF_MEMBERS[route], headers)
            assert answer.status_code == status, answer.text
            assert "anna" not in answer.text
    assert all_there_is(api) == before
    assert (await ask(api, route, owner.ids, OF_MEMBERS[route], owner.session)).status_code == 200


@pytest.mark.parametrize("route", [*OWNED, *OF_THE_ASKER, *OF_MEMBERS])
@pytest.mark.parametrize("ended", ["removed", "blocked", "deleted"])
async def test_whoever_is_removed_blocked_or_deleted_is_refused_at_once_and_nothing_happens(api, route, ended):
    owner = await tenant(api, "anna")
    control = api.log.control
    people = AccountCommands(control, control, cheap_passwords())
    account_id = control.state.accounts.account("anna@example.com").id
    if ended == "removed":
        context = Context(organization_id=owner.ids["organization_id"], actor="shell", request_id="", at_ms=now_ms())
        await people.members.leave(context, account_id)
    else:
        await (people.block if ended == "blocked" else people.delete)(account_id)
    before = all_there_is(api)
    body = {**OWNED, **OF_THE_ASKER, **OF_MEMBERS}[route]
    answer = await ask(api, route, owner.ids, body, owner.member())
    assert answer.status_code == (404 if ended == "removed" else 401)
    assert all_there_is(api) == before
    assert (await api.bare.get("/v1/queues", headers=owner.key)).status_code == 200, "keys are the organization's"


@pytest.mark.parametrize("route", [*OWNED, *OF_THE_ASKER])
async def test_a_members_session_may_do_all_in_its_organization_and_nothing_elsewhere(api, route):
    owner, stranger = await tenant(api, "anna"), await tenant(api, "stranger")
    body = {**OWNED, **OF_THE_ASKER}[route]
    before = all_there_is(api)
    for where in (owner.ids["organization_id"], "no-id", ""):
        if KEYS not in route:
            answer = await ask(api, route, owner.ids, body, {**stranger.session, "everput-organization": where})
            assert answer.status_code == 404
    assert all_there_is(api) == before
    assert (await ask(api, route, owner.ids, body, owner.member())).status_code == (
        422 if body == {"name": "anna's queue"} else 200
    )


@pytest.mark.parametrize("route", SOCKETS)
async def test_a_socket_is_refused_as_all_else_is_and_nothing_happens(api, route):
    owner, stranger = await tenant(api, "anna"), await tenant(api, "stranger")
    _, without = await create_key(
        api.log.control, api.log.control, organization_id=owner.ids["organization_id"], name="none", scopes=()
    )
    before = all_there_is(api)
    path = route.removeprefix("GET ").format(**owner.ids)
    refused = [(stranger.key, 404), (stranger.member(), 404), (owner.session, 401), ({}, 401)]
    for headers, status in (*refused, ({"x-api-key": without}, 403)):
        told = await Socket(api, path, SOCKETS[route], headers).next()
        assert (told["type"], told["status"]) == ("websocket.http.response.start", status)
    assert all_there_is(api) == before
    for headers in (owner.key, owner.member()):
        mine = Socket(api, path, SOCKETS[route], headers)
        assert (await mine.next())["type"] == "websocket.accept"
        await mine.leave()


@pytest.mark.parametrize("route", [*OWNED, *OF_THE_ASKER, *OF_THE_SESSION, *OF_MEMBERS, *BY_TOKEN, *OF_LINKED])
async def test_without_a_key_or_session_it_is_401_and_nothing_happens(api, route):
    owner = await tenant(api, "anna")
    before = all_there_is(api)
    body = {**OWNED, **OF_THE_ASKER, **OF_THE_SESSION, **OF_MEMBERS, **BY_TOKEN, **OF_LINKED}[route]
    wrong = {"x-api-key": "evp_003aUlTJC7tjlCTQj2uNU3MFagCXG9LRKRcwGkBIDlf3LP1ya"}
    for headers in ({}, wrong, {"authorization": "Bearer " + wrong["x-api-key"].replace("evp", "evs")}):
        assert (await ask(api, route, owner.ids, body, headers)).status_code == 401
    assert all_there_is(api) == before


@pytest.mark.parametrize("route", [*OWNED, *(route for route in OF_THE_ASKER)])
async def test_a_key_without_the_scope_is_403_and_nothing_happens(api, route):
    owner = await tenant(api, "anna")
    control = api.log.control
    organization = await create_organization(control, control, name="none")
    for organization_id in (owner.ids["organization_id"], organization.id):
        _, secret = await create_key(control, control, organization_id=organization_id, name="none", scopes=())
        before = all_there_is(api)
        body = {**OWNED, **OF_THE_ASKER}[route]
        assert (await ask(api, route, owner.ids, body, {"x-api-key": secret})).status_code == 403
        assert all_there_is(api) == before


PUTS = {f"PUT {QUEUE}/messages", f"POST {QUEUE}/messages/batch"}


async def key_of(api: Api, owner: Tenant, **limits: Any) -> dict[str, str]:
    """What another key of the organization sends."""
    control = api.log.control
    made = create_key(control, control, organization_id=owner.ids["organization_id"], name="limited", **limits)
    return {"x-api-key": (await made)[1]}


async def ask_or_listen(api: Api, route: str, ids: dict[str, str], headers: dict[str, str]) -> tuple[int, str]:
    """Status and text of the answer; of a socket that is let in 200."""
    if route not in SOCKETS:
        answer = await ask(api, route, ids, {**OWNED, **OF_THE_ASKER}[route], headers)
        return answer.status_code, answer.text
    socket = Socket(api, route.removeprefix("GET ").format(**ids), SOCKETS[route], headers)
    told = await socket.next()
    if told["type"] == "websocket.accept":
        await socket.leave()
        return 200, ""
    return told["status"], (await socket.next())["body"].decode()


@pytest.mark.parametrize("route", [*OWNED, *OF_THE_ASKER, *SOCKETS])
async def test_a_key_that_only_puts_may_nothing_else(api, route):
    owner = await tenant(api, "anna")
    key = await key_of(api, owner, scopes=("messages:put",))
    before = all_there_is(api)
    status, _ = await ask_or_listen(api, route, owner.ids, key)
    assert status == (200 if route in PUTS else 403)
    assert (all_there_is(api) == before) == (route not in PUTS)


@pytest.mark.parametrize("route", [*OWNED, *OF_THE_ASKER, *SOCKETS])
async def test_a_key_for_one_queue_finds_no_other_and_may_nothing_that_is_no_queues(api, route):
    owner = await tenant(api, "anna")
    other = await ask(api, "PUT /v1/queues", {}, {"name": "other"}, owner.key)
    other_id = other.json()["queue"]["id"]
    limits = {"scopes": SCOPES_OF_QUEUES, "queue_ids": [other_id]}
    key = await key_of(api, owner, **limits)
    before = all_there_is(api)
    if (
        "_id}" in route.partition(QUEUE)[2]
    ):  # by its own queue's path no listener, message or replay of another is found
        status, text = await ask_or_listen(api, route, {**owner.ids, "queue_id": other_id}, key)
        assert (status, "anna" in text) == (404, False)
    status, text = await ask_or_listen(api, route, owner.ids, key)
    if route == "GET /v1/queues":
        assert [queue["name"] for queue in orjson.loads(text)["queues"]] == ["other"]
    elif route == "GET /v1/overview":
        assert (orjson.loads(text)["queues"], orjson.loads(text)["listeners"]) == (1, {})
    else:
        assert status == (404 if QUEUE in route else 403)
    assert "anna" not in text
    assert all_there_is(api) == before
    key = await key_of(api, owner, **{**limits, "queue_ids": [owner.ids["queue_id"]]})
    status, _ = await ask_or_listen(api, route, owner.ids, key)
    assert status == (200 if QUEUE in route or route in ("GET /v1/queues", "GET /v1/overview") else 403)


@pytest.mark.parametrize("remembered", [False, True])
@pytest.mark.parametrize("route", [*OWNED, *OF_THE_ASKER, *SOCKETS, "GET /v1/organizations"])
async def test_a_key_that_has_expired_opens_nothing(api, route, remembered, monkeypatch):
    owner = await tenant(api, "anna")
    key = await key_of(api, owner, scopes=SCOPES, expires_at_ms=now_ms() + 60_000)
    if remembered:
        assert (await api.bare.get("/v1/queues", headers=key)).status_code == 200
    monkeypatch.setattr("api.auth.now_ms", lambda: now_ms() + 60_000)
    before = all_there_is(api)
    if route == "GET /v1/organizations":
        answer = await api.bare.get("/v1/organizations", headers=key)
        status, text = answer.status_code, answer.text
    else:
        status, text = await ask_or_listen(api, route, owner.ids, key)
    assert (status, "has expired" in text) == (401, True)
    assert all_there_is(api) == before


@pytest.mark.parametrize("as_member", [False, True])
@pytest.mark.parametrize("route", [*OF_THE_ASKER, *OF_THE_SESSION])
async def test_what_is_of_the_asker_shows_nothing_of_another(api, route, as_member):
    owner, stranger = await tenant(api, "anna"), await tenant(api, "stranger")
    state = api.log.control.state
    before = [queue.id for queue in state.queues_of(owner.ids["organization_id"])], list(state.accounts.sessions)
    headers = stranger.key if route in OF_THE_ASKER else stranger.session
    headers = stranger.member() if as_member else headers
    body = {**OF_THE_ASKER, **OF_THE_SESSION}[route]
    answer = await ask(api, route, {}, body, headers)
    assert answer.status_code == 200
    assert not any(id_ in answer.text for id_ in owner.ids.values())
    if route.startswith("GET"):
        assert "anna" not in answer.text
        # An overview has no names while no listener needs attention.
        assert "stranger" in answer.text or (route, answer.json().get("queues")) == ("GET /v1/overview", 1)
    now = [queue.id for queue in state.queues_of(owner.ids["organization_id"])], list(state.accounts.sessions)
    assert now[0] == before[0]
    assert now[1][0] == before[1][0]
